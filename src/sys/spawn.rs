//! Starting a program without a copy of this process: clone3(2) with a child that borrows this process's memory until it
//! becomes the program, as `posix_spawn(3)` does it.
//!
//! What that function does beside is left out: it resets the 64 signals one by one, which the kernel does in one go
//! (`CLONE_CLEAR_SIGHAND`), and it maps a stack each time. And here the pidfd is the clone's own (`CLONE_PIDFD`), so that it
//! names this child even in a host that reaps it behind our back. Where there is no such call (another architecture, a kernel
//! before 5.5, a sandbox, valgrind), the caller has std start the program.
//!
//! `spawn` stands still until the child has become the program, or could not (`CLONE_VFORK`). `Cradle::spawn` does not: its child
//! lives in the cradle meanwhile, memory that stays as it is until the kernel says that the child has left it; and what went
//! wrong is known once it has ended.

use std::cell::UnsafeCell;
use std::ffi::{CStr, CString, OsStr, c_char, c_int};
use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::event::{PollFd, PollFlags, poll};

use super::in_child::InChild;
use super::process::{SignalMask, reap, signal};
use super::raw::{self, Stack, call, check, clone3};
use super::socket::duplicate;

/// A program and all that the child needs to become it, so that it allocates nothing.
#[derive(Debug)]
pub(crate) struct Exec {
    /// Where it may be: the first that can be executed is taken, as execvp(3) does.
    pub(crate) paths: Strings,
    pub(crate) args: Strings,
    /// `NAME=value`, each.
    pub(crate) env: Strings,
    pub(crate) current_dir: Option<CString>,
    /// Whether it is a worker of ours: it inherits nothing but stdio, and gets SIGCONT when its parent's thread ends. It can
    /// tell by that signal that somebody has seen to both.
    pub(crate) worker: bool,
}

/// A list of C strings, in one piece of memory: an environment has dozens.
#[derive(Debug, Default)]
pub(crate) struct Strings {
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

impl Strings {
    /// Makes room for so many strings of the usual length.
    pub(crate) fn reserve(&mut self, count: usize) {
        self.starts.reserve(count);
        self.bytes.reserve(count * 64);
    }

    /// Adds a variable of an environment, as [`push`](Self::push).
    pub(crate) fn push_var(&mut self, name: &OsStr, value: &OsStr) -> io::Result<()> {
        self.push(&[name.as_bytes(), b"=", value.as_bytes()])
    }

    /// Adds a string that consists of these parts. A NUL in it is `InvalidInput`.
    pub(crate) fn push(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        if parts.iter().any(|part| part.contains(&0)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a NUL in what a program is given"));
        }
        self.starts.push(self.bytes.len());
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        self.bytes.push(0);
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &CStr> {
        self.starts.iter().map(|start| CStr::from_bytes_until_nul(&self.bytes[*start..]).unwrap())
    }

    /// As exec(3) takes them; the pointers are good until the list changes.
    fn pointers(&self) -> Vec<*const c_char> {
        let at = |start: &usize| self.bytes[*start..].as_ptr().cast();
        self.starts.iter().map(at).chain([ptr::null()]).collect()
    }
}

/// A child that is its program, or will be in a moment, unless it ends before.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
}

/// What has become of a start that nobody waited for.
#[derive(Debug)]
pub(crate) struct Fate(Arc<AtomicI32>);

impl Fate {
    /// Why the child never was its program. Final once the child has ended; `None` before, too.
    pub(crate) fn error(&self) -> Option<io::Error> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            error => Some(io::Error::from_raw_os_error(error)),
        }
    }
}

/// What the child has to do, and where it says that it could not. All of it outlives the child's stay in this memory.
struct Order {
    stdio: [c_int; 3],
    /// Null if there is nothing to do.
    in_child: *const InChild,
    current_dir: *const c_char,
    worker: bool,
    paths: *const *const c_char,
    args: *const *const c_char,
    env: *const *const c_char,
    mask: SignalMask,
    /// Gets the error number when the child has failed.
    failed: *const AtomicI32,
}

/// The strings of an `Exec` as exec(3) takes them; the pointers are good until it changes or goes.
struct Pointers {
    paths: Vec<*const c_char>,
    args: Vec<*const c_char>,
    env: Vec<*const c_char>,
    current_dir: *const c_char,
    worker: bool,
}

impl Pointers {
    fn into(exec: &Exec) -> Self {
        Self {
            paths: exec.paths.pointers(),
            args: exec.args.pointers(),
            env: exec.env.pointers(),
            current_dir: exec.current_dir.as_deref().map_or(ptr::null(), CStr::as_ptr),
            worker: exec.worker,
        }
    }

