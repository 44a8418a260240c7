//! One worker's place in the pool: what the dispatcher, the callers and the supervisor share of it.
//!
//! A caller that has a task for an idle worker writes it at once, in its own task; only what does not fit into the socket, what
//! needs a clock, and what comes while many workers are busy, wakes the supervisor. Whoever wants a task's worker ended leaves a
//! word here; the supervisor, which alone knows whether that task is still the one that runs, acts on it.

mod back;
mod clock;
mod pace;
mod together;
mod writing;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::{Handle, Id};
use tokio::sync::Notify;

use self::clock::Clock;
pub(super) use self::pace::MOST_SENT;
use self::together::Together;
pub(super) use self::writing::is_end;
use super::drive::{Drive, has_one_thread};
use super::glance::Expected;
use super::job::{Job, Unsent};
use super::life::{Event, WorkerState};
use crate::channel::outbox::Outbox;
use crate::channel::socket::Socket;
use crate::process::kept::Kept;
use crate::sys::ledger::Ledger;
use crate::task::unheeded;

/// After so many looks in a row more at which a worker has not begun its task, that is to go elsewhere: 40 to 60 ms, where a worker
/// that has a CPU takes some 10 µs.
const OVERDUE: u32 = 2;

/// And at so many it is taken for stuck: a good two seconds.
const STUCK: u32 = 100;

/// At each so many looks a worker that goes on with the same task is looked at more closely.
const LONG: u32 = 50;

#[derive(Debug)]
pub(super) struct Seat {
    /// The worker's number in the pool: the lowest that no other had when it was first wanted.
    pub(super) index: usize,
    /// Where its supervisor runs.
    pub(super) runtime: Option<Handle>,
    /// Whether that polls all that runs in it on one thread.
    pub(super) has_one_thread: bool,
    /// Its supervisor.
    pub(super) drive: Drive,
    desk: Mutex<Desk>,
    /// Rings when the supervisor should look at the desk.
    pub(super) bell: Notify,
}

/// What lies on the worker's desk.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) state: WorkerState,
    /// Its process, if it has one.
    child: Option<Kept>,
    /// Whether it holds a permit of the pool: it does from its first task on until it has none.
    pub(super) holds_permit: bool,
    /// Whether who gave it its last task first is probably in the one-threaded runtime of its supervisor.
    nearby: bool,
    socket: Option<Arc<Socket>>,
    ledger: Option<Arc<Ledger>>,
    outbox: Box<Outbox>,
    /// What takes its place while it is lent, and is empty otherwise.
    interim: Option<Box<Outbox>>,
    pen: Pen,
    /// Whether too many fds were under way when the supervisor wrote last.
    congested: bool,
    /// Tasks that were sent and not answered, oldest first. The first one runs, or is about to.
    sent: VecDeque<Sent>,
    /// Tasks that are about to be sent, together; empty between two times.
    pub(super) batch: Vec<Arc<Job>>,
    /// The task that was taken back because the worker did not begin it, if it has not been heard of since; and how often the
    /// task had been suspect by then.
    recalled: Option<(Weak<Job>, u32)>,
    /// The time of the first of them.
    pub(super) clock: Clock,
    /// How long its last tasks took, each; `None` before the first answer.
    pace: Option<Duration>,
    /// How long the last ones took that were answered together, each, as it looked from here.
    last: Option<Duration>,
    /// Whether those who give it tiny tasks share its processor.
    together: Together,
    /// Tasks that this process has answered.
    pub(super) done: u64,
    /// After how many it is replaced.
    pub(super) max_tasks: Option<u64>,
    last_id: u64,
    seen: Seen,
}

/// Who writes what is in the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pen {
    /// The supervisor, once the socket has room for it.
    Supervisor,
    /// The supervisor, now: it was left to it, and it has not tried.
    Left,
    /// Somebody who is at it, and will come back for what has been put there since.
    Lent,
}

/// What was seen at the last look, and at how many looks before it.
#[derive(Debug, Default)]
struct Seen {
    /// The first task's number, and whether it had been begun.
    first: Option<(u64, bool)>,
    /// How many bytes had been sent to the worker.
    sent: u64,
    looks: u32,
}

/// A task that was sent, under its number.
#[derive(Debug)]
struct Sent {
    id: u64,
    job: Arc<Job>,
}

impl Seat {
    pub(super) fn new(index: usize, runtime: Option<Handle>) -> Arc<Self> {
        let has_one_thread = runtime.as_ref().is_some_and(has_one_thread);
        let (drive, desk, bell) = (Drive::default(), Mutex::new(Desk::empty()), Notify::new());
        Arc::new(Self { index, runtime, has_one_thread, drive, desk, bell })
    }

