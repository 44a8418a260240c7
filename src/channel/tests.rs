//! What a peer may do to a receiver: every byte in here is written by hand.

use std::cell::Cell;
use std::future::{Future as _, pending, poll_fn};
use std::io::IoSlice;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;

use super::inbox::Inbox;
use super::socket::Socket;
use super::{Client, Duplex, Receiver, SharedBytes, SharedBytesMut, serve, value};
use crate::error::{CallError, RecvError, SendError};
use crate::sys::memory;
use crate::sys::socket::{self, Ready, Wait};
use crate::wire::extra::Extra;
use crate::wire::frame::{ANSWER, Frame, Limits, REQUEST, VALUE};
use crate::wire::held::Held;

/// A frame's bytes.
fn wire(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.put_head(&mut bytes);
    bytes.extend_from_slice(&frame.body);
    for piece in &*frame.more {
        bytes.extend_from_slice(piece);
    }
    bytes
}

fn text(text: &str) -> Vec<u8> {
    wire(&value::encode(&text, usize::MAX).unwrap())
}

fn pair() -> (OwnedFd, Receiver<String>) {
    let (theirs, ours) = socket::stream_pair().unwrap();
    (theirs, Receiver::new(ours))
}

fn write(socket: &OwnedFd, bytes: &[u8]) {
    assert_eq!(socket::send(socket, &[IoSlice::new(bytes)], &[]).unwrap(), bytes.len());
}