    fn order(
        &self,
        stdio: [Option<BorrowedFd<'_>>; 3],
        in_child: *const InChild,
        mask: SignalMask,
        failed: &AtomicI32,
    ) -> Order {
        debug_assert!(stdio.iter().flatten().all(|fd| fd.as_raw_fd() > 2));
        Order {
            stdio: stdio.map(|fd| fd.map_or(-1, |fd| fd.as_raw_fd())),
            in_child,
            current_dir: self.current_dir,
            worker: self.worker,
            paths: self.paths.as_ptr(),
            args: self.args.as_ptr(),
            env: self.env.as_ptr(),
            mask,
            failed,
        }
    }
}

/// Starts it in a process group of its own, with the calling thread's signal mask, and SIGPIPE at its default. `stdio` is what
/// becomes 0, 1 and 2; none of it may be below 3. What is `None` it inherits. The sources of what else it inherits must have
/// been moved.
///
/// Returns when it is the program. `Unsupported` where the system has no such call.
pub(crate) fn spawn(exec: &Exec, stdio: [Option<BorrowedFd<'_>>; 3], in_child: &InChild) -> io::Result<Child> {
    let pointers = Pointers::into(exec);
    let failed = AtomicI32::new(0);
    // No handler of this process may run in the child, and on its small stack; and none in this thread, which the child
    // shares its thread-local memory with.
    let mask = SignalMask::full().install();
    let in_child = if in_child.is_empty() { ptr::null() } else { ptr::from_ref(in_child) };
    let order = pointers.order(stdio, in_child, mask, &failed);
    let stack = Stack::new();
    // SAFETY: by `CLONE_VFORK` this thread stands still until the child has become a program or has ended, so `order` and
    // what it points to and `stack` outlive all that the child does with them.
    let child = unsafe { clone_child(&raw const order, &stack, Waiting::Here) };
    mask.install();
    let child = child?;
    match failed.into_inner() {
        0 => child.above_stdio(),
        error => {
            end(&child.pidfd);
            Err(io::Error::from_raw_os_error(error))
        }
    }
}

/// Where a child lives until it is its program, or has ended.
struct Place {
    /// Not zero while somebody is in here. The kernel clears it when the child leaves (`CLONE_CHILD_CLEARTID` in clone(2)).
    taken: AtomicI32,
    stack: Stack,
    contents: UnsafeCell<Option<Box<Contents>>>,
}

/// All that the child reads and writes.
struct Contents {
    order: Order,
    _exec: Exec,
    _pointers: Pointers,
    _failed: Arc<AtomicI32>,
}

// SAFETY: who has changed `taken` from zero has it for himself, until the child that he puts there has left; the pointers in it
// are to memory that it owns.
unsafe impl Sync for Place {}

/// More children at once would only be in each other's way. They hold copies of this process's fds meanwhile, too.
static PLACES: [Place; 8] =
    [const { Place { taken: AtomicI32::new(0), stack: Stack::new(), contents: UnsafeCell::new(None) } }; 8];

/// A free place for one child.
pub(crate) struct Cradle(&'static Place);

impl Cradle {
    /// `None` where as many children are on their way as may be.
    pub(crate) fn free() -> Option<Self> {
        let take = |place: &&Place| place.taken.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok();
        PLACES.iter().find(take).map(Self)
    }

    /// As [`spawn`], of what needs nothing done in the child; but returns before it is the program, and whether it ever was
    /// says the fate.
    pub(crate) fn spawn(self, exec: Exec, stdio: [Option<BorrowedFd<'_>>; 3]) -> io::Result<(Child, Fate)> {
        let fate = Arc::new(AtomicI32::new(0));
        let pointers = Pointers::into(&exec);
        // As in `spawn`.
        let before = SignalMask::full().install();
        let order = pointers.order(stdio, ptr::null(), before, &fate);
        let contents = Contents { order, _exec: exec, _pointers: pointers, _failed: Arc::clone(&fate) };
        // SAFETY: it was free and is ours, so no child and no other thread is in it. Nobody replaces what it holds until the
        // kernel has cleared `taken`, when the child has become a program or has ended; so all that the order points to
        // outlives what the child does with it: the strings do not move with the `Exec`, nor the lists with the `Pointers`,
        // nor the number with its `Arc`.
        let child = unsafe {
            let contents = (*self.0.contents.get()).insert(Box::new(contents));
            clone_child(&raw const contents.order, &self.0.stack, Waiting::Nowhere(&self.0.taken))
        };
        before.install();
        let child = child?;
        // It is the child's now.
        mem::forget(self);
        // The child does so, too: whichever is first. Nobody shall find it in this process's group.
        // SAFETY: takes numbers. Of what is not our child, or has become a program, it changes nothing.
        unsafe { libc::setpgid(child.pid.cast_signed(), 0) };
        Ok((child.above_stdio()?, Fate(fate)))
    }
}

impl fmt::Debug for Cradle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cradle")
    }
}

impl Drop for Cradle {
    fn drop(&mut self) {
        self.0.taken.store(0, Ordering::Release);
    }
}

impl Child {
    /// It with a pidfd that is not 0, 1 or 2.
    fn above_stdio(self) -> io::Result<Self> {
        if self.pidfd.as_raw_fd() > 2 {
            return Ok(self);
        }
        let pidfd = duplicate(&self.pidfd).inspect_err(|_| end(&self.pidfd))?;
        Ok(Self { pidfd, ..self })
    }
}

/// How it is known that the child has left this process's memory.
enum Waiting<'a> {
    /// This thread stands still until then.
    Here,
    /// The number becomes zero then.
    Nowhere(&'a AtomicI32),
}

/// Makes a child that carries out the order on that stack, with no signal handlers. The caller has blocked all signals.
///
/// # Safety
///
/// `order`, all that it points to, and `stack` must be the child's alone until it has left this process's memory.
unsafe fn clone_child(order: *const Order, stack: &Stack, waiting: Waiting<'_>) -> io::Result<Child> {
    let mut pidfd: c_int = -1;
    let mut clone = raw::no_clone_args();
    clone.flags = (libc::CLONE_VM | libc::CLONE_PIDFD) as u64 | raw::CLONE_CLEAR_SIGHAND;
    match waiting {
        Waiting::Here => clone.flags |= libc::CLONE_VFORK as u64,
        Waiting::Nowhere(taken) => {
            clone.flags |= libc::CLONE_CHILD_CLEARTID as u64;
            clone.child_tid = taken.as_ptr().expose_provenance() as u64;
        }
    }
    clone.pidfd = (&raw mut pidfd).expose_provenance() as u64;
    clone.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: the kernel writes `pidfd` before the call returns. The rest is the caller's promise; the child has a copy of the
    // file descriptors, and no handler can run in it. `become_program` never returns.
    let pid = unsafe { clone3(clone, stack, become_program, order) }.map_err(|error| match error {
        libc::ENOSYS | libc::EINVAL | libc::EPERM => io::ErrorKind::Unsupported.into(),
        error => io::Error::from_raw_os_error(error),
    })?;
    // SAFETY: the kernel has just opened it for this clone, and nobody else knows its number.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child { pid, pidfd })
}

/// Waits for the end of a child that nobody will know, and takes its status, unless somebody else has.
fn end(pidfd: &OwnedFd) {
    let _ = signal(pidfd, libc::SIGKILL);
    let mut ended = [PollFd::new(pidfd, PollFlags::IN)];
    while poll(&mut ended, None) == Err(rustix::io::Errno::INTR) {}
    let _ = reap(pidfd);
}

/// The child's whole life here. It shares this process's memory, and everything in it but the order is somebody else's.
extern "C" fn become_program(order: *const Order) -> ! {
    // SAFETY: whoever made the child keeps the order as it is until the child has left.
    let order = unsafe { &*order };
    let error = order.carry_out();
    // SAFETY: the same holds for all that it points to.
    unsafe { &*order.failed }.store(error, Ordering::Release);
    loop {
        // SAFETY: ends this process alone, and runs nothing of the parent's.
        unsafe { call(libc::SYS_exit_group, [127, 0, 0, 0]) };
    }
}

impl Order {
    /// Returns only if something fails, with the error number. It makes system calls, and nothing else: no allocation, no
    /// lock, no panic, no errno.
    fn carry_out(&self) -> c_int {
        self.prepare().err().unwrap_or_else(|| self.exec())
    }

    fn prepare(&self) -> Result<(), c_int> {
        // SAFETY: who gave the order keeps what it points to.
        let in_child = unsafe { self.in_child.as_ref() };
        // The leader of a group can't open a session, which has a group of its own anyway.
        if in_child.is_none_or(|in_child| !in_child.new_session) {
            // SAFETY: takes numbers.
            check(unsafe { call(libc::SYS_setpgid, [0; 4]) })?;
        }
        for (place, &fd) in (0..).zip(&self.stdio) {
            if let Ok(fd) = usize::try_from(fd) {
                // The copy stays open when the program starts.
                // SAFETY: changes this process's descriptors, which are copies of the parent's.
                check(unsafe { call(libc::SYS_dup3, [fd, place, 0, 0]) })?;
            }
        }
        if !self.current_dir.is_null() {
            // SAFETY: a string; the directory is this process's own.
            check(unsafe { call(libc::SYS_chdir, [self.current_dir.expose_provenance(), 0, 0, 0]) })?;
        }
        if self.worker {
            const CLOEXEC: usize = 4;
            // A kernel before 5.11 can't; then the worker does both.
            // SAFETY: changes this process's descriptors, which are copies of the parent's, and a setting of its own.
            unsafe {
                if call(libc::SYS_close_range, [3, c_int::MAX as usize, CLOEXEC, 0]) == 0 {
                    call(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as usize, libc::SIGCONT as usize, 0, 0]);
                }
            }
        }
        // Only where the parent's thread stands still: it writes that thread's errno.
        in_child
            .map_or(Ok(()), |in_child| in_child.apply().map_err(|error| error.raw_os_error().unwrap_or(libc::EINVAL)))
    }

    /// Becomes the program, with SIGPIPE at its default: Rust programs ignore it, and what is ignored stays so.
    fn exec(&self) -> c_int {
        const SET: usize = 8;
        /// The kernel's struct sigaction, with its four words: `SIG_DFL`, no flags, no restorer, an empty mask.
        static DEFAULT: [usize; 4] = [0; 4];
        let default = (&raw const DEFAULT).expose_provenance();
        let mask = (&raw const self.mask).expose_provenance();
        let (args, env) = (self.args.expose_provenance(), self.env.expose_provenance());
        // SAFETY: these change this process's own signals. What is passed has the kernel's layout: its set of signals is the
        // beginning of libc's.
        unsafe {
            call(libc::SYS_rt_sigaction, [libc::SIGPIPE as usize, default, 0, SET]);
            call(libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as usize, mask, 0, SET]);
        }
        let (mut path, mut last, mut denied) = (self.paths, libc::ENOENT, false);
        loop {
            // SAFETY: a list of strings that ends with a null pointer, at or before which `path` points.
            let candidate = unsafe { *path };
            if candidate.is_null() {
                return if denied { libc::EACCES } else { last };
            }
            // SAFETY: a string, and lists of strings that end with a null pointer.
            let Err(error) = check(unsafe { call(libc::SYS_execve, [candidate.expose_provenance(), args, env, 0]) })
            else {
                return libc::EINVAL;
            };
            last = error;
            match error {
                libc::EACCES => denied = true,
                libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
                _ => return error,
            }
            // SAFETY: it was not at the end.
            path = unsafe { path.add(1) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read as _;
    use std::os::fd::AsFd as _;
    use std::os::unix::process::ExitStatusExt as _;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::super::socket::above_stdio;

    fn strings(strings: &[&str]) -> Strings {
        let mut list = Strings::default();
        for string in strings {
            list.push(&[string.as_bytes()]).unwrap();
        }
        list
    }

    fn sh(script: &str) -> Exec {
        Exec {
            paths: strings(&["/no/such/dir/sh", "/bin/sh"]),
            args: strings(&["shell", "-c", script]),
            env: strings(&["A=b c"]),
            current_dir: Some(c"/usr".into()),
            worker: false,
        }
    }

    /// Runs it both ways, and returns what it printed and how it ended. Nothing where there is no such call.
    fn run(exec: impl Fn() -> Exec) -> Vec<io::Result<(String, std::process::ExitStatus)>> {
        let waits = |stdio: [Option<BorrowedFd<'_>>; 3]| Ok((spawn(&exec(), stdio, &InChild::default())?, None));
        let ahead = |stdio: [Option<BorrowedFd<'_>>; 3]| {
            let cradle = loop {
                if let Some(cradle) = Cradle::free() {
                    break cradle;
                }
                std::thread::yield_now();
            };
            let (child, fate) = cradle.spawn(exec(), stdio)?;
            Ok((child, Some(fate)))
        };
        let results = [run_with(waits), run_with(ahead)].into_iter();
        results
            .filter(|result| result.as_ref().err().map(io::Error::kind) != Some(io::ErrorKind::Unsupported))
            .collect()
    }

    fn run_with(
        spawn: impl Fn([Option<BorrowedFd<'_>>; 3]) -> io::Result<(Child, Option<Fate>)>,
    ) -> io::Result<(String, std::process::ExitStatus)> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let write = above_stdio(write).unwrap();
        let (child, fate) = spawn([None, Some(write.as_fd()), None])?;
        drop(write);
        // SAFETY: takes a number. It leads its group from the first moment on.
        assert_eq!(unsafe { libc::getpgid(child.pid.cast_signed()) }, child.pid.cast_signed());
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        let mut ended = [rustix::event::PollFd::new(&child.pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut ended, None).unwrap();
        let status = reap(&child.pidfd).unwrap().unwrap().0;
        match fate.and_then(|fate| fate.error()) {
            Some(error) => {
                assert_eq!((&*text, status.code()), ("", Some(127)));
                Err(error)
            }
            None => Ok((text, status)),
        }
    }

    #[test]
    fn the_program_gets_what_it_was_given_and_is_its_groups_leader() {
        let script = "echo $0 $A $PWD; test $(ps -o pgid= -p $$) = $$ && echo leads; kill -TERM $$";
        for result in run(|| sh(script)) {
            let (text, status) = result.unwrap();
            assert_eq!((&*text, status.signal()), ("shell b c /usr\nleads\n", Some(libc::SIGTERM)));
        }
    }

    /// A set of signals in the text of /proc/PID/status.
    fn signals(name: &str, status: &str) -> u64 {
        let set = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(set.trim(), 16).unwrap()
    }

    #[test]
    fn the_program_handles_no_signal_and_ignores_no_sigpipe_and_has_this_threads_mask() {
        let cat = || Exec { paths: strings(&["/bin/cat"]), args: strings(&["cat", "/proc/self/status"]), ..sh("") };
        for result in run(cat) {
            let (theirs, ours) = (result.unwrap().0, std::fs::read_to_string("/proc/thread-self/status").unwrap());
            assert_eq!(signals("SigBlk:", &theirs), signals("SigBlk:", &ours));
            assert_eq!(signals("SigCgt:", &theirs), 0);
            assert_eq!(signals("SigIgn:", &theirs), signals("SigIgn:", &ours) & !(1 << (libc::SIGPIPE - 1)));
        }
    }

    #[test]
    fn a_failure_says_why_and_leaves_nothing() {
        let fails = |change: fn(&mut Exec), number| {
            let exec = || {
                let mut exec = sh("");
                change(&mut exec);
                exec
            };
            for result in run(exec) {
                assert_eq!(result.unwrap_err().raw_os_error(), Some(number));
            }
        };
        fails(|exec| exec.paths = strings(&["/no/such/program"]), libc::ENOENT);
        fails(|exec| exec.paths = strings(&["/etc/passwd", "/no/such/program"]), libc::EACCES);
        fails(|exec| exec.current_dir = Some(c"/no/such/dir".into()), libc::ENOENT);
        fails(|exec| exec.args.push(&[&vec![b'x'; 3 << 20]]).unwrap(), libc::E2BIG);
    }

    #[test]
    fn a_thread_keeps_its_errno_while_its_child_fails() {
        // The child has this thread's thread-local memory.
        for _ in 0..50 {
            let Some(cradle) = Cradle::free() else { continue };
            // Fails, and so sets it.
            // SAFETY: takes a number.
            unsafe { libc::close(-1) };
            let exec = Exec { paths: strings(&["/no/such/program"; 100]), ..sh("") };
            let Ok((child, fate)) = cradle.spawn(exec, [None; 3]) else { return };
            // It has by now become the leader of its group, or that call fails here and says so in errno.
            let here = io::Error::last_os_error().raw_os_error();
            let mut ended = [rustix::event::PollFd::new(&child.pidfd, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut ended, None).unwrap();
            assert_eq!(io::Error::last_os_error().raw_os_error(), here);
            assert_eq!(fate.error().unwrap().raw_os_error(), Some(libc::ENOENT));
            reap(&child.pidfd).unwrap();
        }
    }

    #[test]
    fn a_place_is_free_again_once_its_child_is_its_program() {
        let sleep = || Exec { paths: strings(&["/bin/sleep"]), args: strings(&["sleep", "1000"]), ..sh("") };
        let mut running = Vec::new();
        while running.len() < 4 * PLACES.len() {
            let Some(cradle) = Cradle::free() else { continue };
            let Ok((child, _)) = cradle.spawn(sleep(), [None; 3]) else { return };
            running.push(child);
        }
        for child in running {
            end(&child.pidfd);
        }
    }
}
