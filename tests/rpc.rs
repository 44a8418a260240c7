//! Calls to a service: each gets its own answer or a typed error, whoever ends at whatever moment.

#![expect(clippy::needless_pass_by_value, reason = "a task owns its arguments")]

use std::future::{Future, pending, poll_fn};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::future::{FutureExt as _, join_all};
use multiproc::{
    CallError, Client, Duplex, Receiver, RecvError, Sender, blocking_serve, channel, duplex, serve, spawn_process, task,
};
use serde::{Deserialize, Serialize};

mod support;

multiproc::test_support!();

async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx))).await
}

/// Answers the later requests of a batch first.
async fn backwards(end: Duplex<u64, (u64, u64)>) {
    serve(end, |(n, turns)| async move {
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        n * n
    })
    .await
    .unwrap();
}

async fn many_calls() {
    let (ours, theirs) = duplex().unwrap();
    let service = spawn_process(task!(backwards(theirs).await)).await.unwrap();
    let client = Client::new(ours);
    let callers = (0..20).map(|caller| {
        let client = client.clone();
        tokio::spawn(async move {
            let calls = (0..100).map(|n| client.call((caller * 100 + n, 100 - n)));
            for (n, answer) in (0..).zip(join_all(calls).await) {
                assert_eq!(answer.unwrap(), (caller * 100 + n) * (caller * 100 + n));
            }
        })
    });
    for caller in join_all(callers).await {
        caller.unwrap();
    }
    drop(client);
    service.join().await.unwrap();
}

#[tokio::test]
async fn many_calls_of_many_tasks_each_get_their_own_answer() {
    many_calls().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_of_many_tasks_each_get_their_own_answer_on_many_threads() {
    many_calls().await;
}

#[tokio::test]
async fn more_calls_than_may_be_open_wait_and_are_answered() {
    let (ours, theirs) = duplex().unwrap();
    let service = spawn_process(task!(backwards(theirs).await)).await.unwrap();
    let client = Client::new(ours);
    let answers = join_all((0..5000).map(|n| client.call((n, 1)))).await;
    assert!((0..).zip(answers).all(|(n, answer)| answer.unwrap() == n * n));
    drop(client);
    service.join().await.unwrap();
}

/// A request that is answered never, and tells what becomes of it.
async fn never(end: Duplex<u8, Sender<String>>) {
    serve(end, |told: Sender<String>| async move {
        told.send("begun".into()).await.unwrap();
        let _told = OnDrop(told);
        pending::<u8>().await
    })
    .await
    .unwrap();
}

struct OnDrop(Sender<String>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.blocking_send("dropped".into()).unwrap();
    }
}

#[tokio::test]
async fn a_dropped_call_is_dropped_in_the_server_too() {
    let (ours, theirs) = duplex().unwrap();
    let service = spawn_process(task!(never(theirs).await)).await.unwrap();
    let client = Client::new(ours);
    for _ in 0..3 {
        let (tell, mut told) = channel().unwrap();
        {
            let mut call = Box::pin(client.call(tell));
            tokio::select! {
                answer = &mut call => panic!("{answer:?}"),
                begun = told.recv() => assert_eq!(begun.unwrap().unwrap(), "begun"),
            }
        }
        assert_eq!(told.recv().await.unwrap().unwrap(), "dropped");
    }
    drop(client);
    service.join().await.unwrap();
}

#[tokio::test]
async fn the_client_s_end_drops_what_the_server_works_on_and_ends_it() {
    let (ours, theirs) = duplex().unwrap();
    let service = tokio::spawn(never(theirs));
    let (tell, mut told) = channel().unwrap();
    let caller = spawn_process(task!(call_never(Client::new(ours), tell))).await.unwrap();
    assert_eq!(told.recv().await.unwrap().unwrap(), "begun");
    caller.kill().unwrap();
    assert_eq!(told.recv().await.unwrap().unwrap(), "dropped");
    service.await.unwrap();
}

fn call_never(client: Client<Sender<String>, u8>, tell: Sender<String>) {
    client.blocking_call(tell).unwrap();
}

