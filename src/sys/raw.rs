//! System calls that touch nothing of a thread's own, not even errno: for who runs in this process's memory and is none of its
//! threads, as the C library knows them.

use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::mem::MaybeUninit;

/// From linux/sched.h; libc has it as a type that it does not fit into.
pub(super) const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;

/// A stack for who makes a few system calls, through functions that need no more than a few hundred bytes.
#[repr(C, align(16))]
pub(super) struct Stack(UnsafeCell<[MaybeUninit<u8>; 16 << 10]>);

// SAFETY: nothing can be done with it but to give it to `clone3`, which says what its caller promises.
unsafe impl Sync for Stack {}

impl Stack {
    pub(super) const fn new() -> Self {
        Self(UnsafeCell::new([MaybeUninit::uninit(); 16 << 10]))
    }
}

/// The error number in what the kernel returned.
pub(super) fn check(result: i64) -> Result<(), c_int> {
    if result < 0 { Err(c_int::try_from(-result).unwrap_or(libc::EINVAL)) } else { Ok(()) }
}

/// Arguments of clone3(2) that ask for nothing.
pub(super) fn no_clone_args() -> libc::clone_args {
    // SAFETY: all-zero is a valid `clone_args`, which is a struct of integers.
    unsafe { std::mem::zeroed() }
}

/// clone3(2): makes a process or a thread that runs `entry(argument)` on that stack. Returns its number, or the error's.
///
/// # Safety
///
/// What `args` points to and asks for must be sound for one that runs `entry(argument)`, which must never return. The stack must
/// be its alone for as long as it is in this memory.
pub(super) unsafe fn clone3<T>(
    mut args: libc::clone_args,
    stack: &Stack,
    entry: extern "C" fn(*const T) -> !,
    argument: *const T,
) -> Result<u32, c_int> {
    args.stack = stack.0.get().expose_provenance() as u64;
    args.stack_size = size_of::<Stack>() as u64;
    // SAFETY: the caller's promise; and all pointers have the same representation.
    let result = unsafe { machine::clone3(&args, entry as *const (), argument.cast()) };
    check(result)?;
    u32::try_from(result).map_err(|_| libc::EINVAL)
}

/// A system call. Returns what the kernel returns: a negative number is an error's.
///
/// # Safety
///
/// As for the call.
pub(super) unsafe fn call(number: libc::c_long, arguments: [usize; 4]) -> i64 {
    // SAFETY: the caller's promise.
    unsafe { machine::call(number, arguments) }
}

#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
mod machine {
    pub(super) unsafe fn clone3(args: &libc::clone_args, entry: *const (), argument: *const ()) -> i64 {
        let result: i64;
        // SAFETY: the call reads `args`. In this thread nothing but the registers that are named changes. In the new one the
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
                in("r12") argument,
                in("r13") entry,
                lateout("rcx") _,
                lateout("r11") _,
            );
        }
        result
    }

    pub(super) unsafe fn call(number: libc::c_long, [a, b, c, d]: [usize; 4]) -> i64 {
        let result: i64;
        // SAFETY: changes the registers that are named, and what the caller says.
        unsafe {
            std::arch::asm!(
                "syscall",
                inlateout("rax") number => result,
                in("rdi") a,
                in("rsi") b,
                in("rdx") c,
                in("r10") d,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        result
    }
}

/// Not written for this machine: as if the kernel had no clone3. Whoever is here then is a thread as others, with an errno.
#[cfg(not(all(target_arch = "x86_64", target_pointer_width = "64")))]
mod machine {
    pub(super) unsafe fn clone3(_: &libc::clone_args, _: *const (), _: *const ()) -> i64 {
        -i64::from(libc::ENOSYS)
    }

    pub(super) unsafe fn call(number: libc::c_long, [a, b, c, d]: [usize; 4]) -> i64 {
        // SAFETY: the caller's promise.
        let result = unsafe { libc::syscall(number, a, b, c, d) };
        if result < 0 {
            -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL))
        } else {
            result.into()
        }
    }
}
