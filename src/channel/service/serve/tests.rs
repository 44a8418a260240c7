use std::io::{IoSlice, Write as _};
use std::os::unix::net::UnixStream;
use std::thread;

use super::*;
use crate::channel::duplex;
use crate::channel::fuzz::Lent;
use crate::channel::inbox::Inbox;
use crate::channel::socket::Socket;
use crate::sys::socket;
use crate::wire::frame::Head;

/// The answers of one that did not read them stayed here.
#[tokio::test]
async fn what_is_only_told_is_not_answered() {
    let (ours, theirs) = duplex::<u32, u32>().unwrap();
    let mut sides = ours.into_sides();
    for n in 1..=100_u32 {
        let request = value::encode(&n, usize::MAX).unwrap();
        sides.sending.post(Frame { kind: REQUEST, id: n.into(), ..request }).unwrap();
    }
    let handle = |n: u32| n.is_multiple_of(100).then(|| future::ready(n));
    let answered = async { poll_fn(|cx| sides.receiving.poll_frame(cx)).await.unwrap().unwrap() };
    tokio::select! {
        served = serve_within(MAX_CALLS, theirs, handle) => panic!("it has ended: {served:?}"),
        first = answered => assert_eq!((first.kind, first.id), (ANSWER, 100)),
    }
}

/// It was handled, however long before its turn it was cancelled: nothing behind it was read.
#[test]
fn a_request_that_is_as_much_as_may_wait_is_skipped_when_it_is_cancelled() {
    for (len, fds) in [(AHEAD, 0), (10, AHEAD_FDS)] {
        let (theirs, ours) = socket::stream_pair().unwrap();
        let serving = thread::spawn(|| blocking_serve(Duplex::<u32, u32>::new(ours), |n| n));
        let (mut head, mut last, lent) = (Vec::new(), vec![7], Lent::new());
        Head { len, kind: REQUEST, fds, id: 1 }.put(&mut head);
        socket::send(&theirs, &[IoSlice::new(&head)], &lent.times(fds)).unwrap();
        let mut stream = UnixStream::from(socket::duplicate(&theirs).unwrap());
        stream.write_all(&vec![7; len - 1]).unwrap();
        // What is sent as one comes as one.
        Head { len: 0, kind: CANCEL, fds: 0, id: 1 }.put(&mut last);
        Head { len: 1, kind: REQUEST, fds: 0, id: 2 }.put(&mut last);
        last.push(7);
        stream.write_all(&last).unwrap();
        let answer = Inbox::new(Limits::default()).blocking_frame(&Socket::new(theirs)).unwrap().unwrap();
        assert_eq!((answer.kind, answer.id), (ANSWER, 2), "{len} bytes and {fds} fds");
        drop(stream);
        serving.join().unwrap().unwrap();
    }
}
