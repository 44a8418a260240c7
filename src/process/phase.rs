//! Where a running command stands, as a table: what happens, what follows, and what has to be sent. No I/O, no clock.

use std::time::Duration;

use tokio::time::Instant;

use super::keeper::DRAIN;

/// Why a command was not left to its own end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    TimedOut,
    TooLarge,
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Running,
    /// It was asked to end.
    Terminating {
        why: Why,
        kill_at: Instant,
    },
    Killed {
        why: Why,
    },
    /// It has ended. What still comes out of its pipes is read for a while.
    Draining {
        why: Option<Why>,
        until: Instant,
    },
    Finished {
        why: Option<Why>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Something was read.
    Read,
    /// Every pipe that was to be read has ended.
    PipesEnded,
    /// More was read than is allowed.
    Overflow,
    /// Every program has ended.
    Exited,
    /// The phase's time is over.
    Due,
    /// Somebody wants it to end.
    Stop { grace: Duration },
    /// A signal may not be sent, because it runs as another user.
    Refused,
}

/// What is to be sent to the process groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Nothing,
    Term,
    Kill,
}

impl Phase {
    pub(super) fn why(self) -> Option<Why> {
        match self {
            Self::Running => None,
            Self::Terminating { why, .. } | Self::Killed { why } => Some(why),
            Self::Draining { why, .. } | Self::Finished { why } => why,
        }
    }

    pub(super) fn has_exited(self) -> bool {
        matches!(self, Self::Draining { .. } | Self::Finished { .. })
    }

    pub(super) fn is_finished(self) -> bool {
        matches!(self, Self::Finished { .. })
    }

    /// When `Event::Due` comes.
    pub(super) fn due(self, deadline: Option<Instant>) -> Option<Instant> {
        match self {
            Self::Running => deadline,
            Self::Terminating { kill_at, .. } => Some(kill_at),
            Self::Draining { until, .. } => Some(until),
            Self::Killed { .. } | Self::Finished { .. } => None,
        }
    }

    /// Why, once output was cut off. A stop is no error, and what was cut off must not pass for all there was.
    fn too_large(self) -> Why {
        match self.why() {
            None | Some(Why::Stopped) => Why::TooLarge,
            Some(why) => why,
        }
    }

    /// The one place where a phase changes. `grace` is what a timeout leaves between SIGTERM and SIGKILL.
    pub(super) fn on(self, event: Event, now: Instant, grace: Duration) -> (Self, Signal) {
        let terminate = |why, grace: Duration| match now.checked_add(grace) {
            _ if grace.is_zero() => (Self::Killed { why }, Signal::Kill),
            Some(kill_at) => (Self::Terminating { why, kill_at }, Signal::Term),
            // The end of time: never.
            None => (Self::Terminating { why, kill_at: now + FOREVER }, Signal::Term),
        };
        match (self, event) {
            (Self::Running, Event::Due) => terminate(Why::TimedOut, grace),
            (Self::Running, Event::Stop { grace }) => terminate(Why::Stopped, grace),
            (Self::Terminating { why, .. }, Event::Due) => (Self::Killed { why }, Signal::Kill),
            (Self::Terminating { why, kill_at }, Event::Stop { grace }) => match now.checked_add(grace) {
                Some(sooner) if sooner < kill_at => (Self::Terminating { why, kill_at: sooner }, Signal::Nothing),
                _ => (self, Signal::Nothing),
            },

            (Self::Running | Self::Terminating { .. }, Event::Overflow) => {
                (Self::Killed { why: self.too_large() }, Signal::Kill)
            }
            (Self::Killed { .. }, Event::Overflow) => (Self::Killed { why: self.too_large() }, Signal::Nothing),
            // It is what it left behind that writes too much.
            (Self::Draining { .. }, Event::Overflow) => (Self::Finished { why: Some(self.too_large()) }, Signal::Kill),

            (Self::Running | Self::Terminating { .. } | Self::Killed { .. }, Event::Exited) => {
                (Self::Draining { why: self.why(), until: now + DRAIN }, Signal::Nothing)
            }
            (Self::Draining { why, .. }, Event::PipesEnded | Event::Due) => (Self::Finished { why }, Signal::Nothing),

            // Nothing ends it but itself, and a stop says so.
            (Self::Killed { why: why @ (Why::TimedOut | Why::TooLarge) }, Event::Refused) => {
                (Self::Finished { why: Some(why) }, Signal::Nothing)
            }

            // Pipes can end long before the program does.
            (Self::Finished { .. }, _)
            | (_, Event::Read | Event::Refused)
            | (Self::Running | Self::Terminating { .. } | Self::Killed { .. }, Event::PipesEnded)
            | (Self::Killed { .. }, Event::Due | Event::Stop { .. })
            | (Self::Draining { .. }, Event::Exited | Event::Stop { .. }) => (self, Signal::Nothing),
        }
    }
}

