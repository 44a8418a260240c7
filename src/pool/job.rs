//! One submitted task: its bytes on the way out, its outcome on the way back, and who waits for that.
//!
//! A job is shared by the future that awaits it, the queue and the worker's supervisor; its stage says who may do what.
//! It resolves exactly once: only the step out of `Queued`, `Assigned` or `Sent` that comes first counts.

use std::borrow::Cow;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

use super::seat::Seat;
use super::times::Stamp;
use super::trace::Span;
use crate::channel::outbox::Outbox;
use crate::error::TaskError;
use crate::sys::socket;
use crate::task::Parcel;
use crate::wire::frame::Frame;
use crate::wire::message::Kind;

/// The largest body, in bytes, that is sent to a worker before it has finished what it has.
const LARGEST_AHEAD: usize = 16 * 1024;

/// How many workers may die before one begins a task.
const MOST_BOUNCES: u32 = 3;

/// What a caller asks for one task.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    pub(super) name: Option<Cow<'static, str>>,
    pub(super) timeout: Option<Duration>,
    pub(super) retries: u32,
}

/// How a task ended: the frame with its encoded result, or why there is none.
pub(super) type Outcome = Result<Frame, TaskError>;

#[derive(Debug)]
pub(super) struct Job {
    pub(super) name: Cow<'static, str>,
    pub(super) timeout: Option<Duration>,
    /// Whether somebody waits for its slot: then it is given one, and not sent ahead to a busy worker.
    wants_slot: bool,
    pub(super) submitted: Stamp,
    cell: Mutex<Cell>,
}

#[derive(Debug)]
struct Cell {
    stage: Stage,
    body: Bytes,
    /// What follows the body's beginning.
    more: Vec<Bytes>,
    fds: Vec<OwnedFd>,
    /// How often it may be run again after its worker's death.
    retries: u32,
    /// One more than workers died while they ran it.
    attempt: u32,
    /// How often a worker died before it had begun it.
    bounces: u32,
    waker: Option<Waker>,
    /// Who waits until it has a slot.
    slot_waker: Option<Waker>,
    span: Span,
}

#[derive(Debug)]
enum Stage {
    /// Waits for a slot.
    Queued,
    /// Has a slot, and waits for its worker to be ready.
    Assigned,
    /// A worker has it; it may be running.
    Sent(Arc<Seat>),
    Resolved(Outcome),
    /// The outcome was taken, or nobody wants it.
    Gone,
}

impl Job {
    pub(super) fn new(pool: &str, parcel: Parcel, wishes: Wishes, wants_slot: bool) -> Arc<Self> {
        let Wishes { name, timeout, retries } = wishes;
        let name = name.unwrap_or(Cow::Borrowed(parcel.name));
        let span = Span::begin(pool, &name);
        Arc::new(Self {
            name,
            submitted: Stamp::default(),
            timeout,
            wants_slot,
            cell: Mutex::new(Cell {
                stage: Stage::Queued,
                body: parcel.body,
                more: parcel.more,
                fds: parcel.fds,
                retries,
                attempt: 1,
                bounces: 0,
                waker: None,
                slot_waker: None,
                span,
            }),
        })
    }

    /// Gives it a slot. `false`: nobody wants it any more. Who waits for that is to be woken later, without the pool's
    /// lock; who waits for the outcome need not know.
    pub(super) fn assign(&self, wake: &mut Vec<Waker>) -> bool {
        let mut cell = self.cell();
        match cell.stage {
            Stage::Queued => {
                cell.stage = Stage::Assigned;
                wake.extend(cell.slot_waker.take());
                true
            }
            Stage::Assigned => true,
            Stage::Sent(_) | Stage::Resolved(_) | Stage::Gone => false,
        }
    }

