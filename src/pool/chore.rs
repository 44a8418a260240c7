//! The pool's own tasks, its start task and its exit task: one parcel for each worker that is to run it.
//!
//! The end of a channel, or what a sync object has in another process, is for one process alone: workers that shared one would
//! tear each other's messages and take each other's answers. So a task with fds in it is kept itself, and encoded anew for each
//! worker. Another one's bytes would be the same each time. When it is run is decided in `starting.rs` and `ending.rs`.

use std::fmt;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::task::{self, PackError, Parcel, Task, unheeded};
use crate::wire::extra::Extra;
use crate::wire::frame::Frame;
use crate::wire::held::Held;
use crate::wire::message::Kind;

/// Why a task is not sent whose end is another worker's.
const GONE: &str =
    "this end was sent to another process: an end of a channel in a pool's start or exit task goes to one worker";

pub(super) enum Chore {
    /// There are no fds in it: its frame's body, and what follows that.
    Plain { name: &'static str, body: Held, more: Extra<Bytes> },
    Anew {
        name: &'static str,
        /// To encode it is other people's code, so whoever waits for that must not keep a thread.
        turn: tokio::sync::Mutex<()>,
        kept: Mutex<Kept>,
    },
}

type Pack = Box<dyn FnMut() -> Result<Parcel, PackError> + Send>;

pub(super) enum Kept {
    Task(Pack),
    /// Whoever has the turn has it.
    BeingEncoded,
    /// An end in it has gone to a worker. It would never be sent again, and what is left of the end here would keep its other
    /// side from seeing that worker's end.
    Gone,
}

impl Chore {
    pub(super) fn new<T: Task>(task: T, max: usize) -> Result<Self, PackError> {
        let first = task::pack(&task, max)?;
        let name = first.name;
        if first.fds.is_empty() {
            let Frame { body, more, .. } = first.into_frame(0);
            return Ok(Self::Plain { name, body, more });
        }
        // That was only to see whether it can be sent. There is no worker yet to which an end could go.
        let pack = Box::new(move || task::pack(&task, max));
        Ok(Self::Anew { name, turn: tokio::sync::Mutex::default(), kept: Mutex::new(Kept::Task(pack)) })
    }

    /// The task for one more worker.
    ///
    /// # Cancel safety
    /// Dropping it leaves the ends in it where they are.
    pub(super) async fn errand(&self) -> Result<Errand<'_>, PackError> {
        let (name, frame) = match self {
            Self::Plain { name, body, more } => {
                let (body, more) = (body.clone(), more.clone());
                (*name, Frame { kind: Kind::Run as u8, body, more, ..Frame::default() })
            }
            Self::Anew { name, turn, .. } => {
                let _turn = turn.lock().await;
                (*name, self.encode()?.into_frame(0))
            }
        };
        Ok(Errand { of: self, name, frame })
    }

    /// Encodes it anew, with no lock held; its caller has the turn.
    fn encode(&self) -> Result<Parcel, PackError> {
        let gone = || PackError::Encode(GONE.into());
        let Self::Anew { kept, .. } = self else { return Err(gone()) };
        let former = mem::replace(&mut *lock(kept), Kept::BeingEncoded);
        let Kept::Task(mut pack) = former else {
            *lock(kept) = former;
            return Err(gone());
        };
        let packed = pack();
        let mut now = lock(kept);
        if matches!(*now, Kept::Gone) {
            drop(now);
            unheeded(|| drop(pack));
        } else {
            *now = Kept::Task(pack);
        }
        packed
    }

    /// It is not to be sent any more.
    fn is_gone(&self) {
        if let Self::Anew { kept, .. } = self {
            let former = mem::replace(&mut *lock(kept), Kept::Gone);
            unheeded(|| drop(former));
        }
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whoever drops the pool's last part is not to meet a panic of the task's.
impl Drop for Chore {
    fn drop(&mut self) {
        self.is_gone();
    }
}

impl fmt::Debug for Chore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Plain { name, .. } | Self::Anew { name, .. }) = self;
        f.debug_tuple("Chore").field(name).finish()
    }
}

/// A chore for one worker. Unless it is sent, the ends in it are where they were.
#[must_use = "its ends stay unless it is sent"]
pub(super) struct Errand<'a> {
    of: &'a Chore,
    pub(super) name: &'static str,
    frame: Frame,
}

impl Errand<'_> {
    /// Sends it to its worker.
    pub(super) fn send(self, push: impl FnOnce(Frame)) {
        let ends_stay = self.frame.fds.leave_ends_here();
        push(self.frame);
        if ends_stay {
            self.of.is_gone();
        }
    }
}