const FOREVER: Duration = Duration::from_hours(24 * 365);

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(1);

    #[test]
    fn every_event_in_every_phase() {
        let now = Instant::now();
        let kill_at = now + Duration::from_secs(9);
        let until = now + DRAIN;
        let stop = Event::Stop { grace: Duration::from_secs(2) };
        let running = Phase::Running;
        let ending = Phase::Terminating { why: Why::TimedOut, kill_at };
        let killed = Phase::Killed { why: Why::TimedOut };
        let draining = Phase::Draining { why: None, until };
        let done = Phase::Finished { why: None };
        let timed_out = Some(Why::TimedOut);
        let stopped = Phase::Terminating { why: Why::Stopped, kill_at };
        let cut_off = Phase::Killed { why: Why::TooLarge };

        let asked = |why, after| Phase::Terminating { why, kill_at: now + after };
        let drained = |why| Phase::Draining { why, until };
        let table = [
            (running, Event::PipesEnded, running, Signal::Nothing),
            (running, Event::Overflow, Phase::Killed { why: Why::TooLarge }, Signal::Kill),
            (running, Event::Exited, draining, Signal::Nothing),
            (running, Event::Due, asked(Why::TimedOut, GRACE), Signal::Term),
            (running, stop, asked(Why::Stopped, Duration::from_secs(2)), Signal::Term),
            (ending, Event::PipesEnded, ending, Signal::Nothing),
            (ending, Event::Overflow, killed, Signal::Kill),
            (ending, Event::Exited, drained(timed_out), Signal::Nothing),
            (ending, Event::Due, killed, Signal::Kill),
            (ending, stop, asked(Why::TimedOut, Duration::from_secs(2)), Signal::Nothing),
            (killed, Event::PipesEnded, killed, Signal::Nothing),
            (killed, Event::Overflow, killed, Signal::Nothing),
            (killed, Event::Exited, drained(timed_out), Signal::Nothing),
            (killed, Event::Due, killed, Signal::Nothing),
            (killed, stop, killed, Signal::Nothing),
            (draining, Event::PipesEnded, done, Signal::Nothing),
            (draining, Event::Overflow, Phase::Finished { why: Some(Why::TooLarge) }, Signal::Kill),
            (draining, Event::Exited, draining, Signal::Nothing),
            (draining, Event::Due, done, Signal::Nothing),
            (draining, stop, draining, Signal::Nothing),
            (done, Event::PipesEnded, done, Signal::Nothing),
            (done, Event::Overflow, done, Signal::Nothing),
            (done, Event::Exited, done, Signal::Nothing),
            (done, Event::Due, done, Signal::Nothing),
            (done, stop, done, Signal::Nothing),
            (stopped, Event::Overflow, cut_off, Signal::Kill),
            (Phase::Killed { why: Why::Stopped }, Event::Overflow, cut_off, Signal::Nothing),
            (drained(Some(Why::Stopped)), Event::Overflow, Phase::Finished { why: Some(Why::TooLarge) }, Signal::Kill),
        ];
        for (phase, event, next, send) in table {
            assert_eq!(phase.on(event, now, GRACE), (next, send), "{phase:?} on {event:?}");
            assert_eq!(phase.on(Event::Read, now, GRACE), (phase, Signal::Nothing));
            // Who can't be killed is left behind; until then it may end.
            let left = if phase == killed || phase == cut_off { Phase::Finished { why: phase.why() } } else { phase };
            assert_eq!(phase.on(Event::Refused, now, GRACE), (left, Signal::Nothing));
        }
    }

    #[test]
    fn no_grace_kills_at_once_and_an_endless_one_is_no_panic() {
        let now = Instant::now();
        let (phase, send) = Phase::Running.on(Event::Stop { grace: Duration::ZERO }, now, GRACE);
        assert_eq!((phase, send), (Phase::Killed { why: Why::Stopped }, Signal::Kill));
        let (phase, send) = Phase::Running.on(Event::Due, now, Duration::MAX);
        assert!(matches!(phase, Phase::Terminating { .. }));
        assert_eq!(send, Signal::Term);
    }
}
