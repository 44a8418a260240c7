//! What is to be done when this process ends by `exit(3)`, as it does when `main` returns.

/// Has it called then, on the thread that ends the process, while the other threads go on. A copy that fork(2) makes calls it, too.
/// `atexit(3)`; where that has no memory for it, it is not called.
pub(crate) fn at_exit(call: extern "C" fn()) {
    // SAFETY: what is no `unsafe` function may be called at any time, and what is `extern "C"` does not unwind.
    unsafe { libc::atexit(call) };
}
