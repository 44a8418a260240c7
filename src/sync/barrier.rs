//! A barrier for many processes.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::sync::watch;

use super::lock;
use crate::channel::broker::{Desk, Holder};
use crate::error::SyncError;

/// A point that so many tasks, threads and processes reach together: each waits until all are there, and then all go on.
///
/// It can be used again at once. Clones, and what is sent to other processes, are the same barrier.
///
/// One that dies or is cancelled while it waits is not there any more: the others wait for another one in its place, and are
/// told of a death when they go on. One that never comes is waited for: use a timeout.
///
/// # Examples
///
/// ```
/// use multiproc::{spawn_process, sync::Barrier, task};
///
/// fn meet(barrier: Barrier) -> bool {
///     barrier.blocking_wait().unwrap().is_leader()
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// multiproc::init();
/// let barrier = Barrier::new(2)?;
/// let child = spawn_process(task!(meet(barrier.clone()))).await?;
/// let leads = barrier.wait().await?.is_leader();
/// assert_ne!(child.join().await?, leads, "one of them");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Barrier {
    holder: Arc<Holder<Gate>>,
    tokens: Arc<AtomicU64>,
}

/// That all have reached a [`Barrier`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BarrierWait {
    is_leader: bool,
    after_death: bool,
}

impl BarrierWait {
    /// Whether this is the one of all who may do what is to be done once.
    pub fn is_leader(&self) -> bool {
        self.is_leader
    }

    /// Whether a process died while it waited for the same.
    pub fn after_death(&self) -> bool {
        self.after_death
    }
}

impl Barrier {
    /// Makes a barrier for so many; with 0 or 1 nobody waits.
    ///
    /// # Errors
    ///
    /// If the system gives no sockets, or no thread.
    pub fn new(parties: usize) -> io::Result<Self> {
        let meeting = Meeting { parties, round: watch::Sender::new(Round::default()) };
        Ok(Self::over(Holder::found(meeting, ())?))
    }

    fn over(holder: Holder<Gate>) -> Self {
        Self { holder: Arc::new(holder), tokens: Arc::default() }
    }

    /// Waits until all are there.
    ///
    /// # Errors
    ///
    /// `Closed` if the process that made the barrier has ended, `Refused` if other processes have sent it on too often, `Io` if
    /// the system refuses.
    ///
    /// # Cancel safety
    ///
    /// Dropped before all are there, it does not count any more.
    pub async fn wait(&self) -> Result<BarrierWait, SyncError> {
        let token = self.tokens.fetch_add(1, Ordering::Relaxed);
        let mut waiting = Waiting { holder: &self.holder, token, asked: false, over: false };
        let answer = self.holder.ask_noting(Wait(token), &mut waiting.asked).await;
        // One that failed here may still wait there.
        waiting.over = answer.is_ok();
        answer?.ok_or(SyncError::Closed)
    }

    /// As [`wait`](Self::wait), on this thread, which it blocks; not for async code.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait).
    pub fn blocking_wait(&self) -> Result<BarrierWait, SyncError> {
        let token = self.tokens.fetch_add(1, Ordering::Relaxed);
        self.holder.blocking_ask(Wait(token))?.ok_or(SyncError::Closed)
    }
}

/// Tells the broker, behind the cancellation, that it was one and no death. An error may be one, too.
struct Waiting<'a> {
    holder: &'a Holder<Gate>,
    token: u64,
    /// The broker gets the request; see the semaphore's claim.
    asked: bool,
    over: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.asked && !self.over {
            self.holder.tell(Cancelled(self.token));
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Wait(u64);

#[derive(Serialize, Deserialize)]
struct Cancelled(u64);

struct Meeting {
    parties: usize,
    round: watch::Sender<Round>,
}

#[derive(Debug, Default)]
struct Round {
    number: u64,
    /// How many are there.
    here: usize,
    /// Somebody died who was there.
    died: Arc<AtomicBool>,
}

/// One holder's place before the barrier.
struct Gate {
    meeting: Arc<Meeting>,
    /// Which waits are not over, and of which round they are, once they are there. What is left of them at the end is a death.
    waits: Mutex<HashMap<u64, Option<u64>>>,
}

impl Meeting {
    /// One more is there. Gives the round, its news of deaths, and whether it is the last one, which ends the round.
    fn arrive(&self) -> (u64, Arc<AtomicBool>, bool) {
        let (mut number, mut died) = (0, Arc::default());
        let last = self.round.send_if_modified(|round| {
            (number, died) = (round.number, Arc::clone(&round.died));
            round.here += 1;
            let last = round.here >= self.parties;
            if last {
                *round = Round { number: number + 1, ..Round::default() };
            }
            last
        });
        (number, died, last)
    }

    /// Those who wait in these rounds, or have yet to come to one, are not there any more, and may have died.
    fn leave(&self, waits: impl IntoIterator<Item = Option<u64>>, died: bool) {
        self.round.send_if_modified(|round| {
            for wait in waits {
                let is_here = wait == Some(round.number);
                round.here -= usize::from(is_here);
                if died && (is_here || wait.is_none()) {
                    round.died.store(true, Ordering::Release);
                }
            }
            false
        });
    }
}

impl Desk for Gate {
    type Role = ();
    type Request = Wait;
    type Told = Cancelled;
    type Answer = Option<BarrierWait>;
    type Shared = Meeting;

    fn open(meeting: &Arc<Meeting>, (): ()) -> Self {
        Self { meeting: Arc::clone(meeting), waits: Mutex::default() }
    }

    fn hear(&self, Cancelled(token): Cancelled) {
        let wait = lock(&self.waits).remove(&token);
        self.meeting.leave(wait, false);
    }

    /// Its holder's death is one of somebody who waits, though it is not there yet.
    fn expect(&self, Wait(token): &Wait) {
        lock(&self.waits).entry(*token).or_default();
    }

    async fn handle(self: &Arc<Self>, Wait(token): Wait) -> Option<BarrierWait> {
        let mut rounds = self.meeting.round.subscribe();
        let (round, died, is_leader) = {
            let mut waits = lock(&self.waits);
            // One that was given up meanwhile does not come any more, nor does one twice.
            let wait = waits.get_mut(&token).filter(|wait| wait.is_none())?;
            let arrived = self.meeting.arrive();
            *wait = Some(arrived.0);
            arrived
        };
        if !is_leader {
            rounds.wait_for(|now| now.number > round).await.ok()?;
        }
        lock(&self.waits).remove(&token);
        Some(BarrierWait { is_leader, after_death: died.load(Ordering::Acquire) })
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let waits = std::mem::take(&mut *lock(&self.waits));
        self.meeting.leave(waits.into_values(), true);
    }
}

impl Serialize for Barrier {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.holder.serialize((), serializer)
    }
}

impl<'de> Deserialize<'de> for Barrier {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Holder::deserialize(deserializer).map(Self::over)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn waits_that_are_given_up_before_there_was_room_to_say_so_take_none() {
        let (holder, _unread) = Holder::unattended();
        let barrier = Barrier::over(holder);
        for _ in 0..100_000 {
            assert!(barrier.wait().now_or_never().is_none());
        }
        let most = barrier.holder.under_way();
        assert!(most < 200 << 10, "{most} bytes");
    }
}
