//! One task a worker: starts its process, reads its answers, ends it, and starts the next one in its place.
//!
//! Only the supervisor decides that a process is killed, because only it knows whether the task that is to end is still
//! the one that runs. Which task the worker gets is decided in `dispatch.rs`.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::dispatch::{End, Ending, Next, Phase, Shared, Turn};
use super::job::{Job, Outcome};
use super::life::{Event, WorkerState};
use super::seat::Seat;
use crate::channel::inbox::Inbox;
use crate::channel::outbox::Outbox;
use crate::channel::socket::Socket;
use crate::error::{RecvError, SpawnError, TaskError};
use crate::process::kept::{Exit, Kept, KillOnDrop};
use crate::process::spawn::died;
use crate::process::start::{self, Worker};
use crate::sys::socket::{self, Ready};
use crate::task::Parcel;
use crate::wire::frame::Frame;
use crate::wire::message::{FromWorker, Kind};

/// How long a killed process may take to end before its task is resolved without it; one in an uninterruptible wait can
/// take for ever.
const KILL_WITHIN: Duration = Duration::from_secs(2);

/// How long a process that has closed its socket may take to exit by itself.
const EXIT_WITHIN: Duration = Duration::from_millis(100);

/// How long a process that ends in order may take for its exit task and its exit.
const RETIRE_WITHIN: Duration = Duration::from_secs(10);

/// How often a worker that is starting while the pool closes looks whether it is still needed.
const LOOK_AFTER: Duration = Duration::from_millis(20);

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

