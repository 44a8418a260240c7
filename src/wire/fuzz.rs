//! What is fuzzed, beside the code that it is about: the targets in `fuzz/` only call these functions with their bytes, and
//! those of `channel/fuzz.rs` and `pool/fuzz.rs`.
//!
//! Each panics if a promise is broken. The corpus in `fuzz/corpus/` is replayed by `cargo test`, at the end of each file.
//! There is no I/O here, and nothing of it is part of the library that is built otherwise.

use std::collections::BTreeMap;

use bytes::{Buf as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio_util::codec::{Decoder as _, Encoder as _};

use crate::error::{RecvError, SendError};
use crate::wire::Codec;
use crate::wire::body;
use crate::wire::frame::{self, Frame, HEAD_LEN, VALUE};
use crate::wire::message::{FromWorker, Kind};

/// A type with all that makes decoding hard: recursion, lists of nothing, fields that take no bytes, text, maps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Value {
    Unit,
    Bool(bool),
    Int(i64),
    Wide(u128),
    Float(f64),
    Char(char),
    Text(String),
    Bytes(Bytes),
    List(Vec<Value>),
    Map(BTreeMap<u16, Value>),
    Pair(Box<(Value, Value)>),
    Maybe(Option<Box<Value>>),
    Record { id: u32, ticks: Vec<()>, blanks: Vec<Blank> },
}

/// Takes no byte on the wire.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Blank {
    #[serde(skip)]
    hidden: Box<[u64; 32]>,
}

/// Arbitrary bytes at arbitrary split points: no panic, the same result whole or split, nothing over the limit.
///
/// The first byte is the limit's exponent, and with its highest bit says that the rest is one body, to be put into a
/// frame; the second is the split.
pub fn codec_decode(data: &[u8]) {
    let [control, split, rest @ ..] = data else { return };
    let max = 1 << (control % 16);
    let mut stream = BytesMut::new();
    if control & 0x80 != 0 {
        let body = Bytes::copy_from_slice(rest);
        Frame { kind: VALUE, body: body.into(), ..Frame::default() }.put_head(&mut stream);
    }
    stream.extend_from_slice(rest);
    let whole = decode_all(max, &stream, stream.len());
    assert_eq!(
        whole,
        decode_all(max, &stream, usize::from(*split) + 1),
        "split every {} bytes",
        usize::from(*split) + 1
    );
    assert_eq!(whole, decode_all(max, &stream, 1), "split at each byte");
}

/// All that a codec makes of the stream when it comes in pieces of so many bytes: the values, encoded again, and errors.
fn decode_all(max: usize, stream: &[u8], piece: usize) -> Vec<Result<Bytes, String>> {
    let (mut codec, mut buffer, mut results) = (Codec::<Value>::new(max), BytesMut::new(), Vec::new());
    let mut pieces = stream.chunks(piece.max(1));
    loop {
        let piece = pieces.next();
        buffer.extend_from_slice(piece.unwrap_or_default());
        loop {
            let came = buffer.len();
            let result = if piece.is_some() { codec.decode(&mut buffer) } else { codec.decode_eof(&mut buffer) };
            assert!(buffer.len() <= came, "decoding only takes from the buffer");
            match result {
                Ok(None) if piece.is_some() => break,
                Ok(None) => return results,
                Ok(Some(value)) => {
                    // What fitted a body fits one again: none of these types grows when it is written.
                    let mut again = BytesMut::new();
                    Codec::new(max).encode(value, &mut again).expect("a value that came can be sent");
                    results.push(Ok(again.freeze()));
                }
                Err(error @ RecvError::Decode(_)) => results.push(Err(error.to_string())),
                Err(error) => {
                    let again = codec.decode_eof(&mut buffer).expect_err("the stream is at its end");
                    assert_eq!(error.to_string(), again.to_string(), "the error stays");
                    results.push(Err(error.to_string()));
                    return results;
                }
            }
        }
    }
}

/// Arbitrary values: what is encoded is decoded as the same values, at a limit that is exact to the byte.
pub fn codec_roundtrip(mut data: &[u8]) {
    let piece = usize::from(data.try_get_u8().unwrap_or_default());
    let (mut values, mut stream, mut codec) = (Vec::new(), BytesMut::new(), Codec::new(1 << 20));
    while !data.is_empty() && values.len() < 8 {
        let value = arbitrary(&mut data, 16);
        let start = stream.len();
        codec.encode(value.clone(), &mut stream).expect("every value can be encoded");
        refused_below(stream.len() - start - HEAD_LEN, &value);
        values.push(value);
    }
    let (mut codec, mut buffer, mut decoded) = (Codec::<Value>::new(1 << 20), BytesMut::new(), Vec::new());
    for piece in stream.chunks(piece.max(1)) {
        buffer.extend_from_slice(piece);
        while let Some(value) = codec.decode(&mut buffer).expect("what was encoded can be decoded") {
            decoded.push(value);
        }
    }
    assert!(matches!(codec.decode_eof(&mut buffer), Ok(None)));
    assert_eq!(values, decoded);
}

/// With one byte less than it takes, the value is refused, by its exact length, and the buffer is as it was.
fn refused_below(taken: usize, value: &Value) {
    let mut dst = BytesMut::from("before");
    Codec::new(taken).encode(value.clone(), &mut dst).expect("the limit is inclusive");
    dst.truncate(6);
    match Codec::new(taken - 1).encode(value.clone(), &mut dst) {
        Err(SendError::TooLarge { len, max }) => assert_eq!((len, max), (taken as u64, taken as u64 - 1)),
        other => panic!("{other:?}"),
    }
    assert_eq!(dst, "before");
}

