//! What a process can be given: a name, an environment, a directory, stdio and limits.

#![allow(unsafe_code, reason = "to say how pages are to be laid out")]

mod support;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead as _, Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use multiproc::{Process, SpawnError, call, spawn_process, task};
use support::proc::status;
use support::{alone, alone_command, block_on, died, is_alone, running};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

multiproc::test_support!();

fn idle() {
    println!("running");
    loop {
        std::thread::park();
    }
}

#[tokio::test]
async fn a_name_shows_in_the_command_line_and_in_comm() {
    let (child, _) = running(Process::builder().name("an indexer-of-everything"), task!(idle())).await;
    let pid = child.id().unwrap();
    let line = support::Other::new(pid).command();
    assert_eq!(line, "multiproc-worker: an indexer-of-everything");
    assert_eq!(status(pid, "Name").unwrap(), "an indexer-of-e");
}

#[tokio::test]
async fn without_a_name_comm_is_the_programs() {
    let (child, _) = running(Process::builder(), task!(idle())).await;
    let pid = child.id().unwrap();
    assert_eq!(support::Other::new(pid).command(), "multiproc-worker");
    let program = std::env::current_exe().unwrap();
    let program = program.file_name().unwrap().to_str().unwrap();
    assert_eq!(status(pid, "Name").unwrap(), program[..15]);
}

#[tokio::test]
async fn odd_names_are_only_names() {
    for name in ["<1", ": ", "\0", "a\0b\nc", "ünï©ödé-and-long-enough-to-be-cut", &"x".repeat(4096)] {
        let child = Process::builder().name(name).spawn(call(|n: u8| n, 1)).await.unwrap();
        assert_eq!(child.join().await.unwrap(), 1);
    }
}

fn variables() -> Vec<(String, String)> {
    let mut all: Vec<_> = std::env::vars_os()
        .map(|(key, value)| (key.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
        .collect();
    all.sort();
    all
}

#[tokio::test]
async fn the_environment_is_set_removed_and_cleared_exactly() {
    let here = variables();
    let there = Process::builder().spawn(task!(variables())).await.unwrap().join().await.unwrap();
    assert_eq!(there, here);
    let changed = Process::builder().env("A", "1").env("PATH", "/x").env("A", "2 \n=").env_remove("HOME");
    let there = changed.spawn(task!(variables())).await.unwrap().join().await.unwrap();
    let mut expected: Vec<_> =
        here.into_iter().filter(|(key, _)| !["A", "PATH", "HOME"].contains(&key.as_str())).collect();
    expected.push(("A".to_owned(), "2 \n=".to_owned()));
    expected.push(("PATH".to_owned(), "/x".to_owned()));
    expected.sort();
    assert_eq!(there, expected);
    let cleared = Process::builder().env("A", "1").env_clear().env("B", "2");
    let there = cleared.spawn(task!(variables())).await.unwrap().join().await.unwrap();
    assert_eq!(there, [("B".to_owned(), "2".to_owned())]);
}

fn directory() -> String {
    std::env::current_dir().unwrap().to_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_directory_is_entered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().canonicalize().unwrap();
    let there = Process::builder().current_dir(&path).spawn(task!(directory())).await.unwrap();
    assert_eq!(there.join().await.unwrap(), path.to_str().unwrap());
    let relative = Process::builder().current_dir("src").spawn(task!(directory())).await.unwrap();
    assert_eq!(relative.join().await.unwrap(), directory() + "/src");
}

#[tokio::test]
async fn a_directory_that_cannot_be_entered_is_named() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let (file, locked) = (folder.path().join("file"), folder.path().join("locked"));
    std::fs::write(&file, "").unwrap();
    std::fs::create_dir(&locked).unwrap();
    std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o000)).unwrap();
    for bad in [folder.path().join("missing"), file, locked] {
        match Process::builder().current_dir(&bad).spawn(task!(directory())).await {
            Err(SpawnError::Directory { path, .. }) => assert_eq!(path, bad),
            // Root enters what is locked.
            Ok(_) if bad.ends_with("locked") && rustix::process::geteuid().is_root() => {}
            other => panic!("{}: {other:?}", bad.display()),
        }
    }
}

