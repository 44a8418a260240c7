//! Programs with a `main` of their own: `init()` first in a plain `main`, inside a runtime, or missing; markers that
//! are forged; an executable that was replaced. This file is such a program, and the test that runs it.

mod support;

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use futures::StreamExt as _;
use multiproc::{Process, ProcessPool, SpawnError, TaskError, TrySubmitError, call, spawn_process, task};
use rustix::process::{Resource, Rlimit, setrlimit};

const FLAVOUR: &str = "MULTIPROC_TEST_PROGRAM";
const MARKER: &str = "multiproc-worker";

fn main() {
    let Ok(flavour) = std::env::var(FLAVOUR) else { return tests() };
    let multi_thread = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match flavour.as_str() {
        "plain" => {
            multiproc::init();
            println!("main runs");
            support::block_on(work());
        }
        "multi_thread" => multi_thread().block_on(async {
            multiproc::init();
            println!("main runs");
            work().await;
        }),
        "current_thread" => support::block_on(async {
            multiproc::init();
            println!("main runs");
            work().await;
        }),
        // As those that log before they do anything else.
        "talkative" => {
            println!("before init");
            multiproc::init();
            multiproc::init();
            println!("main runs");
            support::block_on(work());
        }
        "no init" => support::block_on(without_init()),
        "late init" => {
            support::block_on(without_init());
            multiproc::init();
            println!("main runs");
            support::block_on(work());
        }
        // Only the host gets to `init`; a worker goes another way and ends.
        "init in one branch" => {
            if std::env::args_os().next().is_some_and(|arg0| arg0 == MARKER) {
                std::process::exit(5);
            }
            multiproc::init();
            match support::block_on(spawn_process(task!(add(1, 2)))) {
                Err(error @ SpawnError::Exited { .. }) => println!("{error}"),
                other => panic!("{other:?}"),
            }
        }
        // As in a `#[test]`.
        "init in a thread" => std::thread::spawn(|| {
            println!("other tests run");
            multiproc::init();
            support::block_on(without_init());
        })
        .join()
        .unwrap(),
        "init in a worker's thread" => {
            if std::env::args_os().next().is_some_and(|arg0| arg0 == MARKER) {
                let _ = std::thread::spawn(multiproc::init).join();
                unreachable!("a worker's init returned");
            }
            multiproc::init();
            match support::block_on(spawn_process(task!(add(1, 2)))) {
                Err(error @ SpawnError::Handshake { .. }) => println!("{error}"),
                other => panic!("{other:?}"),
            }
        }
        "too few fds" => {
            let limit = std::env::var("MULTIPROC_TEST_LIMIT").unwrap().parse().unwrap();
            if std::env::args_os().next().is_some_and(|arg0| arg0.as_encoded_bytes().starts_with(MARKER.as_bytes())) {
                setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(limit) }).unwrap();
            }
            multiproc::init();
            let pool = ProcessPool::builder().workers(1).restart_limit(0, Duration::from_mins(1)).build().unwrap();
            match support::block_on(pool.start()) {
                Ok(()) => println!("started"),
                Err(SpawnError::Worker(error)) => println!("{error}"),
                other => panic!("{other:?}"),
            }
        }
        "panics before init" => {
            assert!(std::env::args_os().next().is_none_or(|arg0| arg0 != MARKER), "not in a worker");
            multiproc::init();
            let error = support::block_on(spawn_process(task!(add(1, 2)))).unwrap_err();
            assert!(matches!(error, SpawnError::Exited { status: Some(status), .. } if status.code() == Some(101)));
        }
        "replaced" => {
            multiproc::init();
            let me = std::env::current_exe().unwrap();
            std::fs::remove_file(&me).unwrap();
            std::fs::write(&me, "not a program").unwrap();
            println!("main runs");
            support::block_on(work());
        }
        "run by its loader" => {
            multiproc::init();
            match support::block_on(spawn_process(task!(add(1, 2)))) {
                Err(SpawnError::Executable(reason)) => println!("{reason}"),
                other => panic!("{other:?}"),
            }
        }
        // Starts "plain" with a forged marker and the stdin that it has itself.
        "relay" => {
            let status = myself("plain").arg0(MARKER).stdin(Stdio::inherit()).status().unwrap();
            std::process::exit(status.code().unwrap());
        }
        other => panic!("{other}"),
    }
}

