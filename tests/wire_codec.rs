//! What `wire::Codec` promises to those who use it on a stream of their own.

use std::cell::Cell;
use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _};
use multiproc::wire::Codec;
use multiproc::{RecvError, SendError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio_util::codec::{Decoder as _, Encoder as _, Framed, FramedRead};

const MIB: usize = 1 << 20;

fn encoded<T: Serialize>(values: impl IntoIterator<Item = T>) -> BytesMut {
    let (mut codec, mut stream) = (Codec::new(usize::MAX), BytesMut::new());
    values.into_iter().for_each(|value| codec.encode(value, &mut stream).unwrap());
    stream
}

/// A header that announces so many bytes.
fn head(len: u32) -> [u8; 16] {
    let mut head = [0; 16];
    head[..4].copy_from_slice(&len.to_le_bytes());
    head[4..6].copy_from_slice(&[1, 1]);
    head
}

#[test]
fn values_come_out_as_they_went_in_wherever_the_stream_is_cut() {
    let values = ["", "one", "two words", &"long ".repeat(30)].map(String::from);
    let stream = encoded(values.clone());
    for step in 1..=stream.len() {
        let (mut codec, mut buffer, mut seen) = (Codec::<String>::new(MIB), BytesMut::new(), Vec::new());
        for piece in stream.chunks(step) {
            buffer.extend_from_slice(piece);
            while let Some(value) = codec.decode(&mut buffer).unwrap() {
                seen.push(value);
            }
        }
        assert_eq!(seen, values);
        assert!(codec.decode_eof(&mut buffer).unwrap().is_none());
    }
}

#[test]
fn an_empty_value_a_large_one_and_a_list_of_nothing_are_values() {
    fn round<T: Serialize + DeserializeOwned>(value: T) -> T {
        Codec::new(usize::MAX).decode(&mut encoded([value])).unwrap().unwrap()
    }
    round(());
    assert_eq!(round(vec![(); 1_000_000]).len(), 1_000_000);
    assert_eq!(round(Bytes::from(vec![7; 16 * MIB])), vec![7; 16 * MIB]);
    assert_eq!(round(vec![7u8; 16 * MIB]), vec![7; 16 * MIB]);
    assert_eq!(round(HashMap::from([(1, Some('x')), (u128::MAX, None)])).len(), 2);
}

#[test]
fn a_header_that_lies_is_an_error_without_the_memory_that_it_announces() {
    // 2^32 - 1 bytes; and 2^63 as the length and what follows it, which is no version then.
    for (lie, is_too_large) in [(head(u32::MAX), true), (u128::to_le_bytes(1 << 63), false), ([0; 16], false)] {
        let (mut codec, mut buffer) = (Codec::<String>::new(MIB), BytesMut::new());
        for byte in lie {
            assert!(buffer.is_empty() || matches!(codec.decode(&mut buffer), Ok(None)));
            buffer.extend_from_slice(&[byte]);
        }
        let taken = buffer.capacity();
        let error = codec.decode(&mut buffer).unwrap_err();
        match error {
            RecvError::TooLarge { len, max } => assert!(is_too_large && (len, max) == (u64::from(u32::MAX), 1 << 20)),
            RecvError::Protocol { .. } => assert!(!is_too_large),
            other => panic!("{other}"),
        }
        assert!(buffer.capacity() <= taken);
    }
    // A length of 0 is true: a frame with no bytes, which is no String, and the next frame is fine.
    let mut stream = BytesMut::from(&head(0)[..]);
    stream.unsplit(encoded(["next"]));
    let mut codec = Codec::<String>::new(MIB);
    assert!(matches!(codec.decode(&mut stream), Err(RecvError::Decode(_))));
    assert_eq!(codec.decode(&mut stream).unwrap().unwrap(), "next");
}

#[test]
fn a_frame_within_the_limit_that_never_comes_takes_no_memory() {
    let (mut codec, mut buffer) = (Codec::<String>::new(1 << 31), BytesMut::new());
    buffer.extend_from_slice(&head(1 << 30));
    for came in 1..1000 {
        buffer.extend_from_slice(b"x");
        assert!(codec.decode(&mut buffer).unwrap().is_none());
        assert!(buffer.capacity() <= 2 * came + 64, "{} for {came}", buffer.capacity());
    }
    assert!(matches!(codec.decode_eof(&mut buffer), Err(RecvError::Truncated)));
    assert!(matches!(codec.decode_eof(&mut buffer), Err(RecvError::Truncated)), "the same again");
}

#[test]
fn after_a_broken_header_the_error_stays_and_nothing_is_gathered() {
    let foreign = |at: usize, byte| {
        let mut frame = encoded(["good"]);
        frame[at] = byte;
        frame
    };
    let bad = [
        BytesMut::from("GET / HTTP/1.1\r\n\r\n"),
        foreign(4, 2),  // version
        foreign(5, 16), // kind: what parent and worker say to each other
        foreign(6, 1),  // fds
        foreign(7, 1),  // reserved
        foreign(8, 1),  // id
    ];
    for bad in bad {
        // As soon as the header is there; its body need not come.
        let (mut codec, mut buffer) = (Codec::<String>::new(MIB), BytesMut::from(&bad[..16]));
        for _ in 0..100 {
            let error = codec.decode(&mut buffer).unwrap_err();
            assert!(matches!(error, RecvError::Protocol { .. } | RecvError::TooLarge { .. }), "{error}");
            assert!(buffer.is_empty());
            buffer.extend_from_slice(&encoded(["good again"]));
        }
        assert!(codec.decode_eof(&mut buffer).is_err());
        assert!(codec.decode_eof(&mut BytesMut::new()).is_err());
    }
}

#[test]
fn one_undecodable_message_is_a_decode_error_for_it_and_the_next_is_fine() {
    let mut stream = encoded(["first"]);
    stream.unsplit(encoded([Bytes::from_static(&[0xff, 0xfe])]));
    stream.unsplit(encoded([("trailing", 1)]));
    stream.unsplit(encoded(["last"]));
    let mut codec = Codec::<String>::new(MIB);
    assert_eq!(codec.decode(&mut stream).unwrap().unwrap(), "first");
    for why in ["a string is not UTF-8", "bytes are left after the value"] {
        match codec.decode(&mut stream) {
            Err(RecvError::Decode(source)) => assert_eq!(source.to_string(), why),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(codec.decode_eof(&mut stream).unwrap().unwrap(), "last");
    assert!(codec.decode_eof(&mut stream).unwrap().is_none());
}

#[test]
fn too_large_is_refused_at_the_sender_and_at_the_reader() {
    let mut dst = BytesMut::from("before");
    let mut codec = Codec::<String>::new(9);
    match codec.encode("ten bytes".into(), &mut dst) {
        Err(SendError::TooLarge { len, max }) => assert_eq!((len, max), (10, 9)),
        other => panic!("{other:?}"),
    }
    assert_eq!(dst, "before");
    codec.encode("8 bytes.".into(), &mut dst).unwrap();
    assert_eq!(dst.len(), 6 + 16 + 9);

    let mut stream = encoded(["ten bytes"]);
    match codec.decode(&mut stream) {
        Err(RecvError::TooLarge { len, max }) => assert_eq!((len, max), (10, 9)),
        other => panic!("{other:?}"),
    }
}

thread_local! {
    static MADE: Cell<usize> = const { Cell::new(0) };
}

/// Takes no byte on the wire, and counts how many are made.
#[derive(Debug)]
struct Blank(#[expect(dead_code, reason = "it is there for its size")] [u8; 1024]);

impl<'de> Deserialize<'de> for Blank {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <()>::deserialize(deserializer)?;
        MADE.set(MADE.get() + 1);
        Ok(Self([0; 1024]))
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Node(Option<Box<Node>>);

#[test]
fn a_few_hostile_bytes_become_neither_gigabytes_nor_a_full_stack() {
    let decode = |body: &[u8]| {
        let mut stream = BytesMut::from(&head(u32::try_from(body.len()).unwrap())[..]);
        stream.extend_from_slice(body);
        stream
    };
    // Four billion elements in five bytes.
    let billions = [0xff, 0xff, 0xff, 0xff, 0x0f];
    let error = Codec::<Vec<Blank>>::new(MIB).decode(&mut decode(&billions)).unwrap_err();
    assert!(matches!(error, RecvError::Decode(_)));
    assert_eq!(MADE.get(), 0);
    assert!(Codec::<Vec<()>>::new(MIB).decode(&mut decode(&billions)).is_err());
    // A million levels.
    assert!(Codec::<Node>::new(2 * MIB).decode(&mut decode(&vec![1; MIB])).is_err());
    let deep = (0..63).fold(Node(None), |node, _| Node(Some(Box::new(node))));
    assert!(Codec::<Node>::new(MIB).decode(&mut encoded([deep])).is_ok());
}

#[test]
fn a_value_that_cannot_be_encoded_says_why_and_leaves_the_buffer() {
    #[derive(Serialize)]
    struct Skips {
        #[serde(skip_serializing_if = "Option::is_none")]
        maybe: Option<u8>,
    }
    let mut dst = BytesMut::from("before");
    match Codec::new(MIB).encode(Skips { maybe: None }, &mut dst) {
        Err(SendError::Encode(source)) => assert!(source.to_string().contains("`maybe`"), "{source}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(dst, "before");
}

#[test]
fn a_panic_in_a_value_leaves_the_buffer_and_the_codec_as_they_were() {
    struct Panics;
    impl Serialize for Panics {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            panic!("in serialize")
        }
    }
    impl<'de> Deserialize<'de> for Panics {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            if bool::deserialize(deserializer)? { panic!("in deserialize") } else { Ok(Self) }
        }
    }
    let caught = |run: &mut dyn FnMut()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err();
    let (mut codec, mut buffer) = (Codec::<Panics>::new(MIB), BytesMut::from("before"));
    assert!(caught(&mut || drop(codec.encode(Panics, &mut buffer))));
    assert_eq!(buffer, "before");
    let mut stream = encoded([true, false]);
    assert!(caught(&mut || drop(codec.decode(&mut stream))));
    assert!(codec.decode(&mut stream).unwrap().is_some());
}

#[tokio::test]
async fn framed_over_a_stream_of_bytes_and_its_clean_end() {
    let (ours, theirs) = tokio::io::duplex(7);
    let mut theirs = Framed::new(theirs, Codec::<String>::new(MIB));
    let writer = tokio::spawn(async move {
        let mut ours = Framed::new(ours, Codec::<String>::new(MIB));
        for n in 0..100 {
            ours.send("x".repeat(n)).await.unwrap();
        }
    });
    for n in 0..100 {
        assert_eq!(theirs.next().await.unwrap().unwrap().len(), n);
    }
    assert!(theirs.next().await.is_none());
    writer.await.unwrap();
}

#[tokio::test]
async fn a_stream_that_ends_inside_a_frame_is_truncated_and_then_at_its_end() {
    let stream = encoded(["whole", "cut"]);
    for cut in [1, 15, 16, 18] {
        let (mut ours, theirs) = tokio::io::duplex(64);
        ours.write_all(&stream[..22 + cut]).await.unwrap();
        drop(ours);
        let mut theirs = FramedRead::new(theirs, Codec::<String>::new(MIB));
        assert_eq!(theirs.next().await.unwrap().unwrap(), "whole");
        assert!(matches!(theirs.next().await, Some(Err(RecvError::Truncated))), "cut at {cut}");
        assert!(theirs.next().await.is_none());
        assert!(theirs.next().await.is_none());
    }
}