#[tokio::test]
async fn an_odd_environment_or_directory_is_an_error_not_a_panic() {
    let error = Process::builder().env("A", "x".repeat(1 << 20)).spawn(task!(directory())).await.unwrap_err();
    assert!(matches!(error, SpawnError::Io(_)), "{error:?}");
    let error = Process::builder().current_dir("a\0b").spawn(task!(directory())).await.unwrap_err();
    assert!(matches!(error, SpawnError::Invalid { .. }), "{error:?}");
    for (name, value) in [("", "1"), ("=", "1"), ("A=B", "1"), ("A\0B", "1"), ("A", "1\0")] {
        let error = Process::builder().env(name, value).spawn(task!(directory())).await.unwrap_err();
        assert!(matches!(error, SpawnError::Invalid { .. }), "{error:?}");
    }
}

fn copy_stdin_to_both() -> u64 {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).unwrap();
    println!("out: {text}");
    eprintln!("err: {text}");
    std::io::stderr().flush().unwrap();
    text.len() as u64
}

#[tokio::test]
async fn stdio_goes_to_and_comes_from_files_any_two_of_the_three() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("in"), "hello").unwrap();
    let file = |name: &str| File::create(path(name)).unwrap();
    let text = |name: &str| std::fs::read_to_string(path(name)).unwrap_or_default();

    let child = Process::builder().stdin(File::open(path("in")).unwrap()).stdout(file("out1"));
    assert_eq!(child.spawn(task!(copy_stdin_to_both())).await.unwrap().join().await.unwrap(), 5);
    assert_eq!(text("out1"), "out: hello\n");

    let child = Process::builder().stdin(File::open(path("in")).unwrap()).stderr(file("err2"));
    assert_eq!(child.spawn(task!(copy_stdin_to_both())).await.unwrap().join().await.unwrap(), 5);
    assert_eq!(text("err2"), "err: hello\n");

    let child = Process::builder().stdout(file("out3")).stderr(file("err3"));
    assert_eq!(child.spawn(task!(copy_stdin_to_both())).await.unwrap().join().await.unwrap(), 0);
    assert_eq!((text("out3"), text("err3")), ("out: \n".to_owned(), "err: \n".to_owned()));
}

#[test]
fn what_is_not_set_is_the_hosts_own_wherever_the_socket_lay() {
    const TEST: &str = "what_is_not_set_is_the_hosts_own_wherever_the_socket_lay";
    if is_alone() {
        return block_on(async {
            let null = Stdio::null;
            let builders = [
                Process::builder(),
                Process::builder().stdin(null()).stderr(null()),
                Process::builder().stdin(null()).stdout(null()),
            ];
            for builder in builders {
                builder.spawn(task!(copy_stdin_to_both())).await.unwrap().join().await.unwrap();
            }
        });
    }
    let output = alone_command(TEST).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let count = |bytes: &[u8], what: &str| bytes.lines().filter(|line| line.as_ref().unwrap().contains(what)).count();
    assert_eq!((count(&output.stdout, "out: "), count(&output.stderr, "err: ")), (2, 2), "{output:?}");
}

/// The fds that are open here.
fn open() -> BTreeSet<u32> {
    let listing = std::fs::read_dir("/proc/self/fd").unwrap();
    listing.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
}

