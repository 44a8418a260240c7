//! What /proc says of other processes, where it says it of those that have these numbers here. What it says of this process itself
//! needs no such care.

use std::fs;
use std::io;
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};

/// A file of a child in /proc, as proc(5) has them. An error also where /proc is not [ours](is_ours): there the number is a
/// stranger's, or nobody's.
pub(crate) fn read(pid: u32, file: &str) -> io::Result<String> {
    // That it is stays so: of a forked copy, which may be in another namespace, nobody is a child, and who mounts another /proc
    // where processes run mounts theirs.
    static OURS: AtomicBool = AtomicBool::new(false);
    let proc = Path::new("/proc");
    if !OURS.load(Ordering::Relaxed) {
        if !is_ours(proc) {
            return Err(io::ErrorKind::NotFound.into());
        }
        OURS.store(true, Ordering::Relaxed);
    }
    fs::read_to_string(proc.join(format!("{pid}/{file}")))
}

/// Whether this /proc has the numbers that this process uses. That of another pid namespace has others.
pub(super) fn is_ours(proc: &Path) -> bool {
    fs::read_link(proc.join("self")).is_ok_and(|own| own.as_os_str() == &*process::id().to_string())
}
