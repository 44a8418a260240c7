//! What a child does to itself before it becomes the program: the settings that std has no attribute for.
//!
//! Where `spawn` starts the program it is a part of the child's orders. Where std has to, it is a `pre_exec`: std then forks,
//! which copies this process's page tables.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::fs::{Mode, OFlags};

use super::limits::Limits;
use super::raw::{call, check};

/// What the child does to itself before it becomes the program.
#[derive(Debug, Default)]
pub(crate) struct InChild {
    pub(crate) new_session: bool,
    /// Makes stderr a copy of stdout.
    pub(crate) stderr_to_stdout: bool,
    /// Open files and the numbers that they get, none of them below 3.
    pub(crate) inherited: Vec<(OwnedFd, i32)>,
    pub(crate) umask: Option<u32>,
    pub(crate) limits: Limits,
}

impl InChild {
    /// Whether there is nothing to do, so that no fork is needed.
    pub(crate) fn is_empty(&self) -> bool {
        !self.new_session
            && !self.stderr_to_stdout
            && self.inherited.is_empty()
            && self.umask.is_none()
            && self.limits == Limits::default()
    }

    /// Has the command's child do all this, if it is anything.
    pub(crate) fn install(mut self, command: &mut Command) -> io::Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let reserved = self.reserve_numbers()?;
        let set_up = move || {
            let _ = &reserved;
            self.apply().map_err(io::Error::from_raw_os_error)
        };
        // SAFETY: `set_up` runs in a fork of a process that may have other threads. It only makes system calls on numbers
        // that were made before the fork: it takes no lock, and it neither allocates nor frees.
        unsafe { command.pre_exec(set_up) };
        Ok(())
    }

    /// Moves what is inherited away from the numbers that it gets, so that no copy overwrites the source of another.
    pub(crate) fn move_sources(&mut self) -> io::Result<()> {
        let targets: Vec<_> = self.inherited.iter().map(|(_, number)| *number).collect();
        let above = targets.iter().map(|number| number.saturating_add(1)).max().unwrap_or(3);
        for (fd, _) in &mut self.inherited {
            let mut moved = rustix::io::fcntl_dupfd_cloexec(&*fd, above);
            // Above the highest number that there may be is nothing, and below it somewhere.
            let mut from = 3;
            while moved.is_err() {
                let below = rustix::io::fcntl_dupfd_cloexec(&*fd, from)?;
                from = below.as_raw_fd() + 1;
                if !targets.contains(&below.as_raw_fd()) {
                    moved = Ok(below);
                }
            }
            *fd = moved?;
        }
        Ok(())
    }

    /// Sees to it that no number which the child overwrites is in use there.
    ///
    /// The sources move away from all targets. And targets that are free in this process get occupied for as long as the command
    /// lives, or std's own pipe, through which the child reports that exec failed, could be born there.
    fn reserve_numbers(&mut self) -> io::Result<Vec<OwnedFd>> {
        self.move_sources()?;
        let mut reserved = Vec::new();
        for (_, number) in &self.inherited {
            let null = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
            let taken = rustix::io::fcntl_dupfd_cloexec(&null, *number)?;
            if taken.as_raw_fd() == *number {
                reserved.push(taken);
            }
        }
        Ok(reserved)
    }

    /// Runs in the child, which may be in this process's memory and on a small stack: it makes system calls, and nothing else.
    pub(super) fn apply(&self) -> Result<(), c_int> {
        if self.new_session {
            // SAFETY: takes nothing.
            check(unsafe { call(libc::SYS_setsid, [0; 4]) })?;
        }
        if self.stderr_to_stdout {
            // SAFETY: the child's own 1 and 2, which have been set up before this runs.
            check(unsafe { call(libc::SYS_dup3, [1, 2, 0, 0]) })?;
        }
        for (fd, number) in &self.inherited {
            let (fd, number) = (fd.as_raw_fd().cast_unsigned() as usize, number.cast_unsigned() as usize);
            // SAFETY: `number` is 3 or more (checked when it was set) and no source's (see `move_sources`), so this overwrites
            // nothing that is still needed in this child.
            check(unsafe { call(libc::SYS_dup3, [fd, number, 0, 0]) })?;
        }
        if let Some(mask) = self.umask {
            // SAFETY: takes a number, and cannot fail.
            unsafe { call(libc::SYS_umask, [mask as usize, 0, 0, 0]) };
        }
        self.limits.apply().map_err(|(_, error)| error)
    }
}
