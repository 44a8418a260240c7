//! What a process lays on itself: resource limits and its priority. When that happens is decided elsewhere: between fork
//! and exec for a program (`in_child`), at the handshake for a worker.

use std::ffi::c_int;
use std::fs::File;
use std::io::Read as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, Rlimit};
use serde::{Deserialize, Serialize};

use super::raw::{call, check};

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
    /// Lays them on this process; on an error it says with which one, and the number. It makes system calls, and nothing else.
    pub(crate) fn apply(&self) -> Result<(), (&'static str, c_int)> {
        self.apply_with_memory(|bytes| bytes)
    }

    /// As [`apply`](Self::apply), but leaves the hard limit of memory where it is, so that [`with_memory_to_spare`] can lift
    /// the soft one.
    pub(crate) fn apply_to_worker(&self) -> Result<(), (&'static str, c_int)> {
        self.apply_with_memory(|bytes| get(Resource::As).maximum.map_or(NONE, |hard| hard.max(bytes)))
    }

    fn apply_with_memory(&self, hard: impl FnOnce(u64) -> u64) -> Result<(), (&'static str, c_int)> {
        if let Some(nice) = self.nice {
            set_priority(nice).map_err(|error| ("priority", error))?;
        }
        if let Some(time) = self.cpu_time {
            // The kernel counts in seconds. At the soft limit it sends SIGXCPU, which says what has happened; at the hard
            // one SIGKILL.
            let seconds = time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0));
            set(Resource::Cpu, seconds, seconds.saturating_add(1)).map_err(|error| ("processor time", error))?;
        }
        if let Some(count) = self.open_files {
            set(Resource::Nofile, count, count).map_err(|error| ("open files", error))?;
        }
        // Last, as nothing is sure to work under it.
        if let Some(bytes) = self.memory {
            set(Resource::As, bytes, hard(bytes)).map_err(|error| ("memory", error))?;
        }
        Ok(())
    }
}

/// What there must be to spare: more than a backtrace takes of a large executable, which is mapped and its tables read.
const ROOM: u64 = 512 << 20;

/// The soft limit of memory while it is lifted.
struct Lift {
    /// How many threads need that at the moment.
    count: usize,
    /// What it was before, if there was one.
    limit: Option<u64>,
    /// How much address space was in use then, if that could be read.
    used: Option<u64>,
    /// How much more it was at the end, the time when that was most. By that the limit is higher than it was laid on.
    kept: u64,
}

static LIFT: Mutex<Lift> = Mutex::new(Lift { count: 0, limit: None, used: None, kept: 0 });

/// Runs `work` with the memory limit lifted, so far as this process may. `None`, without running it, where that does not leave
/// enough.
///
/// What `work` keeps does not count, or it would be taken from who comes next: the limit is that much higher afterwards. It is
/// so for the most that one of them kept, and not for the sum: it can't be told from what other threads take meanwhile.
pub(crate) fn with_memory_to_spare<R>(work: impl FnOnce() -> R) -> Option<R> {
    let enough = Lift::begin();
    let result = enough.then(work);
    Lift::end();
    result
}

impl Lift {
    /// Says whether there is enough to spare now.
    fn begin() -> bool {
        let (mut lift, old) = (Self::lock(), get(Resource::As));
        lift.count += 1;
        if lift.count == 1 {
            lift.limit = old.current;
            if lift.limit.is_some() {
                // Cannot fail: up to the hard limit everybody may go.
                let hard = old.maximum.unwrap_or(NONE);
                let _ = set(Resource::As, hard, hard);
                lift.used = used_address_space();
            }
        }
        old.maximum.is_none_or(|most| used_address_space().is_some_and(|used| most.saturating_sub(used) >= ROOM))
    }

    fn end() {
        let mut lift = Self::lock();
        lift.count -= 1;
        if lift.count == 0
            && let Some(limit) = lift.limit
        {
            let laid_on = limit.saturating_sub(lift.kept);
            // What is not known is nothing: all that is in use would lift the limit for good.
            let kept = lift.used.zip(used_address_space()).map_or(0, |(before, now)| now.saturating_sub(before));
            lift.kept = lift.kept.max(kept);
            let old = get(Resource::As);
            let hard = old.maximum.unwrap_or(NONE);
            let _ = set(Resource::As, laid_on.saturating_add(lift.kept).min(hard), hard);
        }
    }

    fn lock() -> MutexGuard<'static, Self> {
        LIFT.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many bytes of address space this process uses; `statm` in proc(5). It allocates nothing.
fn used_address_space() -> Option<u64> {
    let mut text = [0; 64];
    let len = File::open("/proc/self/statm").ok()?.read(&mut text).ok()?;
    let pages: u64 = str::from_utf8(&text[..len]).ok()?.split(' ').next()?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// A limit and the hard one, as the kernel has them for every C library; prlimit(2).
#[repr(C)]
struct Pair {
    soft: u64,
    hard: u64,
}

/// The kernel's word for no limit, which is the C libraries' only where a long has 64 bits.
const NONE: u64 = u64::MAX;

/// The limit as it is; prlimit(2). Where that is refused, by a sandbox say, no limit is known; rustix would panic.
pub(super) fn get(resource: Resource) -> Rlimit {
    let mut limit = Pair { soft: NONE, hard: NONE };
    // SAFETY: `limit` is live and writable. A call that fails leaves it as it is.
    unsafe { call(libc::SYS_prlimit64, [0, resource as usize, 0, (&raw mut limit).expose_provenance()]) };
    let known = |value| (value != NONE).then_some(value);
    Rlimit { current: known(limit.soft), maximum: known(limit.hard) }
}

/// prlimit(2), of this process.
fn set(resource: Resource, soft: u64, hard: u64) -> Result<(), c_int> {
    let limit = Pair { soft, hard };
    // SAFETY: `limit` is live and only read.
    check(unsafe { call(libc::SYS_prlimit64, [0, resource as usize, (&raw const limit).expose_provenance(), 0]) })
}

/// setpriority(2). On Linux each thread has a priority of its own, which those that it starts inherit.
fn set_priority(nice: i32) -> Result<(), c_int> {
    // SAFETY: takes nothing.
    let main_thread = usize::try_from(unsafe { call(libc::SYS_getpid, [0; 4]) }).unwrap_or(0);
    // The kernel looks at the lower half of it.
    let nice = nice.cast_unsigned() as usize;
    for who in [0, main_thread] {
        // SAFETY: takes numbers.
        check(unsafe { call(libc::SYS_setpriority, [libc::PRIO_PROCESS as usize, who, nice, 0]) })?;
    }
    Ok(())
}
