//! What needs the library's threads is an error in a copy that fork(2) makes of a process, which has none of them.

mod support;

use std::time::Duration;

use futures::FutureExt as _;
use multiproc::{AckedQueue, Listener, SendError};
use support::copies::{is_copy, leave};
use support::{alone, block_on};

multiproc::test_support!();

/// In a runtime of its own.
fn soon<R>(future: impl Future<Output = R>) -> R {
    block_on(async { tokio::time::timeout(Duration::from_secs(10), future).await.expect("it never came") })
}

/// It went out on the original's socket, and was for a receiver that only the original knew of.
#[test]
fn an_item_that_a_copy_sends_is_an_error() {
    alone("an_item_that_a_copy_sends_is_an_error", || {
        let queue = AckedQueue::<u32>::new();
        let mut rx = queue.receiver().unwrap();
        assert!(soon(async { rx.recv().now_or_never() }).is_none());
        if is_copy() {
            assert!(matches!(soon(queue.send(1)), Err(SendError::Io(_))));
            leave();
        }
        soon(queue.send(2)).unwrap();
        assert_eq!(*soon(rx.recv()).unwrap().unwrap(), 2);
    });
}

/// It waited for ever: no client is greeted there.
#[test]
fn to_accept_a_client_in_a_copy_is_an_error() {
    alone("to_accept_a_client_in_a_copy_is_an_error", || {
        let dir = tempfile::tempdir().unwrap();
        let listener = Listener::<u32, u32>::bind(dir.path().join("private/socket")).unwrap();
        if is_copy() {
            assert!(soon(listener.accept()).is_err());
            leave();
        }
    });
}
