//! `map`: many inputs, one function, a stream of results.
//!
//! Inputs go out in chunks, each one task. Inside a chunk every input and every result is encoded by itself and every
//! call is guarded by itself, so what fails fails alone; only the death of the worker takes the whole chunk.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use futures::stream::{FuturesOrdered, FuturesUnordered};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ProcessPool;
use super::submit::Submit;
use crate::error::TaskError;
use crate::sys::image;
use crate::task::Task;
use crate::wire::body::{self, EncodeError};
use crate::wire::frame::DEFAULT_MAX_BODY;
use crate::wire::message::Failure;
use crate::worker::catch;

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
    chunk: usize,
    read_ahead: Option<usize>,
    under_way: UnderWay<F, I::Item, R>,
    /// How many inputs are in the chunks that are under way.
    inputs_under_way: usize,
    /// Results that have come and were not taken yet.
    ready: VecDeque<Result<R, TaskError>>,
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
            chunk: 1,
            read_ahead: None,
            under_way: UnderWay::InOrder(FuturesOrdered::new()),
            inputs_under_way: 0,
            ready: VecDeque::new(),
        }
    }

    /// Gives results as they come, not in the order of the inputs.
    pub fn unordered(mut self) -> Self {
        self.under_way = UnderWay::AsTheyCome(FuturesUnordered::new());
        self
    }

    /// Sends so many inputs in one task, at least 1, which is the default.
    ///
    /// Larger chunks are faster where a call takes microseconds. The results of a chunk come together, and if its worker
    /// dies all of its inputs fail with [`Died`](TaskError::Died).
    pub fn chunk(mut self, inputs: usize) -> Self {
        self.chunk = inputs.max(1);
        self
    }

    /// Takes at most so many inputs more than results were taken, at least one chunk. Default: two chunks a worker.
    pub fn read_ahead(mut self, inputs: usize) -> Self {
        self.read_ahead = Some(inputs.max(1));
        self
    }

    /// Submits chunks until the read-ahead is used up.
    fn submit(&mut self) {
        let limit = self.read_ahead.unwrap_or_else(|| self.pool.limit().saturating_mul(2).saturating_mul(self.chunk));
        loop {
            let room = limit.saturating_sub(self.ready.len() + self.inputs_under_way).min(self.chunk);
            let Some(inputs) = self.inputs.as_mut().filter(|_| room > 0) else { return };
            let inputs: Vec<_> = inputs.by_ref().take(room).map(Ok).collect();
            let count = inputs.len();
            if count < room {
                self.inputs = None;
            }
            if count > 0 {
                self.inputs_under_way += count;
                let chunk = Chunk { inputs: Each(inputs), function: PhantomData };
                self.under_way.push(ChunkUnderWay { submit: self.pool.submit(chunk), count });
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
            if let Some(result) = self.ready.pop_front() {
                return Poll::Ready(Some(result));
            }
            self.submit();
            let Some((results, count)) = ready!(self.under_way.poll_next(cx)) else { return Poll::Ready(None) };
            self.inputs_under_way -= count;
            match results {
                Ok(Each(results)) if results.len() == count => {
                    self.ready.extend(results.into_iter().map(|result| result.map_err(TaskError::from)));
                }
                Ok(_) => {
                    let error = || TaskError::Decode("a chunk came back with another number of results".into());
                    self.ready.extend((0..count).map(|_| Err(error())));
                }
                Err(error) => {
                    self.ready.extend((1..count).map(|_| Err(error.again())));
                    self.ready.push_front(Err(error));
                }
            }
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

/// A chunk's future, and how many inputs it has.
struct ChunkUnderWay<F, A, R>
where
    F: Fn(A) -> R + Copy + Send + 'static,
    A: Serialize + DeserializeOwned + Send + 'static,
    R: Serialize + DeserializeOwned + Send + 'static,
{
    submit: Submit<Chunk<F, A, R>>,
    count: usize,
}

impl<F, A, R> Future for ChunkUnderWay<F, A, R>
where
    F: Fn(A) -> R + Copy + Send + 'static,
    A: Serialize + DeserializeOwned + Send + 'static,
    R: Serialize + DeserializeOwned + Send + 'static,
{
    type Output = (Result<Each<R>, TaskError>, usize);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let results = ready!(Pin::new(&mut self.submit).poll(cx));
        Poll::Ready((results, self.count))
    }
}

/// The chunks that are under way, and the order in which their results are given.
enum UnderWay<F, A, R>
where
    F: Fn(A) -> R + Copy + Send + 'static,
    A: Serialize + DeserializeOwned + Send + 'static,
    R: Serialize + DeserializeOwned + Send + 'static,
{
    InOrder(FuturesOrdered<ChunkUnderWay<F, A, R>>),
    AsTheyCome(FuturesUnordered<ChunkUnderWay<F, A, R>>),
}

impl<F, A, R> UnderWay<F, A, R>
where
    F: Fn(A) -> R + Copy + Send + 'static,
    A: Serialize + DeserializeOwned + Send + 'static,
    R: Serialize + DeserializeOwned + Send + 'static,
{
    fn push(&mut self, chunk: ChunkUnderWay<F, A, R>) {
        match self {
            Self::InOrder(chunks) => chunks.push_back(chunk),
            Self::AsTheyCome(chunks) => chunks.push(chunk),
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<<ChunkUnderWay<F, A, R> as Future>::Output>> {
        match self {
            Self::InOrder(chunks) => Pin::new(chunks).poll_next(cx),
            Self::AsTheyCome(chunks) => Pin::new(chunks).poll_next(cx),
        }
    }
}

/// Several calls of one function as one task.
#[derive(Serialize, Deserialize)]
#[serde(bound = "A: Serialize + DeserializeOwned")]
struct Chunk<F, A, R> {
    inputs: Each<A>,
    #[serde(skip)]
    function: PhantomData<fn() -> (F, R)>,
}

impl<F, A, R> Task for Chunk<F, A, R>
where
    F: Fn(A) -> R + Copy + Send + 'static,
    A: Serialize + DeserializeOwned + Send + 'static,
    R: Serialize + DeserializeOwned + Send + 'static,
{
    type Output = Each<R>;

    fn run(self) -> Each<R> {
        let call = |input| catch(|| image::conjure::<F>()(input)).map_err(Failure::Panicked);
        Each(self.inputs.0.into_iter().map(|input| input.and_then(call)).collect())
    }
}

/// Values that are encoded one by one, so that one that can't be encoded or decoded is a failure of its own.
struct Each<T>(Vec<Result<T, Failure>>);

impl<T: Serialize> Serialize for Each<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|value| match value {
            Ok(value) => encode_one(value),
            Err(failure) => Err(failure.clone()),
        }))
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Each<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let encoded = Vec::<Result<Bytes, Failure>>::deserialize(deserializer)?;
        Ok(Self(encoded.into_iter().map(|value| value.and_then(|body| decode_one(&body))).collect()))
    }
}

fn encode_one<T: Serialize>(value: &T) -> Result<Bytes, Failure> {
    let mut out = BytesMut::new();
    match catch(|| body::encode(value, &mut out, DEFAULT_MAX_BODY)) {
        Ok(Ok(())) => Ok(out.freeze()),
        Ok(Err(EncodeError::Failed(error))) => Err(Failure::Encode(error.to_string())),
        Ok(Err(EncodeError::TooLarge { len, max })) => Err(Failure::TooLarge { len, max }),
        Err(panic) => Err(Failure::Panicked(panic)),
    }
}

fn decode_one<T: DeserializeOwned>(body: &Bytes) -> Result<T, Failure> {
    match catch(|| body::decode(body)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Failure::Decode(error.to_string())),
        Err(panic) => Err(Failure::Panicked(panic)),
    }
}
