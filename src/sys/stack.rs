//! Where a thread's stack has got to. Not how large it is: that differs with the thread, and is slow to find out.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use std::arch::asm;

/// The stack pointer. Stacks grow towards lower addresses wherever this library runs.
#[inline]
pub(crate) fn pointer() -> usize {
    let pointer: usize;
    // A local's address would not do: a sanitizer moves locals to the heap.
    #[cfg(target_arch = "x86_64")]
    // SAFETY: it copies a register into another, and touches neither memory, nor the stack, nor the flags.
    unsafe {
        asm!("mov {}, rsp", out(reg) pointer, options(nomem, nostack, preserves_flags));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        asm!("mov {}, sp", out(reg) pointer, options(nomem, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        let local = 0u8;
        pointer = std::hint::black_box(&raw const local).addr();
    }
    pointer
}

#[cfg(test)]
mod tests {
    use super::pointer;

    #[inline(never)]
    fn deeper(levels: usize) -> usize {
        let local = std::hint::black_box([0u8; 1024]);
        let deepest = if levels == 0 { pointer() } else { deeper(levels - 1) };
        std::hint::black_box(local);
        deepest
    }

    #[test]
    fn calls_take_the_stack_pointer_down_by_what_their_locals_take() {
        let (here, there) = (pointer(), deeper(9));
        assert!((10 * 1024..1024 * 1024).contains(&(here - there)), "{here:#x} {there:#x}");
    }
}