#[tokio::test]
async fn a_killed_server_is_unanswered_to_all_open_calls_and_closed_to_later_ones() {
    for round in 0..10 {
        let (ours, theirs) = duplex().unwrap();
        let mut service = spawn_process(task!(never(theirs).await)).await.unwrap();
        let client = Client::new(ours);
        let (tells, mut tolds): (Vec<_>, Vec<_>) = (0..10).map(|_| channel().unwrap()).unzip();
        let calls = join_all(tells.into_iter().map(|tell| client.call(tell)));
        let kill = async {
            // In the later rounds it has not even read them all.
            for told in tolds.iter_mut().take(10 - round) {
                assert_eq!(told.recv().await.unwrap().unwrap(), "begun");
            }
            service.kill().unwrap();
            service.wait().await.unwrap();
        };
        let (answers, ()) = tokio::join!(calls, kill);
        for answer in answers {
            assert!(matches!(answer, Err(CallError::Unanswered)), "{answer:?}");
        }
        let (tell, _told) = channel().unwrap();
        assert!(matches!(client.call(tell).await, Err(CallError::Closed)));
        let (tell, _told) = channel().unwrap();
        assert!(matches!(client.blocking_call(tell), Err(CallError::Closed)));
    }
}

#[tokio::test]
async fn a_server_killed_before_it_reads_or_in_the_middle_of_its_answer_leaves_the_call_unanswered() {
    for stopped_first in [true, false] {
        let (ours, theirs) = duplex().unwrap();
        let mut service = spawn_process(task!(large(theirs))).await.unwrap();
        let pid = service.id().unwrap();
        let client = Client::<u32, Vec<u8>>::new(ours);
        assert_eq!(client.call(1).await.unwrap(), [7]);
        if stopped_first {
            service.signal(19).unwrap();
            until(pid, 'T');
        }
        let mut call = Box::pin(client.call(64 << 20));
        assert!(poll_once(&mut call).await.is_pending());
        if !stopped_first {
            // Nobody reads meanwhile, so it can't have sent it all.
            until(pid, 'R');
            until(pid, 'S');
        }
        service.kill().unwrap();
        service.wait().await.unwrap();
        assert!(matches!(call.await, Err(CallError::Unanswered)));
    }
}

fn large(end: Duplex<Vec<u8>, u32>) {
    blocking_serve(end, |len| vec![7; len as usize]).unwrap();
}

/// Waits until a process is in that state, and lets nothing else run on this thread.
fn until(pid: u32, state: char) {
    assert!(support::eventually(Duration::from_secs(20), || support::proc::state(pid) == state));
}

#[tokio::test]
async fn a_server_that_returns_leaves_its_calls_unanswered() {
    let (ours, theirs) = duplex::<(), ()>().unwrap();
    let service = spawn_process(task!(ends(theirs).await)).await.unwrap();
    let client = Client::new(ours);
    let (answer, other) = tokio::join!(client.call(()), client.call(()));
    assert!(matches!(answer, Err(CallError::Unanswered)), "{answer:?}");
    assert!(matches!(other, Err(CallError::Unanswered)), "{other:?}");
    drop(client);
    service.join().await.unwrap();
}

/// When it is called, in its future, and in its answer's `Serialize`.
#[tokio::test]
async fn a_handler_that_panics_costs_its_call_alone() {
    for blocking in [false, true] {
        let (ours, theirs) = duplex::<u32, Half>().unwrap();
        let service = if blocking {
            spawn_process(task!(halve_blocking(theirs))).await.unwrap().join().boxed()
        } else {
            spawn_process(task!(halve(theirs).await)).await.unwrap().join().boxed()
        };
        let client = Client::new(ours);
        let answers = join_all((0..7).map(|n| client.call(n))).await;
        for (n, answer) in (0..).zip(answers) {
            match answer {
                Ok(Half(half)) => assert_eq!(half * 2, n),
                Err(CallError::Refused { reason, .. }) => {
                    let expected = if n == 6 { "six".to_owned() } else { format!("{n} is odd") };
                    let expected = format!("the handler panicked: {expected} at tests/rpc.rs:");
                    assert!(reason.starts_with(&expected), "{reason}");
                }
                other => panic!("{other:?}"),
            }
        }
        drop(client);
        service.await.unwrap();
    }
}

/// Refuses to be sent as 3.
#[derive(Debug, Deserialize)]
struct Half(u32);

