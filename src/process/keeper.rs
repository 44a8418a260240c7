//! The keeper: one thread that waits for children, kills what they leave behind, and reaps them.
//!
//! It belongs to no runtime, and it lives as long as the process: so every child's end is seen, whether somebody waits for
//! it or not. Who waits may see it first (`Kept::exited_watched`) and then takes the same steps, which spares him the way over
//! this thread. So the keeper leaves a few children alone in their first milliseconds: most programs that somebody waits for
//! are over by then. Children are started on the threads of others (`spawn` here, `spawn_async` in `starter`).
//!
//! ```text
//! start ─▶ 10 ms ─▶ pidfd in epoll ─▶ readable ─▶ look at the exit, leave the zombie ─▶ kill the group ─▶ reap ─▶ tell
//!                                                   └─ something still holds its pipes: tell, and wait for
//!                                                      the pipes' end or the drain grace ──▶ kill, reap
//! ```
//! The leader stays a zombie until its group is killed, so that the group's number cannot be recycled in between. Not so in a
//! grace: then it is reaped first, and its group, which its pidfd still names, is looked at now and then until nobody is left.
//! As it has a clock, it also makes `calls` for others. Here is when things happen; what may be done to a child in which state
//! is in `kept`.

mod agenda;
mod calls;
mod copies;
mod orphans;
mod request;
mod young;

use std::collections::HashMap;
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

use self::agenda::Agenda;
use self::calls::Call;
pub(crate) use self::calls::call_in;
pub(crate) use self::copies::is_forked_copy;
pub(super) use self::copies::no_forked_copy;
use self::orphans::Orphans;
pub(super) use self::orphans::reap_orphans;
pub(crate) use self::request::{DRAIN, Started, Terms};
pub(super) use self::request::{Refused, Request};
use self::young::MOST_YOUNG;
pub(super) use self::young::listen_to;
use super::kept::{Kept, KillOnDrop, Leavings, Seen};
use super::program::Launch;
pub(super) use super::starter::spawn_async;
use crate::sys::process::{SignalMask, kill_and_reap, open_pidfd, peek_exit};
use crate::sys::socket::above_stdio;
use crate::sys::spawn::{Fate, empty_cradles};

/// Starts a program on the calling thread, which takes about a millisecond. It should have a process group of its own.
pub(super) fn spawn(command: Box<dyn Launch>, terms: Terms) -> io::Result<Started> {
    start(Request { command, terms }).map_err(|refused| refused.error)
}

/// Starts and keeps a child, on this thread.
pub(super) fn start(request: Request) -> Result<Started, Box<Refused>> {
    match Keeper::get() {
        Ok(keeper) => keeper.start(request),
        Err(error) => Err(Box::new(Refused { error, request: Some(request) })),
    }
}

/// Has the keeper look at a child that it keeps.
pub(super) fn look_at(key: u64) {
    if let Some(keeper) = KEEPER.get() {
        keeper.desk().to_look_at.push(key);
        keeper.ring();
    }
}

/// Has the keeper forget a child that somebody else reaped.
pub(super) fn forget(key: u64) {
    if let Some(keeper) = KEEPER.get() {
        keeper.forget(key);
    }
}

/// Has the keeper kill a child that it keeps, and its group, if it has not ended by then.
pub(super) fn kill_in(key: u64, grace: Duration) {
    // A grace past the end of time is over never.
    if let (Some(keeper), Some(at)) = (KEEPER.get(), Instant::now().checked_add(grace)) {
        let mut desk = keeper.desk();
        if desk.kept.contains_key(&key) {
            desk.to_kill.push((key, at));
            keeper.ring();
        }
    }
}

static KEEPER: OnceLock<Keeper> = OnceLock::new();

struct Keeper {
    epoll: OwnedFd,
    /// An eventfd: rings when somebody is to be looked at.
    bell: OwnedFd,
    /// A timerfd: rings when the young are to be listened to.
    alarm: OwnedFd,
    desk: Mutex<Desk>,
}

#[derive(Default)]
struct Desk {
    last_key: u64,
    kept: HashMap<u64, Kept>,
    /// Who has been started since the alarm last rang, and is not listened to yet. It is set while there are any.
    young: Vec<u64>,
    /// Whose lingering somebody wants to end.
    to_look_at: Vec<u64>,
    /// Who was asked to end, and until when it may take.
    to_kill: Vec<(u64, Instant)>,
    /// What else was killed, and may become a child of this process.
    orphans: Vec<Orphans>,
    /// What is to be called.
    calls: Vec<Call>,
}

