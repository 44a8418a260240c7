//! Calls in the hosts that there are: many runtimes, clients that move, wakers and handlers with code of their own.

use std::fs::File;
use std::future::{Future, pending, poll_fn, ready};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use multiproc::{CallError, Client, Duplex, Fd, blocking_serve, channel, duplex, serve, spawn_process, task};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

mod support;

multiproc::test_support!();

async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx))).await
}

/// As if it had come from another process.
async fn moved(client: Client<u32, u32>) -> Client<u32, u32> {
    let (tx, mut rx) = channel().unwrap();
    tx.send(client).await.unwrap();
    rx.recv().await.unwrap().unwrap()
}

#[tokio::test]
async fn a_moved_client_takes_no_answer_of_a_call_that_was_dropped_before() {
    let (ours, theirs) = duplex::<u32, u32>().unwrap();
    let (said, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let (open, gate) = mpsc::channel();
    let service = thread::spawn(move || {
        blocking_serve(theirs, |n: u32| {
            said.send(n).unwrap();
            gate.recv().unwrap();
            n
        })
    });
    let mut client = Client::new(ours);
    for n in [1, 3] {
        let mut call = Box::pin(client.call(n));
        assert!(poll_once(&mut call).await.is_pending());
        assert_eq!(begun.recv().await, Some(n));
        // Too late: it is answered all the same, to whoever has the client then.
        drop(call);
        client = moved(client).await;
        open.send(()).unwrap();
        open.send(()).unwrap();
        assert_eq!(client.call(n + 1).await.unwrap(), n + 1);
        assert_eq!(begun.recv().await, Some(n + 1));
    }
    drop(client);
    service.join().unwrap().unwrap();
}

#[test]
fn a_client_is_answered_in_each_of_many_runtimes() {
    let (ours, theirs) = duplex::<u32, u32>().unwrap();
    let service = thread::spawn(move || blocking_serve(theirs, |n: u32| n));
    let client = Client::new(ours);
    let runtimes: Vec<_> = (0..20).map(|_| support::runtime()).collect();
    for _ in 0..3 {
        for (n, runtime) in (0..).zip(&runtimes) {
            let answer = async { tokio::time::timeout(Duration::from_secs(20), client.call(n)).await };
            assert_eq!(runtime.block_on(answer).expect("it hangs").unwrap(), n);
        }
    }
    drop((runtimes, client));
    service.join().unwrap().unwrap();
}

#[test]
fn a_call_goes_on_in_another_runtime_while_the_first_is_idle() {
    let (ours, theirs) = duplex::<u32, u32>().unwrap();
    let (open, gate) = mpsc::channel();
    let service = thread::spawn(move || {
        blocking_serve(theirs, |n: u32| {
            gate.recv().unwrap();
            n
        })
    });
    let client = Client::new(ours);
    let (one, other) = (support::runtime(), support::runtime());
    let mut call = Box::pin(client.call(7));
    assert!(one.block_on(poll_once(&mut call)).is_pending());
    assert!(other.block_on(poll_once(&mut call)).is_pending());
    open.send(()).unwrap();
    let answer = async { tokio::time::timeout(Duration::from_secs(20), call).await };
    assert_eq!(other.block_on(answer).expect("it hangs").unwrap(), 7);
    // Nor does it depend on the first one any more.
    let mut call = Box::pin(client.call(8));
    assert!(one.block_on(poll_once(&mut call)).is_pending());
    assert!(other.block_on(poll_once(&mut call)).is_pending());
    drop(one);
    open.send(()).unwrap();
    assert_eq!(other.block_on(call).unwrap(), 8);
    // And it goes on without any.
    let mut call = Box::pin(client.call(9));
    assert!(other.block_on(poll_once(&mut call)).is_pending());
    open.send(()).unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(support::eventually(Duration::from_secs(20), || match call.as_mut().poll(&mut cx) {
        Poll::Ready(answer) => answer.unwrap() == 9,
        Poll::Pending => false,
    }));
    drop(call);
    drop(client);
    service.join().unwrap().unwrap();
}

/// As if they had not been sent, it said.
#[test]
fn a_call_says_that_there_was_no_room_for_fds_at_either_side() {
    support::alone("a_call_says_that_there_was_no_room_for_fds_at_either_side", || {
        const WHY: &str = "too many are open here";
        let null = || Some(Fd::from(File::open("/dev/null").unwrap()));
        let all = || std::iter::from_fn(|| File::open("/dev/null").ok()).collect::<Vec<_>>();
        few_fds();
        let runtime = support::runtime();
        let (ours, theirs) = duplex::<Option<Fd<File>>, Option<Fd<File>>>().unwrap();
        let client = Client::new(ours);
        let start = |request| {
            let mut call = Box::pin(client.call(request));
            for _ in 0..2 {
                // The first time it may only let others come.
                assert!(runtime.block_on(poll_once(&mut call)).is_pending());
            }
            call
        };
        let call = start(null());
        let taken = all();
        let (said, begun) = mpsc::channel();
        let (open, gate) = mpsc::channel();
        let service = thread::spawn(move || {
            blocking_serve(theirs, |_| {
                said.send(()).unwrap();
                gate.recv().unwrap()
            })
        });
        match runtime.block_on(call) {
            Err(CallError::Refused { reason, .. }) => assert!(reason.contains(WHY), "{reason}"),
            other => panic!("{other:?}"),
        }
        drop(taken);

        let (first, second) = (start(None), start(None));
        open.send(null()).unwrap();
        // It has answered the first.
        begun.recv().unwrap();
        begun.recv().unwrap();
        let taken = all();
        match runtime.block_on(first) {
            Err(CallError::Decode(why)) => assert!(why.to_string().contains(WHY), "{why}"),
            other => panic!("{other:?}"),
        }
        drop(taken);
        open.send(None).unwrap();
        assert!(runtime.block_on(second).unwrap().is_none());
        drop(client);
        service.join().unwrap().unwrap();
    });
}

fn few_fds() {
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum: getrlimit(Resource::Nofile).maximum }).unwrap();
}