impl Serialize for Half {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        assert!(self.0 != 3, "six");
        self.0.serialize(serializer)
    }
}

async fn halve(end: Duplex<Half, u32>) {
    let handler = |n: u32| {
        assert!(n != 1, "1 is odd");
        async move {
            tokio::task::yield_now().await;
            assert!(n.is_multiple_of(2), "{n} is odd");
            Half(n / 2)
        }
    };
    serve(end, handler).await.unwrap();
}

fn halve_blocking(end: Duplex<Half, u32>) {
    let handler = |n: u32| {
        assert!(n.is_multiple_of(2), "{n} is odd");
        Half(n / 2)
    };
    blocking_serve(end, handler).unwrap();
}

async fn ends(end: Duplex<(), ()>) {
    let (tell, mut told) = channel::<()>().unwrap();
    let tell = &tell;
    let mut seen = 0;
    let serving = serve(end, |()| {
        seen += 1;
        async move {
            if seen == 2 {
                tell.send(()).await.unwrap();
            }
            pending::<()>().await;
        }
    });
    tokio::select! {
        _ = serving => {}
        _ = told.recv() => {}
    }
}

#[tokio::test]
async fn a_cancelled_request_that_has_not_begun_is_skipped_by_a_blocking_server() {
    let (ours, theirs) = duplex().unwrap();
    let (open, gate) = channel::<()>().unwrap();
    let (said, mut begun) = channel::<u32>().unwrap();
    let service = spawn_process(task!(gated(theirs, gate, said))).await.unwrap();
    let client = Client::<u32, u32>::new(ours);
    let mut first = Box::pin(client.call(1));
    assert!(poll_once(&mut first).await.is_pending());
    assert_eq!(begun.recv().await.unwrap(), Some(1));
    {
        let mut second = Box::pin(client.call(2));
        assert!(poll_once(&mut second).await.is_pending());
    }
    open.send(()).await.unwrap();
    open.send(()).await.unwrap();
    assert_eq!(first.await.unwrap(), 1);
    assert_eq!(client.call(3).await.unwrap(), 3);
    drop(client);
    service.join().await.unwrap();
    assert_eq!(begun.recv().await.unwrap(), Some(3));
    assert_eq!(begun.recv().await.unwrap(), None);
}

fn gated(end: Duplex<u32, u32>, mut gate: Receiver<()>, begun: Sender<u32>) {
    let handle = |n| {
        begun.blocking_send(n).unwrap();
        gate.blocking_recv().unwrap();
        n
    };
    blocking_serve(end, handle).unwrap();
}

async fn ask_and_wait(client: Client<u32, u32>, asked: Sender<()>) {
    let mut calls: Vec<_> = (0..100).map(|n| Box::pin(client.call(n))).collect();
    // They leave when others have run.
    for _ in 0..3 {
        for call in &mut calls {
            let _ = poll_once(call).await;
        }
        tokio::task::yield_now().await;
    }
    asked.send(()).await.unwrap();
    pending::<()>().await;
}

/// It began with each that the client had sent, as if that would still read the answers.
#[tokio::test]
async fn a_blocking_server_begins_with_nothing_that_a_dead_client_has_asked() {
    for is_at_work in [false, true] {
        let (ours, theirs) = duplex().unwrap();
        let (asked, mut has_asked) = channel().unwrap();
        let (open, gate) = channel::<()>().unwrap();
        let (said, mut begun) = channel::<u32>().unwrap();
        let mut client = spawn_process(task!(ask_and_wait(Client::new(ours), asked).await)).await.unwrap();
        has_asked.recv().await.unwrap().unwrap();
        let start = || std::thread::spawn(|| gated(theirs, gate, said));
        let service = if is_at_work {
            let service = start();
            assert_eq!(begun.recv().await.unwrap(), Some(0));
            client.kill().unwrap();
            client.wait().await.unwrap();
            service
        } else {
            client.kill().unwrap();
            client.wait().await.unwrap();
            start()
        };
        for _ in 0..100 {
            let _ = open.send(()).await;
        }
        assert_eq!(begun.recv().await.unwrap(), None);
        service.join().unwrap();
    }
}

/// Can't be read by the other process, or not be sent back.
#[derive(Debug, PartialEq)]
struct Picky(u8);

