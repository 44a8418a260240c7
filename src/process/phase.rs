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
pub(super) enum Send {
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
    pub(super) fn on(self, event: Event, now: Instant, grace: Duration) -> (Self, Send) {
        let terminate = |why, grace: Duration| match now.checked_add(grace) {
            _ if grace.is_zero() => (Self::Killed { why }, Send::Kill),
            Some(kill_at) => (Self::Terminating { why, kill_at }, Send::Term),
            // The end of time: never.
            None => (Self::Terminating { why, kill_at: now + FOREVER }, Send::Term),
        };
        match (self, event) {
            (Self::Running, Event::Due) => terminate(Why::TimedOut, grace),
            (Self::Running, Event::Stop { grace }) => terminate(Why::Stopped, grace),
            (Self::Terminating { why, .. }, Event::Due) => (Self::Killed { why }, Send::Kill),
            (Self::Terminating { why, kill_at }, Event::Stop { grace }) => match now.checked_add(grace) {
                Some(sooner) if sooner < kill_at => (Self::Terminating { why, kill_at: sooner }, Send::Nothing),
                _ => (self, Send::Nothing),
            },

            (Self::Running | Self::Terminating { .. }, Event::Overflow) => {
                (Self::Killed { why: self.too_large() }, Send::Kill)
            }
            (Self::Killed { .. }, Event::Overflow) => (Self::Killed { why: self.too_large() }, Send::Nothing),
            // It is what it left behind that writes too much.
            (Self::Draining { .. }, Event::Overflow) => (Self::Finished { why: Some(self.too_large()) }, Send::Kill),

            (Self::Running | Self::Terminating { .. } | Self::Killed { .. }, Event::Exited) => {
                (Self::Draining { why: self.why(), until: now + DRAIN }, Send::Nothing)
            }
            (Self::Draining { why, .. }, Event::PipesEnded | Event::Due) => (Self::Finished { why }, Send::Nothing),

            // Nothing ends it but itself, and a stop says so.
            (Self::Killed { why: why @ (Why::TimedOut | Why::TooLarge) }, Event::Refused) => {
                (Self::Finished { why: Some(why) }, Send::Nothing)
            }

            // Pipes can end long before the program does.
            (Self::Finished { .. }, _)
            | (_, Event::Read | Event::Refused)
            | (Self::Running | Self::Terminating { .. } | Self::Killed { .. }, Event::PipesEnded)
            | (Self::Killed { .. }, Event::Due | Event::Stop { .. })
            | (Self::Draining { .. }, Event::Exited | Event::Stop { .. }) => (self, Send::Nothing),
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
            (running, Event::PipesEnded, running, Send::Nothing),
            (running, Event::Overflow, Phase::Killed { why: Why::TooLarge }, Send::Kill),
            (running, Event::Exited, draining, Send::Nothing),
            (running, Event::Due, asked(Why::TimedOut, GRACE), Send::Term),
            (running, stop, asked(Why::Stopped, Duration::from_secs(2)), Send::Term),
            (ending, Event::PipesEnded, ending, Send::Nothing),
            (ending, Event::Overflow, killed, Send::Kill),
            (ending, Event::Exited, drained(timed_out), Send::Nothing),
            (ending, Event::Due, killed, Send::Kill),
            (ending, stop, asked(Why::TimedOut, Duration::from_secs(2)), Send::Nothing),
            (killed, Event::PipesEnded, killed, Send::Nothing),
            (killed, Event::Overflow, killed, Send::Nothing),
            (killed, Event::Exited, drained(timed_out), Send::Nothing),
            (killed, Event::Due, killed, Send::Nothing),
            (killed, stop, killed, Send::Nothing),
            (draining, Event::PipesEnded, done, Send::Nothing),
            (draining, Event::Overflow, Phase::Finished { why: Some(Why::TooLarge) }, Send::Kill),
            (draining, Event::Exited, draining, Send::Nothing),
            (draining, Event::Due, done, Send::Nothing),
            (draining, stop, draining, Send::Nothing),
            (done, Event::PipesEnded, done, Send::Nothing),
            (done, Event::Overflow, done, Send::Nothing),
            (done, Event::Exited, done, Send::Nothing),
            (done, Event::Due, done, Send::Nothing),
            (done, stop, done, Send::Nothing),
            (stopped, Event::Overflow, cut_off, Send::Kill),
            (Phase::Killed { why: Why::Stopped }, Event::Overflow, cut_off, Send::Nothing),
            (drained(Some(Why::Stopped)), Event::Overflow, Phase::Finished { why: Some(Why::TooLarge) }, Send::Kill),
        ];
        for (phase, event, next, send) in table {
            assert_eq!(phase.on(event, now, GRACE), (next, send), "{phase:?} on {event:?}");
            assert_eq!(phase.on(Event::Read, now, GRACE), (phase, Send::Nothing));
            // Who can't be killed is left behind; until then it may end.
            let left = if phase == killed || phase == cut_off { Phase::Finished { why: phase.why() } } else { phase };
            assert_eq!(phase.on(Event::Refused, now, GRACE), (left, Send::Nothing));
        }
    }

    #[test]
    fn no_grace_kills_at_once_and_an_endless_one_is_no_panic() {
        let now = Instant::now();
        let (phase, send) = Phase::Running.on(Event::Stop { grace: Duration::ZERO }, now, GRACE);
        assert_eq!((phase, send), (Phase::Killed { why: Why::Stopped }, Send::Kill));
        let (phase, send) = Phase::Running.on(Event::Due, now, Duration::MAX);
        assert!(matches!(phase, Phase::Terminating { .. }));
        assert_eq!(send, Send::Term);
    }
}
