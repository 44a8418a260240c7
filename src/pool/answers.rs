//! What a worker has answered: frames from its ledger and its socket, made into outcomes.
//!
//! Nothing here decides what follows from an answer, or from what is none.

use bytes::BytesMut;

use super::job::Outcome;
use crate::sys::ledger::{RING, Reader};
use crate::wire::frame::{Decoder, Frame};
use crate::wire::message::FromWorker;

/// Answers that are arriving through a ledger.
#[derive(Debug)]
pub(super) struct Ring {
    reader: Reader,
    bytes: BytesMut,
    decoder: Decoder,
}

/// The worker said what it must not.
#[derive(Debug)]
pub(super) struct Misbehaved;

impl Ring {
    pub(super) fn new(reader: Reader) -> Self {
        Self { reader, bytes: BytesMut::new(), decoder: Decoder::new(RING) }
    }

    /// Appends all answers that are in the ring to `answers`.
    pub(super) fn take(&mut self, answers: &mut Vec<(u64, Outcome)>) -> Result<(), Misbehaved> {
        self.reader.take(&mut self.bytes).map_err(|_| Misbehaved)?;
        while let Some((head, body)) = self.decoder.decode(&mut self.bytes).map_err(|_| Misbehaved)? {
            if head.fds > 0 {
                return Err(Misbehaved);
            }
            let frame = Frame { kind: head.kind, id: head.id, body, fds: Vec::new() };
            answers.push(answer(frame)?.ok_or(Misbehaved)?);
        }
        // Answers are put in whole.
        if self.decoder.at_boundary(&self.bytes) { Ok(()) } else { Err(Misbehaved) }
    }
}

/// What a frame answers, if it is not just the bell.
pub(super) fn answer(frame: Frame) -> Result<Option<(u64, Outcome)>, Misbehaved> {
    match FromWorker::parse(frame).map_err(|_| Misbehaved)? {
        FromWorker::Done(frame) => Ok(Some((frame.id, Ok(frame)))),
        FromWorker::Failed(id, failure) => Ok(Some((id, Err(failure.into())))),
        FromWorker::Bell => Ok(None),
        FromWorker::Ready | FromWorker::Refused(_) => Err(Misbehaved),
    }
}
