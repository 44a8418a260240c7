//! Children in their first milliseconds, which are left to who waits for them; after that, or where nobody does, the keeper listens.

use std::mem;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::{Itimerspec, TimerfdTimerFlags, timerfd_settime};

use super::{Desk, KEEPER, Keeper, Kept};

/// For how long a child is left to who waits for it. If nobody does, its end is seen so much later at the most.
const LEFT_ALONE: Duration = Duration::from_millis(10);

/// How many are left so at a time: what has ended and is not seen is a zombie, and has an fd.
pub(super) const MOST_YOUNG: usize = 8;

/// How a child is listened to: its end is one event, and that it is reaped no other.
const ONCE: EventFlags = EventFlags::IN.union(EventFlags::ONESHOT);

/// Has the keeper listen to a child from now on: nobody else will.
pub(in crate::process) fn listen_to(key: u64) {
    if let Some(keeper) = KEEPER.get() {
        let mut desk = keeper.desk();
        if let Some(place) = desk.young.iter().position(|young| *young == key) {
            desk.young.swap_remove(place);
            keeper.listen(&mut desk, key);
        }
    }
}

impl Keeper {
    /// Has the ends of those reported that are still there.
    pub(super) fn listen_to_young(&self, desk: &mut Desk) {
        for key in mem::take(&mut desk.young) {
            self.listen(desk, key);
        }
    }

    fn listen(&self, desk: &mut Desk, key: u64) {
        let Some(pidfd) = desk.kept.get(&key).and_then(Kept::pidfd) else { return };
        let data = EventData::new_u64(key);
        let listens = match epoll::add(&self.epoll, &pidfd, data, ONCE) {
            // It has had its event.
            Err(rustix::io::Errno::EXIST) => epoll::modify(&self.epoll, &pidfd, data, ONCE),
            added => added,
        };
        if listens.is_err() {
            // The system has no room for it, and may have soon. Until then it is looked at again and again.
            desk.to_look_at.push(key);
            self.keep_young(desk, key);
        }
    }

    pub(super) fn keep_young(&self, desk: &mut Desk, key: u64) {
        desk.young.push(key);
        if desk.young.len() == 1 {
            self.set_alarm();
        }
    }

    fn set_alarm(&self) {
        let Ok(it_value) = Timespec::try_from(LEFT_ALONE) else { return };
        let once = Itimerspec { it_value, it_interval: Timespec::default() };
        // Fails for what is no timer or no time, and it is both.
        let _ = timerfd_settime(&self.alarm, TimerfdTimerFlags::empty(), &once);
    }
}
