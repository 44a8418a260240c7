//! Channels: what runs other people's code, the end of a value or of a waker, runs it where it can do no harm.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::future::Future as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Weak, mpsc};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use multiproc::sync::Semaphore;
use multiproc::{Fd, Sender, channel};
use support::Owner;
use tokio::sync::oneshot;

mod support;

multiproc::test_support!();

/// More than the socket takes at once.
const LARGE: usize = 4 << 20;

/// It waited on the thread that was to get it what it waited for, and nothing that this thread does went on.
#[tokio::test]
async fn bytes_that_leave_later_may_have_an_owner_that_waits_for_this_library() {
    let (tx, mut rx) = channel::<Bytes>().unwrap();
    let lock = Semaphore::new(1).unwrap();
    let theirs = lock.clone();
    let (said, is_gone) = oneshot::channel();
    let said = Cell::new(Some(said));
    let owner = Owner(vec![1; LARGE], move || {
        drop(theirs.blocking_acquire().unwrap());
        said.take().unwrap().send(()).unwrap();
    });
    let mut send = Box::pin(tx.send(Bytes::from_owner(owner)));
    assert!(send.as_mut().now_or_never().is_none());
    // Nobody but that thread sends the rest.
    std::mem::forget(send);
    assert_eq!(rx.recv().await.unwrap().unwrap().len(), LARGE);
    let waited = tokio::time::timeout(Duration::from_secs(20), is_gone).await;
    waited.expect("it waits for itself").unwrap();
}

/// It was a deadlock: the line was locked.
#[tokio::test]
async fn bytes_whose_owner_uses_the_channel_when_they_have_left_may_do_so() {
    let (tx, mut rx) = channel::<Bytes>().unwrap();
    let tx = Arc::new(tx);
    let again = Arc::downgrade(&tx);
    let owner = Owner(vec![1; LARGE], move || {
        if let Some(tx) = again.upgrade() {
            // What has left may fill the socket.
            tx.blocking_send(Bytes::from_static(b"free")).unwrap();
        }
    });
    let theirs = Arc::clone(&tx);
    let sending = std::thread::spawn(move || theirs.blocking_send(Bytes::from_owner(owner)));
    assert_eq!(rx.recv().await.unwrap().unwrap().len(), LARGE);
    assert_eq!(rx.recv().await.unwrap().unwrap(), "free");
    sending.join().unwrap().unwrap();
    drop(tx);
    assert!(rx.recv().await.unwrap().is_none());
}

/// Bytes were sent twice.
#[tokio::test]
async fn an_owner_that_panics_when_its_bytes_have_left_cuts_no_message() {
    let (tx, mut rx) = channel::<(Bytes, String)>().unwrap();
    let owner = || Bytes::from_owner(Owner(vec![1; 100 << 10], || panic!("of the owner")));
    let sends =
        |bytes: Bytes, text: &str| tx.send((bytes, text.to_owned())).now_or_never().is_some_and(|sent| sent.is_ok());
    assert!(sends(owner(), "first"));
    assert!(sends(Bytes::new(), "second"));
    // And one that is sent by the thread for what a full socket can't take.
    let mut waits = Box::pin(tx.send((Bytes::from(vec![1; LARGE]), String::new())));
    assert!(waits.as_mut().now_or_never().is_none());
    let mut behind = Box::pin(tx.send((owner(), "third".to_owned())));
    assert!(behind.as_mut().now_or_never().is_none());
    let received = async {
        let mut texts = Vec::new();
        for _ in 0..5 {
            texts.push(rx.recv().await.unwrap().unwrap().1);
        }
        texts
    };
    let last = async {
        waits.await.unwrap();
        behind.await.unwrap();
        tx.send((Bytes::new(), "last".to_owned())).await.unwrap();
    };
    assert_eq!(tokio::join!(received, last).0, ["first", "second", "", "third", "last"]);
}

/// The peer waited in the middle of it, and everyone who sent behind it.
#[test]
fn owners_that_panic_while_the_rest_of_their_message_waits_for_room_hold_nobody_up() {
    // A panic in the drop of another one's bytes would be an abort.
    for count in [1, 2] {
        let (tx, mut rx) = channel::<(Bytes, Bytes, Vec<u8>)>().unwrap();
        let (tx, owners) = (Arc::new(tx), Arc::new(()));
        let begun = Arc::downgrade(&owners);
        let owner = |owners| Bytes::from_owner(Owner(vec![1; 70 << 10], move || panic!("of the owner {owners:?}")));
        let second = if count == 2 { owner(Arc::clone(&owners)) } else { Bytes::new() };
        let message = (owner(owners), second, vec![1; LARGE]);
        let sender = Arc::clone(&tx);
        let sending = std::thread::spawn(move || catch_unwind(AssertUnwindSafe(|| sender.blocking_send(message))));
        // They are gone when the socket is full, and the rest of the message waits.
        assert!(support::eventually(Duration::from_secs(20), || begun.strong_count() == 0));
        let (said, received) = mpsc::channel();
        std::thread::spawn(move || {
            for _ in 0..2 {
                said.send(rx.blocking_recv().unwrap().unwrap().2.len()).unwrap();
            }
        });
        let next = std::thread::spawn(move || tx.blocking_send((Bytes::new(), Bytes::new(), vec![2; 2])));
        for len in [LARGE, 2] {
            assert_eq!(received.recv_timeout(Duration::from_secs(20)).expect("it waits in mid-frame"), len);
        }
        next.join().unwrap().unwrap();
        sending.join().unwrap().unwrap().unwrap();
    }
}