fn add(a: i32, b: i32) -> i32 {
    assert!(multiproc::is_worker());
    a + b
}

async fn add_later(a: i32, b: i32) -> i32 {
    tokio::time::sleep(Duration::from_millis(1)).await;
    add(a, b)
}

fn boom() {
    panic!("boom")
}

fn nested() -> i32 {
    support::block_on(async { spawn_process(task!(add(3, 4))).await.unwrap().join().await.unwrap() })
}

fn comm() -> (String, String) {
    let read = |path| std::fs::read_to_string(path).unwrap().trim().to_owned();
    (read("/proc/self/comm"), read("/proc/self/cmdline").replace('\0', ""))
}

/// The work of every flavour that has a right to work: prints "worked" at its end.
async fn work() {
    assert!(!multiproc::is_worker());
    assert_eq!(spawn_process(task!(add(1, 2))).await.unwrap().join().await.unwrap(), 3);
    assert_eq!(spawn_process(task!(add_later(1, 2).await)).await.unwrap().join().await.unwrap(), 3);
    assert_eq!(spawn_process(task!(nested())).await.unwrap().join().await.unwrap(), 7);
    let child = Process::builder().name("named").spawn(task!(comm())).await.unwrap();
    assert_eq!(child.join().await.unwrap(), ("named".to_owned(), format!("{MARKER}: named")));
    let error = spawn_process(task!(boom())).await.unwrap().join().await.unwrap_err();
    assert!(error.to_string().contains("boom at tests/process_program.rs:"), "{error}");
    let exit = spawn_process(call(|code: i32| -> () { std::process::exit(code) }, 8)).await.unwrap();
    assert_eq!(support::died(exit.join().await).unwrap().code(), Some(8));
    let kill = spawn_process(call(
        |()| loop {
            std::thread::park();
        },
        (),
    ));
    let kill: Process<()> = kill.await.unwrap();
    kill.terminate().unwrap();
    let status = support::died(kill.join().await).unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15));
    assert_eq!(support::proc::children(), []);
    println!("worked");
}

async fn without_init() {
    let error = spawn_process(task!(add(1, 2))).await.unwrap_err();
    assert!(matches!(error, SpawnError::InitMissing), "{error:?}");
    assert!(error.to_string().contains("`multiproc::init();` as the first line of `fn main`"), "{error}");
    let pool = ProcessPool::new(1);
    let refusals = [
        pool.submit(task!(add(1, 2))).await.unwrap_err(),
        pool.spawn(task!(add(1, 2))).await.unwrap_err(),
        match pool.try_submit(task!(add(1, 2))) {
            Err(TrySubmitError::Refused(error)) => error,
            other => panic!("{other:?}"),
        },
        pool.map([1_u64], |n: u64| n).next().await.unwrap().unwrap_err(),
        pool.start().await.unwrap_err().into(),
    ];
    for refusal in refusals {
        assert!(matches!(refusal, TaskError::Spawn(SpawnError::InitMissing)), "{refusal:?}");
        // The first is what a `main` shows that gives the error back.
        for text in [format!("{refusal:?}"), refusal.to_string()] {
            assert!(text.contains("`multiproc::init();` as the first line of `fn main`"), "{text}");
        }
    }
    pool.close().await;
    assert_eq!(support::proc::children(), []);
    println!("refused");
}

fn myself(flavour: &str) -> Command {
    program(&std::env::current_exe().unwrap(), flavour)
}

fn program(path: &Path, flavour: &str) -> Command {
    let mut command = Command::new(path);
    command.env(FLAVOUR, flavour).stdin(Stdio::null());
    command
}

#[track_caller]
fn lines(output: Output) -> Vec<String> {
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}\n{err}", output.status);
    String::from_utf8(output.stdout).unwrap().lines().map(ToOwned::to_owned).collect()
}

