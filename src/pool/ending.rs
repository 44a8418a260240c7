//! The end of a worker's life: its process is ended, or has ended, and its last task gets its outcome.
//!
//! Why it is to end was decided before, in `serving.rs`.

use std::sync::Arc;
use std::time::Duration;

use super::answers::answer;
use super::counts::Ending;
use super::life::Event;
use super::output::{Listening, heard_out};
use super::seat::MOST_SENT;
use super::state::{End, Phase};
use super::supervisor::{Cause, Process, Supervisor};
use super::trace;
use crate::error::TaskError;
use crate::process::kept::{Exit, Kept};
use crate::process::spawn::died;
use crate::process::within::within;

/// How long a killed process may take to end before its task is resolved without it; one in an uninterruptible wait can
/// take for ever.
pub(super) const KILL_WITHIN: Duration = Duration::from_secs(2);

/// How long a process that has closed its socket may take to exit by itself.
const EXIT_WITHIN: Duration = Duration::from_millis(100);

/// How long a task's outcome, or the end of a pool that is cancelled, may wait for who listens to what was printed.
const HEAR_WITHIN: Duration = Duration::from_millis(100);

/// How many frames of a worker that is to end are looked at. Of each of its tasks there are three at most that nobody has read:
/// it has begun, here is its answer, and there are answers.
const MOST_LAST_WORDS: usize = 4 * MOST_SENT;

/// How long a process that ends in order may take for its exit task and its exit.
const RETIRE_WITHIN: Duration = Duration::from_secs(10);

impl Supervisor {
    /// Ends the process, if it has not ended, and resolves the task that it had.
    pub(super) async fn end(&self, mut process: Process, cause: Cause, listening: &mut Vec<Listening>) -> End {
        // First of all: what is given to a worker after its desk was looked at below would be lost.
        self.shared.withdraw(&self.seat);
        let kept = process.child.kept().clone();
        // Then: the task that was asked to stop may have stopped, and another one be the last.
        self.hear_last_words(&mut process);
        // What was answered need not wait for the end, and would be lost if the runtime ended before.
        self.shared.take_in(&mut process.counts, process.unfinished.drain(..));
        process.resolve();
        // Who cancels the pool kills its processes, and their ends may be seen before that is known here.
        let cause = match (cause, &process.stopping) {
            (Cause::Died, _) if kept.kill_sent() => Cause::Cancelled,
            // A task that was asked to stop has stopped, if not in the best of ways.
            (Cause::Died, Some(stopping)) => stopping.cause,
            _ => cause,
        };
        if matches!(cause, Cause::Died | Cause::Stuck) {
            self.seat.desk().suspect(cause == Cause::Stuck);
        }
        let exit = match cause {
            Cause::Retired(_) => self.retire(&mut process).await,
            Cause::Cancelled | Cause::TimedOut => self.stop(&kept).await,
            Cause::Stuck => self.kill(&kept).await,
            // It may have closed its socket on its way out; its own status says more than our SIGKILL.
            Cause::Died => match within(EXIT_WITHIN, kept.exited_watched()).await {
                Some(exit) => Some(exit),
                None => self.kill(&kept).await,
            },
        };
        let ending = match cause {
            Cause::Cancelled => Ending::Cancelled,
            Cause::TimedOut => Ending::TimedOut,
            Cause::Died | Cause::Stuck | Cause::Retired(_) => Ending::Died,
        };
        // Before its task's outcome, unless whoever listens takes long.
        let _ = within(HEAR_WITHIN, heard_out(listening, 0)).await;
        self.hear_last_words(&mut process);
        let exit = exit.unwrap_or(Exit::UNKNOWN);
        if let Some(cause) = cause.unplanned() {
            trace::died(&self.shared.settings.name, &self.seat, kept.pid(), exit.status, cause);
        }
        let (counts, unfinished) = (&mut process.counts, process.unfinished.drain(..));
        let worked = self.shared.lost(&self.seat, counts, unfinished, ending, |job| match cause {
            Cause::TimedOut => TaskError::TimedOut,
            Cause::Cancelled => TaskError::Cancelled,
            Cause::Died | Cause::Stuck | Cause::Retired(_) => died(&kept, &exit, job.name.clone()),
        });
        process.resolve();
        match cause {
            Cause::Retired(end) => end,
            Cause::Died if !worked => End::Fruitless { status: exit.status, pid: kept.pid() },
            _ => End::Other,
        }
    }

    /// Its seat is given up: waits until all that its processes have printed was told, but not for long once the pool is cancelled.
    /// Whoever listens may need what somebody holds who waits for that.
    pub(super) async fn hear_out(&self, mut listening: Vec<Listening>) {
        tokio::select! {
            biased;
            () = heard_out(&mut listening, 0) => return,
            () = self.shared.when(|state| (state.phase == Phase::Cancelled).then_some(())) => {}
        }
        let _ = within(HEAR_WITHIN, heard_out(&mut listening, 0)).await;
    }

    /// What it had said before its end counts, up to the first lie. It is not listened to without end: it may live, and so may
    /// somebody to whom it has left its socket.
    fn hear_last_words(&self, process: &mut Process) {
        let _ = process.ring.take(&mut process.answers);
        let mut honest = self.match_answers(process);
        for _ in 0..MOST_LAST_WORDS {
            if honest.is_err() {
                return;
            }
            let Ok(Some(frame)) = process.inbox.try_frame(&process.socket) else { return };
            let Ok(answer) = answer(frame) else { return };
            process.answers.extend(answer);
            honest = self.match_answers(process);
        }
    }

    /// SIGTERM first, where the pool grants a grace, of which this is the second half; then SIGKILL.
    async fn stop(&self, kept: &Kept) -> Option<Exit> {
        let grace = self.shared.settings.cancel_grace / 2;
        if !grace.is_zero() {
            let _ = kept.terminate_group();
            if let Some(exit) = within(grace, kept.exited_watched()).await {
                return Some(exit);
            }
        }
        self.kill(kept).await
    }

    async fn kill(&self, kept: &Kept) -> Option<Exit> {
        self.seat.desk().apply(Event::Kill);
        let _ = kept.signal_group(libc::SIGKILL);
        within(KILL_WITHIN, kept.exited_watched()).await
    }

    /// Ends an idle process in order: its exit task, the end of the stream, its exit.
    async fn retire(&self, process: &mut Process) -> Option<Exit> {
        let kept = process.child.kept().clone();
        self.seat.desk().apply(Event::Retire);
        // One that somebody has stopped would do nothing of what follows.
        let _ = kept.signal_group(libc::SIGCONT);
        let socket = Arc::clone(&process.socket);
        let orderly = async {
            if let Some(task) = &self.shared.settings.on_exit
                && let Ok(errand) = task.errand().await
            {
                // Its outcome has nobody to go to.
                let _ = self.perform(errand, &socket, &mut process.inbox, &mut process.ring, &kept).await;
            }
            let _ = rustix::net::shutdown(&*socket, rustix::net::Shutdown::Write);
            kept.exited_watched().await
        };
        tokio::select! {
            exit = within(RETIRE_WITHIN, orderly) => {
                if exit.is_some() {
                    return exit;
                }
            }
            () = self.cancelled() => {}
        }
        self.kill(&kept).await
    }
}
