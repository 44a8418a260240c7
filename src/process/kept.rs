//! One child that the keeper keeps: its life as a state, who may signal it, and who waits for its end.
//!
//! A child's number and its group's number may be recycled once its zombie is gone. So signalling and reaping exclude
//! each other by the lock around [`Life`], and a child that was reaped is never signalled. When something happens is
//! the keeper's business; nothing here waits for a process. Signals are in `signals`, and seeing an end in a runtime is in `watch`.

mod handle;
mod signals;
mod watch;

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;

pub(crate) use self::handle::KillOnDrop;
use super::keeper;
use crate::channel::ChildEnd;
use crate::sys::group;
use crate::sys::process::{self, Usage};
use crate::sys::spawn::Fate;

/// How a child ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit {
    /// `None`: somebody else in this process reaped it, or SIGCHLD is ignored.
    pub(crate) status: Option<ExitStatus>,
    pub(crate) usage: Usage,
}

impl Exit {
    pub(crate) const UNKNOWN: Self =
        Self { status: None, usage: Usage { max_rss: 0, user_time: Duration::ZERO, system_time: Duration::ZERO } };
}

/// A child that the keeper keeps; clones are the same child.
#[derive(Clone)]
pub(crate) struct Kept(Arc<Record>);

struct Record {
    pid: u32,
    key: u64,
    fate: Option<Fate>,
    leavings: Leavings,
    life: Mutex<Life>,
    hurried: AtomicBool,
    kill_sent: AtomicBool,
    /// Whether that went to its group.
    group_killed: AtomicBool,
    /// Whether its group was asked to end, and has its grace.
    asked: AtomicBool,
    /// Whether somebody has had its number, or has learnt that it has ended.
    known: AtomicBool,
    changed: Notify,
}

/// What becomes of what a child leaves running.
#[derive(Default)]
pub(super) struct Leavings {
    /// The read ends of the child's output pipes, for as long as somebody reads them.
    pub(super) pipes: Vec<Weak<OwnedFd>>,
    /// How long it may still write into them after the child's end.
    pub(super) drain: Duration,
    /// Whether it then lives on.
    pub(super) spared: bool,
    /// What ends with the child, also where something that has left its group could go on with it.
    pub(super) channel: Option<ChildEnd>,
}

enum Life {
    /// The pidfd is shared with whoever watches it.
    Running(Arc<OwnedFd>),
    /// It has ended, and what it started still holds its pipes. Its zombie keeps the group's number from being recycled.
    Lingering {
        pidfd: Arc<OwnedFd>,
        exit: Exit,
        told: bool,
    },
    /// It is reaped, and the rest of its group is in its grace. The pidfd still names that group, and its number is taken.
    Outlived {
        pidfd: Arc<OwnedFd>,
        exit: Exit,
    },
    Reaped(Exit),
}

/// What somebody found who looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Running,
    Lingering,
    Outlived,
    Reaped,
}

impl Kept {
    pub(super) fn new(pid: u32, key: u64, pidfd: OwnedFd, fate: Option<Fate>, leavings: Leavings) -> Self {
        Self::with(pid, key, Life::Running(Arc::new(pidfd)), fate, leavings)
    }

    /// A child that somebody else reaped before it could be kept.
    pub(super) fn lost(pid: u32) -> Self {
        Self::with(pid, u64::MAX, Life::Reaped(Exit::UNKNOWN), None, Leavings::default())
    }

    fn with(pid: u32, key: u64, life: Life, fate: Option<Fate>, leavings: Leavings) -> Self {
        Self(Arc::new(Record {
            pid,
            key,
            fate,
            leavings,
            life: Mutex::new(life),
            hurried: AtomicBool::new(false),
            kill_sent: AtomicBool::new(false),
            group_killed: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            known: AtomicBool::new(false),
            changed: Notify::new(),
        }))
    }

    /// What names it as long as it is not reaped.
    pub(super) fn pidfd(&self) -> Option<Arc<OwnedFd>> {
        self.life().pidfd()
    }

    /// The number that it has or had.
    pub(crate) fn pid(&self) -> u32 {
        self.0.pid
    }

    /// Its number; `None` once it has ended, and somebody has learnt that or had the number.
    ///
    /// A caller that has just started it learns its number in any case: that it ends in this very moment is nothing that
    /// he could foresee.
    pub(crate) fn id(&self) -> Option<u32> {
        let known = self.0.known.swap(true, Ordering::Relaxed);
        if known && self.try_exit().is_some() { None } else { Some(self.0.pid) }
    }

    /// How it ended, if it has.
    pub(crate) fn try_exit(&self) -> Option<Exit> {
        let mut exit = self.life().known_exit();
        if exit.is_none() && self.look_now() == Seen::Reaped {
            exit = self.life().known_exit();
        }
        if exit.is_some() {
            self.0.known.store(true, Ordering::Relaxed);
        }
        exit
    }

    /// Why it never was the program that it was to be, where that was not waited for; known once it has ended.
    pub(super) fn start_error(&self) -> Option<io::Error> {
        self.0.fate.as_ref()?.error()
    }

    /// Waits until it has ended. Any number of waiters may wait, with any runtime.
    ///
    /// # Cancel safety
    ///
    /// Holds nothing; dropping it has no effect.
    pub(crate) async fn exited(&self) -> Exit {
        self.when(Life::known_exit).await
    }

    /// Waits until it is reaped and its group is gone, and cuts the drain grace short: nobody reads its pipes any more.
    ///
    /// # Cancel safety
    ///
    /// Dropping it only leaves the grace cut short.
    pub(crate) async fn reaped(&self) -> Exit {
        let lingers = {
            let life = self.life();
            self.0.hurried.store(true, Ordering::Relaxed);
            matches!(*life, Life::Lingering { .. })
        };
        if lingers {
            keeper::look_at(self.0.key);
        }
        self.when(|life| if let Life::Reaped(exit) = life { Some(*exit) } else { None }).await
    }

