//! One task a worker: starts its process, reads its answers, ends it, and starts the next one in its place.
//!
//! Here is the round of it; its three parts are in `starting.rs`, `serving.rs` and `ending.rs`. Only the supervisor decides
//! that a process is killed, because only it knows whether the task that is to end is still the one that runs. Which task the
//! worker gets is decided in `dispatch.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answers::Ring;
use super::apart::Apart;
use super::counts::Counts;
use super::job::{Job, Outcome};
use super::output::Listening;
use super::seat::Seat;
use super::state::{End, Next, Phase, Shared};
use super::trace;
use crate::channel::inbox::Inbox;
use crate::channel::socket::{Berth, Socket};
use crate::error::SpawnError;
use crate::process::keeper::is_forked_copy;
use crate::process::kept::KillOnDrop;

/// How often a worker that is starting while the pool closes looks whether it is still needed.
const CLOSING_LOOK: Duration = Duration::from_millis(20);

/// The first pause after a failed start; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
pub(super) const LAST_PAUSE: Duration = Duration::from_secs(1);

/// Runs the supervisor of a new seat in its runtime. If there is none any more, the seat is given up.
pub(super) fn spawn(shared: Arc<Shared>, seat: Arc<Seat>) {
    let runtime = seat.runtime.clone();
    let supervisor = Supervisor { shared, seat: Arc::clone(&seat), left: false };
    match runtime {
        Some(runtime) => seat.drive(&runtime, supervisor.run()),
        None => drop(supervisor),
    }
}

pub(super) struct Supervisor {
    pub(super) shared: Arc<Shared>,
    pub(super) seat: Arc<Seat>,
    /// Whether the seat has been given up in order.
    left: bool,
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // In a forked copy of this process it is the original's that goes on, with a ledger that both have.
        if is_forked_copy() {
            return;
        }
        if !self.left {
            self.shared.abandoned(&self.seat);
        }
        self.shared.supervisor_ended();
    }
}

/// A process that is ready, seen from its supervisor.
pub(super) struct Process {
    pub(super) child: KillOnDrop,
    pub(super) socket: Arc<Socket>,
    pub(super) inbox: Inbox,
    pub(super) berth: Berth,
    pub(super) ring: Ring,
    pub(super) apart: Apart,
    /// Answers that are being taken in; empty between two turns, as the next four are.
    pub(super) answers: Vec<(u64, Outcome)>,
    /// How long each of them took, if the worker has said so.
    pub(super) pace: Option<Duration>,
    /// Tasks that are off the desk, with what they are to be resolved with.
    pub(super) answered: Vec<(Arc<Job>, Outcome)>,
    /// How those ended.
    pub(super) counts: Counts,
    /// Chunks that are off the desk and have yet to go on.
    pub(super) unfinished: Vec<Arc<Job>>,
    /// With how many bytes in memory it is replaced.
    pub(super) max_memory: Option<u64>,
    /// The task that has been asked to stop by itself.
    pub(super) stopping: Option<Stopping>,
}

impl Process {
    /// Hands their outcomes to the tasks that are off the desk. Says whether there were any.
    pub(super) fn resolve(&mut self) -> bool {
        let any = !self.answered.is_empty();
        for (job, outcome) in self.answered.drain(..) {
            job.resolve(outcome);
        }
        any
    }
}

/// A task in its grace.
#[derive(Debug)]
pub(super) struct Stopping {
    pub(super) id: u64,
    pub(super) cause: Cause,
    /// When its worker is ended in its place.
    pub(super) until: Instant,
}

/// Why a process is ended, or has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// By itself, in the middle of a task or of nothing.
    Died,
    /// Its task is not wanted any more.
    Cancelled,
    TimedOut,
    /// It does not begin its task.
    Stuck,
    /// In order.
    Retired(End),
}

impl Cause {
    /// What to call it, where the process does not end in order.
    pub(super) fn unplanned(self) -> Option<&'static str> {
        match self {
            Self::Died => Some("died"),
            Self::Cancelled => Some("its task was cancelled"),
            Self::TimedOut => Some("its task timed out"),
            Self::Stuck => Some("it did not begin its task"),
            Self::Retired(_) => None,
        }
    }
}

impl Supervisor {
    async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        let mut again = false;
        // Who reads what the process prints, and those before it have printed: they need not be heard out for the next one to start.
        let mut listening = Vec::new();
        let pool = &*Arc::clone(&self.shared).settings.name.clone();
        loop {
            let unneeded = self.shared.state().needs_no_start();
            let started = if unneeded { Err(SpawnError::Cancelled) } else { self.start(&mut listening).await };
            let failed;
            let next = match started {
                Ok(process) => {
                    trace::started(pool, &self.seat, Ok(process.child.kept().pid()), again);
                    let end = self.serve(process, &mut listening).await;
                    failed = matches!(end, End::Fruitless { .. });
                    self.shared.ended(&self.seat, end)
                }
                Err(cause) => {
                    trace::started(pool, &self.seat, Err(&cause), again);
                    failed = true;
                    self.shared.start_failed(&self.seat, Arc::new(cause))
                }
            };
            if next == Next::Leave {
                self.left = true;
                return self.hear_out(listening).await;
            }
            again = true;
            if failed {
                tokio::select! {
                    () = self.unneeded() => {}
                    () = tokio::time::sleep(jittered(pause)) => {}
                }
                pause = (pause * 2).min(LAST_PAUSE);
            } else {
                pause = FIRST_PAUSE;
            }
        }
    }

    /// Resolves when the pool is cancelled.
    pub(super) async fn cancelled(&self) {
        while self.shared.state().phase != Phase::Cancelled {
            self.seat.bell.notified().await;
        }
    }

    /// Resolves when a process that is not ready yet is of no use: the pool is cancelled, or it is closing and has
    /// nothing for it to do.
    pub(super) async fn unneeded(&self) {
        loop {
            let closing = {
                let state = self.shared.state();
                if state.needs_no_start() {
                    return;
                }
                state.phase == Phase::Closing
            };
            tokio::select! {
                () = self.seat.bell.notified() => {}
                // A task that is given up, or taken by another worker, rings no bell here.
                () = tokio::time::sleep(CLOSING_LOOK), if closing => {}
            }
        }
    }

    /// Serves until the process has ended.
    async fn serve(&self, mut process: Process, listening: &mut Vec<Listening>) -> End {
        self.shared.started(&self.seat);
        let turn = self.shared.next_task(&self.seat);
        let cause = self.work(&mut process, turn).await;
        self.end(process, cause, listening).await
    }
}

/// Between half of a pause and all of it, so that workers that failed together don't start again together.
fn jittered(pause: Duration) -> Duration {
    pause / 2 + pause / 2 * u32::from(random()) / 256
}

pub(super) fn random() -> u8 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0).to_le_bytes()[0]
}