/// Sends when it is dropped, and says how that went.
struct Last(Sender<Option<Fd<File>>>, bool, mpsc::Sender<bool>);

impl Drop for Last {
    fn drop(&mut self) {
        let fd = self.1.then(|| File::open("/dev/null").unwrap().into());
        let _ = self.2.send(self.0.blocking_send(fd).is_ok());
    }
}

/// With what it is encoded in gone, it was an abort.
#[test]
fn what_ends_with_its_thread_may_send() {
    support::alone("what_ends_with_its_thread_may_send", || {
        thread_local! {
            static KEPT: RefCell<Option<Last>> = const { RefCell::new(None) };
        }
        for with_fd in [false, true] {
            let (tx, mut rx) = channel().unwrap();
            let (said, sent) = mpsc::channel();
            let keep = move || {
                KEPT.with_borrow_mut(|kept| {
                    tx.blocking_send(Some(File::open("/dev/null").unwrap().into())).unwrap();
                    *kept = Some(Last(tx, with_fd, said));
                });
            };
            std::thread::spawn(keep).join().unwrap();
            assert!(rx.blocking_recv().unwrap().is_some());
            // An fd may be more than a thread can say at its end, but that is an error.
            if sent.recv().unwrap() || !with_fd {
                assert_eq!(rx.blocking_recv().unwrap().map(|fd| fd.is_some()), Some(with_fd));
            }
            assert!(rx.blocking_recv().unwrap().is_none());
        }
    });
}

/// As in executors whose wakers are what keeps a task: its future goes with the last of them.
struct Task(Weak<Sender<Vec<u8>>>);

impl Wake for Task {
    fn wake(self: Arc<Self>) {}
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(tx) = self.0.upgrade() {
            drop(tx.send(Vec::new()).now_or_never());
        }
    }
}

#[test]
fn a_waker_that_uses_the_channel_when_it_is_dropped_may_do_so() {
    let (tx, _rx) = channel::<Vec<u8>>().unwrap();
    let tx = Arc::new(tx);
    let mut send = pin!(tx.send(vec![7; LARGE]));
    for _ in 0..3 {
        let waker = Waker::from(Arc::new(Task(Arc::downgrade(&tx))));
        assert!(send.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    }
}

/// A waker that runs something when it is cloned, and then wakes nobody.
fn when_cloned(work: impl Fn() + Send + Sync + 'static) -> Waker {
    static SEEING: RawWakerVTable = RawWakerVTable::new(see, |_| (), |_| (), |_| ());

    #[expect(unsafe_code, reason = "no safe waker runs code of its maker's when it is cloned")]
    fn see(work: *const ()) -> RawWaker {
        // SAFETY: it is what was leaked below.
        unsafe { (*work.cast::<Box<dyn Fn() + Send + Sync>>())() };
        RawWaker::new(work, &SEEING)
    }

    let work: Box<dyn Fn() + Send + Sync> = Box::new(work);
    let work: &'static _ = Box::leak(Box::new(work));
    #[expect(unsafe_code, reason = "as above")]
    // SAFETY: the functions may be called on any thread, with what is never freed.
    unsafe {
        Waker::from_raw(RawWaker::new(std::ptr::from_ref(work).cast(), &SEEING))
    }
}

#[test]
fn a_waker_that_uses_the_channel_when_it_is_cloned_may_do_so() {
    let (tx, _rx) = channel::<Vec<u8>>().unwrap();
    let tx = Arc::new(tx);
    let (done, is_done) = mpsc::channel();
    std::thread::spawn(move || {
        let theirs = Arc::clone(&tx);
        let waker = when_cloned(move || drop(theirs.send(Vec::new()).now_or_never()));
        let mut send = Box::pin(tx.send(vec![7; LARGE]));
        let mut behind = Box::pin(tx.send(vec![7; LARGE]));
        for _ in 0..3 {
            assert!(send.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            assert!(behind.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        done.send(()).unwrap();
    });
    is_done.recv_timeout(Duration::from_secs(20)).expect("it waits for itself");
}

/// Panics, or says that it was woken.
struct Woken(Option<mpsc::Sender<()>>);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        let _ = self.0.as_ref().expect("on purpose").send(());
    }
}

/// The others were taken out of the line, and slept for good.
#[test]
fn a_waker_that_panics_keeps_no_other_send_from_its_news() {
    let (tx, mut rx) = channel::<Vec<u8>>().unwrap();
    let (said, woken) = mpsc::channel();
    let mut large = Box::pin(tx.send(vec![7; LARGE]));
    let mut cx = Context::from_waker(Waker::noop());
    while !matches!(large.as_mut().poll(&mut cx), Poll::Pending) {}
    // Both wait for room.
    let mut sends = Vec::new();
    for said in [None, Some(said)] {
        let mut send = Box::pin(tx.send(Vec::new()));
        let waker = Waker::from(Arc::new(Woken(said)));
        assert!(send.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        sends.push(send);
    }
    assert_eq!(rx.blocking_recv().unwrap().unwrap().len(), LARGE);
    woken.recv_timeout(Duration::from_secs(20)).expect("it sleeps for good");
}
