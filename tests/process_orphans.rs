//! When the host is gone, however it went, so are its workers, what they started, and their workers.

#![allow(unsafe_code, reason = "to block signals, and to exit without cleaning up")]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use multiproc::{Process, call, spawn_process, task};
use rustix::process::Signal;
use support::proc::{processes_with, status};
use support::{Other, alone_command, block_on, eventually, is_alone};

multiproc::test_support!();

/// By when everything is gone.
const GONE: Duration = Duration::from_secs(2);

fn report(what: &str, pid: u32) {
    // In one piece: many processes share this stderr.
    std::io::stderr().write_all(format!("PID {what} {pid}\n").as_bytes()).unwrap();
}

fn spin(what: String) {
    report(&what, std::process::id());
    loop {
        std::hint::spin_loop();
    }
}

fn block(what: String) {
    report(&what, std::process::id());
    loop {
        std::thread::park();
    }
}

fn block_all_signals(what: String) {
    // SAFETY: the set is initialised by sigfillset before it is read.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
    block(what);
}

/// As daemons do: what the worker itself has open goes too, and other files get those numbers.
fn close_everything(what: String) {
    for fd in 3..100 {
        // SAFETY: close(2) takes any number, and nothing in this process uses its fds after this.
        unsafe { libc::close(fd) };
    }
    let _files: Vec<_> = (0..5).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
    block(what);
}

#[expect(clippy::zombie_processes, reason = "left behind on purpose")]
fn with_grandchildren(what: String) {
    let sleep = Command::new("sleep").arg("1000").spawn().unwrap();
    report("grandchild", sleep.id());
    let stopped = Command::new("sleep").arg("1000").spawn().unwrap();
    report("stopped grandchild", stopped.id());
    block(what);
}

fn with_worker(what: String) {
    block_on(async {
        let inner = spawn_process(task!(spin("inner".to_owned()))).await.unwrap();
        report(&what, std::process::id());
        let _ = inner.join().await;
    });
}

/// The host's life: it starts one of each, and waits for what the test does to it.
fn host() {
    block_on(async {
        let name = format!("orphan-{}", std::process::id());
        let builder = || Process::builder().name(&*name);
        let mut all = Vec::new();
        for what in ["spinning", "stopped"] {
            all.push(builder().spawn(task!(spin(what.to_owned()))).await.unwrap());
        }
        for what in ["blocked", "stopped"] {
            all.push(builder().spawn(task!(block(what.to_owned()))).await.unwrap());
        }
        all.push(builder().spawn(task!(block_all_signals("deaf".to_owned()))).await.unwrap());
        all.push(builder().spawn(task!(block_all_signals("stopped and deaf".to_owned()))).await.unwrap());
        for what in ["closed", "stopped and closed"] {
            all.push(builder().spawn(task!(close_everything(what.to_owned()))).await.unwrap());
        }
        all.push(builder().spawn(task!(with_grandchildren("with grandchildren".to_owned()))).await.unwrap());
        all.push(builder().spawn(task!(with_worker("with worker".to_owned()))).await.unwrap());
        builder().spawn(task!(block("detached".to_owned()))).await.unwrap().detach();
        let mut ending = String::new();
        tokio::task::spawn_blocking(move || std::io::stdin().read_line(&mut ending).map(|_| ending))
            .await
            .unwrap()
            .map(|ending| match ending.trim() {
                "exit" => std::process::exit(0),
                // SAFETY: it never returns.
                "_exit" => unsafe { libc::_exit(0) },
                "abort" => std::process::abort(),
                "leak" => std::mem::forget(all),
                other => panic!("{other}"),
            })
            .unwrap();
    });
}

