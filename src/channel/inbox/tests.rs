use std::io::IoSlice;
use std::os::fd::{AsFd as _, OwnedFd};

use super::*;
use crate::channel::fuzz::Lent;
use crate::channel::outbox::Outbox;
use crate::wire::frame::VALUE;
use crate::wire::passenger::Passenger;

/// A peer's socket, and an inbox that takes so many fds with a frame.
fn pair(fds: usize) -> (OwnedFd, Socket, Inbox) {
    let (theirs, ours) = socket::stream_pair().unwrap();
    (theirs, Socket::new(ours), Inbox::new(Limits::default().with_fds(fds)))
}

fn head(len: usize, fds: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    Head { len, kind: VALUE, fds, id: 0 }.put(&mut bytes);
    bytes
}

fn send(theirs: &OwnedFd, bytes: &[u8], lent: &Lent, fds: usize) {
    assert_eq!(socket::send(theirs, &[IoSlice::new(bytes)], &lent.times(fds)).unwrap(), bytes.len());
}

/// They were held for as long as the peer liked: it sent no more of its frame.
#[test]
fn fds_that_no_frame_may_have_are_closed_before_the_frame_is_whole() {
    let begun = |len, fds| [&head(len, fds)[..], &[7]].concat();
    let cases = [
        (0, vec![(vec![9], 1)], "more than may be, with the first byte"),
        (64, vec![(vec![9], 65)], "one more than may be"),
        (64, vec![(vec![9], 253)], "as many as the kernel takes"),
        (64, vec![(head(9, 0), 64)], "none announced"),
        (64, vec![(head(9, 3), 64)], "fewer announced"),
        (64, vec![(head(9, 64), 3)], "more announced"),
        (2, vec![(head(9, 3), 3)], "more than may be, announced"),
        (2, vec![(head(9, 3), 0)], "more than may be, announced alone"),
        (64, vec![(vec![9], 1), (vec![0], 1)], "a second time, in the header"),
        (64, vec![(begun(9, 1), 1), (vec![7], 1)], "a second time, in the body"),
        (64, vec![(begun(9, 0), 0), (vec![7], 1)], "in the middle of a body that has none"),
        (64, vec![(begun(LARGE, 1), 1), (vec![7], 1)], "a second time, in a large body"),
        (64, vec![(begun(LARGE, 0), 0), (vec![7], 1)], "in the middle of a large body that has none"),
    ];
    for (most, sends, what) in cases {
        let ((theirs, socket, mut inbox), lent) = (pair(most), Lent::new());
        let (last, first) = sends.split_last().unwrap();
        for (bytes, fds) in first {
            send(&theirs, bytes, &lent, *fds);
            assert!(inbox.try_frame(&socket).unwrap().is_none(), "{what}");
        }
        send(&theirs, &last.0, &lent, last.1);
        let read = inbox.try_frame(&socket);
        assert!(matches!(read, Err(RecvError::Protocol { .. })), "{what}: {read:?}");
        lent.assert_closed();
    }
}

/// Whether they had come in the same read was the kernel's to say.
#[test]
fn what_came_before_too_many_fds_is_taken_and_they_are_closed_by_then() {
    for cut in [1, 25] {
        let ((theirs, socket, mut inbox), lent) = (pair(2), Lent::new());
        send(&theirs, &[&head(9, 0)[..], &[7; 9]].concat(), &lent, 0);
        send(&theirs, &[&head(9, 3)[..], &[7; 9]].concat()[..cut], &lent, 3);
        assert_eq!(inbox.try_frame(&socket).unwrap().unwrap().body[..], [7; 9]);
        lent.assert_closed();
        assert!(matches!(inbox.try_frame(&socket), Err(RecvError::Protocol { .. })), "cut at {cut}");
    }
}

/// One send has the fds of its first frame, and others behind that; a read begins and ends anywhere.
#[test]
fn as_many_fds_as_a_frame_may_have_come_with_it_whatever_is_around_it() {
    for step in [1, 15, 16, 17, 40, 1000] {
        let ((theirs, socket, mut inbox), lent) = (pair(3), Lent::new());
        let (middle, ours) = socket::stream_pair().unwrap();
        let mut outbox = Outbox::default();
        let counts = [0, 3, 0, 0, 3, 3, 0, 1];
        for fds in counts {
            let fds = (0..fds).map(|_| Passenger::from(lent.copy())).collect();
            outbox.push(Frame { kind: VALUE, body: Held::copy(&[7; 20]), fds, ..Frame::default() });
        }
        outbox.flush(&ours).unwrap();
        // And not closed: a child that another test starts just then has a copy until it is its program.
        socket::end_sending(&ours).unwrap();
        let mut came = Vec::new();
        // Cuts each send into pieces, of which the first has its fds.
        loop {
            let mut bytes = BytesMut::with_capacity(step);
            let Received { len, fds, .. } = socket::recv_into(&middle, &mut bytes, step, Wait::No).unwrap();
            if len == 0 {
                break;
            }
            let fds: Vec<_> = fds.iter().map(OwnedFd::as_fd).collect();
            socket::send(&theirs, &[IoSlice::new(&bytes)], &fds).unwrap();
            if step % 2 == 1 {
                came.extend(std::iter::from_fn(|| inbox.try_frame(&socket).unwrap()));
            }
        }
        came.extend(std::iter::from_fn(|| inbox.try_frame(&socket).unwrap()));
        assert_eq!(came.iter().map(|frame| frame.fds.len()).collect::<Vec<_>>(), counts, "in steps of {step}");
    }
}