/// Before the header, in it, behind it, in the body and after it: wherever the sender ends.
#[test]
fn the_end_between_two_frames_is_clean_and_any_other_is_truncated() {
    let whole = [text("first"), text("second")].concat();
    let boundaries = [0, text("first").len(), whole.len()];
    for cut in 0..=whole.len() {
        let (theirs, mut rx) = pair();
        write(&theirs, &whole[..cut]);
        drop(theirs);
        for expected in ["first", "second"].iter().zip(&boundaries[1..]).filter(|(_, end)| cut >= **end) {
            assert_eq!(rx.blocking_recv().unwrap().as_deref(), Some(*expected.0));
        }
        for _ in 0..3 {
            match rx.blocking_recv() {
                Ok(None) => assert!(boundaries.contains(&cut), "cut at {cut}"),
                Err(RecvError::Truncated) => assert!(!boundaries.contains(&cut), "cut at {cut}"),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_frame_that_comes_byte_by_byte_is_whole_in_the_end() {
    let (theirs, mut rx) = pair();
    for byte in &text("slowly") {
        assert!(poll_fn(|cx| Poll::Ready(pin!(rx.recv()).poll(cx))).await.is_pending());
        write(&theirs, std::slice::from_ref(byte));
    }
    assert_eq!(rx.recv().await.unwrap().as_deref(), Some("slowly"));
}

/// Its announced length is not believed: memory grows with what comes.
#[test]
fn a_header_that_lies_is_an_error_and_takes_no_memory() {
    let claim = |len: u32, version: u8, kind: u8, fds: u8, rest: u8| {
        let mut bytes = len.to_le_bytes().to_vec();
        bytes.extend([version, kind, fds, rest, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes
    };
    let last = |bytes: Vec<u8>| {
        let (theirs, rx) = pair();
        let mut rx = rx.max_message(1 << 20);
        write(&theirs, &text("fine"));
        write(&theirs, &bytes);
        drop(theirs);
        assert_eq!(rx.blocking_recv().unwrap().as_deref(), Some("fine"));
        let error = rx.blocking_recv().unwrap_err();
        if !matches!(error, RecvError::Decode(_)) {
            assert_eq!(rx.blocking_recv().unwrap_err().to_string(), error.to_string(), "the same again");
        }
        error
    };
    assert!(matches!(last(claim(0, 1, VALUE, 0, 0)), RecvError::Decode(_)), "no text has no bytes");
    assert!(matches!(
        last(claim(u32::MAX, 1, VALUE, 0, 0)),
        RecvError::TooLarge { len: 0xffff_ffff, max: 0x0010_0000 }
    ));
    assert!(matches!(last(claim(1 << 20, 1, VALUE, 0, 0)), RecvError::Truncated));
    assert!(matches!(last((1u64 << 63).to_le_bytes().repeat(2)), RecvError::Protocol { .. }));
    assert!(matches!(last(vec![0; 64]), RecvError::Protocol { .. }));
    assert!(matches!(last(vec![0xff; 64]), RecvError::Protocol { .. }));
    assert!(matches!(last(claim(0, 2, VALUE, 0, 0)), RecvError::Protocol { .. }), "another version");
    assert!(matches!(last(claim(0, 1, 17, 0, 0)), RecvError::Protocol { .. }), "a worker's frame");
    assert!(matches!(last(claim(0, 1, VALUE, 65, 0)), RecvError::Protocol { .. }), "too many fds");
    assert!(matches!(last(claim(0, 1, VALUE, 0, 1)), RecvError::Protocol { .. }), "a reserved bit");
}

#[test]
fn fds_that_were_announced_and_did_not_come_cost_that_message_alone() {
    let (theirs, ours) = socket::stream_pair().unwrap();
    let mut rx = Receiver::<Receiver<u8>>::new(ours);
    let (_, end) = super::channel::<u8>().unwrap();
    let frame = value::encode(&end, 1000).unwrap();
    assert_eq!(frame.fds.len(), 1);
    write(&theirs, &wire(&frame));
    assert!(matches!(rx.blocking_recv(), Err(RecvError::Decode(_))));
    let (_, end) = super::channel::<u8>().unwrap();
    let frame = value::encode(&end, 1000).unwrap();
    socket::send(&theirs, &[IoSlice::new(&wire(&frame))], &[frame.fds[0].as_fd()]).unwrap();
    assert!(rx.blocking_recv().unwrap().is_some(), "the next has its own");
}

#[test]
fn fds_that_nobody_announced_end_the_channel() {
    for announced in [false, true] {
        let (theirs, ours) = socket::stream_pair().unwrap();
        let mut rx = Receiver::<Option<Receiver<u8>>>::new(ours);
        socket::send(&theirs, &[IoSlice::new(&wire(&value::encode(&None::<u8>, 9).unwrap()))], &[theirs.as_fd()])
            .unwrap();
        if announced {
            // The next frame has fds of its own, and must not get these.
            let frame = value::encode(&Some(super::channel::<u8>().unwrap().1), 1000).unwrap();
            socket::send(&theirs, &[IoSlice::new(&wire(&frame))], &[frame.fds[0].as_fd()]).unwrap();
        }
        for _ in 0..3 {
            assert!(matches!(rx.blocking_recv(), Err(RecvError::Protocol { .. })));
        }
    }
}

#[test]
fn another_number_of_fds_than_announced_ends_the_channel() {
    let (theirs, ours) = socket::stream_pair().unwrap();
    let mut rx = Receiver::<Receiver<u8>>::new(ours);
    let (_, end) = super::channel::<u8>().unwrap();
    let frame = value::encode(&end, 1000).unwrap();
    socket::send(&theirs, &[IoSlice::new(&wire(&frame))], &[theirs.as_fd(), theirs.as_fd()]).unwrap();
    assert!(matches!(rx.blocking_recv(), Err(RecvError::Protocol { .. })));
}

/// Each was looked at for each of its frames.
#[test]
fn an_end_with_more_fds_before_its_frames_than_it_can_have_is_none() {
    for (batches, is_one) in [(0, true), (1, true), (2, false), (100, false)] {
        let (_tx, end) = super::channel::<u8>().unwrap();
        let frame = value::encode(&end, 1000).unwrap();
        let (nothing, end) = frame.body.split_last().unwrap();
        assert_eq!(*nothing, 0, "how many there are stands last");
        let body = Held::copy(&[end, &[batches], &[0, 0, 99].repeat(batches.into())].concat());
        assert_eq!(value::decode::<Receiver<u8>>(Frame { body, ..frame }).is_ok(), is_one, "{batches}");
    }
}

#[test]
fn something_else_than_a_socket_is_no_end() {
    let (theirs, ours) = socket::stream_pair().unwrap();
    let mut rx = Receiver::<Receiver<u8>>::new(ours);
    let (_, end) = super::channel::<u8>().unwrap();
    let frame = value::encode(&end, 1000).unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let (packets, _) = socket::packet_pair().unwrap();
    for other in [null.as_fd(), packets.as_fd()] {
        socket::send(&theirs, &[IoSlice::new(&wire(&frame))], &[other]).unwrap();
        assert!(matches!(rx.blocking_recv(), Err(RecvError::Decode(_))));
    }
}

#[test]
fn shared_bytes_that_somebody_could_still_write_or_that_are_too_few_are_refused() {
    let (theirs, ours) = socket::stream_pair().unwrap();
    let mut rx = Receiver::<SharedBytes>::new(ours);
    let bytes = |len| SharedBytesMut::new(len).unwrap().freeze().unwrap();
    let frame = value::encode(&bytes(100), 1000).unwrap();
    let unsealed = memory::write([[7; 100]].iter()).unwrap();
    let shorter = value::encode(&bytes(99), 1000).unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    for other in [unsealed.as_fd(), shorter.fds[0].as_fd(), null.as_fd()] {
        socket::send(&theirs, &[IoSlice::new(&wire(&frame))], &[other]).unwrap();
        assert!(matches!(rx.blocking_recv(), Err(RecvError::Decode(_))));
    }
    socket::send(&theirs, &[IoSlice::new(&wire(&frame))], &[frame.fds[0].as_fd()]).unwrap();
    assert_eq!(rx.blocking_recv().unwrap().unwrap()[..], [0; 100]);
}

/// A receive ends behind the fds that it gives, and so says nothing about what is behind them.
#[tokio::test]
async fn what_lies_behind_fds_is_not_waited_for() {
    let (theirs, ours) = socket::stream_pair().unwrap();
    let mut rx = Receiver::<SharedBytes>::new(ours);
    assert!(poll_fn(|cx| Poll::Ready(pin!(rx.recv()).poll(cx))).await.is_pending());
    for _ in 0..3 {
        let frame = value::encode(&SharedBytesMut::new(1).unwrap().freeze().unwrap(), 1000).unwrap();
        socket::send(&theirs, &[IoSlice::new(&wire(&frame))], &[frame.fds[0].as_fd()]).unwrap();
    }
    for _ in 0..3 {
        assert!(rx.recv().await.unwrap().is_some());
    }
}

#[tokio::test]
async fn one_runtime_waits_to_read_and_to_write_at_once() {
    let (theirs, ours) = socket::stream_pair().unwrap();
    let ours = Socket::new(ours);
    let write = || socket::send(&ours, &[IoSlice::new(&[7; 4096])], &[]);
    while write().is_ok() {}
    let mut inbox = Inbox::new(Limits::default().with_body(1000));
    let mut reading = pin!(inbox.frame(&ours));
    let mut writing = pin!(ours.when(Ready::Write, write));
    assert!(poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx))).await.is_pending());
    assert!(poll_fn(|cx| Poll::Ready(writing.as_mut().poll(cx))).await.is_pending());
    self::write(&theirs, &text("while it is full"));
    assert!(reading.await.unwrap().is_some());
    while socket::recv_into(&theirs, &mut BytesMut::with_capacity(1 << 20), 1 << 20, Wait::No).is_ok() {}
    assert_eq!(writing.await.unwrap(), 4096);
}

/// As for small frames, for one whose body is read into memory of its own; and an end that travels in the middle of it
/// takes along what has come.
#[test]
fn a_large_frame_is_whole_or_truncated_wherever_its_sender_ends() {
    let body = "large".repeat(400_000);
    let whole = text(&body);
    let cuts = [0, 1, 15, 16, 17, 40, 100_000, whole.len() / 2, whole.len() - 1, whole.len()];
    for (cut, travels) in cuts.into_iter().flat_map(|cut| [(cut, false), (cut, true)]) {
        let (theirs, mut rx) = pair();
        let bytes = whole[..cut].to_vec();
        let writer = std::thread::spawn(move || {
            let mut theirs = std::os::unix::net::UnixStream::from(theirs);
            std::io::Write::write_all(&mut theirs, &bytes).unwrap();
        });
        if travels {
            // Takes in what has come so far, however much that is.
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let polled = runtime.block_on(async { pin!(rx.recv()).poll(&mut cx).map(Result::unwrap) });
            match polled {
                Poll::Pending => {}
                Poll::Ready(received) => {
                    assert_eq!(received, (cut == whole.len()).then(|| body.clone()));
                    writer.join().unwrap();
                    continue;
                }
            }
            let frame = value::encode(&rx, usize::MAX).unwrap();
            let mut bytes = Vec::new();
            for piece in &*frame.more {
                bytes.extend_from_slice(piece);
            }
            rx = value::decode(Frame {
                body: Held::copy(&[&frame.body[..], &bytes].concat()),
                more: Extra::default(),
                ..frame
            })
            .unwrap();
        }
        for _ in 0..2 {
            match rx.blocking_recv() {
                Ok(Some(text)) => assert!(text == body && cut == whole.len()),
                Ok(None) => assert!(cut == 0 || cut == whole.len(), "cut at {cut}"),
                Err(RecvError::Truncated) => assert!(cut > 0 && cut < whole.len(), "cut at {cut}"),
                Err(other) => panic!("{other:?}"),
            }
        }
        writer.join().unwrap();
    }
}

/// Its reader took it for the end of all answers.
#[tokio::test]
async fn a_client_whose_move_is_called_off_goes_on_though_its_reader_has_seen_the_move() {
    let (theirs, ours) = socket::stream_pair().unwrap();
    let client = Client::<u8, u8>::new(Duplex::new(ours));
    let answer = |id, value: u8| wire(&Frame { kind: ANSWER, id, ..value::encode(&value, usize::MAX).unwrap() });
    // The calls between them are refused.
    for id in [1, 3, 5] {
        let call = client.call(0);
        write(&theirs, &answer(id, 7));
        assert_eq!(call.await.unwrap(), 7, "call {id}");
        let frame = value::encode_within(&client, Limits::default()).unwrap();
        assert!(matches!(client.call(0).await, Err(CallError::Io(_))), "it is under way");
        // What nobody waits for wakes the reader.
        write(&theirs, &answer(100, 7));
        for _ in 0..5 {
            tokio::task::yield_now().await;
        }
        drop(frame);
    }
}

/// It stayed in the middle of its answer for as long as the client was there.
#[tokio::test]
async fn a_server_is_told_that_its_client_reads_on_no_more() {
    for kind in [ANSWER, REQUEST] {
        let (theirs, ours) = socket::stream_pair().unwrap();
        let client = Client::<(), Vec<u8>>::new(Duplex::new(ours).max_message(1000));
        let mut server = Duplex::<(), ()>::new(theirs).into_sides();
        let answering = async {
            let request = poll_fn(|cx| server.receiving.poll_frame(cx)).await.unwrap().unwrap();
            // To a client that is no answer.
            let first = value::encode(&vec![7_u8; if kind == ANSWER { 8 << 20 } else { 1 }], usize::MAX).unwrap();
            let first = server.sending.send(Frame { kind, id: request.id, ..first }).await;
            let second = value::encode(&vec![7_u8; 8 << 20], usize::MAX).unwrap();
            first.and(server.sending.send(Frame { kind: ANSWER, id: request.id, ..second }).await)
        };
        let both = async { tokio::join!(client.call(()), answering) };
        let (called, answered) = tokio::time::timeout(Duration::from_secs(20), both).await.expect("it waits for ever");
        assert!(matches!(called, Err(CallError::TooLarge { .. } | CallError::Protocol { .. })), "{called:?}");
        assert!(matches!(answered, Err(SendError::Closed)), "{answered:?}");
    }
}

fn requests(ids: std::ops::Range<u64>) -> Vec<u8> {
    ids.flat_map(|id| wire(&Frame { kind: REQUEST, id, ..value::encode(&(), usize::MAX).unwrap() })).collect()
}

/// Nobody looked at its socket any more.
#[tokio::test]
async fn the_end_of_a_client_with_more_calls_than_it_may_have_open_is_seen() {
    for unread in [0, 1, 100] {
        let (theirs, ours) = socket::stream_pair().unwrap();
        let begun = Cell::new(0);
        let mut serving = pin!(serve(Duplex::<(), ()>::new(ours), |()| {
            begun.set(begun.get() + 1);
            pending()
        }));
        write(&theirs, &requests(0..2048));
        while begun.get() < 2048 {
            assert!(poll_fn(|cx| Poll::Ready(serving.as_mut().poll(cx))).await.is_pending());
            tokio::task::yield_now().await;
        }
        write(&theirs, &requests(2048..2048 + unread));
        assert!(poll_fn(|cx| Poll::Ready(serving.as_mut().poll(cx))).await.is_pending());
        assert_eq!(begun.get(), 2048, "it has waited");
        drop(theirs);
        let ended = tokio::time::timeout(Duration::from_secs(20), serving).await;
        ended.expect("it waits for ever").unwrap();
    }
}

#[tokio::test]
async fn a_client_with_more_calls_than_it_may_have_open_goes_on_when_some_are_over() {
    let (theirs, ours) = socket::stream_pair().unwrap();
    let (begun, gate) = (Cell::new(0), tokio::sync::Notify::new());
    let mut serving = pin!(serve(Duplex::<(), ()>::new(ours), |()| {
        begun.set(begun.get() + 1);
        gate.notified()
    }));
    let mut turn = async || {
        for _ in 0..10 {
            assert!(poll_fn(|cx| Poll::Ready(serving.as_mut().poll(cx))).await.is_pending());
            tokio::task::yield_now().await;
        }
    };
    write(&theirs, &requests(0..2048));
    while begun.get() < 2048 {
        turn().await;
    }
    // It comes while nobody reads it.
    write(&theirs, &requests(2048..2049));
    turn().await;
    assert_eq!(begun.get(), 2048);
    gate.notify_one();
    turn().await;
    assert_eq!(begun.get(), 2049);
}
