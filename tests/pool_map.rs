//! `map`: order, failures as items, bounded read-ahead, and the end of it all.

#![allow(clippy::cast_possible_truncation, reason = "the numbers are small")]

mod pool_support;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::{FutureExt as _, Stream as _, StreamExt as _};
use multiproc::{Fd, ProcessPool, Sender, SharedBytes, TaskError, channel, is_worker};
use pool_support::{Ledger, Meeting, endless, is_pending, meet, note, until, within};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

multiproc::test_support!();

#[tokio::test]
async fn the_order_is_kept_for_every_chunk_size_and_read_ahead() {
    let pool = ProcessPool::new(3);
    for chunk in [1, 2, 3, 7, 10, 99, 100, 101, usize::MAX] {
        for read_ahead in [None, Some(0), Some(1), Some(5), Some(1000)] {
            let map = pool.map(0..100_u64, |n| {
                // Later inputs are done sooner.
                std::thread::sleep(std::time::Duration::from_micros((100 - n) * 2));
                n * 10
            });
            let map = map.chunk(chunk);
            let map = if let Some(inputs) = read_ahead { map.read_ahead(inputs) } else { map };
            let results: Vec<u64> = within(map.map(Result::unwrap).collect()).await;
            assert_eq!(results, (0..100).map(|n| n * 10).collect::<Vec<_>>(), "{chunk} {read_ahead:?}");
        }
    }
    within(pool.close()).await;
}

#[tokio::test]
async fn a_failure_is_an_item_and_the_others_go_on() {
    let pool = ProcessPool::new(2);
    for chunk in [1, 2, 4] {
        let results: Vec<_> =
            within(pool.map(0..4, |n| if n == 2 { panic!("fail") } else { n }).chunk(chunk).collect()).await;
        assert!(
            matches!(&results[..], [Ok(0), Ok(1), Err(TaskError::Panicked(panic)), Ok(3)] if panic.message == "fail"),
            "{results:?}"
        );
    }
    within(pool.close()).await;
}

#[tokio::test]
async fn large_inputs_and_results_arrive_whole_beside_small_ones() {
    let pool = ProcessPool::new(2);
    let lens = [0, 1, 70_000, 3 << 20, 5, 1 << 20, 65_536, 65_535, 3 << 20, 2];
    for chunk in [1, 3, 10] {
        let inputs = lens.map(|len| Bytes::from(vec![len as u8; len]));
        let back: Vec<_> = within(pool.map(inputs.clone(), |bytes: Bytes| bytes).chunk(chunk).collect()).await;
        assert!(back.into_iter().map(Result::unwrap).eq(inputs), "{chunk}");
        let inputs = lens.map(|len| (vec![len as u8; len], len));
        let results = pool.map(inputs, |(mut bytes, len): (Vec<u8>, usize)| {
            assert_ne!(len, 1 << 20, "fail");
            bytes.push(7);
            if len == 65_536 { std::process::exit(3) } else { bytes }
        });
        let results: Vec<_> = within(results.chunk(chunk).collect()).await;
        for (len, result) in lens.into_iter().zip(results) {
            match result {
                Ok(bytes) => assert!(bytes.len() == len + 1 && bytes[..len].iter().all(|byte| *byte == len as u8)),
                Err(TaskError::Panicked(panic)) => assert!(len == 1 << 20 && panic.message.contains("fail")),
                Err(error) => assert!(len == 65_536 && matches!(error, TaskError::Died { .. }), "{len}: {error}"),
            }
        }
    }
    within(pool.close()).await;
}

/// Inputs that count how many of them were taken.
fn counted<T>(inputs: impl Iterator<Item = T>) -> (impl Iterator<Item = T>, Arc<AtomicUsize>) {
    let pulled = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&pulled);
    (inputs.inspect(move |_| _ = count.fetch_add(1, Ordering::Relaxed)), pulled)
}

#[tokio::test]
async fn endless_inputs_work_and_are_read_ahead_only_so_far() {
    let pool = ProcessPool::new(2);
    for (chunk, read_ahead) in [(1, None), (3, None), (1, Some(1)), (1, Some(10)), (4, Some(10)), (10, Some(3))] {
        let (inputs, pulled) = counted(0_u64..);
        let map = pool.map(inputs, |n| n + 1).chunk(chunk);
        let mut map = if let Some(inputs) = read_ahead { map.read_ahead(inputs) } else { map };
        let ahead = read_ahead.unwrap_or(2 * 2 * chunk);
        assert_eq!(pulled.load(Ordering::Relaxed), 0, "nothing before it is polled");
        for n in 0..100 {
            assert_eq!(within(map.next()).await.unwrap().unwrap(), n + 1);
            let pulled = pulled.load(Ordering::Relaxed);
            assert!(pulled <= n as usize + 1 + ahead, "{pulled} pulled at {n}, with {chunk} and {read_ahead:?}");
        }
        // However long the consumer waits, no more are taken.
        let before = pulled.load(Ordering::Relaxed);
        until(|| pool.status().busy == 0 && pool.status().queued == 0).await;
        assert_eq!(pulled.load(Ordering::Relaxed), before);
    }
    within(pool.close()).await;
}

