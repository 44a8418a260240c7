//! A job that is a chunk: its calls come to something one by one, and it goes on where it was.

use bytes::{Buf as _, Bytes};

use super::{Cell, Job, Outcome, Stage};
use crate::error::TaskError;
use crate::pool::answers::Misbehaved;
use crate::pool::chunk;
use crate::pool::parts::{Part, Parts};
use crate::task::Answer;
use crate::wire::held::Held;

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
        answer: Answer,
        stopped: Option<TaskError>,
    ) -> Result<Option<Outcome>, Misbehaved> {
        let mut cell = self.cell();
        let wanted = matches!(cell.stage, Stage::Sent(_));
        let Some(parts) = cell.parts() else { return Err(Misbehaved) };
        parts.answer(answer, stopped).ok_or(Misbehaved)?;
        if parts.is_whole() || !wanted {
            return Ok(Some(Ok(Answer::default())));
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
    ///
    /// Twice as many inputs go with it as calls were made this time. Were it all that are left, those that its worker does not come
    /// to would travel once more each time: where results are too large to be kept, that is after each call.
    fn go_on(&mut self) {
        self.stage = Stage::Queued;
        let Some(rare) = &mut self.rare else { return };
        rare.bounces = 0;
        let Some(parts) = &mut rare.parts else { return };
        let done = parts.take_progress();
        let mut inputs = rare.inputs.take().unwrap_or_else(|| self.body.to_bytes());
        inputs.advance(chunk::len_of(&inputs, done));
        rare.more = vec![inputs.slice(..chunk::len_of(&inputs, 2 * done))].into();
        rare.inputs = Some(inputs);
        self.body = Held::default();
    }

    fn parts(&mut self) -> Option<&mut Parts> {
        self.rare.as_mut()?.parts.as_mut()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::BufMut as _;

    use super::*;
    use crate::channel::outbox::Outbox;
    use crate::pool::job::{Awaits, Wishes};
    use crate::pool::seat::Seat;
    use crate::task::Parcel;

    fn pack<F: Fn(Vec<u8>) + Copy + Send + 'static>(_: F, inputs: &[Vec<u8>]) -> (Parcel, usize) {
        chunk::pack::<F, _, _>(inputs, usize::MAX).unwrap()
    }

    /// It once sent all of its inputs again each time.
    #[test]
    fn a_chunk_that_goes_on_after_every_few_calls_sends_each_input_a_few_times() {
        const CALLS: u8 = 100;
        let inputs: Vec<_> = (0..CALLS).map(|n| vec![n; 1000]).collect();
        for at_once in 1..=7 {
            let (parcel, count) = pack(|_| (), &inputs);
            assert_eq!(count, CALLS.into());
            let whole = parcel.arguments.len() as u64;
            let parts = Some(Parts::new(CALLS.into()));
            let job = Job::new("pool", parcel, Wishes::default(), Awaits::Outcome(None), parts);
            let (seat, mut outbox) = (Seat::new(0, None), Outbox::default());
            let mut done = 0;
            for id in 1.. {
                assert!(Arc::clone(&job).send(&seat, &mut outbox, id).is_ok());
                let made = at_once.min(CALLS - done);
                done += made;
                let mut answer = Vec::new();
                answer.put_u32_le(made.into());
                answer.put_u64_le(0);
                let answer = Answer { body: Held::copy(&answer), ..Answer::default() };
                if job.answer_part(answer, None).unwrap().is_some() {
                    break;
                }
                let cell = job.cell();
                let next = &cell.rare.as_ref().unwrap().more[0];
                assert_eq!(next.last().copied(), Some((done + 2 * made).min(CALLS) - 1));
                assert_eq!(next.get(6), Some(&done), "behind two lengths it begins with what is not done");
            }
            assert_eq!(done, CALLS);
            assert!(outbox.pushed() < 4 * whole, "{} of {whole}", outbox.pushed());
        }
    }
}
