//! Whether a worker is to leave the processor of those who give it their tasks.
//!
//! Where it shares that, each of them has to sleep for the other to go on. In a runtime with threads it was woken there because the
//! thread that has the reactor was still at work elsewhere, and there it stays: a scheduler does not take a processor for free that
//! its hypervisor has put to sleep. So after many tiny tasks, one after the other, it is asked to go elsewhere; less and less
//! often, if it does not stay there.

/// After so many such tasks in a row it is asked for the first time.
const FIRST: u32 = 64;

/// And so many are the most that it takes.
const MOST: u32 = 1 << 16;

/// After so many in a row from another processor it is as if it had never been asked.
const SETTLED: u32 = 1024;

#[derive(Debug)]
pub(super) struct Together {
    /// How many tasks in a row it was given by who was on its processor, or was not.
    with: u32,
    apart: u32,
    /// At how many of the first kind it is asked next.
    due: u32,
}

impl Together {
    pub(super) const fn new() -> Self {
        Self { with: 0, apart: 0, due: FIRST }
    }

    /// Notes that a tiny task follows another one. Says whether the worker is to leave.
    pub(super) fn is_to_leave(&mut self, is_apart: bool) -> bool {
        if is_apart {
            (self.with, self.apart) = (0, self.apart.saturating_add(1));
            if self.apart >= SETTLED {
                self.due = FIRST;
            }
            return false;
        }
        (self.with, self.apart) = (self.with + 1, 0);
        let is_due = self.with >= self.due;
        if is_due {
            (self.with, self.due) = (0, MOST.min(self.due * 2));
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Together {
        /// After how many tasks together it is asked.
        fn until_asked(&mut self) -> u32 {
            (1..=MOST).find(|_| self.is_to_leave(false)).unwrap()
        }
    }

    #[test]
    fn a_worker_is_asked_to_leave_less_and_less_often_until_it_has_stayed_elsewhere() {
        let mut together = Together::new();
        for due in [FIRST, 2 * FIRST, 4 * FIRST] {
            assert_eq!(together.until_asked(), due);
            assert!((1..SETTLED).all(|_| !together.is_to_leave(true)), "it is elsewhere");
        }
        assert!(!together.is_to_leave(false), "it has come back too soon");
        assert!((0..SETTLED).all(|_| !together.is_to_leave(true)));
        assert_eq!(together.until_asked(), FIRST);
        while together.until_asked() < MOST {}
        assert_eq!(together.until_asked(), MOST);
    }

    #[test]
    fn one_task_from_elsewhere_is_enough_to_count_anew() {
        let mut together = Together::new();
        assert!((1..FIRST).all(|_| !together.is_to_leave(false)));
        assert!(!together.is_to_leave(true));
        assert_eq!(together.until_asked(), FIRST);
    }
}