fn opens_another(end: Duplex<bool, Fd<File>>) {
    few_fds();
    blocking_serve(end, |_| File::open("/dev/null").is_ok()).unwrap();
}

/// All were taken in while the first was at work, and there was no room for most of them.
#[tokio::test]
async fn requests_with_fds_that_wait_for_a_blocking_server_take_none_of_its_room() {
    let (ours, theirs) = duplex::<Fd<File>, bool>().unwrap();
    let client = Client::new(ours);
    let mut calls: Vec<_> = (0..100).map(|_| Box::pin(client.call(File::open("/dev/null").unwrap().into()))).collect();
    for _ in 0..2 {
        // The first time it may only let others come.
        for call in &mut calls {
            assert!(poll_once(call).await.is_pending());
        }
    }
    let service = spawn_process(task!(opens_another(theirs))).await.unwrap();
    for call in calls {
        assert!(call.await.unwrap(), "the handler has no room");
    }
    drop(client);
    service.join().await.unwrap();
}

#[tokio::test]
async fn a_request_with_fds_that_is_cancelled_before_its_turn_comes_is_skipped() {
    let (ours, theirs) = duplex::<(u32, Option<Fd<File>>), u32>().unwrap();
    let (said, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let (open, gate) = mpsc::channel();
    let service = thread::spawn(move || {
        blocking_serve(theirs, |(n, _)| {
            said.send(n).unwrap();
            gate.recv().unwrap();
            n
        })
    });
    let client = Client::new(ours);
    let mut first = Box::pin(client.call((1, None)));
    assert!(poll_once(&mut first).await.is_pending());
    assert_eq!(begun.recv().await, Some(1));
    let mut second = Box::pin(client.call((2, Some(File::open("/dev/null").unwrap().into()))));
    assert!(poll_once(&mut second).await.is_pending());
    drop(second);
    open.send(()).unwrap();
    open.send(()).unwrap();
    assert_eq!(client.call((3, None)).await.unwrap(), 3);
    assert_eq!(begun.recv().await, Some(3), "nobody waits for it");
    assert_eq!(first.await.unwrap(), 1);
    drop(client);
    service.join().unwrap().unwrap();
}

/// Whether some task of this process waits, or has waited, until a socket can be written.
fn is_registered_to_write() -> bool {
    let infos = std::fs::read_dir("/proc/self/fdinfo").unwrap();
    infos.filter_map(|info| std::fs::read_to_string(info.ok()?.path()).ok()).any(|info| {
        // See proc_pid_fdinfo(5).
        let events = info.lines().filter_map(|line| line.strip_prefix("tfd:")?.split_whitespace().nth(2));
        events.filter_map(|events| u32::from_str_radix(events, 16).ok()).any(|events| events & 4 != 0)
    })
}

/// The client had failed for good.
#[test]
fn without_fds_a_call_waits_and_the_client_goes_on() {
    support::alone("without_fds_a_call_waits_and_the_client_goes_on", || {
        few_fds();
        let runtime = support::runtime();
        let (ours, theirs) = duplex::<Vec<u8>, usize>().unwrap();
        let client = Client::new(ours);
        let mut calls: Vec<_> = (0..4).map(|_| Box::pin(client.call(vec![7; 1 << 20]))).collect();
        for _ in 0..2 {
            for call in &mut calls {
                assert!(runtime.block_on(poll_once(call)).is_pending());
            }
        }
        // The thread that sends the rest has a place to wait, which is where the reader of plain threads is to wait, too.
        assert!(support::eventually(Duration::from_secs(20), is_registered_to_write));
        let service = thread::spawn(|| support::block_on(serve(theirs, |bytes: Vec<u8>| ready(bytes.len()))));
        for call in calls {
            assert_eq!(runtime.block_on(call).unwrap(), 1 << 20);
        }
        let taken: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
        for len in 0..20 {
            assert_eq!(client.blocking_call(vec![7; len]).unwrap(), len);
        }
        drop(taken);
        assert_eq!(client.blocking_call(vec![7; 100]).unwrap(), 100);
        drop((client, runtime));
        service.join().unwrap().unwrap();
    });
}

/// Says that it is dropped.
struct Gone(mpsc::Sender<()>);

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[test]
fn a_call_that_ends_with_its_runtime_is_cancelled() {
    let (ours, theirs) = duplex::<u32, u32>().unwrap();
    let (said, begun) = mpsc::channel();
    let (gone, is_gone) = mpsc::channel();
    let service = thread::spawn(move || {
        support::block_on(serve(theirs, move |n| {
            let gone = Gone(gone.clone());
            said.send(()).unwrap();
            async move {
                let _gone = gone;
                pending::<()>().await;
                n
            }
        }))
    });
    let client = Client::new(ours);
    for is_kept in [false, true] {
        let runtime = support::runtime();
        let theirs = client.clone();
        let mut call = Box::pin(async move { theirs.call(7).await });
        for _ in 0..2 {
            // The first time it may only let others come.
            assert!(runtime.block_on(poll_once(&mut call)).is_pending());
        }
        begun.recv_timeout(Duration::from_secs(20)).unwrap();
        if is_kept {
            drop(runtime);
            assert!(matches!(support::block_on(call), Err(CallError::Io(_))));
        } else {
            // It is a younger task than the reader, which goes first.
            drop(runtime.spawn(call));
            drop(runtime);
        }
        is_gone.recv_timeout(Duration::from_secs(20)).expect("its handler runs on");
    }
    drop(client);
    service.join().unwrap().unwrap();
}

/// Panics when it is dropped, and counts that.
struct Bad(Arc<AtomicUsize>);

impl Drop for Bad {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
        panic!("on purpose");
    }
}