    /// Whether its supervisor runs in that runtime.
    pub(super) fn is_in(&self, runtime: Id) -> bool {
        self.runtime.as_ref().is_some_and(|own| own.id() == runtime)
    }

    pub(super) fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a task to this idle worker, which takes over the task's permit, unless it can't be sent: then it is still idle.
    ///
    /// It is in the outbox then, and is to be [written](Self::write) once the pool's lock is gone, or [left](Self::leave).
    ///
    /// `nearby`: who waits for it is probably in the runtime of this worker's supervisor.
    ///
    /// Gives when its answer is to be expected.
    pub(super) fn give(self: &Arc<Self>, job: Arc<Job>, nearby: bool, now: Instant) -> Result<Expected, Unsent> {
        let has_timeout = job.timeout().is_some();
        let mut desk = self.desk();
        desk.send(job, self)?;
        desk.apply(Event::Sent);
        desk.holds_permit = true;
        desk.nearby = nearby && self.has_one_thread;
        desk.clock.since = now;
        let is_apart = desk.ledger.as_ref().is_some_and(|ledger| ledger.note_sender());
        let is_soon = nearby && desk.is_prompt();
        if is_soon
            && !self.has_one_thread
            && desk.together.is_to_leave(is_apart)
            && let Some(ledger) = &desk.ledger
        {
            ledger.ask_to_leave();
        }
        drop(desk);
        if has_timeout {
            self.bell.notify_one();
        }
        Ok(match is_soon {
            true if is_apart => Expected::Soon,
            true => Expected::SoonHere,
            false => Expected::Sometime,
        })
    }

    /// Something has come from the worker, and is about to be read. Who waits for its only task is woken now, where he may be the
    /// first who can read it, and where he gave it on another processor: to wake one that sleeps takes longer than that.
    pub(super) fn herald(&self) {
        let desk = self.desk();
        let is_apart = || desk.ledger.as_ref().is_some_and(|ledger| ledger.is_sender_apart());
        let is_due = desk.sent.len() == 1 && (desk.nearby || is_apart());
        let waker = desk.first().filter(|_| is_due).and_then(|job| job.take_waker());
        drop(desk);
        if let Some(waker) = waker {
            unheeded(|| waker.wake());
        }
    }
}

impl Desk {
    fn empty() -> Self {
        Self {
            state: WorkerState::Starting,
            child: None,
            holds_permit: false,
            nearby: false,
            socket: None,
            ledger: None,
            outbox: Box::default(),
            interim: None,
            pen: Pen::Supervisor,
            congested: false,
            sent: VecDeque::new(),
            batch: Vec::new(),
            recalled: None,
            clock: Clock::new(),
            pace: None,
            last: None,
            together: Together::new(),
            done: 0,
            max_tasks: None,
            last_id: 0,
            seen: Seen::default(),
        }
    }

    /// Sets the desk up for a new process.
    pub(super) fn set_up(&mut self, child: Kept, socket: Arc<Socket>, ledger: Arc<Ledger>, outbox: Outbox) {
        let (child, socket, ledger) = (Some(child), Some(socket), Some(ledger));
        *self = Self { child, socket, ledger, outbox: Box::new(outbox), ..Self::empty() };
    }

