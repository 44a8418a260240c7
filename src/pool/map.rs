//! `map`: many inputs, one function, a stream of results.
//!
//! Inputs go out in chunks, each one task. How such a chunk travels and runs is in `chunk.rs`, how large it is in
//! `chunking.rs`.

mod chunking;

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::vec;

use futures::Stream;
use futures::stream::{FuturesOrdered, FuturesUnordered};
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::chunking::Chunking;
use super::ProcessPool;
use super::chunk;
use super::job::{Awaits, Job, Outcome, Wishes};
use super::parts::{Part, Parts};
use super::state::Shared;
use super::submit::Claim;
use crate::error::TaskError;
use crate::process::start;

/// The most inputs in any chunk.
const MOST_EVER: usize = u32::MAX as usize;

/// The results of a function on many inputs, from [`ProcessPool::map`](crate::ProcessPool::map): a `Stream`.
///
/// # Cancel safety
///
/// Dropping a pending `next` loses nothing. Dropping the stream cancels what is under way and takes no more inputs.
#[must_use = "streams do nothing unless polled"]
pub struct Map<I: Iterator, F, R>
where
    I::Item: Serialize + DeserializeOwned + Send + 'static,
    F: Fn(I::Item) -> R + Copy + Send + 'static,
    R: Serialize + DeserializeOwned + Send + 'static,
{
    pool: ProcessPool,
    /// `None` once it has ended: an iterator may not be asked again.
    inputs: Option<I>,
    function: PhantomData<fn() -> F>,
    chunking: Chunking,
    read_ahead: Option<usize>,
    under_way: UnderWay<R>,
    /// How many inputs are in the chunks that are under way.
    inputs_under_way: usize,
    /// Results that have come and were not taken yet.
    ready: Ready<R>,
}

/// Results that have come and were not taken yet.
enum Ready<R> {
    Results(vec::IntoIter<Result<R, Box<TaskError>>>),
    /// So many times the same error.
    Failed(TaskError, usize),
}

impl<R> Ready<R> {
    fn none() -> Self {
        Self::Results(Vec::new().into_iter())
    }

    fn len(&self) -> usize {
        match self {
            Self::Results(results) => results.len(),
            Self::Failed(_, count) => *count,
        }
    }

    fn next(&mut self) -> Option<Result<R, TaskError>> {
        match self {
            Self::Results(results) => Some(results.next()?.map_err(|error| *error)),
            Self::Failed(_, 0) => None,
            Self::Failed(error, count @ 2..) => {
                *count -= 1;
                Some(Err(error.again()))
            }
            Self::Failed(..) => match std::mem::replace(self, Self::none()) {
                Self::Failed(error, _) => Some(Err(error)),
                Self::Results(_) => None,
            },
        }
    }
}