fn init_works_in_a_plain_main() {
    assert_eq!(lines(myself("plain").output().unwrap()), ["main runs", "worked"]);
}

fn init_works_inside_a_runtime_of_either_flavour() {
    for flavour in ["multi_thread", "current_thread"] {
        assert_eq!(lines(myself(flavour).output().unwrap()), ["main runs", "worked"]);
    }
}

fn what_stands_before_init_runs_in_workers_too_and_nothing_else_does() {
    let lines = lines(myself("talkative").output().unwrap());
    let [before, main, worked] = ["before init", "main runs", "worked"].map(|what| {
        let is = |line: &&String| line.as_str() == what;
        lines.iter().filter(is).count()
    });
    // The host, its seven workers, and the worker of one of them.
    assert_eq!((before, main, worked), (9, 1, 1), "{lines:?}");
}

fn without_init_a_start_is_refused_at_once_with_no_process_started() {
    assert_eq!(lines(myself("no init").output().unwrap()), ["refused"]);
}

fn a_start_before_init_is_refused_and_works_after_it() {
    // A worker comes by there as well.
    let lines = lines(myself("late init").output().unwrap());
    assert_eq!(lines.iter().filter(|line| *line == "main runs").count(), 1);
    assert_eq!(lines.last().unwrap(), "worked");
}

fn a_program_whose_workers_end_before_init_gets_an_error_that_names_the_line() {
    let lines = lines(myself("init in one branch").output().unwrap());
    assert!(lines[0].contains("exit status: 5") && lines[0].contains("`multiproc::init();`"), "{lines:?}");
    assert!(myself("panics before init").output().unwrap().status.success());
}

/// It panicked, or ended without a word, and the error blamed a missing `init()`.
fn a_worker_that_has_too_few_fds_says_so() {
    for limit in 4.. {
        let lines = lines(myself("too few fds").env("MULTIPROC_TEST_LIMIT", limit.to_string()).output().unwrap());
        let [said] = &lines[..] else { panic!("{lines:?}") };
        if said == "started" {
            assert!(limit > 4, "it started with {limit} fds");
            break;
        }
        let told = ["Too many open files", "too many are open here"].iter().any(|text| said.contains(text));
        assert!(told && !said.contains("init"), "with {limit}: {said}");
    }
}

/// Each worker ran what tests there were, until it came to the one with `init`.
fn init_on_another_thread_does_not_count_and_a_worker_that_comes_to_it_there_says_so() {
    assert_eq!(lines(myself("init in a thread").output().unwrap()), ["other tests run", "refused"]);
    let lines = lines(myself("init in a worker's thread").output().unwrap());
    assert!(lines[0].contains("`multiproc::init();`") && lines[0].contains("main thread"), "{lines:?}");
}

