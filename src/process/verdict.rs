//! Who of a pipeline is to blame for its end, and the errors that say so.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Output};

use super::child::{Child, Member};
use super::exchange::Exchange;
use super::phase::Why;
use crate::error::CommandError;

impl Child {
    /// The program to blame, and its status: the first that failed, else the last. `None` while one is unknown.
    pub(super) fn verdict(&self) -> Option<(&Member, ExitStatus)> {
        let last = self.members.len() - 1;
        let mut verdict = None;
        for (index, member) in self.members.iter().enumerate() {
            let status = member.kept.try_exit()?.status?;
            // What the next program did not want to read any more is not this one's fault.
            let excused = index < last && status.signal() == Some(libc::SIGPIPE);
            if (!status.success() && !excused) || index == last {
                verdict = verdict.or(Some((member, status)));
            }
        }
        verdict
    }

    /// The error for a program that was not left to its own end.
    pub(super) fn cut_short(&mut self, why: Why) -> CommandError {
        // What we killed, and somebody else reaped, most probably died of it.
        let killed = ExitStatus::from_raw(libc::SIGKILL);
        let Member { place, kept, .. } = &self.members[self.at_fault];
        let status = kept.try_exit().and_then(|exit| exit.status).unwrap_or(killed);
        let program = place.name();
        let output = self.take_output(status);
        match why {
            Why::TooLarge => {
                let max = self.exchange.max_output.unwrap_or(usize::MAX);
                CommandError::TooLarge { program, output, max: max as u64 }
            }
            Why::TimedOut | Why::Stopped => {
                let source = self.refused.map(io::Error::from_raw_os_error);
                CommandError::TimedOut { program, output, after: self.timeout.unwrap_or_default(), source }
            }
        }
    }

    /// The error for a program whose status is not 0.
    pub(super) fn failed(&self, output: Output) -> CommandError {
        CommandError::Failed {
            program: self.verdict().map_or_else(|| self.name(), |(member, _)| member.place.name()),
            statuses: self.statuses(),
            output,
            elapsed: self.started.elapsed(),
        }
    }

    /// Who is to blame for what has just cut it short: of those that still run, the first for the time that they take, and the
    /// last, whose output is read, for too much of it.
    pub(super) fn find_fault(&self) -> usize {
        let runs = |member: &Member| member.kept.try_exit().is_none();
        let found = match self.exchange.phase.why() {
            Some(Why::TooLarge) => self.members.iter().rposition(runs),
            _ => self.members.iter().position(runs),
        };
        found.unwrap_or(self.members.len() - 1)
    }

    fn name(&self) -> String {
        self.members.last().map(|member| member.place.name()).unwrap_or_default()
    }

    pub(super) fn take_output(&mut self, status: ExitStatus) -> Output {
        let Exchange { stdout, stderr, .. } = &mut self.exchange;
        Output { status, stdout: std::mem::take(stdout), stderr: std::mem::take(stderr) }
    }
}
