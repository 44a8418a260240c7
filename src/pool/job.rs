//! One submitted task: its bytes on the way out, its outcome on the way back, and who waits for that.
//!
//! A job is shared by the future that awaits it, the queue and the worker's supervisor; its stage says who may do what.
//! It resolves exactly once: only the step out of `Queued`, `Assigned` or `Sent` that comes first counts.

mod awaited;
mod chunked;
mod ends;
mod outcome;

use std::borrow::Cow;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;

use super::parts::Parts;
use super::seat::Seat;
use super::times::Stamp;
use super::trace::Span;
use crate::channel::outbox::Outbox;
use crate::error::TaskError;
use crate::sys::image::Place;
use crate::task::{Answer, Parcel};
use crate::wire::extra::Extra;
use crate::wire::frame::Frame;
use crate::wire::held::Held;
use crate::wire::message::{Kind, Run};
use crate::wire::passenger::{Moves, Passenger};

/// The largest body, in bytes, that is sent to a worker before it has finished what it has.
const LARGEST_AHEAD: usize = 16 * 1024;

/// How many workers may end before one begins a task.
const MOST_BOUNCES: u32 = 3;

/// What a caller asks for one task.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    pub(super) name: Option<Cow<'static, str>>,
    pub(super) timeout: Option<Duration>,
    pub(super) retries: u32,
}

/// What somebody waits for, and who.
#[derive(Debug)]
pub(super) enum Awaits {
    /// First for its slot.
    Slot,
    /// For its outcome, from the beginning, if it is known who.
    Outcome(Option<Waker>),
}

/// How a task ended: its encoded result, or why there is none.
pub(super) type Outcome = Result<Answer, Box<TaskError>>;

/// Why a task was not sent to a worker.
#[derive(Debug)]
pub(super) enum Unsent {
    /// Nobody wants it any more.
    Unwanted,
    /// It can't be sent, and is to be resolved with this.
    Failed(Arc<Job>, TaskError),
}

#[derive(Debug)]
pub(super) struct Job {
    pub(super) name: Cow<'static, str>,
    /// Where its code is.
    place: Place,
    /// How long it may run, in nanoseconds: 584 years are as good as no bound.
    timeout: Option<NonZero<u64>>,
    /// Whether somebody waits for its slot.
    pub(super) wants_slot: bool,
    /// Whether it has ever left the queue for a worker. Read and written under the cell's lock, in which it would take a word.
    had_slot: AtomicBool,
    /// Whether it has ended. Written under that lock, too, and read by who looks through a queue of them.
    is_over: AtomicBool,
    /// Whether it may be sent to a worker that is still busy with another: one that is small, and is not to have a slot.
    pub(super) may_go_ahead: bool,
    /// Whether it is a chunk, some calls of which may have results before it has an outcome.
    pub(super) is_chunk: bool,
    pub(super) submitted: Stamp,
    /// Its place in the order in which tasks are submitted.
    number: AtomicU64,
    cell: Mutex<Cell>,
}

#[derive(Debug)]
struct Cell {
    stage: Stage,
    /// Its arguments; its result, once it has one.
    body: Held,
    /// Who waits for its outcome; or, if somebody waits for its slot, first for that.
    waker: Option<Waker>,
    rare: Option<Box<Rare>>,
    span: Span,
}

/// What few jobs have: a million of them may wait, and each byte counts.
#[derive(Debug, Default)]
struct Rare {
    /// What follows the body.
    more: Extra<Bytes>,
    fds: Extra<OwnedFd>,
    /// Of the ends in it, which have gone nowhere until a worker begins it.
    moves: Moves,
    /// How often it may be run again after its worker's death.
    retries: u32,
    /// How many workers died while they ran it.
    deaths: u32,
    /// How often a worker ended before it had begun it.
    bounces: u32,
    /// How far it has come, if it is a chunk.
    parts: Option<Parts>,
    /// The inputs of its calls from there on, once it has gone on; then the body is empty, and `more` what is to be sent of these.
    inputs: Option<Bytes>,
}

#[derive(Debug)]
enum Stage {
    /// Waits for a slot.
    Queued,
    /// Has a slot, and waits for its worker to be ready.
    Assigned,
    /// A worker has it; it may be running.
    Sent(Arc<Seat>),
    /// It has a result, and this is what came with it.
    Done {
        fds: Extra<Passenger>,
        fds_lost: bool,
    },
    Failed(Box<TaskError>),
    /// The outcome was taken, or nobody wants it.
    Gone,
}

