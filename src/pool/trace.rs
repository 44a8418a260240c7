//! What a pool tells `tracing`, where the crate is built with that feature: a span a task, and events for deaths and starts.
//!
//! Without the feature all of this is empty. A span speaks to its subscriber, which is somebody else's code, only when it
//! begins and when it ends, and then without a lock. A subscriber's panic at that end, or at an event, is nobody's concern.

#[cfg(not(feature = "tracing"))]
pub(super) use off::{Span, died, started};
#[cfg(feature = "tracing")]
pub(super) use on::{Span, died, started};

#[cfg(feature = "tracing")]
mod on {
    use std::process::ExitStatus;
    use std::time::Duration;

    use tracing::field::{Empty, debug};

    use crate::error::SpawnError;
    use crate::pool::seat::Seat;
    use crate::task::unheeded;

    /// A task's span, inside the span in which it was submitted.
    #[derive(Debug, Default)]
    pub(in crate::pool) struct Span {
        is: Option<tracing::Span>,
        run: Option<Run>,
        outcome: &'static str,
    }

    #[derive(Debug)]
    struct Run {
        worker: u32,
        queued: Duration,
        ran: Duration,
    }

    impl Span {
        pub(in crate::pool) fn begin(pool: &str, task: &str) -> Self {
            let span = tracing::info_span!(
                target: "multiproc::pool", "task",
                pool, name = task, worker = Empty, queued = Empty, ran = Empty, outcome = Empty
            );
            Self { is: Some(span), run: None, outcome: "" }
        }

        /// Where it ran, how long it had waited for that, and how long it ran.
        pub(in crate::pool) fn note_run(&mut self, worker: u32, queued: Duration, ran: Duration) {
            self.run = Some(Run { worker, queued, ran });
        }

        pub(in crate::pool) fn note_outcome(&mut self, outcome: &'static str) {
            self.outcome = outcome;
        }

        pub(in crate::pool) fn end(self) {
            let Self { is: Some(span), run, outcome } = self else { return };
            unheeded(move || {
                if let Some(Run { worker, queued, ran }) = run {
                    span.record("worker", worker);
                    span.record("queued", debug(queued));
                    span.record("ran", debug(ran));
                }
                span.record("outcome", outcome);
            });
        }
    }

    /// A worker's process has ended, and not in order.
    pub(in crate::pool) fn died(pool: &str, seat: &Seat, pid: u32, status: Option<ExitStatus>, cause: &str) {
        let status = status.map_or_else(|| "unknown".to_owned(), |status| status.to_string());
        unheeded(|| {
            tracing::warn!(target: "multiproc::pool", pool, worker = seat.index, pid, %status, cause, "worker ended");
        });
    }

    /// A process was started in the place of one that ended, or failed to.
    pub(in crate::pool) fn started(pool: &str, seat: &Seat, started: Result<u32, &SpawnError>, again: bool) {
        unheeded(|| match started {
            Ok(pid) if again => {
                tracing::info!(target: "multiproc::pool", pool, worker = seat.index, pid, "worker restarted");
            }
            Ok(pid) => tracing::debug!(target: "multiproc::pool", pool, worker = seat.index, pid, "worker started"),
            Err(SpawnError::Cancelled) => {}
            Err(error) => {
                tracing::warn!(target: "multiproc::pool", pool, worker = seat.index, %error, "worker cannot be started");
            }
        });
    }
}

#[cfg(not(feature = "tracing"))]
mod off {
    #![expect(clippy::unused_self, reason = "they stand in for the others")]

    use std::process::ExitStatus;
    use std::time::Duration;

    use crate::error::SpawnError;
    use crate::pool::seat::Seat;

    #[derive(Debug, Default)]
    pub(in crate::pool) struct Span;

    impl Span {
        pub(in crate::pool) fn begin(_: &str, _: &str) -> Self {
            Self
        }

        pub(in crate::pool) fn note_run(&mut self, _: u32, _: Duration, _: Duration) {}

        pub(in crate::pool) fn note_outcome(&mut self, _: &'static str) {}

        pub(in crate::pool) fn end(self) {}
    }

    pub(in crate::pool) fn died(_: &str, _: &Seat, _: u32, _: Option<ExitStatus>, _: &str) {}

    pub(in crate::pool) fn started(_: &str, _: &Seat, _: Result<u32, &SpawnError>, _: bool) {}
}
