//! The whole vocabulary between a parent and its worker.
//!
//! ```text
//!  parent                                   worker
//!    │ Hello, and what is to run first        │
//!    ├───────────────────────────────────────▶│ is this the same executable? the same protocol?
//!    │                            Ready, or   │
//!    │◀───────────────────────────────────────┤
//!    │ Run(id) …          Refused(reason)     │
//!    ├───────────────────────────────────────▶│ one after the other; before one that is
//!    │                                        │ not tried for the first time, an Attempt
//!    │         Begun(id), if it came with fds │
//!    │◀───────────────────────────────────────┤
//!    │       Done(id) | Failed(id), or in the │
//!    │◀───────────────────────────────────────┤ ledger and a Bell
//!    │ end of stream                          │ exits
//! ```
//!
//! What a worker says is not trusted: the worst that any bytes can do is to end that worker.

use std::ops::Deref;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{BoxError, Panic, RecvError, TaskError};
use crate::sys::image::{ImageId, Place};
use crate::sys::limits::Limits;
use crate::wire::body;
use crate::wire::extra::Extra;
use crate::wire::frame::{Frame, Head};
use crate::wire::held::Held;
use crate::wire::passenger::Passenger;

/// The frame kinds of this conversation; a channel's values have kinds of their own below 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Hello = 16,
    Run = 17,
    /// The Run that follows is this attempt (in place of a number); without it, the first.
    Attempt = 18,
    Ready = 24,
    Refused = 25,
    Done = 26,
    Failed = 27,
    /// There are answers in the ledger. In place of a number: how many nanoseconds each of these tasks took; 0 if unknown.
    Bell = 28,
    /// The Run of this number, which came with fds, has begun: the parent need not keep them.
    Begun = 29,
}

/// The first words of a parent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) image: ImageId,
    /// How deep the worker is nested: one more than its parent.
    pub(crate) depth: u32,
    /// The largest body that either side sends, in bytes.
    pub(crate) max_body: u64,
    /// The name that `ps` and `top` show.
    pub(crate) name: String,
    /// Where it sits, if it works for a pool.
    pub(crate) seat: Option<Seat>,
    /// What the worker lays on itself before it runs anything.
    pub(crate) limits: Limits,
    /// Whether the first fd that came along is a ledger. Another one behind it, or alone, is put where the socket was.
    pub(crate) ledger: bool,
    pub(crate) life: Life,
    /// How long the worker looks for more to do before it sleeps.
    pub(crate) busy_poll: Duration,
}

/// A worker's place in its pool.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Seat {
    pub(crate) pool: String,
    pub(crate) index: u64,
}

/// How long a worker lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Life {
    /// It runs one task, and its exit code says how that went.
    OneTask,
    /// It runs tasks until the stream ends.
    UntilEnd,
}

/// What is to run: where the entry lies, what it calls, so that a wrong place is found out, and its encoded arguments behind that.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) place: Place,
    pub(crate) arguments: Arguments<'a>,
}

/// A task's encoded arguments: a part of the body that they came in.
#[derive(Debug)]
pub(crate) struct Arguments<'a>(&'a mut Held);

impl Arguments<'_> {
    /// All that holds them, if parts of it can be kept.
    pub(crate) fn shared(&self) -> Option<&Bytes> {
        self.0.shared()
    }

    /// Decodes them.
    pub(crate) fn decode<T: DeserializeOwned>(self) -> Result<T, BoxError> {
        body::decode_part(&self, self.shared())
    }
}

/// Whoever has decoded them need not keep their bytes, which may be many.
impl Drop for Arguments<'_> {
    fn drop(&mut self) {
        *self.0 = Held::default();
    }
}

impl Deref for Arguments<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.0[Run::HEAD_LEN..]
    }
}