#[tokio::test]
async fn a_dropped_stream_starts_nothing_more() {
    let pool = ProcessPool::new(2);
    let (meeting, ledger) = (Meeting::new(), Ledger::new());
    let inputs = (0_u64..).map(|id| (ledger.place(), meeting.place(), id));
    let (inputs, pulled) = counted(inputs);
    let mut map = pool.map(inputs, |(ledger, meeting, id): (PathBuf, PathBuf, u64)| {
        note(&ledger, id);
        meet(&meeting, id);
    });
    assert!(is_pending(map.next()).await);
    let (one, two) = (meeting.guest().await, meeting.guest().await);
    drop(map);
    until(|| pool_support::is_gone(one.pid) && pool_support::is_gone(two.pid)).await;
    until(|| pool.status().queued == 0 && pool.status().busy == 0 && pool.status().workers == 2).await;
    assert_eq!(ledger.entries().len(), 2, "only those ran that were running");
    assert_eq!(pulled.load(Ordering::Relaxed), 4);
    within(pool.close()).await;
}

/// What was under way was cancelled, and went on counting as read ahead.
#[tokio::test]
async fn unordered_loses_nothing_though_it_comes_late() {
    let pool = ProcessPool::new(2);
    for polled in [1, 4] {
        let mut map = pool.map(0..50_u64, |n| n).chunk(3);
        // It may be there at once.
        let mut results: Vec<_> = map.next().now_or_never().flatten().map(Result::unwrap).into_iter().collect();
        while results.len() < polled - 1 {
            results.push(within(map.next()).await.unwrap().unwrap());
        }
        let rest: Vec<_> = within(map.unordered().map(Result::unwrap).collect()).await;
        results.extend(rest);
        results.sort_unstable();
        assert_eq!(results, (0..50).collect::<Vec<_>>());
    }
    assert_eq!(pool.status().counts.cancelled, 0);
    within(pool.close()).await;
}

#[tokio::test]
async fn unordered_gives_what_is_ready_first() {
    let pool = ProcessPool::new(2);
    let meeting = Meeting::new();
    let inputs = (0..6_u64).map(|id| (meeting.place(), id));
    let mut map = pool
        .map(inputs, |(meeting, id): (PathBuf, u64)| {
            if id == 0 {
                meet(&meeting, id);
            }
            id
        })
        .unordered();
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(within(map.next()).await.unwrap().unwrap());
    }
    meeting.guest().await.go_on().await;
    assert_eq!(within(map.next()).await.unwrap().unwrap(), 0, "the slow one held nobody up");
    assert!(within(map.next()).await.is_none());
    seen.sort_unstable();
    assert_eq!(seen, [1, 2, 3, 4, 5]);
    within(pool.close()).await;
}

#[tokio::test]
async fn the_size_hint_is_exact_where_the_inputs_are() {
    let pool = ProcessPool::new(2);
    let mut map = pool.map(0..10_u32, |n| n).chunk(3);
    for left in (1..=10).rev() {
        assert_eq!(map.size_hint(), (left, Some(left)));
        within(map.next()).await.unwrap().unwrap();
    }
    assert_eq!(map.size_hint(), (0, Some(0)));
    assert!(within(map.next()).await.is_none());
    assert!(within(map.next()).await.is_none(), "and it stays so");
    let endless = pool.map(0_u64.., |n| n);
    assert_eq!(endless.size_hint().1, None);
    within(pool.close()).await;
}

/// An iterator that must not be asked again after its end.
struct Once(Option<u32>);

impl Iterator for Once {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let left = self.0.expect("asked after its end");
        self.0 = left.checked_sub(1);
        self.0
    }
}

#[tokio::test]
async fn inputs_are_not_asked_after_their_end() {
    let pool = ProcessPool::new(2);
    for chunk in [1, 2, 3, 4, 5] {
        let results: Vec<u32> = within(pool.map(Once(Some(4)), |n| n).chunk(chunk).map(Result::unwrap).collect()).await;
        assert_eq!(results, [3, 2, 1, 0]);
    }
    let none: Vec<_> = within(pool.map(Vec::<u8>::new(), |n| n).collect()).await;
    assert!(none.is_empty());
    within(pool.close()).await;
}

/// A value that can't be sent, or not be received, in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Fault {
    None,
    EncodeHere,
    DecodeThere,
    EncodeThere,
    DecodeHere,
    PanicEncodeHere,
    PanicDecodeThere,
}

