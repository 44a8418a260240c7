//! The life of a worker: its states, what can happen to it, and the one table that says what follows.
//!
//! ```text
//!            ┌────────── Replied ───────────┐
//!            ▼                              │
//!  Starting ──Ready──▶ Idle ──Sent──▶ Busy ─┘
//!     │                 │ ▲             │ │ Retire
//!     │                 │ Replied       │ ▼
//!     │                 │ Stalled ◀Overdue Draining  (it finishes its task first)
//!     │                 └────Retire──────▶
//!     └───────── Kill, Ended ──▶ Dying ──Ended──▶ Dead
//! ```
//!
//! No I/O here: the supervisor does what a transition asks for.

/// Where a worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WorkerState {
    /// Its process is being started, or runs the pool's start task.
    Starting,
    /// It waits for a task.
    Idle,
    /// It runs a task.
    Busy,
    /// It was sent a task and did not begin it, so that was taken back. It gets no other until it is heard of, and is
    /// replaced if that takes long.
    Stalled,
    /// It takes no more tasks, finishes what it has, and exits.
    Draining,
    /// It has been killed and has not ended yet.
    Dying,
    /// It has ended.
    Dead,
}

/// What happens to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// It has shaken hands, and its start task succeeded.
    Ready,
    /// A task was sent to it.
    Sent,
    /// It answered the task that it was running, or noticed that it was taken back.
    Replied,
    /// Its tasks were taken back, because it did not begin the first one in time.
    Overdue,
    /// It is to end in order: recycled, idle for too long, one too many, or the pool closes.
    Retire,
    /// It is to end now: its task was cancelled or timed out, or the pool is cancelled.
    Kill,
    /// Its process has ended.
    Ended,
}

impl WorkerState {
    /// What follows, or `None` if the event can't happen in this state: a fault of the supervisor's.
    #[must_use]
    pub(super) fn on(self, event: Event) -> Option<Self> {
        use Event::{Ended, Kill, Overdue, Ready, Replied, Retire, Sent};
        use WorkerState::{Busy, Dead, Draining, Dying, Idle, Stalled, Starting};
        Some(match (self, event) {
            (Starting, Ready) | (Busy | Stalled, Replied) => Idle,
            (Idle, Sent) => Busy,
            (Busy, Overdue) => Stalled,
            // A worker that is not ready has nothing to finish. What is decided while it is dying changes nothing, and a
            // reply may still come.
            (Starting, Retire | Kill) | (Idle | Busy | Stalled | Draining, Kill) | (Dying, Kill | Retire | Replied) => {
                Dying
            }
            (Idle | Busy | Stalled | Draining, Retire) | (Draining, Replied) => Draining,
            (Starting | Idle | Busy | Stalled | Draining | Dying, Ended) | (Dead, Retire | Kill) => Dead,
            (Starting | Stalled, Sent)
            | (Starting | Idle, Replied)
            | (Idle | Stalled, Ready)
            | (Busy | Draining | Dying, Ready | Sent)
            | (Starting | Idle | Stalled | Draining | Dying, Overdue)
            | (Dead, Ready | Sent | Replied | Overdue | Ended) => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Event::{Ended, Kill, Overdue, Ready, Replied, Retire, Sent};
    use super::WorkerState::{Busy, Dead, Draining, Dying, Idle, Stalled, Starting};

    #[test]
    fn every_state_has_an_answer_to_every_event() {
        let table = [
            (Starting, [Some(Idle), None, None, None, Some(Dying), Some(Dying), Some(Dead)]),
            (Idle, [None, Some(Busy), None, None, Some(Draining), Some(Dying), Some(Dead)]),
            (Busy, [None, None, Some(Idle), Some(Stalled), Some(Draining), Some(Dying), Some(Dead)]),
            (Stalled, [None, None, Some(Idle), None, Some(Draining), Some(Dying), Some(Dead)]),
            (Draining, [None, None, Some(Draining), None, Some(Draining), Some(Dying), Some(Dead)]),
            (Dying, [None, None, Some(Dying), None, Some(Dying), Some(Dying), Some(Dead)]),
            (Dead, [None, None, None, None, Some(Dead), Some(Dead), None]),
        ];
        for (state, after) in table {
            let events = [Ready, Sent, Replied, Overdue, Retire, Kill, Ended];
            for (event, expected) in events.into_iter().zip(after) {
                assert_eq!(state.on(event), expected, "{state:?} on {event:?}");
            }
        }
    }
}