impl Run<'_> {
    /// The bytes before the arguments.
    pub(crate) const HEAD_LEN: usize = 16;

    /// What stands before the arguments.
    pub(crate) fn head(place: Place) -> [u8; Run::HEAD_LEN] {
        let mut head = [0; Run::HEAD_LEN];
        head[..8].copy_from_slice(&place.entry.to_le_bytes());
        head[8..].copy_from_slice(&place.run.to_le_bytes());
        head
    }

    /// One whole. Arguments that are not few are sent from where they lie.
    pub(crate) fn frame(
        id: u64,
        place: Place,
        (arguments, rest): (Held, Extra<Bytes>),
        fds: Extra<Passenger>,
    ) -> Frame {
        let mut body = BytesMut::from(&Self::head(place)[..]);
        let mut more = Vec::new();
        match arguments.shared() {
            Some(arguments) => more.push(arguments.clone()),
            None => body.extend_from_slice(&arguments),
        }
        more.extend(rest.into_vec());
        Frame { kind: Kind::Run as u8, id, body: body.freeze().into(), more: more.into(), fds, ..Frame::default() }
    }

    /// What a body says, which stays where it is.
    #[inline]
    pub(crate) fn parse(body: &mut Held) -> Option<Run<'_>> {
        let mut head = body.get(..Self::HEAD_LEN)?;
        let place = Place { entry: head.get_u64_le(), run: head.get_u64_le() };
        Some(Run { place, arguments: Arguments(body) })
    }
}

/// Why a task has no result, as its worker says it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Failure {
    Panicked(Panic),
    /// The arguments could not be decoded.
    Decode(String),
    /// The result could not be encoded.
    Encode(String),
    TooLarge {
        len: u64,
        max: u64,
    },
}

impl From<Failure> for TaskError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Panicked(panic) => Self::Panicked(panic),
            Failure::Decode(reason) => Self::Decode(reason.into()),
            Failure::Encode(reason) => Self::Encode(reason.into()),
            Failure::TooLarge { len, max } => Self::TooLarge { len, max },
        }
    }
}

/// What a worker says, checked.
#[derive(Debug)]
pub(crate) enum FromWorker {
    Ready,
    Refused(String),
    /// The frame's body is the encoded result, its fds are the result's.
    Done(Frame),
    Failed(u64, Failure),
    Bell,
    Begun,
}

impl FromWorker {
    pub(crate) fn parse(frame: Frame) -> Result<Self, RecvError> {
        let decoded = |error: BoxError| RecvError::Decode(error);
        let kind = frame.kind;
        if kind != Kind::Done as u8 && !frame.fds.is_empty() {
            return Err(RecvError::Protocol { reason: "file descriptors where none are expected" });
        }
        // Many may come that say nothing, so each is to be small.
        if [Kind::Ready, Kind::Bell, Kind::Begun].map(|kind| kind as u8).contains(&kind) && !frame.body.is_empty() {
            return Err(RecvError::Protocol { reason: "a body where none is expected" });
        }
        if kind == Kind::Done as u8 {
            Ok(Self::Done(frame))
        } else if kind == Kind::Failed as u8 {
            Ok(Self::Failed(frame.id, body::decode(&frame.body).map_err(decoded)?))
        } else if kind == Kind::Ready as u8 {
            Ok(Self::Ready)
        } else if kind == Kind::Refused as u8 {
            Ok(Self::Refused(body::decode(&frame.body).map_err(decoded)?))
        } else if kind == Kind::Bell as u8 {
            Ok(Self::Bell)
        } else if kind == Kind::Begun as u8 {
            Ok(Self::Begun)
        } else {
            Err(RecvError::Protocol { reason: "unknown kind of frame from a worker" })
        }
    }
}

/// Whether a stream that begins with these bytes is this conversation.
pub(crate) fn begins_with_hello(bytes: &[u8]) -> bool {
    Head::peek(bytes).is_some_and(|head| head.kind == Kind::Hello as u8)
}

/// A frame with a message of this conversation; these are small and always encodable.
pub(crate) fn frame<T: Serialize>(kind: Kind, id: u64, message: &T) -> Frame {
    let mut bytes = BytesMut::new();
    // Strings are cut before they get here, and nothing else in these types can fail; an empty body is refused there.
    let _ = body::encode(message, &mut bytes, usize::MAX);
    Frame { kind: kind as u8, id, body: bytes.freeze().into(), ..Frame::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::image;

    #[test]
    fn what_says_all_by_its_kind_has_no_body() {
        for kind in [Kind::Ready, Kind::Bell, Kind::Begun] {
            let parse = |body| FromWorker::parse(Frame { kind: kind as u8, body, ..Frame::default() });
            assert!(parse(Held::default()).is_ok());
            // What came with the first of them once.
            let refused = parse(frame(kind, 0, &image::id()).body);
            assert!(matches!(refused, Err(RecvError::Protocol { .. })), "{refused:?}");
        }
    }
}
