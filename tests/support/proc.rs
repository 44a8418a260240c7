//! What /proc says of processes.

#![allow(dead_code, reason = "each test crate uses its own part of this")]

/// A line of proc_pid_status(5), of a process or a thread.
pub(crate) fn status(pid: u32, field: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// The letter of proc_pid_stat(5): `R`, `S`, `T` for stopped, `Z` for a zombie; `-` if there is none.
pub(crate) fn state(pid: u32) -> char {
    status(pid, "State").and_then(|state| state.chars().next()).unwrap_or('-')
}

/// Whether there is such a process, but for a zombie that its new parent has not reaped yet.
pub(crate) fn lives(pid: u32) -> bool {
    !matches!(state(pid), 'Z' | 'X' | '-')
}

/// Waits until a process sleeps, in the one call that can keep it waiting, or has ended.
pub(crate) async fn until_it_waits(pid: u32) {
    while matches!(state(pid), 'R' | 'D') {
        tokio::task::yield_now().await;
    }
}

/// The children of this process, zombies too.
pub(crate) fn children() -> Vec<u32> {
    let me = std::process::id().to_string();
    processes().filter(|&pid| status(pid, "PPid").is_some_and(|parent| parent == me)).collect()
}

/// The processes whose command line begins with this.
pub(crate) fn processes_with(arg0: &str) -> Vec<u32> {
    let begins =
        |pid: &u32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(arg0.as_bytes()));
    processes().filter(begins).collect()
}

fn processes() -> impl Iterator<Item = u32> {
    std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// How many fds this process has open.
pub(crate) fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// How many threads this process has.
pub(crate) fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}
