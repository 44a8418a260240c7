//! One task a worker: starts its process, reads its answers, ends it, and starts the next one in its place.
//!
//! Only the supervisor decides that a process is killed, because only it knows whether the task that is to end is still
//! the one that runs. Which task the worker gets is decided in `dispatch.rs`.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::answers::{Ring, answer};
use super::job::{Job, Outcome};
use super::life::Event;
use super::seat::Seat;
use super::state::{End, Ending, Next, Phase, Shared};
use super::trace;
use crate::channel::inbox::Inbox;
use crate::channel::socket::Socket;
use crate::error::{SpawnError, TaskError};
use crate::process::kept::{Exit, Kept, KillOnDrop};
use crate::process::spawn::died;
use crate::process::start::{self, Worker};
use crate::process::{ChildStderr, ChildStdout};
use crate::sys::ledger::Reader;
use crate::sys::socket::{self, Ready};
use crate::task::Parcel;
use crate::wire::frame::Frame;
use crate::wire::message::{self, Kind};

/// How long a killed process may take to end before its task is resolved without it; one in an uninterruptible wait can
/// take for ever.
const KILL_WITHIN: Duration = Duration::from_secs(2);

/// How long a process that has closed its socket may take to exit by itself.
const EXIT_WITHIN: Duration = Duration::from_millis(100);

/// How long a process that ends in order may take for its exit task and its exit.
const RETIRE_WITHIN: Duration = Duration::from_secs(10);

/// How often a worker that is starting while the pool closes looks whether it is still needed.
const CLOSING_LOOK: Duration = Duration::from_millis(20);

/// The first pause after a failed start; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// Runs the supervisor of a new seat on that runtime. If there is none any more, the seat is given up.
pub(super) fn spawn(runtime: Option<&Handle>, shared: Arc<Shared>, seat: Arc<Seat>) {
    let supervisor = Supervisor { shared, seat, left: false };
    match runtime {
        Some(runtime) => drop(runtime.spawn(supervisor.run())),
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
        if !self.left {
            self.shared.abandoned(&self.seat);
        }
    }
}

