//! Starting a program without a copy of this process: clone3(2) with a child that borrows this process's memory until it
//! becomes the program, as `posix_spawn(3)` does it.
//!
//! What that function does beside is left out: it resets the 64 signals one by one, which the kernel does in one go
//! (`CLONE_CLEAR_SIGHAND`), and it maps a stack each time. And here the pidfd is the clone's own (`CLONE_PIDFD`), so that it
//! names this child even in a host that reaps it behind our back. Where there is no such call (another architecture, a kernel
//! before 5.5, a sandbox, valgrind), the caller has std start the program.

use std::ffi::{CStr, CString, c_char, c_int};
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::ptr;

use rustix::event::{PollFd, PollFlags, poll};

use super::in_child::InChild;
use super::process::{SignalMask, reap, signal};
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
}

/// A list of C strings, in one piece of memory: an environment has dozens.
#[derive(Debug, Default)]
pub(crate) struct Strings {
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

impl Strings {
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

/// A child that has become its program, or is a moment before its end.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
}

/// What the child has to do, and how it says that it could not. It lies on the parent's stack.
struct Order<'a> {
    stdio: [c_int; 3],
    in_child: &'a InChild,
    current_dir: *const c_char,
    paths: *const *const c_char,
    args: *const *const c_char,
    env: *const *const c_char,
    mask: SignalMask,
    /// The error number, once the child has failed.
    failed: c_int,
}

/// The child's stack: it calls a dozen wrappers of system calls, none of which needs more than a few hundred bytes.
#[repr(C, align(16))]
struct Stack([MaybeUninit<u8>; 16 << 10]);

/// Starts it in a process group of its own, with the calling thread's signal mask, and SIGPIPE at its default. `stdio` is what
/// becomes 0, 1 and 2; none of it may be below 3. What is `None` it inherits. The sources of what else it inherits must have
/// been moved.
///
/// `Unsupported` where the system has no such call.
pub(crate) fn spawn(exec: &Exec, stdio: [Option<BorrowedFd<'_>>; 3], in_child: &InChild) -> io::Result<Child> {
    debug_assert!(stdio.iter().flatten().all(|fd| fd.as_raw_fd() > 2));
    let (paths, args, env) = (exec.paths.pointers(), exec.args.pointers(), exec.env.pointers());
    // No handler of this process may run in the child, and on its small stack; and none in this thread, which the child
    // shares its thread-local memory with.
    let mask = SignalMask::full().install();
    let mut order = Order {
        stdio: stdio.map(|fd| fd.map_or(-1, |fd| fd.as_raw_fd())),
        in_child,
        current_dir: exec.current_dir.as_deref().map_or(ptr::null(), CStr::as_ptr),
        paths: paths.as_ptr(),
        args: args.as_ptr(),
        env: env.as_ptr(),
        mask,
        failed: 0,
    };
    let mut stack = Stack([MaybeUninit::uninit(); 16 << 10]);
    let mut pidfd: c_int = -1;
    // SAFETY: all-zero is a valid `clone_args`, which is a struct of integers.
    let mut clone: libc::clone_args = unsafe { mem::zeroed() };
    clone.flags = (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD) as u64 | CLONE_CLEAR_SIGHAND;
    clone.pidfd = (&raw mut pidfd).expose_provenance() as u64;
    clone.exit_signal = libc::SIGCHLD as u64;
    clone.stack = (&raw mut stack).expose_provenance() as u64;
    clone.stack_size = size_of::<Stack>() as u64;
    // SAFETY: by `CLONE_VFORK` this thread stands still until the child has become a program or has ended, so `order` and
    // what it points to, `stack` and `pidfd` outlive all that the child does with them. The child has a copy of the file
    // descriptors, and no handler can run in it. `become_program` never returns.
    let pid = unsafe { clone3(&clone, become_program, &raw mut order) };
    mask.install();
    if pid < 0 {
        let error = io::Error::from_raw_os_error(c_int::try_from(-pid).unwrap_or(libc::EINVAL));
        return Err(match error.raw_os_error() {
            Some(libc::ENOSYS | libc::EINVAL | libc::EPERM) => io::ErrorKind::Unsupported.into(),
            _ => error,
        });
    }
    // SAFETY: the kernel has just opened it for this clone, and nobody else knows its number.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    if order.failed != 0 {
        end(&pidfd);
        return Err(io::Error::from_raw_os_error(order.failed));
    }
    let above = if pidfd.as_raw_fd() > 2 { Ok(pidfd) } else { duplicate(&pidfd).inspect_err(|_| end(&pidfd)) };
    Ok(Child { pid: u32::try_from(pid).unwrap_or_default(), pidfd: above? })
}

/// Waits for the end of a child that nobody will know, and takes its status, unless somebody else has.
fn end(pidfd: &OwnedFd) {
    let _ = signal(pidfd, libc::SIGKILL);
    let mut ended = [PollFd::new(pidfd, PollFlags::IN)];
    while poll(&mut ended, None) == Err(rustix::io::Errno::INTR) {}
    let _ = reap(pidfd);
}

/// From linux/sched.h; libc has it as a type that it does not fit into.
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;