#[derive(Debug, PartialEq, Eq)]
struct Touchy(Fault);

impl Serialize for Touchy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (self.0, is_worker()) {
            (Fault::EncodeHere, false) | (Fault::EncodeThere, true) => Err(S::Error::custom("can't be encoded")),
            (Fault::PanicEncodeHere, false) => panic!("while encoding"),
            (fault, _) => fault.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Touchy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match (Fault::deserialize(deserializer)?, is_worker()) {
            (Fault::DecodeThere, true) | (Fault::DecodeHere, false) => Err(D::Error::custom("can't be decoded")),
            (Fault::PanicDecodeThere, true) => panic!("while decoding"),
            (fault, _) => Ok(Self(fault)),
        }
    }
}

#[tokio::test]
async fn an_item_that_cannot_travel_fails_alone_in_its_chunk() {
    let pool = ProcessPool::new(2);
    for chunk in [1, 3, 100] {
        for fault in [
            Fault::EncodeHere,
            Fault::DecodeThere,
            Fault::EncodeThere,
            Fault::DecodeHere,
            Fault::PanicEncodeHere,
            Fault::PanicDecodeThere,
        ] {
            let inputs = [Fault::None, Fault::None, fault, Fault::None, Fault::None].map(Touchy);
            let results: Vec<_> = within(pool.map(inputs, |touchy| touchy).chunk(chunk).collect()).await;
            assert_eq!(results.len(), 5);
            for (n, result) in results.iter().enumerate() {
                if n != 2 {
                    assert_eq!(result.as_ref().unwrap(), &Touchy(Fault::None), "{fault:?}");
                    continue;
                }
                let right = match (fault, result) {
                    (Fault::EncodeHere | Fault::EncodeThere, Err(TaskError::Encode(_)))
                    | (Fault::DecodeHere | Fault::DecodeThere, Err(TaskError::Decode(_))) => true,
                    (Fault::PanicEncodeHere, Err(TaskError::Panicked(panic))) => panic.message == "while encoding",
                    (Fault::PanicDecodeThere, Err(TaskError::Panicked(panic))) => panic.message == "while decoding",
                    _ => false,
                };
                assert!(right, "{fault:?} with {chunk}: {result:?}");
            }
        }
    }
    within(pool.close()).await;
}

/// Inputs may be endless, and no other can fare better.
#[tokio::test]
async fn on_a_closed_pool_the_first_inputs_say_so_and_no_more_are_taken() {
    let pool = ProcessPool::new(2);
    within(pool.close()).await;
    for chunk in [1, 3] {
        let (inputs, pulled) = counted(0_u64..);
        let results: Vec<_> = within(pool.map(inputs, |n| n).chunk(chunk).collect()).await;
        assert_eq!(results.len(), chunk, "one chunk");
        assert!(results.iter().all(|result| matches!(result, Err(TaskError::Closed))));
        assert_eq!(pulled.load(Ordering::Relaxed), chunk);
    }
}

#[tokio::test]
async fn a_cancelled_pool_ends_its_streams() {
    let pool = ProcessPool::new(2);
    let mut map = pool.map(0..10, |_: u32| endless()).chunk(2);
    assert!(tokio::time::timeout(std::time::Duration::from_millis(1), map.next()).await.is_err());
    within(pool.cancel()).await;
    let results: Vec<_> = within(map.collect()).await;
    assert_eq!(results.len(), 10);
    assert!(results.iter().all(|result| matches!(result, Err(TaskError::Cancelled | TaskError::Closed))));
}

/// Also what moves when it is encoded, as an end of a channel does, and what is one too many by itself.
#[tokio::test]
async fn inputs_with_fds_go_in_as_many_messages_as_they_need() {
    let pool = ProcessPool::new(2);
    let shared = SharedBytes::copy_from_slice(b"abc").unwrap();
    // By default, too: more than are sent one by one.
    let results: Vec<_> =
        within(pool.map(vec![shared; 600], |bytes: SharedBytes| bytes.len()).collect::<Vec<_>>()).await;
    assert_eq!(results.len(), 600);
    assert!(results.iter().all(|result| matches!(result, Ok(3))), "{results:?}");

    let (ends, mut others): (Vec<_>, Vec<_>) = (0..150).map(|_| channel::<usize>().unwrap()).unzip();
    let numbered = ends.into_iter().enumerate();
    let results = pool.map(numbered, |(n, end): (usize, Sender<usize>)| end.blocking_send(n).unwrap()).chunk(100);
    let results: Vec<_> = within(results.collect::<Vec<_>>()).await;
    assert!(results.len() == 150 && results.iter().all(Result::is_ok), "{results:?}");
    for (n, other) in others.iter_mut().enumerate() {
        assert_eq!(within(other.recv()).await.unwrap(), Some(n));
    }

    let files = |count| (0..count).map(|_| Fd::from(File::open("/dev/null").unwrap())).collect();
    let inputs: Vec<Vec<Fd<File>>> = [1, 65, 2, 64, 0, 3].into_iter().map(files).collect();
    let results: Vec<_> =
        within(pool.map(inputs, |files: Vec<Fd<File>>| files.len()).chunk(6).collect::<Vec<_>>()).await;
    assert!(matches!(&results[..], [Ok(1), Err(TaskError::Encode(_)), Ok(2), Ok(64), Ok(0), Ok(3)]), "{results:?}");
    within(pool.close()).await;
}

