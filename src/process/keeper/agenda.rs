//! What the keeper has to come back to: dead children whose pipes are still held, whose group lives on in its grace, or whose group
//! was killed and may come to us.

use std::time::{Duration, Instant};

use super::Keeper;
use super::orphans::Orphans;
use crate::process::kept::Seen;
use crate::sys::group::{self, Members};

/// For how long those who wait are left waiting when a dead child's pipes are still held by something.
///
/// Most often that is another thread of ours between clone and exec of its own child, which is over in a moment; so
/// nearly always a child is reaped by the time that somebody learns of its end.
const HOLD_BACK: Duration = Duration::from_millis(5);

/// A dead child whose pipes are still held.
pub(super) struct Linger {
    pub(super) key: u64,
    pub(super) tell_at: Option<Instant>,
    pub(super) until: Instant,
}

/// How long the keeper waits until it looks again at a group whose end nothing reports: twice as long each time, up to this.
const LONGEST_PAUSE: Duration = Duration::from_millis(32);

/// A group that has outlived its leader.
pub(super) struct Outlived {
    pub(super) key: u64,
    pub(super) look_at: Instant,
    pause: Duration,
}

impl Outlived {
    /// Whether it is time to look closely: what is left may be zombies that nobody reaps. Where somebody does, that takes less.
    pub(super) fn is_old(&self) -> bool {
        self.pause > Duration::from_millis(4)
    }

    /// Until the next look.
    pub(super) fn wait(&mut self) {
        self.look_at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

/// The looks at every process that there is, each for all groups that are old. However long they take, the keeper has most of its
/// time for the others.
#[derive(Default)]
pub(super) struct CloseLooks {
    /// Not before; at any time if there was none.
    next_at: Option<Instant>,
}

impl CloseLooks {
    pub(super) fn are_due(&self, now: Instant) -> bool {
        self.next_at.is_none_or(|at| at <= now)
    }

    /// Takes a look. The next one, which takes about as long, comes when that is a tenth of the time at the most.
    pub(super) fn look<T>(&mut self, look: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let found = look();
        self.next_at = Some(Instant::now() + begun.elapsed() * 10);
        found
    }
}

/// What the keeper has to come back to.
#[derive(Default)]
pub(super) struct Agenda {
    pub(super) lingering: Vec<Linger>,
    pub(super) outlived: Vec<Outlived>,
    pub(super) orphans: Vec<Orphans>,
    pub(super) close_looks: CloseLooks,
}

impl Agenda {
    pub(super) fn is_empty(&self) -> bool {
        self.lingering.is_empty() && self.outlived.is_empty()
    }

    /// When something is due.
    pub(super) fn next(&self) -> impl Iterator<Item = Instant> {
        let lingering = self.lingering.iter().map(|linger| linger.tell_at.unwrap_or(linger.until).min(linger.until));
        let outlived = self.outlived.iter().map(|outlived| outlived.look_at);
        lingering.chain(outlived).chain(self.orphans.iter().map(|orphans| orphans.look_at))
    }

    /// Lets what a dead child left behind write on for its drain grace.
    pub(super) fn let_linger(&mut self, key: u64, drain: Duration) {
        let now = Instant::now();
        self.lingering.push(Linger { key, tell_at: Some(now + HOLD_BACK), until: now + drain });
    }

    pub(super) fn lingers(&self, key: u64) -> bool {
        self.lingering.iter().any(|linger| linger.key == key)
    }

    /// Looks again and again at a group that has outlived its leader.
    pub(super) fn look_again_at(&mut self, key: u64) {
        if self.outlived.iter().all(|outlived| outlived.key != key) {
            let mut outlived = Outlived { key, look_at: Instant::now(), pause: Duration::from_millis(1) };
            outlived.wait();
            self.outlived.push(outlived);
        }
    }
}

impl Keeper {
    /// Looks who is left in the groups whose leader has ended in their grace.
    pub(super) fn look_at_outlived(&self, agenda: &mut Agenda, now: Instant) {
        let Agenda { outlived, close_looks, .. } = agenda;
        let is_close = close_looks.are_due(now);
        // One for all of them, if any needs it.
        let mut all_groups = None;
        outlived.retain_mut(|outlived| {
            let Some(kept) = self.desk().kept.get(&outlived.key).cloned() else { return false };
            let closely = is_close && outlived.is_old();
            if outlived.look_at > now && !closely {
                return true;
            }
            let mut seen = kept.look();
            if seen == Seen::Outlived && closely {
                let groups = all_groups.get_or_insert_with(|| close_looks.look(group::all_groups));
                if groups.as_ref().is_some_and(|groups| groups.get(&kept.pid()) == Some(&Members::AllEnded)) {
                    let _ = kept.signal_group(libc::SIGKILL);
                    seen = Seen::Reaped;
                }
            }
            let lives_on = seen == Seen::Outlived;
            if lives_on {
                outlived.wait();
            } else {
                self.forget(outlived.key);
            }
            lives_on
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_looks_take_a_tenth_of_the_time_and_other_looks_go_on() {
        let mut agenda = Agenda::default();
        agenda.look_again_at(1);
        assert!(agenda.close_looks.are_due(Instant::now()));
        let took = Duration::from_millis(20);
        agenda.close_looks.look(|| std::thread::sleep(took));
        let now = Instant::now();
        assert!(!agenda.close_looks.are_due(now));
        assert!(!agenda.close_looks.are_due(now + took * 5));
        assert!(agenda.close_looks.are_due(now + Duration::from_hours(1)));
        for _ in 0..8 {
            agenda.outlived[0].wait();
        }
        assert!(agenda.outlived[0].is_old());
        assert!(agenda.next().all(|at| at <= Instant::now() + LONGEST_PAUSE));
    }
}
