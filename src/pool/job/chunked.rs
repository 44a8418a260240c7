//! A job that is a chunk: its calls come to something one by one, and it goes on where it was.

use bytes::Bytes;

use super::{Cell, Job, Outcome, Stage};
use crate::error::TaskError;
use crate::pool::answers::Misbehaved;
use crate::pool::parts::{Part, Parts};
use crate::wire::frame::Frame;

impl Job {
    /// Keeps results that a chunk's worker had before its end.
    pub(in crate::pool) fn keep(&self, count: u32, results: Bytes) {
        if let Some(parts) = self.cell().parts() {
            parts.keep(count, results);
        }
    }

    /// The call of a chunk that was running has failed. `true`: the others are to run.
    pub(in crate::pool) fn fail_part(&self, error: impl FnOnce() -> TaskError) -> bool {
        let mut cell = self.cell();
        let sent = matches!(cell.stage, Stage::Sent(_));
        let Some(parts) = cell.parts().filter(|_| sent) else { return false };
        if !parts.is_whole() {
            parts.fail(error());
        }
        let again = !parts.is_whole();
        if again {
            cell.go_on();
        }
        again
    }

    /// Takes a chunk's answer; with `stopped` its last call is to have that outcome. Gives the chunk's own outcome, if it has
    /// one by now; otherwise it is to go on.
    pub(in crate::pool) fn answer_part(
        &self,
        frame: Frame,
        stopped: Option<TaskError>,
    ) -> Result<Option<Outcome>, Misbehaved> {
        let mut cell = self.cell();
        let wanted = matches!(cell.stage, Stage::Sent(_));
        let Some(parts) = cell.parts() else { return Err(Misbehaved) };
        parts.answer(frame, stopped).ok_or(Misbehaved)?;
        if parts.is_whole() || !wanted {
            return Ok(Some(Ok(Frame::default())));
        }
        cell.go_on();
        Ok(None)
    }

    /// What a chunk's calls came to, as far as it is known; once it has an outcome.
    pub(in crate::pool) fn take_parts(&self) -> Vec<Part> {
        self.cell().parts().map(Parts::take).unwrap_or_default()
    }
}

impl Cell {
    /// A chunk is to go on with its next call, which starts anew in every respect.
    fn go_on(&mut self) {
        self.stage = Stage::Queued;
        if let Some(rare) = &mut self.rare {
            rare.bounces = 0;
        }
    }

    fn parts(&mut self) -> Option<&mut Parts> {
        self.rare.as_mut()?.parts.as_mut()
    }
}