/// Panics that reach a chunk's own code say where they came from, as any other.
#[tokio::test]
async fn a_panic_in_a_chunk_has_its_place() {
    let pool = ProcessPool::new(1);
    let results: Vec<_> = within(pool.map(0..3_u8, |n| panic!("{n}")).chunk(3).collect::<Vec<Result<u8, _>>>()).await;
    for (n, result) in results.into_iter().enumerate() {
        let Err(TaskError::Panicked(panic)) = result else { panic!("{result:?}") };
        assert_eq!(panic.message, n.to_string());
        assert!(panic.location.unwrap().contains("pool_map.rs"));
    }
    within(pool.close()).await;
}

fn at_least(time: std::time::Duration) -> u32 {
    std::thread::sleep(time);
    std::process::id()
}

#[tokio::test]
async fn by_default_few_long_calls_go_one_by_one_to_all_workers() {
    let pool = ProcessPool::new(4);
    within(pool.start()).await.unwrap();
    let results: Vec<_> =
        within(pool.map(0..100, |_: u32| at_least(std::time::Duration::from_millis(2))).collect()).await;
    let mut by_worker = std::collections::HashMap::new();
    for pid in results {
        *by_worker.entry(pid.unwrap()).or_insert(0) += 1;
    }
    assert_eq!(by_worker.len(), 4, "{by_worker:?}");
    assert_eq!(pool.status().counts.done, 100, "each was a task of its own");
    within(pool.close()).await;
}

#[tokio::test]
async fn by_default_many_short_calls_go_in_chunks_and_keep_their_order_and_read_ahead() {
    let pool = ProcessPool::new(2);
    let (inputs, pulled) = counted(0..200_000_u32);
    let mut map = pool.map(inputs, |n| n + 1);
    for n in 0..200_000 {
        assert_eq!(map.size_hint().0, 200_000 - n as usize);
        assert_eq!(within(map.next()).await.unwrap().unwrap(), n + 1);
        // Two chunks a worker, of at most 8192 inputs.
        assert!(pulled.load(Ordering::Relaxed) <= n as usize + 1 + 5 * 8192);
    }
    assert!(within(map.next()).await.is_none());
    let tasks = pool.status().counts.done;
    assert!(tasks < 2000, "{tasks} tasks");
    within(pool.close()).await;
}

/// Among few inputs a death costs its own and none of its neighbours.
#[tokio::test]
async fn by_default_a_death_among_few_inputs_takes_no_other() {
    let pool = ProcessPool::new(2);
    let results: Vec<_> =
        within(pool.map(0..100, |n| if n % 10 == 7 { std::process::abort() } else { n }).collect()).await;
    for (n, result) in results.into_iter().enumerate() {
        match result {
            Ok(value) => assert!(value == n && n % 10 != 7),
            Err(TaskError::Died { .. }) => assert_eq!(n % 10, 7),
            Err(other) => panic!("{other:?}"),
        }
    }
    within(pool.close()).await;
}

/// One long call among short ones makes the chunks behind it small again.
#[tokio::test]
async fn inputs_that_become_slow_are_spread_again() {
    let pool = ProcessPool::new(2);
    let slow = |n: u32| {
        if n >= 50_000 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        n
    };
    let begun = std::time::Instant::now();
    let mut map = pool.map(0..50_200_u32, slow);
    for n in 0..50_200 {
        assert_eq!(within(map.next()).await.unwrap().unwrap(), n);
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(30));
    within(pool.close()).await;
}

/// The texts of an error and of all that it comes from.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[tokio::test]
async fn why_no_worker_starts_is_told_for_each_input() {
    fn start(_: ()) {
        panic!("the model is missing");
    }
    let builder = ProcessPool::builder().workers(1).restart_limit(0, std::time::Duration::from_mins(1));
    let pool = builder.on_worker_start(multiproc::call(start, ())).build().unwrap();
    let results: Vec<_> = within(pool.map(0..3_u8, |n| n).collect()).await;
    assert_eq!(results.len(), 3);
    for result in results {
        let error = result.unwrap_err();
        assert!(chain(&error).contains("the model is missing"), "{}", chain(&error));
    }
}