/// A process that is ready, seen from its supervisor.
pub(super) struct Process {
    pub(super) child: KillOnDrop,
    pub(super) socket: Arc<Socket>,
    pub(super) inbox: Inbox,
    pub(super) ring: Ring,
    /// Answers that are being taken in; empty between two turns, as the next three are.
    pub(super) answers: Vec<(u64, Outcome)>,
    /// Tasks that are off the desk, with what they are to be resolved with.
    pub(super) answered: Vec<(Arc<Job>, Outcome)>,
    pub(super) endings: Vec<Ending>,
    /// Chunks that are off the desk and have yet to go on.
    pub(super) unfinished: Vec<Arc<Job>>,
    /// With how many bytes in memory it is replaced.
    pub(super) max_memory: Option<u64>,
    /// Who reads its stdout and stderr.
    listeners: Vec<JoinHandle<()>>,
    /// The task that has been asked to stop by itself.
    pub(super) stopping: Option<Stopping>,
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
    fn unplanned(self) -> Option<&'static str> {
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
        let pool = &*Arc::clone(&self.shared).settings.name.clone();
        loop {
            let unneeded = self.shared.state().needs_no_start();
            let started = if unneeded { Err(SpawnError::Cancelled) } else { self.start().await };
            let failed;
            let next = match started {
                Ok(process) => {
                    trace::started(pool, &self.seat, Ok(process.child.kept().pid()), again);
                    let end = self.serve(process).await;
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
                return;
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
    async fn cancelled(&self) {
        while self.shared.state().phase != Phase::Cancelled {
            self.seat.bell.notified().await;
        }
    }

    /// Resolves when a process that is not ready yet is of no use: the pool is cancelled, or it is closing and has
    /// nothing for it to do.
    async fn unneeded(&self) {
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

    /// Starts a process and makes it ready, unless it is of no use any more. One that does not get ready is killed, and
    /// has ended by then.
    async fn start(&self) -> Result<Process, SpawnError> {
        let settings = &self.shared.settings;
        let name = format!("{}-{}", settings.name, self.seat.index);
        // This takes a millisecond or so, and is not given up half-way: then nobody would know when the process has ended.
        let place = message::Seat { pool: settings.name.clone(), index: self.seat.index as u64 };
        let mut worker = start::launch(&settings.plan, &name, Some(place), None).await?;
        let kept = worker.child.kept().clone();
        let mut listeners = self.listen(&mut worker)?;
        let ready = tokio::select! {
            biased;
            () = self.unneeded() => Err(SpawnError::Cancelled),
            ready = self.make_ready(worker) => ready,
        };
        match ready {
            Ok(mut process) => {
                process.listeners = listeners;
                Ok(process)
            }
            Err(error) => {
                // It was dropped, and so killed.
                let _ = tokio::time::timeout(KILL_WITHIN, kept.exited()).await;
                heard_out(&mut listeners).await;
                Err(error)
            }
        }
    }

    /// Has what the process prints read, if somebody wants it.
    fn listen(&self, worker: &mut Worker) -> Result<Vec<JoinHandle<()>>, SpawnError> {
        let (settings, pid) = (&self.shared.settings, worker.child.kept().pid());
        let mut listeners = Vec::new();
        if let Some((listener, pipe)) = settings.on_stdout_line.clone().zip(worker.stdout.take()) {
            listeners.push(tokio::spawn(listener.listen(pid, ChildStdout::new(pipe)?)));
        }
        if let Some((listener, pipe)) = settings.on_stderr_line.clone().zip(worker.stderr.take()) {
            listeners.push(tokio::spawn(listener.listen(pid, ChildStderr::new(pipe)?)));
        }
        Ok(listeners)
    }

    /// Shakes hands with a new process and runs the pool's start task in it.
    async fn make_ready(&self, mut worker: Worker) -> Result<Process, SpawnError> {
        worker.shake_hands().await?;
        let Worker { child, socket, mut inbox, outbox, ledger, .. } = worker;
        let (socket, ledger) = (Arc::new(socket), Arc::new(ledger.ok_or(SpawnError::Cancelled)?));
        let mut ring = Ring::new(Reader::new(Arc::clone(&ledger)));
        let settings = &self.shared.settings;
        {
            let mut desk = self.seat.desk();
            desk.set_up(child.kept().pid(), Arc::clone(&socket), ledger, outbox);
            desk.max_tasks = settings.max_tasks.map(a_little_less);
        }
        let max_memory = settings.max_memory.map(a_little_less);
        if let Some(task) = &self.shared.settings.on_start {
            self.perform(task, &socket, &mut inbox, &mut ring, child.kept())
                .await
                .map_err(|error| SpawnError::StartTask(Box::new(error)))?;
        }
        Ok(Process {
            child,
            socket,
            inbox,
            ring,
            answers: Vec::new(),
            answered: Vec::new(),
            endings: Vec::new(),
            unfinished: Vec::new(),
            max_memory,
            listeners: Vec::new(),
            stopping: None,
        })
    }

    /// Runs one of the pool's own tasks in the process and waits for its answer.
    async fn perform(
        &self,
        task: &Parcel,
        socket: &Socket,
        inbox: &mut Inbox,
        ring: &mut Ring,
        kept: &Kept,
    ) -> Result<(), TaskError> {
        let fds: io::Result<Vec<_>> = task.fds.iter().map(socket::duplicate).collect();
        let fds = fds.map_err(|error| TaskError::Encode(error.into()))?;
        {
            let mut desk = self.seat.desk();
            let id = desk.take_id();
            desk.outbox.push(Frame {
                kind: Kind::Run as u8,
                id,
                body: task.body.clone(),
                more: task.more.clone(),
                fds,
            });
        }
        let answer = async {
            // If it can't be written, the process is ending, which the read sees.
            let _ = socket.when(Ready::Write, || self.seat.desk().outbox.flush(socket)).await;
            let mut answers = Vec::new();
            let frame = inbox.frame(socket).await.ok()??;
            answers.extend(answer(frame).ok()?);
            ring.take(&mut answers).ok()?;
            answers.pop().map(|(_, outcome)| outcome)
        };
        tokio::select! {
            biased;
            outcome = answer => if let Some(outcome) = outcome { return outcome.map(drop) },
            _ = kept.exited() => {}
        }
        let _ = kept.signal_group(libc::SIGKILL);
        Err(died(kept, &kept.exited().await, task.name.into()))
    }

    /// Serves until the process has ended.
    async fn serve(&self, mut process: Process) -> End {
        self.seat.desk().apply(Event::Ready);
        self.shared.started();
        let turn = self.shared.next_task(&self.seat);
        let cause = self.work(&mut process, turn).await;
        self.end(process, cause).await
    }

    /// Ends the process, if it has not ended, and resolves the task that it had.
    async fn end(&self, mut process: Process, cause: Cause) -> End {
        // First of all: what is given to a worker after its desk was looked at below would be lost.
        self.shared.withdraw(&self.seat);
        let kept = process.child.kept().clone();
        let exit = match cause {
            Cause::Retired(_) => self.retire(&mut process).await,
            Cause::Cancelled | Cause::TimedOut => self.stop(&kept).await,
            Cause::Stuck => self.kill(&kept).await,
            // It may have closed its socket on its way out; its own status says more than our SIGKILL.
            Cause::Died => match tokio::time::timeout(EXIT_WITHIN, kept.exited()).await {
                Ok(exit) => Some(exit),
                Err(_) => self.kill(&kept).await,
            },
        };
        let ending = match cause {
            Cause::Cancelled => Ending::Cancelled,
            Cause::TimedOut => Ending::TimedOut,
            Cause::Died | Cause::Stuck | Cause::Retired(_) => Ending::Died,
        };
        heard_out(&mut process.listeners).await;
        // What it had said before its end counts.
        let _ = process.ring.take(&mut process.answers);
        while let Ok(Some(frame)) = process.inbox.try_frame(&process.socket) {
            let Ok(answer) = answer(frame) else { break };
            process.answers.extend(answer);
        }
        let _ = self.match_answers(&mut process);
        let exit = exit.unwrap_or(Exit::UNKNOWN);
        if let Some(cause) = cause.unplanned() {
            trace::died(&self.shared.settings.name, &self.seat, kept.pid(), exit.status, cause);
        }
        let (endings, unfinished) = (&process.endings, process.unfinished.drain(..));
        let worked = self.shared.lost(&self.seat, endings, unfinished, ending, |job| match cause {
            Cause::TimedOut => TaskError::TimedOut,
            Cause::Cancelled => TaskError::Cancelled,
            Cause::Died | Cause::Stuck | Cause::Retired(_) => died(&kept, &exit, job.name.clone()),
        });
        for (job, outcome) in process.answered {
            job.resolve(outcome);
        }
        match cause {
            Cause::Retired(end) => end,
            Cause::Died if !worked => End::Fruitless { status: exit.status, pid: kept.pid() },
            _ => End::Other,
        }
    }

    /// SIGTERM first, where the pool grants a grace, of which this is the second half; then SIGKILL.
    async fn stop(&self, kept: &Kept) -> Option<Exit> {
        let grace = self.shared.settings.cancel_grace / 2;
        if !grace.is_zero() {
            let _ = kept.signal_group(libc::SIGTERM);
            if let Ok(exit) = tokio::time::timeout(grace, kept.exited()).await {
                return Some(exit);
            }
        }
        self.kill(kept).await
    }

    async fn kill(&self, kept: &Kept) -> Option<Exit> {
        self.seat.desk().apply(Event::Kill);
        let _ = kept.signal_group(libc::SIGKILL);
        tokio::time::timeout(KILL_WITHIN, kept.exited()).await.ok()
    }

    /// Ends an idle process in order: its exit task, the end of the stream, its exit.
    async fn retire(&self, process: &mut Process) -> Option<Exit> {
        let kept = process.child.kept().clone();
        self.seat.desk().apply(Event::Retire);
        let socket = Arc::clone(&process.socket);
        let orderly = async {
            if let Some(task) = &self.shared.settings.on_exit {
                // Its outcome has nobody to go to.
                let _ = self.perform(task, &socket, &mut process.inbox, &mut process.ring, &kept).await;
            }
            let _ = rustix::net::shutdown(&*socket, rustix::net::Shutdown::Write);
            kept.exited().await
        };
        tokio::select! {
            exit = tokio::time::timeout(RETIRE_WITHIN, orderly) => {
                if let Ok(exit) = exit {
                    return Some(exit);
                }
            }
            () = self.cancelled() => {}
        }
        self.kill(&kept).await
    }
}

/// Waits until everything that an ended process has printed was read. Something that has left its group may still hold its
/// stdout; nobody waits for that.
async fn heard_out(listeners: &mut Vec<JoinHandle<()>>) {
    for mut listener in listeners.drain(..) {
        if tokio::time::timeout(EXIT_WITHIN, &mut listener).await.is_err() {
            listener.abort();
        }
    }
}

/// Up to a tenth less than a limit, so that workers that started together are not replaced together. A limit below ten is
/// what it is.
fn a_little_less(limit: u64) -> u64 {
    limit - (limit / 10).saturating_mul(random().into()) / 256
}

/// Between half of a pause and all of it, so that workers that failed together don't start again together.
fn jittered(pause: Duration) -> Duration {
    pause / 2 + pause / 2 * u32::from(random()) / 256
}

fn random() -> u8 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0).to_le_bytes()[0]
}