/// The next so many bytes, or what is left.
pub(crate) fn piece<'a>(data: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (piece, rest) = data.split_at(len.min(data.len()));
    *data = rest;
    piece
}

/// Makes a value out of bytes, until there are none; every sequence of bytes is one.
fn arbitrary(data: &mut &[u8], depth: u32) -> Value {
    let len = |data: &mut &[u8], most: u8| usize::from(data.try_get_u8().unwrap_or_default() % most);
    let Some(tag) = data.try_get_u8().ok().filter(|_| depth > 0) else { return Value::Unit };
    match tag % 13 {
        1 => Value::Bool(data.len() % 2 == 1),
        2 => Value::Int(data.try_get_i64().unwrap_or(i64::MIN) >> (tag % 64)),
        3 => Value::Wide(data.try_get_u128().unwrap_or(u128::MAX) >> (tag % 128)),
        4 => Value::Float(data.try_get_f64().ok().filter(|float| !float.is_nan()).unwrap_or(f64::NEG_INFINITY)),
        5 => Value::Char(data.try_get_u32().ok().and_then(char::from_u32).unwrap_or(char::MAX)),
        6 => {
            let len = len(data, 255).min(data.len());
            Value::Text(String::from_utf8_lossy(&data.copy_to_bytes(len)).into_owned())
        }
        7 => {
            let len = len(data, 255).min(data.len());
            Value::Bytes(data.copy_to_bytes(len))
        }
        8 => Value::List((0..len(data, 9)).map(|_| arbitrary(data, depth - 1)).collect()),
        9 => Value::Map(
            (0..len(data, 9)).map(|_| (data.try_get_u16().unwrap_or_default(), arbitrary(data, depth - 1))).collect(),
        ),
        10 => Value::Pair(Box::new((arbitrary(data, depth - 1), arbitrary(data, depth - 1)))),
        11 => Value::Maybe((tag > 127).then(|| Box::new(arbitrary(data, depth - 1)))),
        12 => Value::Record {
            id: data.try_get_u32().unwrap_or_default(),
            ticks: vec![(); len(data, 255)],
            blanks: vec![Blank::default(); len(data, 9)],
        },
        _ => Value::Unit,
    }
}

/// What a hostile worker may send to its parent: no panic, the same messages whole or split, and nothing behind an error.
///
/// The first byte is the limit's exponent, and with its highest bit says that the rest is one body of the kind that the
/// bits between choose; the second is the split.
pub fn worker_messages(data: &[u8]) {
    const KINDS: [Kind; 6] = [Kind::Ready, Kind::Refused, Kind::Done, Kind::Failed, Kind::Bell, Kind::Begun];
    let [control, split, rest @ ..] = data else { return };
    let max = 1 << (control % 16);
    let mut stream = BytesMut::new();
    if control & 0x80 != 0 {
        let kind = KINDS[usize::from(control >> 4 & 7) % KINDS.len()];
        let body = Bytes::copy_from_slice(rest);
        Frame { kind: kind as u8, id: 7, body: body.into(), ..Frame::default() }.put_head(&mut stream);
    }
    stream.extend_from_slice(rest);
    let whole = messages(max, &stream, stream.len());
    assert_eq!(whole, messages(max, &stream, usize::from(*split) + 1), "split every {} bytes", usize::from(*split) + 1);
}

/// All that a parent understands of the stream when it comes in pieces of so many bytes, in words.
fn messages(max: usize, stream: &[u8], piece: usize) -> Vec<String> {
    let (mut decoder, mut buffer, mut seen) = (frame::Decoder::new(max), BytesMut::new(), Vec::new());
    for piece in stream.chunks(piece.max(1)) {
        buffer.extend_from_slice(piece);
        loop {
            let (head, body) = match decoder.decode(&mut buffer) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(broken) => {
                    seen.push(RecvError::from(broken).to_string());
                    return seen;
                }
            };
            assert!(body.len() <= max, "no body is over the limit");
            seen.push(match FromWorker::parse(Frame { kind: head.kind, id: head.id, body, ..Frame::default() }) {
                Ok(FromWorker::Done(frame)) => match body::decode::<Value>(&frame.body) {
                    Ok(value) => format!("done {} {value:?}", frame.id),
                    Err(error) => format!("done {} {error}", frame.id),
                },
                Ok(message) => format!("{message:?}"),
                Err(error) => format!("{error:?}"),
            });
        }
    }
    seen.push(format!("cut: {}", !decoder.at_boundary(&buffer)));
    seen
}

/// Feeds every file of the target's corpus to it.
#[cfg(test)]
pub(crate) fn replay(target: &str, body: fn(&[u8])) {
    use std::fs;
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files = 0;
    for file in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let file = file.unwrap().path();
        // A failing test shows what it printed, and so the file that did it.
        println!("{}", file.display());
        body(&fs::read(file).unwrap());
        files += 1;
    }
    assert!(files > 0, "{} is empty", folder.display());
}

#[cfg(test)]
mod tests {
    use super::replay;

    #[test]
    fn the_corpus_of_codec_decode() {
        replay("codec_decode", super::codec_decode);
    }

    #[test]
    fn the_corpus_of_codec_roundtrip() {
        replay("codec_roundtrip", super::codec_roundtrip);
    }

    #[test]
    fn the_corpus_of_worker_messages() {
        replay("worker_messages", super::worker_messages);
    }
}