    /// Its process, if it has one that has shaken hands.
    pub(super) fn child(&self) -> Option<&Kept> {
        self.child.as_ref()
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Kept::pid)
    }

    /// The process that runs this task: one that has begun it.
    pub(super) fn runs(&self, job: &Job) -> Option<u32> {
        let begun = self.ledger.as_ref()?.begun();
        let mut running = self.sent.iter().take_while(|sent| sent.id <= begun);
        running.any(|sent| std::ptr::eq(Arc::as_ptr(&sent.job), job)).then(|| self.pid()).flatten()
    }

    /// Clears the desk after a process; no task may lie on it. What could not be written may be others' bytes, whose end is
    /// their code: it is to be dropped without a lock.
    ///
    /// Its worker is dead from then on, until it is known that [another process](Self::restart) is to be started.
    pub(super) fn clear(&mut self, spent: &mut Vec<Bytes>) {
        self.outbox.abandon(spent);
        *self = Self { state: WorkerState::Dead, ..Self::empty() };
    }

    /// Another process is to be started in the place of one that has ended.
    pub(super) fn restart(&mut self) {
        *self = Self::empty();
    }

    /// Moves the worker's life on.
    pub(super) fn apply(&mut self, event: Event) {
        let next = self.state.on(event);
        debug_assert!(next.is_some(), "{:?} can't happen to a worker that is {:?}", event, self.state);
        if let Some(next) = next {
            self.state = next;
        }
    }

    /// The number of the next task for this process.
    pub(super) fn take_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Puts a task into the outbox.
    pub(super) fn send(&mut self, job: Arc<Job>, seat: &Arc<Seat>) -> Result<(), Unsent> {
        let id = self.last_id + 1;
        let job = job.send(seat, &mut self.outbox, id)?;
        self.last_id = id;
        self.sent.push_back(Sent { id, job });
        Ok(())
    }

    /// Its ledger, if it has a process.
    pub(super) fn ledger(&self) -> Option<&Arc<Ledger>> {
        self.ledger.as_ref()
    }

    /// How many tasks it has, the running one included.
    pub(super) fn load(&self) -> usize {
        self.sent.len()
    }

    pub(super) fn jobs(&self) -> impl Iterator<Item = &Arc<Job>> {
        self.sent.iter().map(|sent| &sent.job)
    }

    /// The task that runs or is about to.
    pub(super) fn first(&self) -> Option<&Arc<Job>> {
        self.sent.front().map(|sent| &sent.job)
    }

    /// Whether it has something to do that it may not come to.
    pub(super) fn is_to_be_watched(&self) -> bool {
        !self.sent.is_empty() || self.state == WorkerState::Stalled
    }

    /// Whether it has tasks besides the one that it has come to.
    pub(super) fn has_tasks_ahead(&self) -> bool {
        self.sent.len() > 1
    }

    /// Whether it has answered tasks for so long without a word, because it has more of them.
    pub(super) fn has_been_silent(&self, time: Duration) -> bool {
        self.has_tasks_ahead()
            && self.ledger.as_ref().is_some_and(|ledger| ledger.has_answers())
            && self.clock.since.elapsed() >= time
    }

    /// Whether it has not begun its first task.
    pub(super) fn is_before_first(&self) -> bool {
        let begun = self.ledger.as_ref().map_or(0, |ledger| ledger.begun());
        self.sent.front().is_some_and(|first| first.id > begun)
    }

    /// Looks whether it does something. `true`: its supervisor should, too.
    pub(super) fn look(&mut self) -> bool {
        let first = self.sent.front().map(|first| (first.id, !self.is_before_first()));
        let moved = first != self.seen.first && self.state != WorkerState::Stalled;
        // A large task is on its way for as long as it takes, and so is one with fds.
        let travels = self.pen == Pen::Lent || self.outbox.sent() != self.seen.sent || self.is_congested();
        if moved || travels || !self.is_to_be_watched() {
            self.seen = Seen { first, sent: self.outbox.sent(), looks: 0 };
            return false;
        }
        self.seen.looks += 1;
        self.is_overdue() || self.is_stuck() || self.is_long() && self.seen.looks.is_multiple_of(LONG)
    }

    /// Whether it has not begun its first task for some time.
    pub(super) fn is_overdue(&self) -> bool {
        self.seen.looks >= OVERDUE && self.waits_for_begin()
    }

    /// Whether it has done nothing for so long that it will not do anything any more.
    pub(super) fn is_stuck(&self) -> bool {
        self.seen.looks >= STUCK && (self.state == WorkerState::Stalled || self.waits_for_begin())
    }

    /// Whether it has run the same task for some time.
    pub(super) fn is_long(&self) -> bool {
        self.seen.looks >= LONG && self.sent.front().is_some_and(|first| self.seen.first == Some((first.id, true)))
    }

    /// Whether its first task is the one that had not been begun at the last look.
    fn waits_for_begin(&self) -> bool {
        self.sent.front().is_some_and(|first| self.seen.first == Some((first.id, false)))
    }

    /// Asks the first task to stop by itself, and gives its number.
    pub(super) fn ask_to_stop(&self) -> Option<u64> {
        let id = self.sent.front()?.id;
        self.ledger.as_ref()?.ask_to_stop(id);
        Some(id)
    }

    /// Its worker says that it has begun the task with this number, and with it what came along.
    pub(super) fn note_begun(&self, id: u64) {
        if self.ledger.as_ref().is_some_and(|ledger| id <= ledger.begun())
            && let Ok(place) = self.sent.binary_search_by_key(&id, |sent| sent.id)
        {
            self.sent[place].job.let_fds_go();
        }
    }

    /// Takes the task with this number off the desk, because it is answered.
    pub(super) fn answer(&mut self, id: u64) -> Option<Arc<Job>> {
        // Answers nearly always come in the order of the tasks.
        let place = match self.sent.front() {
            Some(first) if first.id == id => 0,
            _ => self.sent.binary_search_by_key(&id, |sent| sent.id).ok()?,
        };
        self.done += 1;
        self.sent.remove(place).map(|sent| sent.job)
    }
}

#[cfg(test)]
mod tests;