#[tokio::test]
async fn all_three_may_be_pipes_and_nothing_else_is_open() {
    for _ in 0..20 {
        let builder = Process::builder().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = builder.spawn(task!(copy_stdin_to_both())).await.unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"hello").await.unwrap();
        drop(stdin);
        let (mut out, mut err) = (String::new(), String::new());
        child.stdout.take().unwrap().read_to_string(&mut out).await.unwrap();
        child.stderr.take().unwrap().read_to_string(&mut err).await.unwrap();
        assert_eq!((&*out, &*err), ("out: hello\n", "err: hello\n"));
        assert_eq!(child.join().await.unwrap(), 5);
    }
    let three = || Process::builder().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let open_with_three = three().spawn(task!(open())).await.unwrap().join().await.unwrap();
    assert_eq!(open_with_three, spawn_process(task!(open())).await.unwrap().join().await.unwrap());

    // Its end is seen, as nothing here holds its end of the socket.
    let child = three().spawn(call(|()| std::process::exit(8), ())).await.unwrap();
    assert_eq!(died::<()>(child.join().await).unwrap().code(), Some(8));
    let error = three().memory_limit(1).spawn(task!(open())).await.map(drop);
    assert!(matches!(error, Ok(()) | Err(SpawnError::Exited { .. } | SpawnError::Handshake { .. })), "{error:?}");
}

/// Each waited for the other, for ever.
#[tokio::test]
async fn a_task_that_reads_its_stdin_to_the_end_gets_there_when_it_is_waited_for() {
    let spawn = || Process::builder().stdin(Stdio::piped()).stdout(Stdio::null()).spawn(task!(copy_stdin_to_both()));
    let joined = tokio::time::timeout(Duration::from_secs(20), spawn().await.unwrap().join()).await;
    assert_eq!(joined.expect("join").unwrap(), 0);
    let mut child = spawn().await.unwrap();
    child.stdin.as_mut().unwrap().write_all(b"hello").await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(20), child.wait()).await;
    assert!(ended.expect("wait").unwrap().success());
    assert_eq!(child.join().await.unwrap(), 5);
    // What was taken out is its owner's.
    let mut child = spawn().await.unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let (joined, ()) = tokio::join!(child.join(), async {
        stdin.write_all(b"hello").await.unwrap();
        drop(stdin);
    });
    assert_eq!(joined.unwrap(), 5);
}

fn take(mib: usize) -> usize {
    let memory = std::hint::black_box(vec![1u8; mib << 20]);
    memory.iter().step_by(1 << 20).map(|byte| usize::from(*byte)).sum()
}

#[tokio::test]
async fn a_memory_limit_fails_the_task_that_takes_more_and_no_other() {
    let limited = || Process::builder().memory_limit(512 << 20).stderr(Stdio::null());
    assert_eq!(limited().spawn(task!(take(64))).await.unwrap().join().await.unwrap(), 64);
    let status = died(limited().spawn(task!(take(1024))).await.unwrap().join().await).unwrap();
    assert_eq!(status.signal(), Some(libc::SIGABRT));
    let count = call(|bytes: Bytes| bytes.len(), Bytes::from(vec![0; 300 << 20]));
    let status = died(limited().memory_limit(256 << 20).spawn(count).await.unwrap().join().await).unwrap();
    assert_eq!(status.signal(), Some(libc::SIGABRT), "its arguments are more");
}

#[tokio::test]
async fn a_memory_limit_that_leaves_nothing_is_a_clean_error() {
    let result = Process::builder().memory_limit(1).stderr(Stdio::null()).spawn(task!(take(1))).await;
    match result {
        Err(SpawnError::Exited { .. } | SpawnError::Handshake { .. }) => {}
        Err(other) => panic!("{other:?}"),
        Ok(child) => {
            let error = child.join().await.unwrap_err();
            assert!(matches!(error, multiproc::TaskError::Died { .. }), "{error:?}");
        }
    }
}

fn spin() {
    loop {
        std::hint::spin_loop();
    }
}

#[tokio::test]
async fn a_limit_on_processor_time_ends_a_task_that_spins_and_says_so() {
    let limited = Process::builder().cpu_time_limit(Duration::from_millis(100));
    let status = died(limited.spawn(task!(spin())).await.unwrap().join().await).unwrap();
    assert_eq!(status.signal(), Some(libc::SIGXCPU));
}

fn open_until_it_fails() -> (usize, Option<i32>) {
    let mut open = Vec::new();
    loop {
        match std::fs::File::open("/dev/null") {
            Ok(file) => open.push(file),
            Err(error) => return (open.len(), error.raw_os_error()),
        }
    }
}