impl<I, F, R> Map<I, F, R>
where
    I: Iterator,
    I::Item: Serialize + DeserializeOwned + Send + 'static,
    F: Fn(I::Item) -> R + Copy + Send + 'static,
    R: Serialize + DeserializeOwned + Send + 'static,
{
    pub(super) fn new(pool: ProcessPool, inputs: I, function: F) -> Self {
        const {
            assert!(
                size_of::<F>() == 0,
                "a function that is sent to another process must not capture anything: pass what it needs in the inputs"
            );
        }
        // Having had the value is what allows the other process to make it again; see `image::conjure`.
        let _: F = function;
        Self {
            pool,
            inputs: Some(inputs),
            function: PhantomData,
            chunking: Chunking::measured(),
            read_ahead: None,
            under_way: UnderWay::new(),
            inputs_under_way: 0,
            ready: Ready::none(),
        }
    }

    /// Gives results as they come, not in the order of the inputs.
    ///
    /// It may be called at any time: inputs that are under way by then keep their order among themselves.
    pub fn unordered(mut self) -> Self {
        self.under_way.is_ordered = false;
        self
    }

    /// Sends so many inputs in one task, at least 1.
    ///
    /// Larger chunks are faster where a call takes microseconds. The results of a chunk come together. What fails fails alone
    /// all the same: if a call ends its worker, that input is [`Died`](TaskError::Died), the calls before it keep their results
    /// and the ones behind it run in another worker. A [`task_timeout`](crate::PoolBuilder::task_timeout) ends a call after
    /// between one and two times that long, the first call of a chunk after exactly that.
    ///
    /// A chunk that holds more than one message takes, 2 GiB and 64 fds, goes in several. The pool keeps the inputs' fds until
    /// their chunk is done. An input that holds an end of a channel, a client, or an object of [`sync`](crate::sync) is a chunk of
    /// its own, so that what its call held is given back when that ends, in whatever way, and not after its neighbours.
    ///
    /// A chunk is taken from the inputs in one go: of endless ones, [`usize::MAX`] is as good as for ever.
    ///
    /// By default it is chosen by measurement: the first 256 inputs go one by one; after that a chunk holds what takes about
    /// half a millisecond, at most 8192 inputs or about 128 KiB, and never so many that workers would have nothing to do at
    /// the end (as far as the inputs' [`size_hint`](Iterator::size_hint) says where that is).
    pub fn chunk(mut self, inputs: usize) -> Self {
        self.chunking = Chunking::Fixed(inputs.max(1));
        self
    }

    /// Takes at most so many inputs more than results were taken, at least one. Default: two chunks a worker.
    ///
    /// The stream takes and submits all that it may before it gives the next result. So where inputs are endless,
    /// [`usize::MAX`] would never come to one.
    pub fn read_ahead(mut self, inputs: usize) -> Self {
        self.read_ahead = Some(inputs.max(1));
        self
    }

    /// Submits chunks until the read-ahead is used up.
    fn submit(&mut self) {
        if self.inputs.is_none() {
            return;
        }
        // Two chunks a worker: one that it works on, and one that lies ready.
        let places = self.pool.limit().saturating_mul(2);
        let size = self.chunking.size();
        let limit = self.read_ahead.unwrap_or(places.saturating_mul(size));
        loop {
            let Some(inputs) = &mut self.inputs else { return };
            let most = match self.chunking {
                Chunking::Fixed(size) => size,
                Chunking::Measured { next, .. } => {
                    let left = inputs.size_hint().1.unwrap_or(usize::MAX).min(self.read_ahead.unwrap_or(usize::MAX));
                    next.min(left.div_ceil(places)).max(1)
                }
            };
            let room = limit.saturating_sub(self.ready.len() + self.inputs_under_way).min(most).min(MOST_EVER);
            if room == 0 {
                return;
            }
            let inputs: Vec<_> = inputs.by_ref().take(room).collect();
            let count = inputs.len();
            if count < room {
                self.inputs = None;
            }
            self.inputs_under_way += count;
            let mut rest = &inputs[..];
            // More than one message has room for go in several.
            while !rest.is_empty() {
                let (count, sent) = send::<F, _, R>(self.pool.shared(), rest);
                rest = &rest[count..];
                if matches!(sent, Err(TaskError::Closed)) {
                    // It will be no other for those behind, and they may be endless.
                    self.inputs = None;
                }
                self.under_way.push(ChunkUnderWay { count, sent, result: PhantomData });
            }
        }
    }
}

/// Nothing in it is polled in place.
impl<I, F, R> Unpin for Map<I, F, R>
where
    I: Iterator,
    I::Item: Serialize + DeserializeOwned + Send + 'static,
    F: Fn(I::Item) -> R + Copy + Send + 'static,
    R: Serialize + DeserializeOwned + Send + 'static,
{
}

impl<I, F, R> Stream for Map<I, F, R>
where
    I: Iterator,
    I::Item: Serialize + DeserializeOwned + Send + 'static,
    F: Fn(I::Item) -> R + Copy + Send + 'static,
    R: Serialize + DeserializeOwned + Send + 'static,
{
    type Item = Result<R, TaskError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(result) = self.ready.next() {
                return Poll::Ready(Some(result));
            }
            self.submit();
            let Some(Arrived { count, results, nanos, bytes }) = ready!(self.under_way.poll_next(cx)) else {
                return Poll::Ready(None);
            };
            self.inputs_under_way -= count;
            self.ready = results;
            self.chunking.learn(count, nanos, bytes);
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let here = self.ready.len() + self.inputs_under_way;
        let (least, most) = self.inputs.as_ref().map_or((0, Some(0)), Iterator::size_hint);
        (least.saturating_add(here), most.and_then(|most| most.checked_add(here)))
    }
}

impl<I, F, R> fmt::Debug for Map<I, F, R>
where
    I: Iterator,
    I::Item: Serialize + DeserializeOwned + Send + 'static,
    F: Fn(I::Item) -> R + Copy + Send + 'static,
    R: Serialize + DeserializeOwned + Send + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map").field("inputs_under_way", &self.inputs_under_way).finish_non_exhaustive()
    }
}

