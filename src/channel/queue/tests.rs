//! What a peer may put into a queue: every packet in here is made by hand.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use futures::StreamExt as _;
use rustix::fs::MemfdFlags;

use super::{QueueReceiver, QueueSender};
use crate::error::RecvError;
use crate::sys::{memory, socket};

fn pair() -> (OwnedFd, QueueReceiver<Vec<u8>>) {
    let (theirs, ours) = socket::packet_pair().unwrap();
    (theirs, QueueReceiver::new(ours).max_message(1 << 20))
}

fn packet(socket: &OwnedFd, len: u32, kind: u8, fds: &[BorrowedFd<'_>], body: &[u8]) {
    let mut head = len.to_le_bytes().to_vec();
    head.extend([1, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    socket::send(socket, &[IoSlice::new(&head), IoSlice::new(body)], fds).unwrap();
}

#[test]
fn a_packet_that_is_no_item_costs_that_packet_alone() {
    let (theirs, rx) = pair();
    let (pipe, _writer) = std::io::pipe().unwrap();
    let memory = memory::write([[1; 10]].iter()).unwrap();
    for _ in 0..3 {
        socket::send(&theirs, &[IoSlice::new(b"short")], &[]).unwrap();
        socket::send(&theirs, &[IoSlice::new(&[0; 64])], &[]).unwrap();
        socket::send(&theirs, &[IoSlice::new(&vec![1; 70_000])], &[]).unwrap();
        packet(&theirs, 3, 1, &[], &[9]);
        packet(&theirs, 2, 1, &[theirs.as_fd()], &[1, 9]);
        packet(&theirs, u32::MAX, 2, &[memory.as_fd()], &[]);
        packet(&theirs, 2, 17, &[], &[1, 9]);
        // No memory, not the announced amount of it, and a pipe that would keep us waiting.
        packet(&theirs, 20, 2, &[], &[1, 9]);
        packet(&theirs, 1 << 20, 2, &[memory.as_fd()], &[1, 9]);
        packet(&theirs, 12, 2, &[pipe.as_fd()], &[1, 9]);
        packet(&theirs, 2, 1, &[], &[1, 9]);
        for bad in 0..10 {
            let received = rx.blocking_recv();
            assert!(matches!(received, Err(RecvError::Decode(_))), "{bad}: {received:?}");
        }
        assert_eq!(rx.blocking_recv().unwrap(), Some(vec![9]));
    }
    drop(theirs);
    assert_eq!(rx.blocking_recv().unwrap(), None);
}

/// It reads like the end, which it is not.
#[tokio::test]
async fn an_empty_packet_of_a_misbehaving_sender_is_not_the_end() {
    let (theirs, mut rx) = pair();
    for _ in 0..3 {
        socket::send(&theirs, &[IoSlice::new(&[]), IoSlice::new(&[])], &[]).unwrap();
        assert!(matches!(rx.recv().await, Err(RecvError::Decode(_))));
    }
    socket::send(&theirs, &[IoSlice::new(&[]), IoSlice::new(&[])], &[]).unwrap();
    packet(&theirs, 2, 1, &[], &[1, 9]);
    assert!(matches!(rx.next().await, Some(Err(RecvError::Decode(_)))));
    assert_eq!(rx.next().await.unwrap().unwrap(), [9]);
    drop(theirs);
    assert!(rx.next().await.is_none());
}

/// That all senders are gone was taken for the end, whatever was still there.
#[test]
fn what_lies_behind_an_empty_packet_comes_also_when_its_sender_is_gone() {
    let (theirs, rx) = pair();
    socket::send(&theirs, &[IoSlice::new(&[]), IoSlice::new(&[])], &[]).unwrap();
    packet(&theirs, 2, 1, &[], &[1, 9]);
    drop(theirs);
    assert!(matches!(rx.blocking_recv(), Err(RecvError::Decode(_))));
    assert_eq!(rx.blocking_recv().unwrap(), Some(vec![9]));
    for _ in 0..2 {
        assert_eq!(rx.blocking_recv().unwrap(), None);
    }
}

/// `Stream` asks no more of the items than `recv`: that they are made of what came.
#[test]
fn a_receiver_is_a_stream_of_any_item_that_can_be_received() {
    fn is_stream<'a, T: serde::de::DeserializeOwned + 'a>(rx: QueueReceiver<T>) -> impl futures::Stream + 'a {
        rx
    }
    drop(is_stream(pair().1));
}

#[test]
fn an_item_goes_on_in_memory_where_it_does_not_fit() {
    let (theirs, rx) = pair();
    let mut rest = vec![7; 11];
    rest[10] = 8;
    packet(&theirs, 13, 2, &[memory::write([&rest].iter()).unwrap().as_fd()], &[12, 9]);
    assert_eq!(rx.blocking_recv().unwrap(), Some([&[9][..], &rest].concat()));
    let tx = QueueSender::<Vec<u8>>::new(theirs);
    tx.blocking_send(vec![3; 100_000]).unwrap();
    assert!(rx.blocking_recv().unwrap() == Some(vec![3; 100_000]));
}

/// Its length is nothing that it has cost whoever sent it.
#[test]
fn memory_that_nobody_has_written_is_no_item() {
    let (theirs, rx) = pair();
    let sparse = rustix::fs::memfd_create(c"sparse", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&sparse, 499_998).unwrap();
    // The length of the vector, as a varint.
    packet(&theirs, 500_001, 2, &[sparse.as_fd()], &[158, 194, 30]);
    let received = rx.blocking_recv();
    assert!(matches!(received, Err(RecvError::Decode(_))), "{received:?}");
}
