//! A semaphore for many processes. A permit is in its holder's desk from the grant to its return, so it can't be lost.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore as Permits};
use tokio::task::coop::unconstrained;

use super::lock;
use crate::channel::broker::{Desk, Holder};
use crate::error::SyncError;

/// A number of permits that tasks, threads and processes share: whoever wants one waits until one is free.
///
/// With one permit it is a lock. Those who wait are served in the order in which they asked. Clones, and what is sent to
/// other processes, are the same semaphore.
///
/// # Examples
///
/// ```
/// use multiproc::{spawn_process, sync::Semaphore, task};
///
/// fn careful(lock: Semaphore) -> bool {
///     let permit = lock.blocking_acquire().unwrap();
///     // Nobody else has it now.
///     permit.after_death()
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// multiproc::init();
/// let lock = Semaphore::new(1)?;
/// let permit = lock.acquire().await?;
/// let child = spawn_process(task!(careful(lock.clone()))).await?;
/// drop(permit);
/// assert!(!child.join().await?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Semaphore {
    holder: Arc<Holder<Counter>>,
    tokens: Arc<AtomicU64>,
}

/// The right that a [`Semaphore`] gives, until it is dropped.
#[must_use = "it is given back when it is dropped"]
pub struct SemaphorePermit {
    claim: Claim,
}

impl Semaphore {
    /// Makes a semaphore with so many permits.
    ///
    /// # Errors
    ///
    /// If the system gives no sockets, or no thread.
    ///
    /// # Panics
    ///
    /// If there are more permits than tokio's semaphore can have, `usize::MAX >> 3`.
    #[track_caller]
    pub fn new(permits: usize) -> io::Result<Self> {
        assert!(permits <= Permits::MAX_PERMITS, "a semaphore has at most {} permits", Permits::MAX_PERMITS);
        let pool = Pool { permits: Arc::new(Permits::new(permits)), died: AtomicBool::new(false) };
        Ok(Self::over(Holder::found(pool, ())?))
    }

    fn over(holder: Holder<Counter>) -> Self {
        Self { holder: Arc::new(holder), tokens: Arc::default() }
    }

    /// Waits for a permit.
    ///
    /// # Errors
    ///
    /// `Closed` if the process that made the semaphore has ended, `Refused` if other processes have sent it on too often, `Io` if
    /// the system refuses.
    ///
    /// # Cancel safety
    ///
    /// Dropping it gives up the place in the line.
    pub async fn acquire(&self) -> Result<SemaphorePermit, SyncError> {
        let mut claim = self.claim();
        let answer = self.holder.ask_noting(Request::Acquire(claim.token), &mut claim.asked).await?;
        claim.granted(answer).ok_or(SyncError::Closed)
    }

    /// As [`acquire`](Self::acquire), on this thread, which it blocks; not for async code.
    ///
    /// # Errors
    ///
    /// As for [`acquire`](Self::acquire).
    pub fn blocking_acquire(&self) -> Result<SemaphorePermit, SyncError> {
        let mut claim = self.claim();
        let answer = self.holder.blocking_ask_noting(Request::Acquire(claim.token), &mut claim.asked)?;
        claim.granted(answer).ok_or(SyncError::Closed)
    }

    /// Takes a permit if one is free now, and nobody waits for it.
    ///
    /// # Errors
    ///
    /// As for [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    ///
    /// Dropping it takes none.
    pub async fn try_acquire(&self) -> Result<Option<SemaphorePermit>, SyncError> {
        let mut claim = self.claim();
        let answer = self.holder.ask_noting(Request::TryAcquire(claim.token), &mut claim.asked).await?;
        Ok(claim.granted(answer))
    }

    fn claim(&self) -> Claim {
        let token = self.tokens.fetch_add(1, Ordering::Relaxed);
        Claim { holder: Arc::clone(&self.holder), token, asked: false, state: State::Unknown }
    }
}

impl SemaphorePermit {
    /// Whether a process died while it held a permit, since the last time that somebody was told. What the permits protect
    /// may then be in the middle of a change.
    pub fn after_death(&self) -> bool {
        self.claim.state == State::Granted { after_death: true }
    }
}