/// Sends calls of a function on the first of these inputs as one task. Says how many they are, and gives its claim and how
/// many bytes it takes.
fn send<F, A, R>(shared: &Arc<Shared>, inputs: &[A]) -> (usize, Result<(Claim, usize), TaskError>)
where
    F: Fn(A) -> R + Copy + Send + 'static,
    A: Serialize + DeserializeOwned + Send + 'static,
    R: Serialize + DeserializeOwned + Send + 'static,
{
    let max = shared.settings.plan.max_body;
    let packed = match start::permitted() {
        Ok(_) => chunk::pack::<F, A, R>(inputs, max).map_err(TaskError::from),
        Err(error) => Err(error.into()),
    };
    let (parcel, count) = match packed {
        Ok(packed) => packed,
        Err(error) => return (inputs.len(), Err(error)),
    };
    let bytes = parcel.arguments.len();
    let calls = u32::try_from(count).expect("a chunk is limited when it is taken");
    let wishes = Wishes { timeout: shared.settings.task_timeout, ..Wishes::default() };
    let job = Job::new(&shared.settings.name, parcel, wishes, Awaits::Outcome(None), Some(Parts::new(calls)));
    let sent = shared.submit(Arc::clone(&job)).map(|_| (Claim::new(job), bytes));
    (count, sent)
}

/// A chunk's future, and how many inputs it has.
struct ChunkUnderWay<R> {
    count: usize,
    sent: Result<(Claim, usize), TaskError>,
    result: PhantomData<fn() -> R>,
}

/// A chunk that has ended: what its calls came to, how long they took together, and how many bytes went there and back.
struct Arrived<R> {
    count: usize,
    results: Ready<R>,
    nanos: u64,
    bytes: usize,
}

impl<R: DeserializeOwned> Future for ChunkUnderWay<R> {
    type Output = Arrived<R>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let count = self.count;
        let (claim, sent) = match &mut self.sent {
            Ok((claim, sent)) => (claim, *sent),
            Err(error) => return Poll::Ready(Arrived::failed(count, std::mem::replace(error, TaskError::Cancelled))),
        };
        let job = claim.shared_job();
        let outcome = ready!(claim.poll(cx));
        let parts = job.map(|job| job.take_parts()).unwrap_or_default();
        Poll::Ready(Arrived::collect(count, sent, parts, outcome))
    }
}

impl<R: DeserializeOwned> Arrived<R> {
    fn failed(count: usize, error: TaskError) -> Self {
        Self { count, results: Ready::Failed(error, count), nanos: 0, bytes: 0 }
    }

    /// Puts together what became of a chunk: part by part, and of the rest, if there is one, what became of the whole.
    fn collect(count: usize, sent: usize, parts: Vec<Part>, outcome: Outcome) -> Self {
        let (mut results, mut nanos, mut bytes) = (Vec::with_capacity(count), 0_u64, sent);
        for part in parts {
            match part {
                Part::Results { count, bytes: body, fds, nanos: took } => {
                    nanos = nanos.saturating_add(took);
                    bytes = bytes.saturating_add(body.len());
                    chunk::unpack(count as usize, &body, fds, &mut results);
                }
                Part::Failed(error) => results.push(Err(Box::new(error))),
                Part::Instead(error) => {
                    results.pop();
                    results.push(Err(Box::new(error)));
                }
            }
        }
        if results.is_empty()
            && let Err(error) = outcome
        {
            return Self::failed(count, *error);
        }
        if let Err(error) = outcome {
            results.resize_with(count, || Err(Box::new(error.again())));
        }
        debug_assert_eq!(results.len(), count, "a chunk is whole when it is done");
        Self { count, results: Ready::Results(results.into_iter()), nanos, bytes }
    }
}

/// The chunks that are under way.
struct UnderWay<R: DeserializeOwned> {
    /// Whether the next ones are to be given in the order of the inputs.
    is_ordered: bool,
    in_order: FuturesOrdered<ChunkUnderWay<R>>,
    as_they_come: FuturesUnordered<ChunkUnderWay<R>>,
}

impl<R: DeserializeOwned> UnderWay<R> {
    fn new() -> Self {
        Self { is_ordered: true, in_order: FuturesOrdered::new(), as_they_come: FuturesUnordered::new() }
    }

    fn push(&mut self, chunk: ChunkUnderWay<R>) {
        if self.is_ordered {
            self.in_order.push_back(chunk);
        } else {
            self.as_they_come.push(chunk);
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Arrived<R>>> {
        match Pin::new(&mut self.in_order).poll_next(cx) {
            Poll::Ready(None) => Pin::new(&mut self.as_they_come).poll_next(cx),
            Poll::Pending if let Poll::Ready(Some(arrived)) = Pin::new(&mut self.as_they_come).poll_next(cx) => {
                Poll::Ready(Some(arrived))
            }
            earlier => earlier,
        }
    }
}

#[cfg(test)]
mod tests;
