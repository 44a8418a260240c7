//! The calling end: encodes the request, decodes the answer. What is between is in `calls.rs`.

use std::any::type_name;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::calls::Calls;
use super::table::Place;
use super::{Bound, MAX_CALLS};
use crate::channel::block::block_on;
use crate::channel::duplex::Sides;
use crate::channel::{Duplex, value};
use crate::error::{CallError, RecvError};
use crate::wire::frame::{ANSWER, Frame, Limits, REQUEST};

/// Calls a service in another process: sends a `Req`, and gets the `Resp` that answers it.
///
/// It is made of one end of a [`duplex`](crate::duplex); the other end goes to [`serve`](crate::serve) or
/// [`blocking_serve`](crate::blocking_serve). Any number of tasks and threads may call through it at once, also through
/// clones, and each gets the answer to its own request, in whatever order they come. At most 1024 calls are open at a
/// time; more wait until one of them is over.
///
/// Dropping the last clone ends the service: its `serve` returns. That the service has ended is seen at the next call, which fails
/// with [`Closed`](CallError::Closed). Who has to know at once awaits the process that it runs in, or keeps a call open that the
/// service never answers: that one is then [`Unanswered`](CallError::Unanswered).
///
/// It is a value that can be sent itself while no call is open. That moves it: the client that was encoded, and its clones,
/// refuse to go on. They are clones all the same: the service ends when they have been dropped, too.
///
/// # Examples
///
/// ```
/// use multiproc::{Client, Duplex, duplex, serve, spawn_process, task};
///
/// async fn lengths(end: Duplex<usize, String>) {
///     serve(end, |text: String| async move { text.len() }).await.unwrap();
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// multiproc::init();
/// let (ours, theirs) = duplex()?;
/// let service = spawn_process(task!(lengths(theirs).await)).await?;
/// let client = Client::new(ours);
/// let (one, three) = tokio::try_join!(client.call("one".to_owned()), client.call("three".to_owned()))?;
/// assert_eq!((one, three), (3, 5));
/// drop(client);
/// service.join().await?;
/// # Ok(())
/// # }
/// ```
pub struct Client<Req, Resp> {
    calls: Arc<Calls>,
    limits: Limits,
    call: PhantomData<fn(Req) -> Resp>,
}

impl<Req, Resp> Client<Req, Resp> {
    /// Makes a client of one end. The end's limit for messages holds for requests and answers.
    pub fn new(end: Duplex<Req, Resp>) -> Self {
        Self::bounded(end, Bound::Wait(MAX_CALLS))
    }

    /// As [`new`](Self::new), with another bound on the calls that are open.
    pub(in crate::channel) fn bounded(end: Duplex<Req, Resp>, bound: Bound) -> Self {
        Self::over(end.into_sides(), bound, 0)
    }

    fn over(sides: Sides, bound: Bound, last: u64) -> Self {
        Self { limits: sides.receiving.limits(), calls: Calls::new(sides, bound, last), call: PhantomData }
    }
}

impl<Req: Serialize, Resp: DeserializeOwned> Client<Req, Resp> {
    /// Sends a request and waits for its answer.
    ///
    /// The request is encoded at once, by the caller.
    ///
    /// # Errors
    ///
    /// `Unanswered` if the server ended, in whatever way, before it answered, and `Closed` if it had ended before it got
    /// the request. `Encode`, `TooLarge` and `Decode` for a request or an answer that can't be sent or read, `Refused` if
    /// that happened to the server: other calls go on. `Protocol` if the other end is no server. `Io` if the system
    /// refuses, if the client was sent to another process, if the runtime that waited for the answer has ended, or in a copy that
    /// fork(2) has made of the client's process.
    ///
    /// # Cancel safety
    ///
    /// Dropping it cancels the call: a request that has not left is not sent, and otherwise the server drops its handler, or
    /// skips the request if it has not begun with it. A [`blocking_serve`](crate::blocking_serve) does not see in time a
    /// cancellation that lies behind more than 256 KiB or 8 file descriptors of other requests.
    pub fn call(&self, request: Req) -> impl Future<Output = Result<Resp, CallError>> + Send {
        let request = self.request(request);
        async move { answer(self.calls.call(request?, Place::here, &mut false).await?) }
    }

    /// As [`call`](Self::call), and says whether the server gets the request, also where this is dropped.
    pub(in crate::channel) fn call_noting(
        &self,
        request: Req,
        sent: &mut bool,
    ) -> impl Future<Output = Result<Resp, CallError>> + Send {
        let request = self.request(request);
        async move { answer(self.calls.call(request?, Place::here, sent).await?) }
    }

    /// As [`call`](Self::call), on this thread, which it blocks; not for async code.
    ///
    /// # Errors
    ///
    /// As for [`call`](Self::call).
    pub fn blocking_call(&self, request: Req) -> Result<Resp, CallError> {
        self.blocking_call_noting(request, &mut false)
    }

    /// As [`call_noting`](Self::call_noting), on this thread.
    pub(in crate::channel) fn blocking_call_noting(&self, request: Req, sent: &mut bool) -> Result<Resp, CallError> {
        let request = self.request(request)?;
        answer(block_on(self.calls.call(request, || Place::Background, sent))?)
    }

    /// Sends a request whose answer nobody waits for, without waiting.
    pub(in crate::channel) fn tell(&self, request: Req) -> Result<(), CallError> {
        Ok(self.calls.tell(self.request(request)?)?)
    }

    #[cfg(test)]
    pub(crate) fn under_way(&self) -> usize {
        self.calls.under_way()
    }

    fn request(&self, request: Req) -> Result<Frame, CallError> {
        Ok(Frame { kind: REQUEST, ..value::encode_within(&request, self.limits)? })
    }
}

fn answer<Resp: DeserializeOwned>(frame: Frame) -> Result<Resp, CallError> {
    let answered = frame.kind == ANSWER;
    let decoding = |error| match error {
        RecvError::Decode(source) => CallError::Decode(source),
        other => CallError::Decode(other.into()),
    };
    if answered {
        value::decode(frame).map_err(decoding)
    } else {
        Err(CallError::Refused { reason: value::decode(frame).map_err(decoding)? })
    }
}

impl<Req, Resp> Clone for Client<Req, Resp> {
    fn clone(&self) -> Self {
        Self { calls: Arc::clone(&self.calls), limits: self.limits, call: PhantomData }
    }
}

impl<Req, Resp> Serialize for Client<Req, Resp> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.calls.hand_over(|last, sides| (last, sides).serialize(serializer))
    }
}

impl<'de, Req, Resp> Deserialize<'de> for Client<Req, Resp> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (last, sides) = Deserialize::deserialize(deserializer)?;
        Ok(Self::over(sides, Bound::Wait(MAX_CALLS), last))
    }
}

impl<Req, Resp> fmt::Debug for Client<Req, Resp> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("request", &type_name::<Req>())
            .field("answer", &type_name::<Resp>())
            .finish_non_exhaustive()
    }
}
