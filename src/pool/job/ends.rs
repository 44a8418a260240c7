//! The ends of channels in a job: they have moved once a worker has begun it, and until then they may yet have gone nowhere.
//!
//! What was sent to a worker and not begun counts for nothing: it was taken back by way of the ledger, so no task will ever have
//! what went along.

use super::{Cell, Stage};

impl Cell {
    pub(super) fn is_with_no_worker(&self) -> bool {
        matches!(self.stage, Stage::Queued | Stage::Assigned)
    }

    /// No worker has begun it, and none will: the ends in it are where they were.
    pub(super) fn leave_ends(&mut self) {
        if let Some(rare) = &mut self.rare {
            std::mem::take(&mut rare.moves).call_off();
        }
    }
}

/// One that the pool never took.
impl Drop for Cell {
    fn drop(&mut self) {
        if self.is_with_no_worker() {
            self.leave_ends();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::channel::outbox::Outbox;
    use crate::channel::{Sender, channel};
    use crate::pool::job::{Awaits, Job, Wishes};
    use crate::pool::seat::Seat;
    use crate::task::{self, Answer, call};

    /// An end that is left behind, and a job that it has moved with.
    fn moved() -> (Arc<Sender<u8>>, Arc<Job>) {
        let (tx, rx) = channel::<u8>().unwrap();
        // Nobody reads it, but it is there.
        std::mem::forget(rx);
        let tx = Arc::new(tx);
        let parcel = task::pack(&call(|_: Shared| (), Shared(Arc::clone(&tx))), usize::MAX).unwrap();
        assert!(tx.blocking_send(0).is_err(), "it has moved");
        (tx, Job::new("pool", parcel, Wishes::default(), Awaits::Outcome(None), None))
    }

    #[derive(serde::Deserialize)]
    struct Shared(#[serde(deserialize_with = "never")] Arc<Sender<u8>>);

    impl serde::Serialize for Shared {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            self.0.serialize(serializer)
        }
    }

    fn never<'de, D: serde::Deserializer<'de>>(_: D) -> Result<Arc<Sender<u8>>, D::Error> {
        Err(serde::de::Error::custom("it is never run"))
    }

    fn send(job: &Arc<Job>) {
        assert!(Arc::clone(job).send(&Seat::new(0, None), &mut Outbox::default(), 1).is_ok());
    }

    #[test]
    fn the_ends_in_a_task_that_was_cancelled_and_then_taken_back_go_on() {
        let (tx, job) = moved();
        send(&job);
        assert!(job.abandon().is_some());
        assert!(tx.blocking_send(0).is_err(), "its worker may have begun it");
        assert!(!job.take_back());
        tx.blocking_send(0).unwrap();
    }

    #[test]
    fn the_ends_in_a_task_that_waits_again_have_moved_until_it_is_given_up() {
        let (tx, job) = moved();
        send(&job);
        assert!(job.take_back());
        assert!(tx.blocking_send(0).is_err());
        send(&job);
        assert!(job.bounce());
        assert!(tx.blocking_send(0).is_err());
        job.cancel();
        tx.blocking_send(0).unwrap();
    }

    #[test]
    fn the_ends_in_a_task_that_no_worker_gets_to_begin_go_on() {
        let (tx, job) = moved();
        send(&job);
        while job.bounce() {
            assert!(tx.blocking_send(0).is_err());
            send(&job);
        }
        tx.blocking_send(0).unwrap();
    }

    #[test]
    fn the_ends_in_a_task_that_was_begun_have_moved_whatever_comes_of_it() {
        for is_told in [true, false] {
            let (tx, job) = moved();
            send(&job);
            if is_told {
                job.let_fds_go();
            }
            job.resolve(Ok(Answer::default()));
            drop(job);
            assert!(tx.blocking_send(0).is_err());
            let (tx, job) = moved();
            send(&job);
            job.abandon();
            if is_told {
                job.let_fds_go();
            }
            drop(job);
            assert!(tx.blocking_send(0).is_err());
        }
    }
}