#[tokio::test]
async fn a_limit_on_open_files_is_met_by_the_task() {
    let limited = Process::builder().open_files_limit(40);
    let (opened, error) = limited.spawn(task!(open_until_it_fails())).await.unwrap().join().await.unwrap();
    assert_eq!(error, Some(libc::EMFILE));
    assert!((20..40).contains(&opened), "{opened}");
}

/// The priorities of this thread and of one that it starts.
fn priorities() -> (i32, i32) {
    let own = || rustix::process::getpriority_process(None).unwrap();
    (own(), std::thread::spawn(own).join().unwrap())
}

#[tokio::test]
async fn a_priority_holds_for_every_thread_of_the_task() {
    let lower = (rustix::process::getpriority_process(None).unwrap() + 5).min(19);
    let nice = Process::builder().nice(lower);
    assert_eq!(nice.spawn(task!(priorities())).await.unwrap().join().await.unwrap(), (lower, lower));
}

#[tokio::test]
async fn a_limit_that_cannot_be_set_is_named() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let Some(more) = limit.and_then(|limit| limit.checked_add(1 << 40)) else {
        return eprintln!("skipped: there is no limit here that could be too high");
    };
    let error = Process::builder().open_files_limit(more).spawn(task!(idle())).await.unwrap_err();
    assert!(matches!(error, SpawnError::Handshake { .. }), "{error:?}");
    assert!(error.to_string().contains("cannot limit its open files"), "{error}");
}

#[tokio::test]
async fn a_builder_shows_what_is_set() {
    let text = format!("{:?}", Process::builder().name("shown"));
    assert!(text.contains("shown"), "{text}");
}

/// The largest mapping in bytes that only keeps its addresses from others, as one for an arena of a thread's own does.
fn largest_reserve() -> u64 {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let size = |line: &str| {
        let [range, "---p", _, _, "0", ..] = *line.split_whitespace().collect::<Vec<_>>() else { return 0 };
        let (start, end) = range.split_once('-').unwrap();
        u64::from_str_radix(end, 16).unwrap() - u64::from_str_radix(start, 16).unwrap()
    };
    maps.lines().map(size).max().unwrap()
}

/// It counts against the memory limit, and takes time at each start.
#[tokio::test]
async fn watching_its_parent_takes_no_address_space_to_speak_of() {
    let reserve = spawn_process(task!(largest_reserve())).await.unwrap().join().await.unwrap();
    assert!(reserve < 16 << 20, "{} MiB", reserve >> 20);
}

/// How often this process has found a page to be not ready for it: a field of proc_pid_stat(5).
fn faults() -> usize {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(7).unwrap().parse().unwrap()
}

/// After a fork(2) each page is copied, or at least looked at, when one of both writes to it.
#[test]
fn starting_a_process_does_not_touch_the_memory_of_the_host() {
    alone("starting_a_process_does_not_touch_the_memory_of_the_host", || {
        const PAGES: usize = 8 << 10;
        let mut memory = vec![0_u8; PAGES * 4096];
        // SAFETY: it only says how the pages of this live buffer are to be laid out.
        unsafe { libc::madvise(memory.as_mut_ptr().cast(), memory.len(), libc::MADV_NOHUGEPAGE) };
        let mut touched = |builder: multiproc::ProcessBuilder| {
            memory.iter_mut().step_by(4096).for_each(|byte| *byte = byte.wrapping_add(1));
            let before = faults();
            block_on(async { builder.spawn(call(|n: u32| n, 1)).await.unwrap().join().await.unwrap() });
            memory.iter_mut().step_by(4096).for_each(|byte| *byte = byte.wrapping_add(1));
            faults() - before
        };
        assert!(touched(Process::builder()) < PAGES / 8);
        let much =
            Process::builder().name("x").env("A", "b").current_dir("/").stdin(Stdio::null()).memory_limit(1 << 30);
        assert!(touched(much) < PAGES / 8);
        // What says so in its docs.
        let all = Process::builder().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(touched(all) >= PAGES);
    });
}
