use std::io::IoSlice;
use std::pin::pin;
use std::time::Duration;

use bytes::BytesMut;
use tokio::runtime::{Builder, Runtime};

use super::*;
use crate::channel::line::FREE;
use crate::channel::sending::Sending;
use crate::sys::socket::Wait;
use crate::wire::frame::{Frame, VALUE};

fn fill(socket: &Socket) {
    while socket::send(socket, &[IoSlice::new(&[7; 4096])], &[]).is_ok() {}
}

#[tokio::test]
async fn once_no_write_waits_the_peers_reads_wake_nobody() {
    let (a, b) = socket::stream_pair().unwrap();
    let ours = Socket::new(a);
    let write = || socket::send(&ours, &[IoSlice::new(b"x")], &[]);
    fill(&ours);
    {
        let mut first = pin!(ours.when(Ready::Write, write));
        let mut second = pin!(ours.when(Ready::Write, write));
        assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        assert_eq!(ours.registrations().len(), 1, "those who wait share it");
        while socket::recv_into(&b, &mut BytesMut::with_capacity(4096), 4096, Wait::No).is_ok() {}
        first.await.unwrap();
        second.await.unwrap();
    }
    assert!(ours.registrations().is_empty());
    fill(&ours);
    assert!(ours.when(Ready::Write, write).now_or_never().is_none());
    assert!(ours.registrations().is_empty(), "nor after a wait that was dropped");
}

/// Until then it stays: where the socket is now and then full, it is quicker so.
#[tokio::test]
async fn nor_once_what_the_flusher_waited_for_has_had_room_for_a_while() {
    let (a, b) = socket::stream_pair().unwrap();
    let sending = Arc::new(Sending::new(Arc::new(Socket::new(a))));
    let places = || sending.socket().registrations().len();
    let drain = || while socket::recv_into(&b, &mut BytesMut::with_capacity(4096), 4096, Wait::No).is_ok() {};
    let frame = || Frame { kind: VALUE, ..Frame::default() };
    fill(sending.socket());
    let mut first = pin!(sending.send(frame()));
    assert!(first.as_mut().now_or_never().is_none());
    // The flusher is a thread.
    while places() == 0 {
        yield_now().await;
    }
    drain();
    first.await.unwrap();
    assert_eq!(places(), 1, "it may be full again soon");
    // It may still be about to let go of it.
    for _ in 0..100 * FREE {
        sending.send(frame()).await.unwrap();
        drain();
        if places() == 0 {
            return;
        }
    }
    panic!("its thread is woken for nothing");
}

#[tokio::test]
async fn nor_once_no_write_waits_for_its_turn() {
    let (a, b) = socket::stream_pair().unwrap();
    let (ours, turns) = (Socket::new(a), Turns::default());
    let write = || socket::send(&ours, &[IoSlice::new(b"x")], &[]);
    fill(&ours);
    {
        let mut first = pin!(ours.when_in_turn(Ready::Write, &turns, write));
        assert!(first.as_mut().now_or_never().is_none());
        // The second lets the first one go before it begins to wait.
        let mut second = pin!(ours.when_in_turn(Ready::Write, &turns, write));
        assert!(second.as_mut().now_or_never().is_none());
        assert_eq!(ours.registrations().len(), 1);
        while socket::recv_into(&b, &mut BytesMut::with_capacity(4096), 4096, Wait::No).is_ok() {}
        first.await.unwrap();
        second.await.unwrap();
    }
    assert!(ours.registrations().is_empty());
    fill(&ours);
    assert!(ours.when_in_turn(Ready::Write, &turns, write).now_or_never().is_none());
    assert!(ours.registrations().is_empty(), "nor after a wait that was dropped");
}

