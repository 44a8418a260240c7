//! What was killed with its group, and becomes a child of this process: where that is the first one of its pid namespace, or a child
//! subreaper, what loses its parent comes to it, and stays a zombie until somebody reaps it.
//!
//! They die a moment after their leader, and each comes when its own parent has gone, which nothing reports. So the keeper looks
//! now and then, for some time; nobody waits for it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::agenda::Agenda;
use super::{KEEPER, Keeper};
use crate::sys::group;

/// The last pause between two looks, of which each is twice as long as the one before: about as long as all of them. What is left
/// then hangs in the kernel, or is a zombie of somebody who left the group.
const LAST_PAUSE: Duration = Duration::from_secs(8);

/// What is left of a killed group whose leader is reaped.
pub(super) struct Orphans {
    leader: Arc<OwnedFd>,
    group: u32,
    pub(super) look_at: Instant,
    pause: Duration,
}

/// Has the keeper reap those of a killed group who become children of this process. Its leader is reaped.
pub(in crate::process) fn reap_orphans(leader: Arc<OwnedFd>, group: u32) {
    if let Some(keeper) = KEEPER.get() {
        let orphans = Orphans { leader, group, look_at: Instant::now(), pause: Duration::from_millis(1) };
        keeper.desk().orphans.push(orphans);
        keeper.ring();
    }
}

impl Keeper {
    pub(super) fn look_at_orphans(&self, agenda: &mut Agenda) {
        agenda.orphans.append(&mut self.desk().orphans);
        if agenda.orphans.is_empty() {
            return;
        }
        let now = Instant::now();
        agenda.orphans.retain_mut(|orphans| orphans.look_at > now || orphans.look(now));
    }
}

impl Orphans {
    /// Whether there is another look to come.
    fn look(&mut self, now: Instant) -> bool {
        if !group::reap_members(&*self.leader, self.group) || self.pause > LAST_PAUSE {
            return false;
        }
        self.look_at = now + self.pause;
        self.pause *= 2;
        true
    }
}
