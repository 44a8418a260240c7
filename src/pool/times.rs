//! How long tasks waited and ran: two histograms a pool, cheap enough to be always there.
//!
//! What is noted goes into a histogram some at a time: its code, and the memory that it touches, are far from all else that a task
//! goes through. The clock is read for a sample of those that wait in a long queue, each of which then counts for all that it stands for;
//! tasks that are answered together count as equally long.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::job::Job;

/// In a queue as long as this only every `SAMPLE`th task looks at the clock.
const LONG: usize = 16;
const SAMPLE: u64 = 16;

/// How many are noted before they go into a histogram.
const RECENT: usize = 64;

/// What is longer, a day, counts as that, in nanoseconds.
const LONGEST: u64 = 24 * 60 * 60 * 1_000_000_000;

#[derive(Debug)]
pub(super) struct Times {
    /// Stamps count from here.
    epoch: Instant,
    spans: Mutex<Spans>,
}

#[derive(Debug)]
struct Spans {
    wait: Series,
    run: Series,
}

/// Durations, in nanoseconds.
#[derive(Debug)]
struct Series {
    histogram: Histogram<u64>,
    /// Those that are not in the histogram yet, each with how many there were of it.
    recent: Vec<(u64, u64)>,
}

impl Series {
    fn new() -> Self {
        // Two digits: 43 KiB a histogram.
        let histogram = Histogram::new_with_bounds(1, LONGEST, 2).expect("the bounds are constants that fit");
        Self { histogram, recent: Vec::with_capacity(RECENT) }
    }

    fn note(&mut self, nanos: u64, count: u64) {
        self.recent.push((nanos, count));
        if self.recent.len() == RECENT {
            self.settle();
        }
    }

    /// Puts all into the histogram.
    fn settle(&mut self) -> &Histogram<u64> {
        for (nanos, count) in self.recent.drain(..) {
            self.histogram.saturating_record_n(nanos, count);
        }
        &self.histogram
    }
}

/// When a task was submitted, if it is in the sample: nanoseconds since the epoch, and in the lowest bit whether it stands
/// for `SAMPLE` tasks or for itself. 0: it is not.
#[derive(Debug, Default)]
pub(super) struct Stamp(AtomicU64);

impl Stamp {
    /// When it was, and for how many tasks it stands.
    fn get(&self) -> Option<(u64, u64)> {
        let stamp = self.0.load(Ordering::Relaxed);
        let weight = if stamp & 1 == 1 { SAMPLE } else { 1 };
        (stamp != 0).then_some((stamp >> 1, weight))
    }
}

/// How a duration is spread over a pool's tasks, of all that it has done since it was made.
///
/// Waits in a long queue are a sample; tasks that a worker answered together count as equally long. Values are exact to one
/// percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quantiles {
    /// How many runs of tasks it is about: one that runs again counts each time. Where waits are a sample it is an estimate.
    pub count: u64,
    /// Half of them took no longer than this.
    pub p50: Duration,
    /// 99 of a hundred took no longer than this.
    pub p99: Duration,
    /// None took longer.
    pub max: Duration,
}

impl Times {
    pub(super) fn new() -> Self {
        Self { epoch: Instant::now(), spans: Mutex::new(Spans { wait: Series::new(), run: Series::new() }) }
    }

    /// A task is submitted, the `number`th, behind so many that wait.
    pub(super) fn stamp(&self, job: &Job, waiting: usize, number: u64, now: impl FnOnce() -> Instant) {
        let stands_for_many = match waiting {
            _ if cfg!(feature = "tracing") => false,
            0..LONG => false,
            _ if number.is_multiple_of(SAMPLE) => true,
            _ => return,
        };
        let nanos = nanos(now().duration_since(self.epoch));
        job.submitted.0.store(nanos << 1 | u64::from(stands_for_many) | 2, Ordering::Relaxed);
    }

    /// A worker has done tasks, one after the other from `start` on, each in so long.
    pub(super) fn note<'a>(&self, start: Instant, each: Duration, jobs: impl Iterator<Item = &'a Job>, worker: u32) {
        let (mut began, run) = (nanos(start.saturating_duration_since(self.epoch)), nanos(each));
        let mut spans = self.spans();
        let mut count = 0;
        for job in jobs {
            if let Some((submitted, weight)) = job.submitted.get() {
                let wait = began.saturating_sub(submitted);
                spans.wait.note(wait, weight);
                job.note_run(worker, Duration::from_nanos(wait), each);
            }
            count += 1;
            began = began.saturating_add(run);
        }
        if count > 0 {
            spans.run.note(run, count);
        }
    }

    /// How long tasks waited, and how long they ran.
    pub(super) fn quantiles(&self) -> (Quantiles, Quantiles) {
        let mut spans = self.spans();
        (of(spans.wait.settle()), of(spans.run.settle()))
    }

    fn spans(&self) -> MutexGuard<'_, Spans> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn of(histogram: &Histogram<u64>) -> Quantiles {
    let at = |quantile| Duration::from_nanos(histogram.value_at_quantile(quantile));
    Quantiles { count: histogram.len(), p50: at(0.5), p99: at(0.99), max: Duration::from_nanos(histogram.max()) }
}
