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

mod cradle;
mod order;

use std::ffi::{CString, OsStr, c_char, c_int};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::ptr;
use std::sync::atomic::AtomicI32;

pub(crate) use self::cradle::{Cradle, Fate, empty_cradles};
use self::order::{Order, Pointers, become_program};
use super::in_child::InChild;
use super::process::{SignalMask, reap_at_end, signal};
use super::raw::{self, Stack, clone3};
use super::socket::duplicate;

/// A program and all that the child needs to become it, so that it allocates nothing.
#[derive(Debug)]
pub(crate) struct Exec {
    /// Where it may be: the first that can be executed is taken, as execvp(3) does.
    pub(crate) paths: Strings,
    pub(crate) args: Strings,
    /// `NAME=value`, each; `None` is what this process has when it is started.
    pub(crate) env: Option<Strings>,
    pub(crate) current_dir: Option<CString>,
    /// Whether it is a worker of ours: it inherits nothing but stdio, and gets SIGCONT when its parent's thread ends. It can
    /// tell by that signal that somebody has seen to both.
    pub(crate) worker: bool,
}

impl Exec {
    /// The environment as exec(3) takes it; the pointers are good as long as this and what is given with them.
    fn environment(&self) -> (Option<Strings>, Vec<*const c_char>) {
        let own = self.env.is_none().then(Strings::own_environment);
        let pointers = self.env.as_ref().or(own.as_ref()).map(Strings::pointers).unwrap_or_default();
        (own, pointers)
    }
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

    /// The environment of this process.
    fn own_environment() -> Self {
        let vars = std::env::vars_os();
        let mut strings = Self::default();
        strings.reserve(vars.size_hint().0);
        for (name, value) in vars {
            // They were C strings.
            strings.push_unchecked(&[name.as_bytes(), b"=", value.as_bytes()]);
        }
        strings
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
        self.push_unchecked(parts);
        Ok(())
    }

    /// As [`push`](Self::push), of what has no NUL in it.
    fn push_unchecked(&mut self, parts: &[&[u8]]) {
        self.starts.push(self.bytes.len());
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        self.bytes.push(0);
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &std::ffi::CStr> {
        self.starts.iter().map(|start| std::ffi::CStr::from_bytes_until_nul(&self.bytes[*start..]).unwrap())
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

/// Starts it in a process group of its own, with the calling thread's signal mask, and SIGPIPE at its default. `stdio` is what
/// becomes 0, 1 and 2; none of it may be below 3. What is `None` it inherits. The sources of what else it inherits must have
/// been moved.
///
/// Returns when it is the program. `Unsupported` where the system has no such call.
pub(crate) fn spawn(exec: &Exec, stdio: [Option<BorrowedFd<'_>>; 3], in_child: &InChild) -> io::Result<Child> {
    let pointers = Pointers::into(exec);
    let (_own, env) = exec.environment();
    let failed = AtomicI32::new(0);
    // No handler of this process may run in the child, and on its small stack; and none in this thread, which the child
    // shares its thread-local memory with.
    let mask = SignalMask::full().install();
    let in_child = if in_child.is_empty() { ptr::null() } else { ptr::from_ref(in_child) };
    let order = pointers.order(stdio, in_child, mask, &failed);
    order.env.give(&env);
    let stack = Stack::new();
    // SAFETY: by `CLONE_VFORK` this thread stands still until the child has become a program or has ended, so `order` and
    // what it points to and `stack` outlive all that the child does with them.
    let child = unsafe { clone_child(&raw const order, &stack, Waiting::Here) };
    mask.install();
    let child = child?;
    match failed.into_inner() {
        0 => child.above_stdio(),
        error => {
            end(&child);
            Err(io::Error::from_raw_os_error(error))
        }
    }
}

impl Child {
    /// It with a pidfd that is not 0, 1 or 2.
    fn above_stdio(self) -> io::Result<Self> {
        if self.pidfd.as_raw_fd() > 2 {
            return Ok(self);
        }
        let pidfd = duplicate(&self.pidfd).inspect_err(|_| end(&self))?;
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
fn end(child: &Child) {
    let _ = signal(&child.pidfd, child.pid, libc::SIGKILL);
    reap_at_end(&child.pidfd);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read as _;
    use std::os::fd::AsFd as _;
    use std::os::unix::process::ExitStatusExt as _;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::super::process::reap;
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
            env: Some(strings(&["A=b c"])),
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

    #[test]
    fn who_is_given_no_environment_has_all_of_this_processs() {
        let cat = || Exec {
            args: strings(&["cat", "/proc/self/environ"]),
            paths: strings(&["/bin/cat"]),
            env: None,
            ..sh("")
        };
        for result in run(cat) {
            let own = std::env::vars_os().map(|(name, value)| format!("{}={}\0", name.display(), value.display()));
            assert_eq!(result.unwrap().0, own.collect::<String>());
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
            let Ok((child, fate)) = cradle.spawn(exec, [None; 3]) else { return eprintln!("skipped: no clone3 here") };
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
        // Several times as many as there are.
        while running.len() < 32 {
            let Some(cradle) = Cradle::free() else { continue };
            let Ok((child, _)) = cradle.spawn(sleep(), [None; 3]) else { return eprintln!("skipped: no clone3 here") };
            running.push(child);
        }
        for child in running {
            end(&child);
        }
    }
}