    /// Whether it has left the queue: it has a slot, or an end.
    pub(super) fn poll_assigned(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut cell = self.cell();
        if matches!(cell.stage, Stage::Queued) {
            cell.slot_waker = Some(cx.waker().clone());
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }

    /// Hands it to a worker: puts it into its outbox, under this number. `false`: nobody wants it any more.
    ///
    /// It keeps its body and its fds until it is resolved: the worker may die before it has begun it.
    pub(super) fn send(&self, seat: &Arc<Seat>, outbox: &mut Outbox, id: u64) -> bool {
        let mut cell = self.cell();
        if !matches!(cell.stage, Stage::Queued | Stage::Assigned) {
            return false;
        }
        let fds: io::Result<Vec<_>> = cell.fds.iter().map(socket::duplicate).collect();
        match fds {
            Ok(fds) => {
                cell.stage = Stage::Sent(Arc::clone(seat));
                if cell.attempt > 1 {
                    outbox.push(Frame { kind: Kind::Attempt as u8, id: cell.attempt.into(), ..Frame::default() });
                }
                outbox.push_shared(Kind::Run as u8, id, (&cell.body, &cell.more), fds);
                true
            }
            Err(error) => {
                cell.settle(Stage::Resolved(Err(TaskError::Encode(error.into()))));
                wake(cell);
                false
            }
        }
    }

    /// Whether it may be sent to a worker that is still busy with another.
    pub(super) fn may_go_ahead(&self) -> bool {
        let cell = self.cell();
        !self.wants_slot && cell.more.is_empty() && cell.body.len() <= LARGEST_AHEAD
    }

    /// It was sent and not begun: puts it back. `false`: nobody wants it any more.
    pub(super) fn take_back(&self) -> bool {
        let mut cell = self.cell();
        let wanted = matches!(cell.stage, Stage::Sent(_));
        if wanted {
            cell.stage = Stage::Queued;
        }
        wanted
    }

    /// As [`take_back`](Self::take_back), after its worker's death. One that no worker ever gets to begin, because it is
    /// too large for their memory, say, is not sent for ever.
    pub(super) fn bounce(&self) -> bool {
        let mut cell = self.cell();
        let again = matches!(cell.stage, Stage::Sent(_)) && cell.bounces < MOST_BOUNCES;
        if again {
            cell.bounces += 1;
            cell.stage = Stage::Queued;
        }
        again
    }

    /// Resolves it, if nothing has before.
    pub(super) fn resolve(&self, outcome: Outcome) {
        let mut cell = self.cell();
        if matches!(cell.stage, Stage::Queued | Stage::Assigned | Stage::Sent(_)) {
            cell.settle(Stage::Resolved(outcome));
            wake(cell);
        }
    }

    /// Its worker died while it had it: whether it is to run again.
    pub(super) fn take_retry(&self) -> bool {
        let mut cell = self.cell();
        let again = cell.retries > 0 && matches!(cell.stage, Stage::Sent(_));
        if again {
            cell.retries -= 1;
            cell.attempt += 1;
            cell.stage = Stage::Queued;
        }
        again
    }

    /// Gives the outcome up: the task need not run, or be finished. Gives the worker that has it, to be told.
    pub(super) fn abandon(&self) -> Option<Arc<Seat>> {
        self.end_early(Stage::Gone)
    }

    /// Cancels it: whoever awaits it gets `Cancelled`. Gives the worker that has it, to be told.
    pub(super) fn cancel(&self) -> Option<Arc<Seat>> {
        self.end_early(Stage::Resolved(Err(TaskError::Cancelled)))
    }

    fn end_early(&self, stage: Stage) -> Option<Arc<Seat>> {
        let mut cell = self.cell();
        match &cell.stage {
            Stage::Resolved(_) | Stage::Gone => None,
            Stage::Sent(seat) => {
                let seat = Arc::clone(seat);
                cell.settle(stage);
                wake(cell);
                Some(seat)
            }
            Stage::Queued | Stage::Assigned => {
                cell.settle(stage);
                wake(cell);
                None
            }
        }
    }

    /// Nobody will wait for it, and it is to run all the same.
    pub(super) fn detach(&self) {
        self.cell().waker = None;
    }

    pub(super) fn poll_outcome(&self, cx: &mut Context<'_>) -> Poll<Outcome> {
        let mut cell = self.cell();
        match std::mem::replace(&mut cell.stage, Stage::Gone) {
            Stage::Resolved(outcome) => Poll::Ready(outcome),
            Stage::Gone => Poll::Ready(Err(TaskError::Cancelled)),
            stage => {
                cell.stage = stage;
                match &mut cell.waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    waker => *waker = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
        }
    }

    /// Whether somebody may still want it done.
    pub(super) fn is_wanted(&self) -> bool {
        matches!(self.cell().stage, Stage::Queued | Stage::Assigned | Stage::Sent(_))
    }

    /// The process that has it.
    pub(super) fn worker_id(&self) -> Option<u32> {
        // Not under the cell's lock: a seat locks its desk first and a job's cell second.
        let seat = match &self.cell().stage {
            Stage::Sent(seat) => Arc::clone(seat),
            Stage::Queued | Stage::Assigned | Stage::Resolved(_) | Stage::Gone => return None,
        };
        seat.pid()
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
    /// Ends it, and lets go of what it carried.
    fn settle(&mut self, stage: Stage) {
        self.span.note_outcome(match &stage {
            Stage::Resolved(Ok(_)) => "ok",
            Stage::Resolved(Err(error)) => error.kind(),
            _ => "cancelled",
        });
        self.stage = stage;
        self.body = Bytes::new();
        self.more = Vec::new();
        self.fds.clear();
    }
}

/// Wakes whoever waits and ends the span, after the lock is gone: both run other people's code.
fn wake(mut cell: MutexGuard<'_, Cell>) {
    let wakers = [cell.waker.take(), cell.slot_waker.take()];
    let span = std::mem::take(&mut cell.span);
    drop(cell);
    span.end();
    wakers.into_iter().flatten().for_each(Waker::wake);
}