/// What a holder may have in its desk: given back when it is dropped, whether the grant has arrived or not.
struct Claim {
    holder: Arc<Holder<Counter>>,
    token: u64,
    /// The broker gets the request. One that waits for room has nothing to give back, and must not say so past that very bound.
    asked: bool,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// It may have been granted.
    Unknown,
    Granted {
        after_death: bool,
    },
    /// The broker has said that there is nothing to give back.
    Nothing,
}

impl Claim {
    fn granted(mut self, answer: Answer) -> Option<SemaphorePermit> {
        match answer {
            Answer::Granted { after_death } => {
                self.state = State::Granted { after_death };
                Some(SemaphorePermit { claim: self })
            }
            Answer::Busy => {
                self.state = State::Nothing;
                None
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let seen = self.state != State::Unknown;
        if self.asked && self.state != State::Nothing {
            self.holder.tell(Release { token: self.token, seen });
        }
    }
}

#[derive(Serialize, Deserialize)]
enum Request {
    Acquire(u64),
    TryAcquire(u64),
}

/// It is not wanted any more, if it was granted at all. `seen` says whether its holder knew of it.
#[derive(Serialize, Deserialize)]
struct Release {
    token: u64,
    seen: bool,
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Granted { after_death: bool },
    Busy,
}

struct Pool {
    permits: Arc<Permits>,
    /// Somebody died with a permit, and nobody has been told.
    died: AtomicBool,
}

/// What one holder has.
struct Counter {
    pool: Arc<Pool>,
    held: Mutex<HashMap<u64, Held>>,
}

struct Held {
    _permit: OwnedSemaphorePermit,
    after_death: bool,
}

impl Counter {
    fn grant(&self, token: u64, permit: OwnedSemaphorePermit) -> Answer {
        let after_death = self.pool.died.swap(false, Ordering::AcqRel);
        lock(&self.held).insert(token, Held { _permit: permit, after_death });
        Answer::Granted { after_death }
    }
}

impl Desk for Counter {
    type Role = ();
    type Request = Request;
    type Told = Release;
    type Answer = Answer;
    type Shared = Pool;

    fn open(pool: &Arc<Pool>, (): ()) -> Self {
        Self { pool: Arc::clone(pool), held: Mutex::default() }
    }

    fn hear(&self, Release { token, seen }: Release) {
        let held = lock(&self.held).remove(&token);
        if !seen && held.as_ref().is_some_and(|held| held.after_death) {
            // The news is for the next one then.
            self.pool.died.store(true, Ordering::Release);
        }
    }

    async fn handle(self: &Arc<Self>, request: Request) -> Answer {
        let permits = Arc::clone(&self.pool.permits);
        match request {
            // Whatever budget is left, it takes its place in the line when it is polled.
            Request::Acquire(token) => match unconstrained(permits.acquire_owned()).await {
                Ok(permit) => self.grant(token, permit),
                Err(_) => Answer::Busy,
            },
            Request::TryAcquire(token) => match permits.try_acquire_owned() {
                Ok(permit) => self.grant(token, permit),
                Err(_) => Answer::Busy,
            },
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let held = std::mem::take(&mut *lock(&self.held));
        if !held.is_empty() {
            // Before the permits are free.
            self.pool.died.store(true, Ordering::Release);
        }
    }
}

impl Serialize for Semaphore {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.holder.serialize((), serializer)
    }
}

impl<'de> Deserialize<'de> for Semaphore {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Holder::deserialize(deserializer).map(Self::over)
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore").finish_non_exhaustive()
    }
}

impl fmt::Debug for SemaphorePermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SemaphorePermit").field("after_death", &self.after_death()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    /// Each said that it gives back what it had not yet asked for.
    #[tokio::test]
    async fn acquires_that_are_given_up_before_there_was_room_to_ask_take_none() {
        let (holder, _unread) = Holder::unattended();
        let lock = Semaphore::over(holder);
        for _ in 0..100_000 {
            assert!(lock.acquire().now_or_never().is_none());
        }
        let most = lock.holder.under_way();
        assert!(most < 200 << 10, "{most} bytes");
    }
}
