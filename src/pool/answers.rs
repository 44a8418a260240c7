//! What a worker has answered: frames from its ledger and its socket, made into outcomes.
//!
//! Nothing here decides what follows from an answer, or from what is none.

use std::time::Duration;

use bytes::BytesMut;

use super::job::Outcome;
use crate::sys::ledger::{RING, Reader};
use crate::task::Answer;
use crate::wire::frame::{Frame, Head};
use crate::wire::held::Held;
use crate::wire::message::{FromWorker, Kind};

/// Answers that are arriving through a ledger.
#[derive(Debug)]
pub(super) struct Ring {
    reader: Reader,
    /// Empty between two calls.
    bytes: BytesMut,
}

/// The worker said what it must not.
#[derive(Debug)]
pub(super) struct Misbehaved;

impl Ring {
    pub(super) fn new(reader: Reader) -> Self {
        Self { reader, bytes: BytesMut::new() }
    }

    /// Whether there may be some.
    pub(super) fn has_answers(&self) -> bool {
        self.reader.has_answers()
    }

    /// Appends all answers that are in the ring to `answers`.
    pub(super) fn take(&mut self, answers: &mut Vec<(u64, Outcome)>) -> Result<(), Misbehaved> {
        self.bytes.clear();
        self.reader.take(&mut self.bytes).map_err(|_| Misbehaved)?;
        let mut rest = &self.bytes[..];
        while let Some((head, behind)) = rest.split_first_chunk() {
            let head = Head::parse(head, RING).map_err(|_| Misbehaved)?;
            // Answers are put in whole.
            let (body, next) = behind.split_at_checked(head.len).ok_or(Misbehaved)?;
            if head.fds > 0 {
                return Err(Misbehaved);
            }
            // A copy of its own, as short as it is: a part of the buffer would keep all of it for as long as nobody looks.
            if head.kind == Kind::Done as u8 {
                // As most of them are; so all of it is made where it stays.
                answers.resize_with(answers.len() + 1, || (head.id, Ok(Answer::default())));
                if let Some((_, Ok(answer))) = answers.last_mut() {
                    answer.body.fill(body);
                }
            } else {
                let frame = Frame { kind: head.kind, id: head.id, body: Held::copy(body), ..Frame::default() };
                answers.push(answer(frame)?.ok_or(Misbehaved)?);
            }
            rest = next;
        }
        if rest.is_empty() { Ok(()) } else { Err(Misbehaved) }
    }
}

/// How long each of the tasks took that a worker rings the bell for, by its own clock.
pub(super) fn pace(frame: &Frame) -> Option<Duration> {
    (frame.kind == Kind::Bell as u8 && frame.id > 0).then(|| Duration::from_nanos(frame.id))
}

/// The number of the task that a frame says to be begun.
pub(super) fn begun(frame: &Frame) -> Option<u64> {
    (frame.kind == Kind::Begun as u8).then_some(frame.id)
}

/// What a frame answers, if it is an answer.
pub(super) fn answer(frame: Frame) -> Result<Option<(u64, Outcome)>, Misbehaved> {
    // As most are that come through the socket.
    if frame.kind == Kind::Bell as u8 && frame.body.is_empty() && frame.fds.is_empty() {
        return Ok(None);
    }
    match FromWorker::parse(frame).map_err(|_| Misbehaved)? {
        FromWorker::Done(frame) => Ok(Some((frame.id, Ok(frame.into())))),
        FromWorker::Failed(id, failure) => Ok(Some((id, Err(Box::new(failure.into()))))),
        FromWorker::Bell | FromWorker::Begun => Ok(None),
        FromWorker::Ready | FromWorker::Refused(_) => Err(Misbehaved),
    }
}