impl Serialize for Picky {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 == 3 {
            return Err(serde::ser::Error::custom("not to be sent"));
        }
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Picky {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u8::deserialize(deserializer)? {
            5 => Err(serde::de::Error::custom("not to be read")),
            n => Ok(Self(n)),
        }
    }
}

#[tokio::test]
async fn what_cannot_be_sent_or_read_fails_that_call_alone() {
    let (ours, theirs) = duplex::<Picky, Picky>().unwrap();
    let serving = serve(theirs, |Picky(n)| async move { Picky(n + 1) });
    let calling = async {
        let client = Client::new(ours.max_message(100));
        assert!(matches!(client.call(Picky(3)).await, Err(CallError::Encode(_))));
        match client.call(Picky(2)).await {
            Err(CallError::Refused { reason, .. }) => assert!(reason.contains("not to be sent"), "{reason}"),
            other => panic!("{other:?}"),
        }
        match client.call(Picky(5)).await {
            Err(CallError::Refused { reason, .. }) => assert!(reason.contains("not to be read"), "{reason}"),
            other => panic!("{other:?}"),
        }
        assert!(matches!(client.call(Picky(4)).await, Err(CallError::Decode(_))));
        assert_eq!(client.call(Picky(7)).await.unwrap(), Picky(8));
    };
    let (served, ()) = tokio::join!(serving, calling);
    served.unwrap();
}

#[tokio::test]
async fn a_request_over_the_limit_is_refused_and_an_answer_over_it_ends_the_client() {
    let (ours, theirs) = duplex::<Vec<u8>, Vec<u8>>().unwrap();
    let serving = serve(theirs, |bytes: Vec<u8>| async move { bytes.repeat(2) });
    let calling = async {
        let client = Client::new(ours.max_message(100));
        assert!(matches!(client.call(vec![0; 101]).await, Err(CallError::TooLarge { max: 100, .. })));
        assert_eq!(client.call(vec![0; 40]).await.unwrap().len(), 80);
        for _ in 0..2 {
            assert!(matches!(client.call(vec![0; 80]).await, Err(CallError::TooLarge { max: 100, .. })));
        }
    };
    let (served, ()) = tokio::join!(serving, calling);
    served.unwrap();
}

#[tokio::test]
async fn an_end_that_speaks_no_calls_is_a_protocol_error() {
    let (ours, theirs) = duplex::<u8, u8>().unwrap();
    let client = Client::new(ours);
    theirs.send(1).await.unwrap();
    for _ in 0..2 {
        assert!(matches!(client.call(1).await, Err(CallError::Protocol { .. })));
    }
    let (ours, theirs) = duplex::<u8, u8>().unwrap();
    ours.send(1).await.unwrap();
    assert!(matches!(serve(theirs, |n| async move { n }).await, Err(RecvError::Protocol { .. })));
    let (ours, theirs) = duplex::<u8, u8>().unwrap();
    ours.send(1).await.unwrap();
    assert!(matches!(blocking_serve(theirs, |n| n), Err(RecvError::Protocol { .. })));
}

#[tokio::test]
async fn a_call_that_nobody_polls_holds_up_no_other() {
    let (ours, theirs) = duplex().unwrap();
    let service = spawn_process(task!(backwards(theirs).await)).await.unwrap();
    let client = Client::new(ours);
    let mut unpolled: Vec<_> = (0..50).map(|n| Box::pin(client.call((n, 0)))).collect();
    for call in &mut unpolled {
        assert!(poll_once(call).await.is_pending());
    }
    assert_eq!(client.call((7, 0)).await.unwrap(), 49);
    // Not for async code, but it must not hang there either.
    assert_eq!(client.blocking_call((8, 0)).unwrap(), 64);
    assert!((0..).zip(join_all(unpolled).await).all(|(n, answer)| answer.unwrap() == n * n));
    drop(client);
    service.join().await.unwrap();
}