impl Job {
    pub(super) fn new(pool: &str, parcel: Parcel, wishes: Wishes, awaits: Awaits, parts: Option<Parts>) -> Arc<Self> {
        let (wants_slot, waker) = match awaits {
            Awaits::Slot => (true, None),
            Awaits::Outcome(waker) => (false, waker),
        };
        let Wishes { name, timeout, retries } = wishes;
        let Parcel { name: function, place, arguments, fds } = parcel;
        let moves = fds.moves();
        // How far a dead one's conversation had come nobody knows, and what it held is not given back while we keep its end.
        let retries = if moves.any() { 0 } else { retries };
        let name = name.unwrap_or(Cow::Borrowed(function));
        let span = Span::begin(pool, &name);
        let is_chunk = parts.is_some();
        let is_one = arguments.is_written();
        let plain = is_one && fds.is_empty() && retries == 0 && !is_chunk;
        let mut job = Self {
            name,
            place,
            submitted: Stamp::default(),
            number: AtomicU64::new(0),
            // Less than a nanosecond is over when it is first looked at, too.
            timeout: timeout
                .and_then(|timeout| NonZero::new(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX).max(1))),
            wants_slot,
            had_slot: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            may_go_ahead: !wants_slot && is_one && arguments.len() <= LARGEST_AHEAD,
            is_chunk,
            cell: Mutex::new(Cell { stage: Stage::Queued, body: Held::default(), waker, rare: None, span }),
        };
        let cell = job.cell.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Where it stays: to move what was just written takes long.
        let more = arguments.finish(&mut cell.body);
        if !plain {
            cell.rare = Some(Box::new(Rare { more, fds: fds.into_fds(), moves, retries, parts, ..Rare::default() }));
        }
        Arc::new(job)
    }

    /// How long it may run.
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.timeout.map(|nanos| Duration::from_nanos(nanos.get()))
    }

    /// It is submitted, as the `number`th.
    pub(super) fn set_number(&self, number: u64) {
        self.number.store(number, Ordering::Relaxed);
    }

    pub(super) fn number(&self) -> u64 {
        self.number.load(Ordering::Relaxed)
    }

    /// Gives it a slot. `false`: nobody wants it any more. Who waits for that is to be woken later, without the pool's
    /// lock; who waits for the outcome need not know.
    pub(super) fn assign(&self, wake: &mut Vec<Waker>) -> bool {
        let mut cell = self.cell();
        match cell.stage {
            Stage::Queued => {
                cell.stage = Stage::Assigned;
                self.had_slot.store(true, Ordering::Relaxed);
                if self.wants_slot {
                    wake.extend(cell.waker.take());
                }
                true
            }
            Stage::Assigned => true,
            Stage::Sent(_) | Stage::Done { .. } | Stage::Failed(_) | Stage::Gone => false,
        }
    }

    /// Hands it to a worker: puts it into its outbox, under this number.
    ///
    /// It keeps its body until it is resolved, as the worker may die before it has begun it, and its fds
    /// [until then](Self::let_fds_go).
    pub(super) fn send(self: Arc<Self>, seat: &Arc<Seat>, outbox: &mut Outbox, id: u64) -> Result<Arc<Self>, Unsent> {
        let mut cell = self.cell();
        if !matches!(cell.stage, Stage::Queued | Stage::Assigned) {
            return Err(Unsent::Unwanted);
        }
        let rare = cell.rare.as_deref();
        let deaths = rare.map_or(0, |rare| rare.deaths);
        let more = rare.map_or(&[][..], |rare| &rare.more);
        let fds = match rare.map_or(Ok(Extra::default()), |rare| rare.fds.duplicate()) {
            Ok(fds) => fds,
            Err(error) => {
                drop(cell);
                return Err(Unsent::Failed(self, TaskError::Encode(error.into())));
            }
        };
        if deaths > 0 {
            let attempt = u64::from(deaths) + 1;
            outbox.push(Frame { kind: Kind::Attempt as u8, id: attempt, ..Frame::default() });
        }
        outbox.push_shared(Kind::Run as u8, id, (&Run::head(self.place), &cell.body, more), fds);
        cell.stage = Stage::Sent(Arc::clone(seat));
        self.had_slot.store(true, Ordering::Relaxed);
        drop(cell);
        Ok(self)
    }

    /// It was sent and not begun: puts it back. `false`: nobody wants it any more.
    pub(super) fn take_back(&self) -> bool {
        let mut cell = self.cell();
        let wanted = matches!(cell.stage, Stage::Sent(_));
        if wanted {
            cell.stage = Stage::Queued;
        } else {
            cell.leave_ends();
        }
        wanted
    }

    /// As [`take_back`](Self::take_back), after its worker's death. One that no worker ever gets to begin, because it is
    /// too large for their memory, say, is not sent for ever.
    pub(super) fn bounce(&self) -> bool {
        let mut cell = self.cell();
        let again = matches!(cell.stage, Stage::Sent(_)) && cell.bounces() < MOST_BOUNCES;
        if again {
            cell.rare.get_or_insert_default().bounces += 1;
            cell.stage = Stage::Queued;
        } else {
            cell.leave_ends();
        }
        again
    }

    /// A worker that it was taken back from has ended without a word: it may be the reason, wherever it is now.
    pub(super) fn suspect(&self) {
        let mut cell = self.cell();
        if cell.is_pending() {
            cell.rare.get_or_insert_default().bounces += 1;
        }
    }

    /// How many workers have ended before they began it.
    pub(super) fn bounces(&self) -> u32 {
        self.cell().bounces()
    }

    /// Whether these are so many that it stays with the next one until that begins it or ends.
    pub(super) fn stays(&self) -> bool {
        self.bounces() >= MOST_BOUNCES
    }

    /// Its worker died while it had it: whether it is to run again.
    pub(super) fn take_retry(&self) -> bool {
        let mut cell = self.cell();
        let sent = matches!(cell.stage, Stage::Sent(_));
        let Some(rare) = cell.rare.as_mut().filter(|rare| sent && rare.retries > 0) else { return false };
        rare.retries -= 1;
        rare.deaths += 1;
        cell.stage = Stage::Queued;
        true
    }

    /// It was begun. What its fds are the other end of sees from now on what the worker does with its own, unless they may
    /// be needed again: for another attempt, or for a chunk's other calls.
    pub(super) fn let_fds_go(&self) {
        let mut cell = self.cell();
        let last = |rare: &&mut Box<Rare>| rare.retries == 0 && rare.parts.as_ref().is_none_or(Parts::is_one);
        if let Some(rare) = cell.rare.as_mut().filter(last) {
            let fds = std::mem::take(&mut rare.fds);
            rare.moves = Moves::default();
            drop(cell);
            drop(fds);
        }
    }

    /// Whether a worker has it.
    pub(super) fn is_sent(&self) -> bool {
        matches!(self.cell().stage, Stage::Sent(_))
    }

    /// Whether somebody may still want it done.
    pub(super) fn is_wanted(&self) -> bool {
        !self.is_over.load(Ordering::Acquire)
    }

    /// The process that runs it.
    pub(super) fn worker_id(&self) -> Option<u32> {
        // Not under the cell's lock: a seat locks its desk first and a job's cell second.
        let seat = match &self.cell().stage {
            Stage::Sent(seat) => Arc::clone(seat),
            _ => return None,
        };
        let desk = seat.desk();
        desk.runs(self)
    }

    /// A worker has run it: how long it had waited, and how long it ran.
    pub(super) fn note_run(&self, worker: u32, waited: Duration, ran: Duration) {
        // Without the feature there is nobody to tell, and no reason to take the lock.
        if cfg!(feature = "tracing") {
            self.cell().span.note_run(worker, waited, ran);
        }
    }

    fn cell(&self) -> MutexGuard<'_, Cell> {
        self.cell.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cell {
    /// Whether it has no outcome yet.
    fn is_pending(&self) -> bool {
        matches!(self.stage, Stage::Queued | Stage::Assigned | Stage::Sent(_))
    }

    fn bounces(&self) -> u32 {
        self.rare.as_ref().map_or(0, |rare| rare.bounces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{call, pack};

    /// A million of them may wait, and 100,000 are more than a cache holds.
    #[test]
    #[cfg(all(target_pointer_width = "64", not(feature = "tracing")))]
    fn a_job_takes_160_bytes() {
        assert!(size_of::<Job>() <= 160, "{}", size_of::<Job>());
    }

    #[test]
    fn a_timeout_is_kept_to_the_nanosecond_however_short_or_long() {
        let kept = |timeout| {
            let wishes = Wishes { timeout, ..Wishes::default() };
            let parcel = pack(&call(|()| (), ()), usize::MAX).unwrap();
            Job::new("pool", parcel, wishes, Awaits::Outcome(None), None).timeout()
        };
        assert_eq!(kept(None), None);
        for timeout in [Duration::from_nanos(1), Duration::from_millis(20), Duration::from_nanos(u64::MAX)] {
            assert_eq!(kept(Some(timeout)), Some(timeout));
        }
        assert_eq!(kept(Some(Duration::ZERO)), Some(Duration::from_nanos(1)), "it has a timeout");
        assert_eq!(kept(Some(Duration::MAX)), Some(Duration::from_nanos(u64::MAX)));
    }
}