fn a_forged_marker_is_inert() {
    for arg0 in [MARKER, "multiproc-worker: name", "multiproc-worker<1", "multiproc-worker<2: name"] {
        let forged = |stdin: Stdio| lines(myself("plain").arg0(arg0).stdin(stdin).output().unwrap());
        assert_eq!(forged(Stdio::null()), ["main runs", "worked"]);
        let (reader, writer) = std::io::pipe().unwrap();
        assert_eq!(forged(reader.into()), ["main runs", "worked"]);
        drop(writer);
        assert_eq!(forged(Stdio::piped()), ["main runs", "worked"]);
    }
    // A socket that its parent has made for something else, silent, closed, or with other bytes in it.
    for (close, say) in [(false, ""), (true, ""), (false, "GET / HTTP/1.1\r\n\r\n"), (true, "\0\0\0\0")] {
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        std::io::Write::write_all(&mut ours, say.as_bytes()).unwrap();
        let ours = (!close).then_some(ours);
        let output = myself("plain").arg0(MARKER).stdin(std::os::fd::OwnedFd::from(theirs)).output().unwrap();
        assert_eq!(lines(output), ["main runs", "worked"]);
        drop(ours);
    }
    // A socket that its parent has not made, as of inetd; a datagram socket; a network socket.
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let output = myself("relay").stdin(std::os::fd::OwnedFd::from(theirs)).output().unwrap();
    assert_eq!(lines(output), ["main runs", "worked"]);
    drop(ours);
    let (datagram, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let datagram = std::os::fd::OwnedFd::from(datagram);
    let output = myself("plain").arg0(MARKER).stdin(datagram).output().unwrap();
    assert_eq!(lines(output), ["main runs", "worked"]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let output = myself("plain").arg0(MARKER).stdin(std::os::fd::OwnedFd::from(listener)).output().unwrap();
    assert_eq!(lines(output), ["main runs", "worked"]);
    // Names that only look like it.
    for arg0 in ["multiproc-worker<3", "multiproc-workers", "multiproc-worker:", ""] {
        assert_eq!(lines(myself("plain").arg0(arg0).output().unwrap()), ["main runs", "worked"]);
    }
}

fn an_executable_that_was_replaced_while_it_runs_goes_on_working() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    assert_eq!(lines(program(&copy, "replaced").output().unwrap()), ["main runs", "worked"]);
}

/// It said that the worker had ended before it was ready, and to look for `init()`: the worker was the loader alone.
fn a_program_that_its_loader_was_asked_to_run_gets_an_error_that_says_so() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let loader = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| path.contains("/ld-"));
    let Some(loader) = loader else { return eprintln!("skipped: this program has no loader") };
    let mut command = program(Path::new(loader), "run by its loader");
    let said = lines(command.arg(std::env::current_exe().unwrap()).output().unwrap());
    assert!(said[0].contains("its loader"), "{said:?}");
}

fn a_program_with_closed_stdio_works() {
    let out = tempfile::NamedTempFile::new().unwrap();
    for closed in ["<&-", "<&- 2>&-"] {
        let script = format!("exec \"$0\" {closed} >'{}'", out.path().display());
        let me = std::env::current_exe().unwrap();
        let status = Command::new("sh").arg("-c").arg(script).arg(me).env(FLAVOUR, "plain").status().unwrap();
        assert!(status.success(), "{closed}: {status}");
        assert_eq!(std::fs::read_to_string(out.path()).unwrap(), "main runs\nworked\n");
    }
    let status = Command::new("sh")
        .args(["-c", "exec \"$0\" <&- >&- 2>&-"])
        .arg(std::env::current_exe().unwrap())
        .env(FLAVOUR, "plain")
        .status();
    assert!(status.unwrap().success());
}

/// As the standard harness, with what `cargo test` and cargo-nextest ask of it.
fn tests() {
    macro_rules! tests {
        ($($test:ident),* $(,)?) => { [$((stringify!($test), $test as fn())),*] };
    }
    let tests = tests![
        init_works_in_a_plain_main,
        init_works_inside_a_runtime_of_either_flavour,
        what_stands_before_init_runs_in_workers_too_and_nothing_else_does,
        without_init_a_start_is_refused_at_once_with_no_process_started,
        a_start_before_init_is_refused_and_works_after_it,
        a_program_whose_workers_end_before_init_gets_an_error_that_names_the_line,
        a_worker_that_has_too_few_fds_says_so,
        init_on_another_thread_does_not_count_and_a_worker_that_comes_to_it_there_says_so,
        a_forged_marker_is_inert,
        an_executable_that_was_replaced_while_it_runs_goes_on_working,
        a_program_that_its_loader_was_asked_to_run_gets_an_error_that_says_so,
        a_program_with_closed_stdio_works,
    ];
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |name: &str| {
        let fits = |filter: &&String| if has("--exact") { name == **filter } else { name.contains(filter.as_str()) };
        !has("--ignored") && (filters.is_empty() || filters.iter().any(fits))
    };
    for (name, test) in tests.into_iter().filter(|(name, _)| wanted(name)) {
        if has("--list") {
            println!("{name}: test");
        } else {
            test();
            println!("test {name} ... ok");
        }
    }
}