struct Supervisor {
    shared: Arc<Shared>,
    seat: Arc<Seat>,
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
struct Process {
    child: KillOnDrop,
    socket: Arc<Socket>,
    inbox: Inbox,
}

/// Why a process is ended, or has ended.
enum Cause {
    /// By itself, in the middle of a task or of nothing.
    Died,
    /// Its task is not wanted any more.
    Cancelled,
    TimedOut,
    /// In order.
    Retired(End),
}

impl Supervisor {
    async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let unneeded = self.shared.state().needs_no_start();
            let started = if unneeded { Err(SpawnError::Cancelled) } else { self.start().await };
            let failed;
            let next = match started {
                Ok(process) => {
                    let end = self.serve(process).await;
                    failed = matches!(end, End::Fruitless { .. });
                    self.shared.ended(&self.seat, end)
                }
                Err(cause) => {
                    failed = true;
                    self.shared.start_failed(&self.seat, Arc::new(cause))
                }
            };
            if next == Next::Leave {
                self.left = true;
                return;
            }
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
                () = tokio::time::sleep(LOOK_AFTER), if closing => {}
            }
        }
    }

    /// Starts a process and makes it ready, unless it is of no use any more. One that does not get ready is killed, and
    /// has ended by then.
    async fn start(&self) -> Result<Process, SpawnError> {
        let settings = &self.shared.settings;
        let name = format!("{}-{}", settings.name, self.seat.index);
        // This takes a millisecond or so, and is not given up half-way: then nobody would know when the process has ended.
        let worker = start::launch(&settings.plan, &name, None).await?;
        let kept = worker.child.kept().clone();
        let ready = tokio::select! {
            biased;
            () = self.unneeded() => Err(SpawnError::Cancelled),
            ready = self.make_ready(worker) => ready,
        };
        if ready.is_err() {
            // It was dropped, and so killed.
            let _ = tokio::time::timeout(KILL_WITHIN, kept.exited()).await;
        }
        ready
    }

    /// Shakes hands with a new process and runs the pool's start task in it.
    async fn make_ready(&self, mut worker: Worker) -> Result<Process, SpawnError> {
        worker.shake_hands().await?;
        let Worker { child, socket, mut inbox, outbox, .. } = worker;
        let socket = Arc::new(socket);
        let id = {
            let mut desk = self.seat.desk();
            desk.clear();
            desk.pid = Some(child.kept().pid());
            desk.socket = Some(Arc::clone(&socket));
            desk.outbox = outbox;
            desk.take_id()
        };
        if let Some(task) = &self.shared.settings.on_start {
            self.perform(task, id, &socket, &mut inbox, child.kept())
                .await
                .map_err(|error| SpawnError::StartTask(Box::new(error)))?;
        }
        Ok(Process { child, socket, inbox })
    }

    /// Runs one of the pool's own tasks in the process and waits for its answer.
    async fn perform(
        &self,
        task: &Parcel,
        id: u64,
        socket: &Socket,
        inbox: &mut Inbox,
        kept: &Kept,
    ) -> Result<(), TaskError> {
        let fds: io::Result<Vec<_>> = task.fds.iter().map(socket::duplicate).collect();
        let fds = fds.map_err(|error| TaskError::Encode(error.into()))?;
        let run = Frame { kind: Kind::Run as u8, id, body: task.body.clone(), fds };
        self.seat.desk().outbox.push(run);
        let write = socket.when(Ready::Write, || self.seat.desk().outbox.flush(socket));
        let answer = async {
            // If it can't be written, the process is ending, which the read sees.
            let _ = write.await;
            inbox.frame(socket).await
        };
        let mut answer = pin!(answer);
        let frame = tokio::select! {
            biased;
            frame = &mut answer => frame,
            exit = kept.exited() => return Err(died(kept, &exit, task.name)),
        };
        match frame.and_then(|frame| frame.map(FromWorker::parse).transpose()) {
            Ok(Some(FromWorker::Done(_))) => Ok(()),
            Ok(Some(FromWorker::Failed(_, failure))) => Err(failure.into()),
            Ok(_) | Err(_) => {
                let _ = kept.signal_group(libc::SIGKILL);
                Err(died(kept, &kept.exited().await, task.name))
            }
        }
    }

    /// Serves until the process has ended.
    async fn serve(&self, mut process: Process) -> End {
        self.seat.desk().apply(Event::Ready);
        self.shared.started();
        let turn = self.shared.next_task(&self.seat);
        let cause = self.work(&mut process, turn).await;
        self.end(process, cause).await
    }

    /// Reads one answer after the other, until there is a reason to end the process.
    async fn work(&self, process: &mut Process, mut turn: Turn) -> Cause {
        let kept = process.child.kept().clone();
        let socket = Arc::clone(&process.socket);
        let mut exited = pin!(kept.exited());
        // `None`: it stays, however long it is idle.
        let mut idle_since = None;
        loop {
            match turn {
                Turn::Busy => {}
                Turn::Idle => idle_since = Some(Instant::now()),
                Turn::Retire => return Cause::Retired(End::Other),
                Turn::End => return Cause::Cancelled,
            }
            turn = loop {
                let (state, unsent, deadline) = {
                    let desk = self.seat.desk();
                    let deadline = match &desk.running {
                        Some(running) => running.job.timeout.and_then(|timeout| running.since.checked_add(timeout)),
                        None => idle_since
                            .zip(self.shared.settings.idle_timeout)
                            .and_then(|(since, most)| since.checked_add(most)),
                    };
                    (desk.state, !desk.outbox.is_empty(), deadline)
                };
                if state == WorkerState::Draining {
                    return Cause::Retired(End::Other);
                }
                tokio::select! {
                    biased;
                    frame = process.inbox.frame(&socket) => match self.answered(frame, &kept) {
                        Some(turn) => break turn,
                        None => return Cause::Died,
                    },
                    _ = &mut exited => return Cause::Died,
                    () = self.seat.bell.notified() => {
                        let wanted = self.seat.desk().running.as_ref().is_none_or(|running| running.job.is_wanted());
                        if !wanted || self.shared.state().phase == Phase::Cancelled {
                            return Cause::Cancelled;
                        }
                    }
                    written = socket.when(Ready::Write, || self.seat.desk().outbox.flush(&*socket)), if unsent => {
                        if written.is_err() {
                            // It is ending. What is left of the task can't be sent, and the end will be seen.
                            self.seat.desk().outbox = Outbox::default();
                        }
                    }
                    () = sleep_until(deadline) => match self.deadline_passed() {
                        Some(cause) => return cause,
                        None => idle_since = None,
                    },
                }
            };
        }
    }

    /// The running task's time is up, or the worker's idle time; unless the one became the other in this moment.
    fn deadline_passed(&self) -> Option<Cause> {
        if let Some(running) = &self.seat.desk().running {
            let over = running.job.timeout.is_some_and(|timeout| running.since.elapsed() >= timeout);
            return over.then_some(Cause::TimedOut);
        }
        self.shared.withdraw_idle(&self.seat).then_some(Cause::Retired(End::TooLongIdle))
    }

    /// Takes a frame as the answer to the running task, and gives the worker its next one. `None`: it is no answer, so
    /// the process has ended or can't be trusted any more.
    fn answered(&self, frame: Result<Option<Frame>, RecvError>, kept: &Kept) -> Option<Turn> {
        let (job, outcome) = self.take_answer(frame)?;
        let settings = &self.shared.settings;
        let done = self.seat.desk().done;
        let worn = settings.max_tasks.is_some_and(|most| done >= most)
            || settings.max_memory.is_some_and(|most| resident_memory(kept.pid()).is_some_and(|now| now > most));
        // The worker gets its next task before this one's caller gets the result.
        let turn = self.shared.answered(&self.seat, outcome.is_ok(), worn);
        job.resolve(outcome);
        Some(turn)
    }

    fn take_answer(&self, frame: Result<Option<Frame>, RecvError>) -> Option<(Arc<Job>, Outcome)> {
        let (id, outcome) = match FromWorker::parse(frame.ok()??).ok()? {
            FromWorker::Done(frame) => (frame.id, Ok(frame)),
            FromWorker::Failed(id, failure) => (id, Err(failure.into())),
            FromWorker::Ready(_) | FromWorker::Refused(_) => return None,
        };
        let mut desk = self.seat.desk();
        let running = desk.running.take_if(|running| running.id == id)?;
        desk.apply(Event::Replied);
        desk.done += 1;
        Some((running.job, outcome))
    }

    /// Ends the process, if it has not ended, and resolves the task that it had.
    async fn end(&self, mut process: Process, cause: Cause) -> End {
        // First of all: what is given to a worker after its desk was looked at below would be lost.
        self.shared.withdraw(&self.seat);
        let kept = process.child.kept().clone();
        let exit = match cause {
            Cause::Retired(_) => self.retire(&mut process).await,
            Cause::Cancelled | Cause::TimedOut => self.stop(&kept).await,
            // It may have closed its socket on its way out; its own status says more than our SIGKILL.
            Cause::Died => match tokio::time::timeout(EXIT_WITHIN, kept.exited()).await {
                Ok(exit) => Some(exit),
                Err(_) => self.kill(&kept).await,
            },
        };
        let mut ending = match cause {
            Cause::Cancelled => Ending::Cancelled,
            Cause::TimedOut => Ending::TimedOut,
            Cause::Died | Cause::Retired(_) => Ending::Died,
        };
        let mut job = self.seat.desk().running.as_ref().map(|running| Arc::clone(&running.job));
        if ending == Ending::Died && job.is_some() {
            // What it had said before its end counts.
            let last = process.inbox.try_frame(&process.socket);
            if let Some((answered, outcome)) = self.take_answer(last) {
                ending = if outcome.is_ok() { Ending::Done } else { Ending::Failed };
                answered.resolve(outcome);
            }
        }
        let fruitless = {
            let mut desk = self.seat.desk();
            let fruitless = desk.done == 0 && job.is_none() && matches!(cause, Cause::Died);
            desk.apply(Event::Ended);
            desk.clear();
            fruitless
        };
        if let Some(job) = job.take() {
            let error = match ending {
                Ending::TimedOut => TaskError::TimedOut,
                Ending::Died => died(&kept, &exit.unwrap_or(Exit::UNKNOWN), job.name),
                Ending::Cancelled | Ending::Done | Ending::Failed => TaskError::Cancelled,
            };
            self.shared.ended_with(&job, ending, error);
        }
        match cause {
            Cause::Retired(end) => end,
            _ if fruitless => End::Fruitless { status: exit.and_then(|exit| exit.status), pid: kept.pid() },
            _ => End::Other,
        }
    }

    /// SIGTERM first, where the pool grants a grace; then SIGKILL.
    async fn stop(&self, kept: &Kept) -> Option<Exit> {
        let grace = self.shared.settings.cancel_grace;
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
        let id = {
            let mut desk = self.seat.desk();
            desk.apply(Event::Retire);
            desk.take_id()
        };
        let socket = Arc::clone(&process.socket);
        let orderly = async {
            if let Some(task) = &self.shared.settings.on_exit {
                // Its outcome has nobody to go to.
                let _ = self.perform(task, id, &socket, &mut process.inbox, &kept).await;
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

fn sleep_until(deadline: Option<Instant>) -> impl Future<Output = ()> {
    async move {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
            None => std::future::pending().await,
        }
    }
}

/// Between half of a pause and all of it, so that workers that failed together don't start again together.
fn jittered(pause: Duration) -> Duration {
    use std::hash::{BuildHasher as _, RandomState};
    let random = RandomState::new().hash_one(0);
    pause / 2 + (pause / 2).mul_f64((random % 1024) as f64 / 1024.0)
}

/// How many bytes of a process are in memory; `statm` in proc(5).
fn resident_memory(pid: u32) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