fn new_runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn who_waits_in_one_of_many_runtimes_keeps_the_place() {
    let (a, _b) = socket::stream_pair().unwrap();
    let ours = Socket::new(a);
    let read = || socket::recv_into(&ours, &mut BytesMut::with_capacity(1), 1, Wait::No);
    let runtimes: Vec<_> = (0..=MANY).map(|_| new_runtime()).collect();
    let mut waits = Vec::new();
    for _ in 0..2 {
        for runtime in &runtimes {
            let mut wait = Box::pin(ours.when(Ready::Read, read));
            assert!(runtime.block_on(async { wait.as_mut().now_or_never() }).is_none());
            waits.push(wait);
        }
    }
    assert_eq!(ours.registrations().len(), runtimes.len(), "each is shared");
}

#[test]
fn the_places_in_runtimes_that_have_ended_are_given_up() {
    let (a, _b) = socket::stream_pair().unwrap();
    let ours = Socket::new(a);
    let read = || socket::recv_into(&ours, &mut BytesMut::with_capacity(1), 1, Wait::No).map(|read| (read, false));
    for _ in 0..3 * MANY {
        // Whoever waited there is gone, and nothing says so.
        assert!(
            new_runtime()
                .block_on(poll_fn(|cx| Poll::Ready(ours.poll_read(cx, &mut Berth::default(), false, read))))
                .is_pending()
        );
        assert!(ours.registrations().len() <= MANY);
    }
}

/// It waited for the reactor in which it was begun, which nobody drove, or whose end was an error.
#[test]
fn a_wait_that_one_runtime_has_begun_goes_on_in_another() {
    for ends in [false, true] {
        let (a, b) = socket::stream_pair().unwrap();
        let ours = Socket::new(a);
        let mut wait = pin!(ours.when(Ready::Write, || socket::send(&ours, &[IoSlice::new(b"x")], &[])));
        let (first, second) = (new_runtime(), new_runtime());
        fill(&ours);
        assert!(first.block_on(async { wait.as_mut().now_or_never() }).is_none());
        let _stands_still = (!ends).then_some(first);
        while socket::recv_into(&b, &mut BytesMut::with_capacity(4096), 4096, Wait::No).is_ok() {}
        let waited = second.block_on(async { tokio::time::timeout(Duration::from_secs(20), wait).await });
        waited.expect("nobody woke it").unwrap();
    }
}

/// And so is who is not to be any more.
#[tokio::test]
async fn who_is_to_be_woken_early_is_told_of_what_had_come() {
    let (a, b) = socket::stream_pair().unwrap();
    let (ours, mut berth) = (Socket::new(a), Berth::default());
    let read = || socket::recv_into(&ours, &mut BytesMut::with_capacity(1), 1, Wait::No).map(|read| (read, true));
    assert!(poll_fn(|cx| Poll::Ready(ours.poll_read(cx, &mut berth, false, read))).await.is_pending());
    for early in [true, false, true] {
        socket::send(&b, &[IoSlice::new(b"x")], &[]).unwrap();
        poll_fn(|cx| ours.poll_read(cx, &mut berth, true, read)).await.unwrap();
        socket::send(&b, &[IoSlice::new(b"y")], &[]).unwrap();
        ours.wake_early(early, &mut berth);
        assert_eq!(poll_fn(|cx| ours.poll_read(cx, &mut berth, true, read)).await.unwrap().len, 1);
        let readiness = ours.readiness(Ready::Read).unwrap();
        let woken = readiness.fd.ready(Interest::WRITABLE);
        if early {
            // It can be written to, and this is where the reactor is told of it.
            let _ = woken.await.unwrap();
        } else {
            assert!(woken.now_or_never().is_none());
        }
    }
}

#[tokio::test]
async fn who_waits_already_is_not_touched_by_waking_early() {
    let (a, b) = socket::stream_pair().unwrap();
    let ours = Socket::new(a);
    let read = || socket::recv_into(&ours, &mut BytesMut::with_capacity(1), 1, Wait::No).map(|read| (read, true));
    let mut waits = pin!(poll_fn(|cx| ours.poll_read(cx, &mut Berth::default(), false, read)));
    assert!(waits.as_mut().now_or_never().is_none());
    ours.wake_early(true, &mut Berth::default());
    socket::send(&b, &[IoSlice::new(b"x")], &[]).unwrap();
    waits.await.unwrap();
}