/// The event keys of the bell and the alarm; children count from 1.
const BELL: u64 = 0;
const ALARM: u64 = u64::MAX;

/// How long one wait is at the most. From 2^31 milliseconds on it would take epoll_pwait2(2), which kernels before 5.11 and
/// some sandboxes refuse.
const LONGEST_WAIT: Duration = Duration::from_hours(1);

impl Keeper {
    fn get() -> io::Result<&'static Self> {
        // The thread is started under this lock, so that two first users don't start two.
        static STARTING: Mutex<()> = Mutex::new(());
        no_forked_copy()?;
        if let Some(keeper) = KEEPER.get() {
            return Ok(keeper);
        }
        let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keeper) = KEEPER.get() {
            return Ok(keeper);
        }
        let new = Self::new()?;
        // The thread waits for KEEPER to be set, so it starts first: if it can't, nothing has happened.
        let (ready, set) = std::sync::mpsc::sync_channel::<()>(1);
        thread::Builder::new().name("multiproc-keeper".into()).stack_size(512 << 10).spawn(move || {
            // A signal for the host must not be handled here, let alone kill it because this thread has not blocked it.
            SignalMask::full().install();
            if set.recv().is_ok()
                && let Some(keeper) = KEEPER.get()
            {
                keeper.run();
            }
        })?;
        let keeper = KEEPER.get_or_init(|| new);
        let _ = ready.send(());
        Ok(keeper)
    }

    /// One without a thread.
    fn new() -> io::Result<Self> {
        let epoll = above_stdio(epoll::create(epoll::CreateFlags::CLOEXEC)?)?;
        let bell = above_stdio(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)?;
        epoll::add(&epoll, &bell, EventData::new_u64(BELL), EventFlags::IN | EventFlags::ET)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let alarm = above_stdio(timerfd_create(TimerfdClockId::Monotonic, flags)?)?;
        epoll::add(&epoll, &alarm, EventData::new_u64(ALARM), EventFlags::IN | EventFlags::ET)?;
        Ok(Self { epoll, bell, alarm, desk: Mutex::default() })
    }

    fn run(&self) {
        let mut agenda = Agenda::default();
        loop {
            // What can panic here is somebody else's waker, or std. The children of everybody else still need a keeper.
            let _ = catch_unwind(AssertUnwindSafe(|| {
                loop {
                    self.turn(&mut agenda);
                }
            }));
        }
    }

    /// Waits for something to happen, and looks at whom it happened to. Nothing in here takes long.
    fn turn(&self, agenda: &mut Agenda) {
        let mut events = [MaybeUninit::uninit(); 64];
        let timeout = self.timeout(agenda);
        match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok((events, _)) => {
                for event in events {
                    match event.data.u64() {
                        BELL => _ = rustix::io::read(&self.bell, &mut [0; 8]),
                        ALARM => self.listen_to_young(&mut self.desk()),
                        key => self.look(key, agenda),
                    }
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            // Cannot happen with a good epoll fd; if it does, do not spin.
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
        let keys = mem::take(&mut self.desk().to_look_at);
        for key in keys {
            self.look(key, agenda);
        }
        self.meet_deadlines(agenda);
        self.look_at_orphans(agenda);
        self.make_calls();
    }

    fn look(&self, key: u64, agenda: &mut Agenda) {
        let Some(kept) = self.desk().kept.get(&key).cloned() else { return };
        // Who waits is woken last of all, and that may panic. What else has come is an event of another child's, and comes once.
        let seen = catch_unwind(AssertUnwindSafe(|| kept.look())).unwrap_or_else(|_| kept.look());
        match seen {
            // It was an event of something else, or a debugger has its end for itself until it has seen it, for which there is no
            // event: it is looked at now and then.
            Seen::Running => {
                let mut desk = self.desk();
                if !desk.young.contains(&key) {
                    self.keep_young(&mut desk, key);
                }
            }
            Seen::Reaped => self.forget(key),
            Seen::Lingering if agenda.lingers(key) => {}
            Seen::Lingering => {
                for pipe in kept.pipes() {
                    // Asks for nothing: a hang-up is always reported. If this fails, the grace ends it.
                    let _ = epoll::add(&self.epoll, &pipe, EventData::new_u64(key), EventFlags::ET);
                }
                agenda.let_linger(key, kept.drain());
            }
            Seen::Outlived => agenda.look_again_at(key),
        }
    }

    fn forget(&self, key: u64) {
        empty_cradles();
        let mut desk = self.desk();
        desk.kept.remove(&key);
        desk.to_kill.retain(|(other, _)| *other != key);
    }

    fn meet_deadlines(&self, agenda: &mut Agenda) {
        let due = {
            let mut desk = self.desk();
            if agenda.is_empty() && desk.to_kill.is_empty() {
                return;
            }
            let now = Instant::now();
            let Desk { to_kill, kept, .. } = &mut *desk;
            to_kill
                .extract_if(.., |(_, at)| *at <= now)
                .filter_map(|(key, _)| kept.get(&key).cloned())
                .collect::<Vec<_>>()
        };
        for kept in due {
            // Who waits for it may be woken, and that may panic; the others are due all the same.
            let _ = catch_unwind(AssertUnwindSafe(|| kept.signal_group(libc::SIGKILL)));
        }
        let now = Instant::now();
        agenda.lingering.retain_mut(|linger| {
            let Some(kept) = self.desk().kept.get(&linger.key).cloned() else { return false };
            if linger.until <= now {
                kept.bury_now();
                self.forget(linger.key);
                return false;
            }
            if linger.tell_at.is_some_and(|at| at <= now) {
                linger.tell_at = None;
                kept.tell();
            }
            true
        });
        self.look_at_outlived(agenda, now);
    }

    fn timeout(&self, agenda: &Agenda) -> Option<Timespec> {
        let desk = self.desk();
        let calls = desk.calls.iter().map(|call| call.at);
        let next = agenda.next().chain(desk.to_kill.iter().map(|(_, at)| *at)).chain(calls).min()?;
        // A millisecond more than is left, so that it has passed when epoll, which counts in milliseconds, wakes.
        let left = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        Timespec::try_from(left.min(LONGEST_WAIT)).ok()
    }

    /// Starts a child and keeps it, on this thread.
    fn start(&self, mut request: Request) -> Result<Started, Box<Refused>> {
        let born = match request.command.launch() {
            Ok(born) => born,
            Err(error) => return Err(Box::new(Refused { error, request: Some(request) })),
        };
        let Request { command, terms } = request;
        // With it go its copies of the child's ends of pipes, which would look like another writer.
        drop(command);
        let [stdin, stdout, stderr] = born.ends;
        let stdin = stdin.or(terms.stdin);
        let stdout = stdout.or(terms.stdout).map(Arc::new);
        let stderr = stderr.or(terms.stderr).map(Arc::new);
        let leavings = Leavings {
            pipes: stdout.iter().chain(&stderr).map(Arc::downgrade).collect(),
            drain: terms.drain,
            spared: terms.spare_group,
            channel: terms.channel,
        };
        match self.keep(born.pid, born.pidfd, born.fate, leavings) {
            Ok(kept) => Ok(Started { child: KillOnDrop::new(kept), stdin, stdout, stderr }),
            Err(error) => {
                // No fd for the pidfd, say.
                kill_and_reap(born.pid);
                Err(Box::new(Refused { error, request: None }))
            }
        }
    }

    fn keep(&self, pid: u32, pidfd: Option<OwnedFd>, fate: Option<Fate>, leavings: Leavings) -> io::Result<Kept> {
        let Some(pidfd) = pidfd.map_or_else(|| open_child(pid), |pidfd| Ok(Some(pidfd)))? else {
            return Ok(Kept::lost(pid));
        };
        let mut desk = self.desk();
        desk.last_key += 1;
        let key = desk.last_key;
        let kept = Kept::new(pid, key, pidfd, fate, leavings);
        desk.kept.insert(key, kept.clone());
        if desk.young.len() >= MOST_YOUNG {
            self.listen_to_young(&mut desk);
        }
        self.keep_young(&mut desk, key);
        Ok(kept)
    }

    fn ring(&self) {
        // Fails only when the counter is full, and then the bell is ringing already.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pidfd of a child that was born without; `None` if somebody else has reaped it.
fn open_child(pid: u32) -> io::Result<Option<OwnedFd>> {
    match open_pidfd(pid) {
        // In a host that reaps behind our back the number may be a stranger's by now. That one is no child of ours.
        Ok(pidfd) => Ok(peek_exit(&pidfd).is_ok().then_some(pidfd)),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