    async fn when<T>(&self, known: impl Fn(&Life) -> Option<T>) -> T {
        loop {
            let changed = self.0.changed.notified();
            let mut changed = std::pin::pin!(changed);
            // Listen before looking, or a change in between would be missed.
            changed.as_mut().enable();
            if let Some(known) = known(&self.life()) {
                self.0.known.store(true, Ordering::Relaxed);
                return known;
            }
            changed.await;
        }
    }

    /// Finds out where it stands, and buries it if it can be: the one way to its end, whoever sees that first.
    ///
    /// The keeper looks in any case, sooner or later. It alone ends a lingering.
    pub(super) fn look(&self) -> Seen {
        let mut life = self.life();
        let exit = match &*life {
            Life::Running(pidfd) => match process::peek_exit(pidfd) {
                Ok(None) => return Seen::Running,
                Ok(Some((status, usage))) => Exit { status: Some(status), usage },
                Err(_) => Exit::UNKNOWN,
            },
            Life::Lingering { exit, .. } => *exit,
            Life::Outlived { pidfd, .. } if group::has_group(pidfd) => return Seen::Outlived,
            Life::Outlived { exit, .. } => {
                let exit = *exit;
                self.bury(life, exit);
                return Seen::Reaped;
            }
            Life::Reaped(_) => return Seen::Reaped,
        };
        if let Life::Running(pidfd) = &*life
            && self.may_outlive(pidfd)
        {
            // Its zombie would count for one that is left. Where somebody else has reaped it, there is none.
            let _ = process::reap(pidfd);
            let pidfd = Arc::clone(pidfd);
            *life = Life::Outlived { pidfd, exit };
            drop(life);
            return self.look();
        }
        if exit.status.is_some() && self.may_linger() {
            *life = match mem::replace(&mut *life, Life::Reaped(exit)) {
                Life::Running(pidfd) => Life::Lingering { pidfd, exit, told: false },
                other => other,
            };
            return Seen::Lingering;
        }
        self.bury(life, exit);
        Seen::Reaped
    }

    /// Tells those who wait that it has ended, although it lingers.
    pub(super) fn tell(&self) {
        if let Life::Lingering { told, .. } = &mut *self.life() {
            *told = true;
        }
        self.notify();
    }

    /// Ends the lingering.
    pub(super) fn bury_now(&self) {
        let life = self.life();
        if let Life::Lingering { exit, .. } = *life {
            self.bury(life, exit);
        }
    }

    /// Its output pipes that are still read.
    pub(super) fn pipes(&self) -> impl Iterator<Item = Arc<OwnedFd>> {
        self.0.leavings.pipes.iter().filter_map(Weak::upgrade)
    }

    pub(super) fn drain(&self) -> Duration {
        self.0.leavings.drain
    }

    /// Whether something that it started still has its pipes and may finish writing.
    fn may_linger(&self) -> bool {
        !self.0.leavings.drain.is_zero()
            && !self.0.hurried.load(Ordering::Relaxed)
            && !self.0.leavings.spared
            && self.pipes().any(|pipe| process::has_writer(pipe.as_fd()))
    }

    /// Whether its group has its grace, and can be reached without its leader.
    fn may_outlive(&self, pidfd: &OwnedFd) -> bool {
        self.was_asked() && !self.kill_sent() && !self.0.leavings.spared && group::outlives_leader(pidfd)
    }

    /// Kills the group, then reaps: in the other order the group's number could be somebody else's by then.
    ///
    /// What was killed with it dies in its own time, and is the keeper's, should it become a child of ours.
    fn bury(&self, mut life: MutexGuard<'_, Life>, exit: Exit) {
        let mut orphaned = None;
        if let Life::Running(pidfd) | Life::Lingering { pidfd, .. } | Life::Outlived { pidfd, .. } = &*life {
            // Where somebody else reaped it, `signal_group` knows whether the group can be reached without its number.
            if !self.0.leavings.spared {
                // Nobody left in it is the usual case; a member of another user can't be helped.
                let _ = process::signal_group(pidfd, self.0.pid, libc::SIGKILL);
            }
            // If this fails somebody else reaped it just now, and its status is known nevertheless.
            let _ = process::reap(pidfd);
            // One that is spared may still have been ended by us, with its group.
            let is_ended = !self.0.leavings.spared || self.was_asked() || self.0.group_killed.load(Ordering::Relaxed);
            if is_ended && group::outlives_leader(pidfd) && group::adopts() {
                orphaned = Some(Arc::clone(pidfd));
            }
            *life = Life::Reaped(exit);
        }
        // What wakes may look at it at once.
        drop(life);
        if let Some(leader) = orphaned {
            keeper::reap_orphans(leader, self.0.pid);
        }
        if let Some(channel) = &self.0.leavings.channel
            && !self.0.leavings.spared
        {
            channel.end();
        }
        self.notify();
    }

    fn notify(&self) {
        self.0.changed.notify_waiters();
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.0.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Life {
    /// Of one that runs.
    fn pidfd(&self) -> Option<Arc<OwnedFd>> {
        if let Self::Running(pidfd) = self { Some(Arc::clone(pidfd)) } else { None }
    }

    fn known_exit(&self) -> Option<Exit> {
        match self {
            Self::Lingering { exit, told: true, .. } | Self::Reaped(exit) => Some(*exit),
            Self::Running(_) | Self::Lingering { told: false, .. } | Self::Outlived { .. } => None,
        }
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept")
            .field("pid", &self.0.pid)
            .field("exit", &self.life().known_exit())
            .finish_non_exhaustive()
    }
}
