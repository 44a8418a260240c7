//! What needs the library's threads is an error in a copy that fork(2) makes of a process, which has none of them.

mod support;

use std::time::Duration;

use futures::FutureExt as _;
use multiproc::sync::Semaphore;
use multiproc::{AckedQueue, CallError, Client, Listener, SendError, SyncError, duplex, serve};
use support::copies::{is_copy, leave};
use support::{alone, block_on};
use tokio::runtime::Runtime;

multiproc::test_support!();

/// In a runtime of its own.
fn soon<R>(future: impl Future<Output = R>) -> R {
    soon_in(&support::runtime(), future)
}

fn soon_in<R>(runtime: &Runtime, future: impl Future<Output = R>) -> R {
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), future).await.expect("it never came") })
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

/// The copy's answer went to the original, as that of its own call; or nobody read it.
#[test]
fn a_call_in_a_copy_is_an_error() {
    alone("a_call_in_a_copy_is_an_error", || {
        let runtime = support::runtime();
        let (ours, theirs) = duplex::<u32, u32>().unwrap();
        let client: Client<u32, u32> = Client::new(ours);
        let server = std::thread::spawn(move || block_on(serve(theirs, |n: u32| async move { n + 1 })));
        assert_eq!(soon_in(&runtime, client.call(1)).unwrap(), 2);
        let mut open = Box::pin(client.call(6));
        assert!(soon_in(&runtime, async { (&mut open).now_or_never() }).is_none());
        if is_copy() {
            assert!(matches!(soon(open), Err(CallError::Io(_))));
            assert!(matches!(soon(client.call(2)), Err(CallError::Io(_))));
            assert!(matches!(client.blocking_call(3), Err(CallError::Io(_))));
            leave();
        }
        assert_eq!(soon_in(&runtime, open).unwrap(), 7);
        assert_eq!(soon_in(&runtime, client.call(4)).unwrap(), 5);
        drop(client);
        server.join().unwrap().unwrap();
    });
}

/// The copy waited for ever for a permit that the original then had.
#[test]
fn what_a_copy_asks_of_a_lock_is_an_error() {
    alone("what_a_copy_asks_of_a_lock_is_an_error", || {
        let lock = Semaphore::new(1).unwrap();
        if is_copy() {
            assert!(matches!(soon(lock.acquire()), Err(SyncError::Io(_))));
            assert!(matches!(soon(lock.try_acquire()), Err(SyncError::Io(_))));
            leave();
        }
        drop(soon(lock.acquire()).unwrap());
    });
}
