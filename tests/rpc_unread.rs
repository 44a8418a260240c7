//! Calls whose client does not read its answers: they cost the server little, and come once it does.

use std::future::{Future, poll_fn, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::thread;

use futures::future::join_all;
use multiproc::{Client, duplex, serve};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

mod support;

multiproc::test_support!();

async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx))).await
}

/// An answer of 8 KiB, which counts how often one is encoded.
#[derive(Clone, Default)]
struct Counted(Arc<AtomicUsize>);

impl Serialize for Counted {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.fetch_add(1, Ordering::Relaxed);
        serializer.serialize_str(&"x".repeat(8 << 10))
    }
}

impl<'de> Deserialize<'de> for Counted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|_| Self::default())
    }
}

/// An answer that panics when it is dropped, unless it is 0.
#[derive(Serialize, Deserialize)]
struct Bad(usize, String);

impl Drop for Bad {
    fn drop(&mut self) {
        assert_eq!(self.0, 0, "on purpose");
    }
}

#[test]
fn an_answer_that_waits_to_be_sent_and_panics_when_its_call_is_dropped_costs_no_other_call() {
    const CALLS: usize = 300;
    let (ours, theirs) = duplex::<usize, Bad>().unwrap();
    let client = Client::new(ours);
    let (reads, serves) = (support::runtime(), support::runtime());
    let mut calls: Vec<_> = (0..CALLS).map(|n| Box::pin(client.call(n / (CALLS - 1)))).collect();
    for _ in 0..2 {
        for call in &mut calls {
            assert!(reads.block_on(poll_once(call)).is_pending());
        }
    }
    drop(calls.pop());
    let service = serves.spawn(serve(theirs, |n| ready(Bad(n, "x".repeat(8 << 10)))));
    let serving = thread::spawn(move || serves.block_on(service));
    for answered in reads.block_on(join_all(calls)) {
        answered.unwrap();
    }
    drop((client, reads));
    serving.join().unwrap().unwrap().unwrap();
}

/// All were, and a watched value's with its fds.
#[test]
fn of_the_answers_that_a_client_does_not_read_few_are_encoded() {
    const CALLS: usize = 1000;
    let (ours, theirs) = duplex::<(), Counted>().unwrap();
    let client = Client::new(ours);
    let (reads, serves) = (support::runtime(), support::runtime());
    let mut calls: Vec<_> = (0..CALLS).map(|_| Box::pin(client.call(()))).collect();
    for _ in 0..2 {
        // The first time it may only let others come.
        for call in &mut calls {
            assert!(reads.block_on(poll_once(call)).is_pending());
        }
    }
    let (begun, answer) = (Arc::new(AtomicUsize::new(0)), Counted::default());
    let (begins, answers) = (Arc::clone(&begun), answer.clone());
    let service = serves.spawn(serve(theirs, move |()| {
        begins.fetch_add(1, Ordering::Relaxed);
        ready(answers.clone())
    }));
    serves.block_on(async {
        while begun.load(Ordering::Relaxed) < CALLS {
            tokio::task::yield_now().await;
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    });
    let encoded = answer.0.load(Ordering::Relaxed);
    assert!(encoded < CALLS / 4, "{encoded}");
    let serving = thread::spawn(move || serves.block_on(service));
    for answered in reads.block_on(join_all(calls)) {
        answered.unwrap();
    }
    drop((client, reads));
    serving.join().unwrap().unwrap().unwrap();
    assert_eq!(answer.0.load(Ordering::Relaxed), CALLS);
}