struct Host {
    process: Child,
    /// Open as long as the test reads nothing, so that nobody gets SIGPIPE.
    stderr: BufReader<ChildStderr>,
    all: Vec<Other>,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts the test of that name as a host, and waits until all that it starts runs.
fn start(test: &str, expected: usize) -> Host {
    let mut command = alone_command(test);
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let stderr = BufReader::new(process.stderr.take().unwrap());
    let mut host = Host { process, stderr, all: Vec::new() };
    let mut to_stop = Vec::new();
    let mut reported = 0;
    while reported < expected {
        let mut line = String::new();
        assert_ne!(host.stderr.read_line(&mut line).unwrap(), 0, "the host ended");
        let Some((what, pid)) = line.trim().strip_prefix("PID ").and_then(|line| line.rsplit_once(' ')) else {
            eprint!("{line}");
            continue;
        };
        reported += 1;
        // It may have ended since, where the host is one that ends its workers.
        let Some(other) = Other::find(pid.parse().unwrap()) else { continue };
        if what.starts_with("stopped") {
            other.signal(Signal::STOP);
            to_stop.push(other.pid);
        }
        host.all.push(other);
    }
    for other in host.all.iter().filter(|other| to_stop.contains(&other.pid)) {
        assert!(eventually(GONE, || other.state() == 'T'));
    }
    host
}

/// What the host of [`host`] reports: eleven of its own, two grandchildren, and a worker's worker.
const ALL: usize = 14;

fn all_gone(host: &mut Host) {
    assert_eq!(host.all.len(), ALL);
    for other in &host.all {
        other.ends_within(GONE);
    }
    host.process.wait().unwrap();
}

#[test]
fn sigkill_of_the_host_ends_every_worker_and_its_group() {
    if is_alone() {
        return host();
    }
    let mut host = start("sigkill_of_the_host_ends_every_worker_and_its_group", ALL);
    host.process.kill().unwrap();
    all_gone(&mut host);
}

#[test]
fn sigterm_of_the_host_does_too() {
    if is_alone() {
        return host();
    }
    let mut host = start("sigterm_of_the_host_does_too", ALL);
    Other::new(host.process.id()).signal(Signal::TERM);
    all_gone(&mut host);
}

fn ends_by(test: &str, how: &str) {
    let mut host = start(test, ALL);
    writeln!(host.process.stdin.take().unwrap(), "{how}").unwrap();
    all_gone(&mut host);
}

#[test]
fn so_does_its_exit_with_running_and_detached_ones() {
    if is_alone() {
        return host();
    }
    ends_by("so_does_its_exit_with_running_and_detached_ones", "exit");
}

#[test]
fn so_does_an_exit_that_runs_no_cleanup() {
    if is_alone() {
        return host();
    }
    ends_by("so_does_an_exit_that_runs_no_cleanup", "_exit");
}

#[test]
fn so_does_its_abort() {
    if is_alone() {
        return host();
    }
    ends_by("so_does_its_abort", "abort");
}

#[test]
fn so_does_its_end_with_handles_that_were_leaked() {
    if is_alone() {
        return host();
    }
    ends_by("so_does_its_end_with_handles_that_were_leaked", "leak");
}

#[test]
fn a_worker_that_is_killed_takes_its_workers_along() {
    fn outer(what: String) {
        with_worker(what);
    }
    if is_alone() {
        return block_on(async {
            let child = spawn_process(task!(outer("outer".to_owned()))).await.unwrap();
            let _ = child.join().await;
            let _ = std::io::stdin().read_line(&mut String::new());
        });
    }
    let mut host = start("a_worker_that_is_killed_takes_its_workers_along", 2);
    for other in &host.all {
        if other.command() == "multiproc-worker" {
            other.signal(Signal::KILL);
            break;
        }
    }
    for other in &host.all {
        other.ends_within(GONE);
    }
    drop(host.process.stdin.take());
    host.process.wait().unwrap();
}

#[test]
fn a_host_that_is_killed_while_it_starts_workers_leaves_none() {
    const TEST: &str = "a_host_that_is_killed_while_it_starts_workers_leaves_none";
    if is_alone() {
        let name = format!("storm-{}", std::process::id());
        return block_on(async {
            let mut all = Vec::new();
            loop {
                all.push(tokio::spawn(Process::builder().name(&*name).spawn(task!(spin("storm".to_owned())))));
                tokio::task::yield_now().await;
                if all.len() == 30 {
                    all.clear();
                }
            }
        });
    }
    for reports in 0..12 {
        let mut host = start(TEST, reports);
        let arg0 = format!("multiproc-worker: storm-{}", host.process.id());
        host.process.kill().unwrap();
        host.process.wait().unwrap();
        assert!(eventually(GONE, || processes_with(&arg0).is_empty()), "after {reports}: {:?}", processes_with(&arg0));
    }
}

/// Where this process may run, and where its thread that watches the parent may.
fn processors() -> [Option<String>; 2] {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let mut tids = tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap());
    let is_watch = |&tid: &u32| status(tid, "Name").is_some_and(|name| name == "parent-watch");
    let watch = tids.find(is_watch).unwrap();
    [std::process::id(), watch].map(|tid| status(tid, "Cpus_allowed_list"))
}

/// The watch begins where the worker is. It would come to nothing if a task could keep that processor for itself.
/// Nor has it anything to do first, for which it would need one.
#[test]
fn a_worker_may_run_where_its_parent_may_and_so_may_its_watch() {
    let here = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let here = here.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).map(|list| list.trim().to_owned());
    let there = block_on(async { spawn_process(call(|()| processors(), ())).await.unwrap().join().await.unwrap() });
    assert_eq!(there, [here.clone(), here]);
}
