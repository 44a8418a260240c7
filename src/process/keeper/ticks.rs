//! Bells that the keeper rings again and again, for what has to be looked at now and then.
//!
//! A runtime has timers of its own; but while one of them is set, each wait of its reactor sets a timer of the kernel's and
//! takes it back, and where a hypervisor is asked for that, it takes longer than most other things that a task needs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::{KEEPER, Keeper};

/// Somebody's bell, which rings until this is dropped.
#[derive(Debug)]
pub(crate) struct Ticks {
    pub(super) key: u64,
    bell: Arc<Notify>,
}

/// The same, as the keeper has it.
pub(super) struct Tick {
    pub(super) key: u64,
    bell: Arc<Notify>,
    every: Duration,
    pub(super) next: Instant,
}

impl Ticks {
    /// `None`: this process has no keeper, so it has started nothing yet.
    pub(crate) fn start(every: Duration) -> Option<Self> {
        let keeper = KEEPER.get()?;
        let bell = Arc::new(Notify::new());
        let mut desk = keeper.desk();
        desk.last_key += 1;
        let key = desk.last_key;
        desk.ticks.push(Tick { key, bell: Arc::clone(&bell), every, next: Instant::now() + every });
        drop(desk);
        keeper.ring();
        Some(Self { key, bell })
    }

    /// From now on it rings so often.
    pub(crate) fn set(&self, every: Duration) {
        let Some(keeper) = KEEPER.get() else { return };
        let next = Instant::now() + every;
        let mut desk = keeper.desk();
        let Some(tick) = desk.ticks.iter_mut().find(|tick| tick.key == self.key) else { return };
        let sooner = next < tick.next;
        (tick.every, tick.next) = (every, next);
        drop(desk);
        if sooner {
            keeper.ring();
        }
    }

    /// Waits for the bell. It may have rung since the last wait, once or more.
    ///
    /// # Cancel safety
    /// Cancel-safe: a ring that nobody heard is heard by the next wait.
    pub(crate) async fn tick(&self) {
        self.bell.notified().await;
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        if let Some(keeper) = KEEPER.get() {
            keeper.desk().ticks.retain(|tick| tick.key != self.key);
        }
    }
}

impl Keeper {
    /// Rings the bells that are due.
    pub(super) fn ring_ticks(&self) {
        let due: Vec<_> = {
            let mut desk = self.desk();
            if desk.ticks.is_empty() {
                return;
            }
            let now = Instant::now();
            let due = desk.ticks.iter_mut().filter(|tick| tick.next <= now);
            due.map(|tick| {
                tick.next = now + tick.every;
                Arc::clone(&tick.bell)
            })
            .collect()
        };
        // Without the lock, which what is woken may want.
        for bell in due {
            bell.notify_one();
        }
    }
}
