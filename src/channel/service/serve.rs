//! The answering end: `serve` for async handlers, many at once, and `blocking_serve` for plain functions, one by one.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::fmt::Write as _;
use std::future::{self, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::future::{AbortHandle, Abortable, FutureExt as _};
use futures::stream::{FuturesUnordered, StreamExt as _};
use pin_project_lite::pin_project;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use super::{ALL, MAX_CALLS};
use crate::channel::outbox::Outbox;
use crate::channel::receiving::Receiving;
use crate::channel::sending::Sending;
use crate::channel::{Duplex, value};
use crate::error::{RecvError, SendError};
use crate::task::panic::caught as panic_of;
use crate::task::unheeded;
use crate::wire::frame::{ANSWER, CANCEL, Frame, Limits, REFUSAL, REQUEST};

/// Requests are read ahead while those behind the one whose turn it is are less than this many bytes, so that their
/// cancellation, and its own, is seen.
const AHEAD: usize = 256 * 1024;

/// And while they have fewer fds than this: those of all the calls that a client may have open could take every fd that this process
/// may have, and leave none for a handler or for the requests behind.
const AHEAD_FDS: usize = 8;

/// How many answers may be encoded and not have left. The others wait as what their handlers gave, so a client that does not
/// read has few bytes and fds kept for it.
const LEAVING: usize = 64;

/// The most that a refusal says, in bytes.
pub(super) const MAX_REASON: usize = 1024;

/// Answers the calls of the [`Client`](crate::Client) at the other end, until it is gone.
///
/// `handler` is called for each request as it comes, and the futures that it gives run concurrently, all in the task that
/// awaits this one; for work on other threads, spawn it there. A call that its client drops is dropped here too, and so are
/// all that are open when the client ends.
///
/// # Errors
///
/// `Truncated` if the client ended in the middle of a request, `TooLarge` and `Protocol` for what is no request within the
/// end's limit, `Io` if the system refuses. A request that can't be decoded, an answer that can't be encoded, and a panic of
/// `handler` or one of its futures are told to the caller alone, as [`CallError::Refused`](crate::CallError::Refused); the
/// service goes on. Of a panic in a task it says the place, too.
///
/// # Cancel safety
///
/// Dropping it drops the calls that are open, and the end: they are `Unanswered` to the client.
///
/// # Examples
///
/// ```
/// use multiproc::{Client, duplex, serve};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (ours, theirs) = duplex::<u32, u64>()?;
/// let service = tokio::spawn(serve(theirs, |n: u32| async move { u64::from(n) * 2 }));
/// let client = Client::new(ours);
/// assert_eq!(client.call(21).await?, 42);
/// drop(client);
/// service.await??;
/// # Ok(())
/// # }
/// ```
pub async fn serve<Req, Resp, F, Fut>(end: Duplex<Resp, Req>, mut handler: F) -> Result<(), RecvError>
where
    Req: DeserializeOwned,
    Resp: Serialize,
    F: FnMut(Req) -> Fut,
    Fut: Future<Output = Resp>,
{
    serve_within(MAX_CALLS, end, |request| Some(handler(request))).await
}

/// As [`serve`], for a client that has at most so many calls open, and tells things: where `handler` gives `None`, nothing is
/// answered.
pub(in crate::channel) async fn serve_within<Req, Resp, F, Fut>(
    most: usize,
    end: Duplex<Resp, Req>,
    mut handler: F,
) -> Result<(), RecvError>
where
    Req: DeserializeOwned,
    Resp: Serialize,
    F: FnMut(Req) -> Option<Fut>,
    Fut: Future<Output = Resp>,
{
    let mut sides = end.into_sides();
    let sending = Arc::clone(&sides.sending);
    let limits = sides.receiving.limits();
    let turns = Semaphore::new(LEAVING);
    let mut open = HashMap::new();
    let mut running = FuturesUnordered::new();
    loop {
        let next = poll_fn(|cx| {
            while let Poll::Ready(Some(id)) = running.poll_next_unpin(cx) {
                open.remove(&id);
            }
            // A client that keeps to its limit never waits here, and what it only tells is done at once. Of another one no
            // more is read until some are over, or it has ended: what it left in the socket is little.
            if running.len() >= 2 * most {
                ready!(sides.receiving.poll_end(cx))?;
            }
            sides.receiving.poll_frame(cx)
        });
        let Some(frame) = next.await? else { return Ok(()) };
        let id = frame.id;
        match frame.kind {
            REQUEST => {
                if open.contains_key(&id) {
                    return Err(sides.receiving.refuse("two calls with one number"));
                }
                let begun = caught(id, || match value::decode(frame) {
                    Ok(request) => Ok(handler(request).map(|future| Handling { future: Some(future) })),
                    Err(error) => Err(refusal(id, &reason(&error))),
                });
                let Some(begun) = begun.and_then(|begun| begun).transpose() else { continue };
                let (abort, registration) = AbortHandle::new_pair();
                open.insert(id, abort);
                let (sending, turns) = (&sending, &turns);
                let call = async move {
                    let mut turn = None;
                    let frame = match begun {
                        Ok(handling) => {
                            let answering = AssertUnwindSafe(async {
                                // It may be withdrawn while it waits, and is dropped as the handler is then.
                                let given = Handling { future: Some(future::ready(handling.await)) };
                                turn = turns.acquire().await.ok();
                                answer(id, &given.await, limits)
                            });
                            answering.catch_unwind().await.unwrap_or_else(|payload| refusal(id, &panicked(payload)))
                        }
                        Err(refusal) => refusal,
                    };
                    // Whoever can't be answered has gone, which is read next.
                    let _ = sending.send(frame).await;
                    drop(turn);
                };
                let call = Abortable::new(call, registration);
                running.push(async move {
                    let _ = call.await;
                    id
                });
            }
            CANCEL => {
                // It is dropped when it is polled, at once. One that was answered is over.
                if let Some(call) = open.get(&id) {
                    call.abort();
                }
            }
            _ => return Err(sides.receiving.refuse("a frame that is no request")),
        }
    }
}

/// Serves a client none of its calls, and says why.
pub(in crate::channel) fn turn_away<Req, Resp>(end: Duplex<Resp, Req>, reason: &str) {
    let sides = end.into_sides();
    // One that has filled its own socket is told nothing and sees the end: nothing of it may stay, for it has no place here.
    let mut outbox = Outbox::default();
    outbox.push(refusal(ALL, reason));
    let _ = outbox.flush(&**sides.sending.socket());
}

/// Says to a client, behind the answers that it has, why there are no more.
pub(in crate::channel) fn last_word(sending: &Arc<Sending>, reason: &str) {
    // Whoever can't be told has gone.
    let _ = sending.post(refusal(ALL, reason));
}

/// As [`serve`], on this thread and one request after the other; not for async code.
///
/// A request that its client cancels before its turn comes is skipped, and so are all that wait when the client ends. At each turn
/// what lies behind the request is read for that, up to 256 KiB or 8 file descriptors of other requests: a cancellation, or an end,
/// behind more of them is not seen in time.
///
/// # Errors
///
/// As for [`serve`].
///
/// # Examples
///
/// ```
/// use multiproc::{Client, Duplex, blocking_serve, duplex, spawn_process, task};
///
/// fn count(end: Duplex<u64, u64>) {
///     let mut sum = 0;
///     let mut add = |n| { sum += n; sum };
///     blocking_serve(end, &mut add).unwrap();
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// multiproc::init();
/// let (ours, theirs) = duplex()?;
/// let service = spawn_process(task!(count(theirs))).await?;
/// let client = Client::new(ours);
/// assert_eq!(client.call(20).await?, 20);
/// assert_eq!(client.call(22).await?, 42);
/// drop(client);
/// service.join().await?;
/// # Ok(())
/// # }
/// ```
pub fn blocking_serve<Req, Resp, F>(end: Duplex<Resp, Req>, mut handler: F) -> Result<(), RecvError>
where
    Req: DeserializeOwned,
    Resp: Serialize,
    F: FnMut(Req) -> Resp,
{
    let mut sides = end.into_sides();
    let limits = sides.receiving.limits();
    let mut waiting = Waiting::default();
    loop {
        if waiting.requests.is_empty() {
            let Some(frame) = sides.receiving.blocking_frame()? else { return Ok(()) };
            waiting.take(frame).map_err(|reason| sides.receiving.refuse(reason))?;
        }
        while waiting.has_room() {
            let Some(frame) = sides.receiving.try_frame()? else { break };
            waiting.take(frame).map_err(|reason| sides.receiving.refuse(reason))?;
        }
        if sides.receiving.is_over() {
            return rest(&mut sides.receiving);
        }
        let Some(request) = waiting.next() else { continue };
        let id = request.id;
        let answered = caught(id, || match value::decode(request) {
            Ok(request) => answer(id, &handler(request), limits),
            Err(error) => refusal(id, &reason(&error)),
        });
        let answered = sides.sending.blocking_send(answered.unwrap_or_else(|refusal| refusal));
        if matches!(answered, Err(SendError::Closed)) {
            return rest(&mut sides.receiving);
        }
    }
}

/// Reads on to the end of a client that nobody can answer any more: it has gone, and what it has asked is dropped.
fn rest(receiving: &mut Receiving) -> Result<(), RecvError> {
    while receiving.blocking_frame()?.is_some() {}
    Ok(())
}

/// Requests in the order in which they came.
#[derive(Default)]
struct Waiting {
    requests: VecDeque<Frame>,
    bytes: usize,
    fds: usize,
}

impl Waiting {
    fn take(&mut self, frame: Frame) -> Result<(), &'static str> {
        match frame.kind {
            REQUEST => {
                self.bytes += frame.wire_len();
                self.fds += frame.fds.len();
                self.requests.push_back(frame);
            }
            CANCEL => {
                let place = self.requests.iter().position(|request| request.id == frame.id);
                if let Some(cancelled) = place.and_then(|place| self.requests.remove(place)) {
                    self.gone(&cancelled);
                }
            }
            _ => return Err("a frame that is no request"),
        }
        Ok(())
    }

    /// Whether to read on. The request whose turn it is does not count, or nothing behind a large one would be read.
    fn has_room(&self) -> bool {
        let (bytes, fds) = self.requests.front().map_or((0, 0), |first| (first.wire_len(), first.fds.len()));
        self.bytes - bytes < AHEAD && self.fds - fds < AHEAD_FDS
    }

    fn next(&mut self) -> Option<Frame> {
        let request = self.requests.pop_front()?;
        self.gone(&request);
        Some(request)
    }

    fn gone(&mut self, request: &Frame) {
        self.bytes -= request.wire_len();
        self.fds -= request.fds.len();
    }
}