#[test]
fn threads_tasks_of_two_runtimes_and_tasks_of_none_share_a_client() {
    let (one, other) = (support::runtime(), support::runtime());
    let (ours, theirs) = duplex().unwrap();
    let service = one.block_on(spawn_process(task!(backwards(theirs).await))).unwrap();
    let client = Client::new(ours);
    assert_eq!(client.blocking_call((2, 0)).unwrap(), 4);
    assert_eq!(one.block_on(client.call((3, 0))).unwrap(), 9);
    let mut left = Box::pin(client.call((9, 1_000_000_000)));
    one.block_on(async { assert!(poll_once(&mut left).await.is_pending()) });
    drop(one);
    assert!(matches!(other.block_on(left), Err(CallError::Io(_))), "its runtime is gone");
    assert_eq!(other.block_on(client.call((4, 0))).unwrap(), 16);
    drop(other);
    std::thread::scope(|scope| {
        for n in 0..8 {
            let client = client.clone();
            scope.spawn(move || {
                for m in 0..100 {
                    assert_eq!(client.blocking_call((n + m, m % 3)).unwrap(), (n + m) * (n + m));
                }
            });
        }
    });
    let mut bare = Box::pin(client.call((5, 0)));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(support::eventually(Duration::from_secs(20), || match bare.as_mut().poll(&mut cx) {
        Poll::Ready(answer) => answer.unwrap() == 25,
        Poll::Pending => false,
    }));
    drop(bare);
    drop(client);
    support::runtime().block_on(service.join()).unwrap();
}

fn square_of_nine(client: Client<(u64, u64), u64>) -> u64 {
    client.blocking_call((9, 0)).unwrap()
}

#[tokio::test]
async fn a_client_moves_to_another_process_unless_a_call_is_open() {
    let (ours, theirs) = duplex().unwrap();
    let service = spawn_process(task!(backwards(theirs).await)).await.unwrap();
    let client = Client::new(ours);
    let left = client.clone();
    assert_eq!(client.call((3, 0)).await.unwrap(), 9);
    let mut open = Box::pin(left.call((4, 1_000_000_000)));
    assert!(poll_once(&mut open).await.is_pending());
    let refused = spawn_process(task!(square_of_nine(client.clone()))).await;
    assert!(matches!(refused, Err(multiproc::SpawnError::Encode(_))));
    drop(open);
    let mover = spawn_process(task!(square_of_nine(client))).await.unwrap();
    assert_eq!(mover.join().await.unwrap(), 81);
    assert!(matches!(left.call((1, 0)).await, Err(CallError::Io(_))));
    drop(left);
    service.join().await.unwrap();
}

/// Each answer belongs to its request, whichever calls are dropped at whatever moment.
#[tokio::test]
async fn a_call_dropped_at_any_moment_takes_no_answer_from_another() {
    let (ours, theirs) = duplex().unwrap();
    let service = spawn_process(task!(backwards(theirs).await)).await.unwrap();
    let client = Client::new(ours);
    let mut answered = 0;
    for n in 0..2000 {
        let mut call = Box::pin(client.call((n, n % 3)));
        for _ in 0..n % 7 {
            if let Poll::Ready(answer) = poll_once(&mut call).await {
                assert_eq!(answer.unwrap(), n * n);
                answered += 1;
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(call);
        if n % 50 == 0 {
            assert_eq!(client.call((n, 0)).await.unwrap(), n * n);
        }
    }
    println!("{answered} of 2000 were answered in time");
    drop(client);
    service.join().await.unwrap();
}

async fn pass_on(end: Duplex<Receiver<String>, Receiver<String>>) {
    serve(end, |lines: Receiver<String>| async move { lines }).await.unwrap();
}

#[tokio::test]
async fn ends_travel_in_requests_and_answers_and_those_of_a_dropped_call_are_closed() {
    let (ours, theirs) = duplex().unwrap();
    let service = spawn_process(task!(pass_on(theirs).await)).await.unwrap();
    let client = Client::new(ours);
    let (tx, rx) = channel().unwrap();
    let mut back: Receiver<String> = client.call(rx).await.unwrap();
    tx.send("through two processes".to_owned()).await.unwrap();
    assert_eq!(back.recv().await.unwrap().unwrap(), "through two processes");
    let (tx, rx) = channel().unwrap();
    let mut call = Box::pin(client.call(rx));
    assert!(poll_once(&mut call).await.is_pending());
    drop(call);
    while tx.send("x".repeat(1000)).await.is_ok() {}
    drop(client);
    service.join().await.unwrap();
}