/// clone3(2) with a stack for the child, on which it calls `child`. Returns the child's pid or a negative error number.
///
/// # Safety
///
/// What `args` points to and asks for must be sound for a child that runs `child(order)`, which must never return.
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
unsafe fn clone3(args: &libc::clone_args, child: extern "C" fn(*mut Order<'_>) -> !, order: *mut Order<'_>) -> i64 {
    let result: i64;
    // SAFETY: the call reads `args`. In this thread nothing but the registers that are named changes. In the child the
    // stack pointer is the upper end of its stack, a multiple of 16 as a call wants it; its frame pointer is cleared, so
    // that a backtrace ends there.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") args,
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") order,
            in("r13") child,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// Not written for this machine: as if the kernel had no such call.
#[cfg(not(all(target_arch = "x86_64", target_pointer_width = "64")))]
unsafe fn clone3(_: &libc::clone_args, _: extern "C" fn(*mut Order<'_>) -> !, _: *mut Order<'_>) -> i64 {
    -i64::from(libc::ENOSYS)
}

/// The child's whole life here. It shares this process's memory, and everything in it but the order is somebody else's.
extern "C" fn become_program(order: *mut Order<'_>) -> ! {
    // SAFETY: `order` is the parent's, which waits and touches it no more until this process is done with it.
    let order = unsafe { &mut *order };
    order.failed = order.carry_out();
    // SAFETY: ends this process alone, and runs nothing of the parent's.
    unsafe { libc::_exit(127) }
}

impl Order<'_> {
    /// Returns only if something fails, with what errno says. It makes system calls, and nothing else: no allocation, no
    /// lock, no panic.
    fn carry_out(&self) -> c_int {
        // SAFETY: each call changes this process alone, which shares neither its descriptors nor its directory nor its
        // signals with the parent. The pointers are to strings, or to lists of them that end with a null pointer.
        unsafe {
            // The leader of a group can't open a session, which has a group of its own anyway.
            if !self.in_child.new_session && libc::setpgid(0, 0) < 0 {
                return errno();
            }
            for (place, &fd) in (0..).zip(&self.stdio) {
                // The copy stays open when the program starts.
                if fd >= 0 && libc::dup2(fd, place) < 0 {
                    return errno();
                }
            }
            if !self.current_dir.is_null() && libc::chdir(self.current_dir) < 0 {
                return errno();
            }
            if let Err(error) = self.in_child.apply() {
                return error.raw_os_error().unwrap_or(libc::EINVAL);
            }
            // Rust programs ignore it, and what is ignored stays so in a new program.
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            self.mask.install();
            let (mut path, mut last, mut denied) = (self.paths, libc::ENOENT, false);
            while !(*path).is_null() {
                libc::execve(*path, self.args, self.env);
                last = errno();
                match last {
                    libc::EACCES => denied = true,
                    libc::ENOENT
                    | libc::ENOTDIR
                    | libc::ENAMETOOLONG
                    | libc::ESTALE
                    | libc::ENODEV
                    | libc::ETIMEDOUT => {}
                    _ => return last,
                }
                path = path.add(1);
            }
            if denied { libc::EACCES } else { last }
        }
    }
}

fn errno() -> c_int {
    // SAFETY: it is always there; it is the waiting thread's, too, and means nothing to that.
    unsafe { *libc::__errno_location() }
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
        }
    }

    /// Runs it, and returns what it printed and how it ended. `None` where there is no such call.
    fn run(exec: &Exec) -> Option<io::Result<(String, std::process::ExitStatus)>> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let write = above_stdio(write).unwrap();
        let child = match spawn(exec, [None, Some(write.as_fd()), None], &InChild::default()) {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => return None,
            Err(error) => return Some(Err(error)),
        };
        drop(write);
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        let mut ended = [rustix::event::PollFd::new(&child.pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut ended, None).unwrap();
        Some(Ok((text, reap(&child.pidfd).unwrap().unwrap().0)))
    }

    #[test]
    fn the_program_gets_what_it_was_given_and_is_its_groups_leader() {
        let script = "echo $0 $A $PWD; test $(ps -o pgid= -p $$) = $$ && echo leads; kill -TERM $$";
        let Some(result) = run(&sh(script)) else { return };
        let (text, status) = result.unwrap();
        assert_eq!((&*text, status.signal()), ("shell b c /usr\nleads\n", Some(libc::SIGTERM)));
    }

    /// A set of signals in the text of /proc/PID/status.
    fn signals(name: &str, status: &str) -> u64 {
        let set = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(set.trim(), 16).unwrap()
    }

    #[test]
    fn the_program_handles_no_signal_and_ignores_no_sigpipe_and_has_this_threads_mask() {
        let mut cat = sh("");
        (cat.paths, cat.args) = (strings(&["/bin/cat"]), strings(&["cat", "/proc/self/status"]));
        let Some(result) = run(&cat) else { return };
        let (theirs, ours) = (result.unwrap().0, std::fs::read_to_string("/proc/thread-self/status").unwrap());
        assert_eq!(signals("SigBlk:", &theirs), signals("SigBlk:", &ours));
        assert_eq!(signals("SigCgt:", &theirs), 0);
        assert_eq!(signals("SigIgn:", &theirs), signals("SigIgn:", &ours) & !(1 << (libc::SIGPIPE - 1)));
    }

    #[test]
    fn a_failure_says_why_and_leaves_nothing() {
        let mut exec = sh("");
        exec.paths = strings(&["/no/such/program"]);
        let Some(result) = run(&exec) else { return };
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ENOENT));
        exec.paths = strings(&["/etc/passwd", "/no/such/program"]);
        assert_eq!(run(&exec).unwrap().unwrap_err().raw_os_error(), Some(libc::EACCES));
        exec.current_dir = Some(c"/no/such/dir".into());
        assert_eq!(run(&exec).unwrap().unwrap_err().raw_os_error(), Some(libc::ENOENT));
        exec = sh("");
        exec.args.push(&[&vec![b'x'; 3 << 20]]).unwrap();
        assert_eq!(run(&exec).unwrap().unwrap_err().raw_os_error(), Some(libc::E2BIG));
    }
}