pin_project! {
    /// A handler's future, or what that gave. It is dropped where other calls are at work, or their service ends, so a panic of
    /// that is caught.
    struct Handling<F> {
        #[pin]
        future: Option<F>,
    }

    impl<F> PinnedDrop for Handling<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut future = this.project().future;
            unheeded(|| future.set(None));
        }
    }
}

impl<F: Future> Future for Handling<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // It is there until the drop.
        self.project().future.as_pin_mut().map_or(Poll::Pending, |future| future.poll(cx))
    }
}

fn answer<Resp: Serialize>(id: u64, answer: &Resp, limits: Limits) -> Frame {
    match value::encode_within(answer, limits) {
        Ok(frame) => Frame { kind: ANSWER, id, ..frame },
        Err(error) => refusal(id, &reason(&error)),
    }
}

fn refusal(id: u64, reason: &str) -> Frame {
    let said = &reason[..reason.floor_char_boundary(MAX_REASON)];
    Frame { kind: REFUSAL, id, ..value::encode(&said, usize::MAX).unwrap_or_default() }
}

/// Runs code of a user's, whose panic costs that one call.
fn caught<R>(id: u64, work: impl FnOnce() -> R) -> Result<R, Frame> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| refusal(id, &panicked(payload)))
}

fn panicked(payload: Box<dyn Any + Send>) -> String {
    format!("the handler panicked: {}", panic_of(payload))
}

/// An error with what is behind it.
fn reason(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut behind = error.source();
    while let Some(source) = behind {
        let _ = write!(text, ": {source}");
        behind = source.source();
    }
    text
}

#[cfg(test)]
mod tests;