#[tokio::test]
async fn a_handler_that_panics_when_it_is_dropped_costs_no_other_call() {
    let (ours, theirs) = duplex::<u32, u32>().unwrap();
    let (said, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let drops = Arc::new(AtomicUsize::new(0));
    let dropped = Arc::clone(&drops);
    let service = tokio::spawn(serve(theirs, move |n: u32| {
        let (said, dropped) = (said.clone(), Arc::clone(&dropped));
        async move {
            let _bad = (n % 2 == 1).then(|| Bad(dropped));
            if n != 5 && n % 2 == 1 {
                said.send(n).unwrap();
                pending::<()>().await;
            }
            n
        }
    }));
    let client = Client::new(ours);
    let mut start = async |call: &mut Pin<Box<_>>| {
        assert!(poll_once(call).await.is_pending());
        begun.recv().await.unwrap();
    };
    let mut first = Box::pin(client.call(1));
    start(&mut first).await;
    drop(first);
    assert_eq!(client.call(2).await.unwrap(), 2);
    assert_eq!(drops.load(Ordering::Relaxed), 1);
    // One that has its answer and panics then costs its own call at the most.
    assert!(client.call(5).await.is_err());
    assert_eq!(client.call(6).await.unwrap(), 6);
    // All that are open go with the service.
    let mut open = [3, 7].map(|n| Box::pin(client.call(n)));
    for call in &mut open {
        start(call).await;
    }
    service.abort();
    assert!(service.await.unwrap_err().is_cancelled());
    assert_eq!(drops.load(Ordering::Relaxed), 4);
    for call in open {
        assert!(call.await.is_err());
    }
}

/// A waker that begins a call when it goes.
struct Nosy(Client<u32, u32>);

impl Wake for Nosy {
    fn wake(self: Arc<Self>) {}
}

impl Drop for Nosy {
    fn drop(&mut self) {
        let mut call = Box::pin(self.0.call(7));
        assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
}

#[test]
fn a_waker_may_use_the_client_when_it_is_dropped() {
    let (ours, _theirs) = duplex::<u32, u32>().unwrap();
    let client = Client::new(ours);
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || {
        let mut call = Box::pin(client.call(1));
        for _ in 0..3 {
            // Each takes the place of the one before.
            let waker = Waker::from(Arc::new(Nosy(client.clone())));
            assert!(call.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        drop(call);
        done.send(()).unwrap();
    });
    is_done.recv_timeout(Duration::from_secs(20)).expect("it waits for itself");
}

/// A waker that panics, or counts.
struct Woken(Option<Arc<AtomicUsize>>);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.as_ref().expect("on purpose").fetch_add(1, Ordering::Relaxed);
    }
}

/// Ten calls, of which one counts how often it is woken, and the others panic.
fn call_with_bad_wakers(client: &Client<u32, u32>) -> (Vec<Pin<Box<impl Future>>>, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let mut calls = Vec::new();
    for n in 0..10 {
        let waker = Waker::from(Arc::new(Woken((n == 9).then(|| Arc::clone(&count)))));
        let mut call = Box::pin(client.call(n));
        // The first time it may only let others come, and wakes itself.
        for waker in [Waker::noop(), &waker] {
            assert!(call.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
        }
        calls.push(call);
    }
    (calls, count)
}

#[test]
fn wakers_that_panic_keep_no_call_from_the_news_that_there_are_no_more_answers() {
    for by_the_server in [true, false] {
        let (ours, theirs) = duplex::<u32, u32>().unwrap();
        let client = Client::new(ours);
        let runtime = support::runtime();
        let (calls, count) = runtime.block_on(async { call_with_bad_wakers(&client) });
        if by_the_server {
            drop(theirs);
            let told = async {
                while count.load(Ordering::Relaxed) == 0 {
                    tokio::task::yield_now().await;
                }
            };
            runtime
                .block_on(async { tokio::time::timeout(Duration::from_secs(20), told).await })
                .expect("it sleeps for good");
        } else {
            drop(runtime);
            assert_eq!(count.load(Ordering::Relaxed), 1);
        }
        drop(calls);
    }
}

#[tokio::test]
async fn a_waker_that_panics_takes_no_other_call_its_answer() {
    let (ours, theirs) = duplex::<u32, u32>().unwrap();
    let (open, gate) = mpsc::channel();
    let service = thread::spawn(move || {
        blocking_serve(theirs, |n: u32| {
            gate.recv().unwrap();
            n
        })
    });
    let client = Client::new(ours);
    let mut bad = Box::pin(client.call(1));
    let waker = Waker::from(Arc::new(Woken(None)));
    assert!(bad.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    let mut good = Box::pin(client.call(2));
    assert!(poll_once(&mut good).await.is_pending());
    open.send(()).unwrap();
    open.send(()).unwrap();
    assert_eq!(good.await.unwrap(), 2);
    assert_eq!(bad.await.unwrap(), 1);
    drop(client);
    service.join().unwrap().unwrap();
}
