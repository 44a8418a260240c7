//! What a process lays on itself: resource limits and its priority. When that happens is decided elsewhere: between fork
//! and exec for a program (`in_child`), at the handshake for a worker.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Limits of one process, and its priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Address space, in bytes.
    pub(crate) memory: Option<u64>,
    pub(crate) cpu_time: Option<Duration>,
    /// How many fds it may have open.
    pub(crate) open_files: Option<u64>,
    pub(crate) nice: Option<i32>,
}

impl Limits {
    /// Lays them on this process; on an error it says with which one. It neither takes a lock nor allocates.
    pub(crate) fn apply(&self) -> Result<(), (&'static str, io::Error)> {
        if let Some(nice) = self.nice {
            set_priority(nice).map_err(|error| ("priority", error))?;
        }
        if let Some(time) = self.cpu_time {
            // The kernel counts in seconds. At the soft limit it sends SIGXCPU, which says what has happened; at the hard
            // one SIGKILL.
            let seconds = time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0));
            set(libc::RLIMIT_CPU, seconds, seconds.saturating_add(1)).map_err(|error| ("processor time", error))?;
        }
        if let Some(count) = self.open_files {
            set(libc::RLIMIT_NOFILE, count, count).map_err(|error| ("open files", error))?;
        }
        // Last, as nothing is sure to work under it.
        if let Some(bytes) = self.memory {
            set(libc::RLIMIT_AS, bytes, bytes).map_err(|error| ("memory", error))?;
        }
        Ok(())
    }
}

/// setrlimit(2).
fn set(resource: libc::__rlimit_resource_t, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is live and only read.
    check(unsafe { libc::setrlimit(resource, &raw const limit) })
}

/// setpriority(2). On Linux each thread has a priority of its own, which those that it starts inherit.
fn set_priority(nice: i32) -> io::Result<()> {
    // SAFETY: neither touches memory.
    let main_thread = unsafe { libc::getpid() }.unsigned_abs();
    for who in [0, main_thread] {
        // SAFETY: as above.
        check(unsafe { libc::setpriority(libc::PRIO_PROCESS, who, nice) })?;
    }
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
