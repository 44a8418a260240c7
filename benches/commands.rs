//! Commands beside std and tokio, side by side in one run: `cargo bench --bench commands [name]`.
//!
//! Each number is the median of several rounds, in which the contestants take turns, so that a slower minute of the machine
//! hits all of them. No claim rests on one round.

mod support;

use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::process::{ExitStatus, Stdio};
use std::time::Instant;

use bytes::Bytes;
use multiproc::Command;
use rustix::pipe::fcntl_setpipe_size;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use support::{line, median, micros, order, proc_field};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::unix::pipe;
use tokio::runtime::{Runtime, RuntimeFlavor};

fn main() {
    // Cargo passes `--bench`; what else there is names one of them.
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let current = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let multi = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    for (name, bench) in [
        ("status", status as fn(&Runtime)),
        ("captured", captured),
        ("at-once", at_once),
        ("through-cat", through_cat),
        ("large-host", large_host),
        ("flat", flat),
    ] {
        if only.as_deref().is_none_or(|only| only == name) {
            bench(&current);
            bench(&multi);
        }
    }
}

type Contestant<'a> = (&'static str, Box<dyn FnMut() + 'a>);

/// The title of a row.
fn row(title: &str, runtime: &Runtime) -> String {
    let current = matches!(runtime.handle().runtime_flavor(), RuntimeFlavor::CurrentThread);
    format!("{title}, {}", if current { "current_thread" } else { "multi_thread" })
}

/// Runs each contestant in turn, a number of rounds, and prints the medians.
fn compare(row: &str, rounds: usize, per_round: u32, mut contestants: Vec<Contestant<'_>>) {
    let mut times = vec![Vec::new(); contestants.len()];
    for round in 0..=rounds {
        for index in order(contestants.len()) {
            let (_, run) = &mut contestants[index];
            let start = Instant::now();
            for _ in 0..per_round {
                run();
            }
            // The first round only warms up.
            if round > 0 {
                times[index].push(start.elapsed() / per_round);
            }
        }
    }
    for ((name, _), times) in contestants.iter().zip(times) {
        line(row, name, micros(median(times)), "µs");
    }
}

fn status(runtime: &Runtime) {
    compare(
        &row("/bin/true, status", runtime),
        15,
        100,
        vec![
            (
                "limit: std::process",
                Box::new(|| assert!(std::process::Command::new("/bin/true").status().unwrap().success())),
            ),
            (
                "tokio::process",
                Box::new(|| {
                    runtime.block_on(async {
                        assert!(tokio::process::Command::new("/bin/true").status().await.unwrap().success());
                    });
                }),
            ),
            (
                "multiproc",
                Box::new(|| {
                    runtime.block_on(async { assert!(Command::new("/bin/true").status().await.unwrap().success()) });
                }),
            ),
            (
                "multiproc: spawn and wait",
                Box::new(|| {
                    runtime.block_on(async {
                        assert!(Command::new("/bin/true").spawn().unwrap().wait().await.unwrap().success());
                    });
                }),
            ),
        ],
    );
}

fn captured(runtime: &Runtime) {
    compare(
        &row("/bin/true, captured", runtime),
        15,
        100,
        vec![
            (
                "limit: std::process",
                Box::new(|| drop(black_box(std::process::Command::new("/bin/true").output().unwrap()))),
            ),
            (
                "tokio::process",
                Box::new(|| {
                    drop(black_box(
                        runtime.block_on(async { tokio::process::Command::new("/bin/true").output().await }).unwrap(),
                    ));
                }),
            ),
            (
                "std's start, in tokio's reactor",
                Box::new(|| drop(black_box(runtime.block_on(output_of_std("/bin/true"))))),
            ),
            ("multiproc", Box::new(|| drop(black_box(runtime.block_on(Command::new("/bin/true").output()).unwrap())))),
        ],
    );
}

/// What a program prints, with nothing but what it takes to await that: std starts it, and both pipes and a pidfd are in tokio's
/// reactor.
async fn output_of_std(program: &str) -> (Vec<u8>, Vec<u8>, ExitStatus) {
    let mut command = std::process::Command::new(program);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK).unwrap();
    #[expect(deprecated, reason = "what is not is unsafe, and an OwnedFd fulfils what that asks for")]
    let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE).unwrap();
    let mut stdout = pipe::Receiver::from_owned_fd(child.stdout.take().unwrap().into()).unwrap();
    let mut stderr = pipe::Receiver::from_owned_fd(child.stderr.take().unwrap().into()).unwrap();
    let (mut printed, mut complained) = (Vec::new(), Vec::new());
    let (stdout, stderr, ended) =
        tokio::join!(stdout.read_to_end(&mut printed), stderr.read_to_end(&mut complained), pidfd.readable());
    stdout.unwrap();
    stderr.unwrap();
    drop(ended.unwrap());
    (printed, complained, child.wait().unwrap())
}

fn at_once(runtime: &Runtime) {
    compare(
        &row("64 x /bin/true at once", runtime),
        15,
        2,
        vec![
            (
                "peer: tokio::process",
                Box::new(|| {
                    runtime.block_on(async {
                        let all = (0..64).map(|_| tokio::spawn(tokio::process::Command::new("/bin/true").status()));
                        for one in all.collect::<Vec<_>>() {
                            assert!(one.await.unwrap().unwrap().success());
                        }
                    });
                }),
            ),
            (
                "multiproc",
                Box::new(|| {
                    runtime.block_on(async {
                        let all = (0..64).map(|_| tokio::spawn(Command::new("/bin/true").status()));
                        for one in all.collect::<Vec<_>>() {
                            assert!(one.await.unwrap().unwrap().success());
                        }
                    });
                }),
            ),
        ],
    );
}

const CAT: usize = 256 << 20;

/// What the kernel allows: two threads, and pipes and reads of 1 MiB, which is as wide as a pipe may be.
fn cat_limit(input: &[u8], mut take: impl FnMut(&[u8])) {
    let mut command = std::process::Command::new("cat");
    let mut cat = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stdout) = (cat.stdin.take().unwrap(), cat.stdout.take().unwrap());
    fcntl_setpipe_size(&stdin, 1 << 20).unwrap();
    fcntl_setpipe_size(&stdout, 1 << 20).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        let mut buf = vec![0; 1 << 20];
        let mut total = 0;
        while let count @ 1.. = stdout.read(&mut buf).unwrap() {
            take(&buf[..count]);
            total += count;
        }
        assert_eq!(total, CAT);
    });
    cat.wait().unwrap();
}

fn through_cat(runtime: &Runtime) {
    let input = Bytes::from(vec![7_u8; CAT]);
    let tokio_cat = || {
        let mut command = tokio::process::Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    compare(
        &row("256 MiB through cat, kept", runtime),
        7,
        1,
        vec![
            (
                "limit: 1 MiB pipes, two threads",
                Box::new(|| {
                    let mut output = Vec::with_capacity(CAT);
                    cat_limit(&input, |bytes| output.extend_from_slice(bytes));
                }),
            ),
            (
                "tokio::process",
                Box::new(|| {
                    runtime.block_on(async {
                        let mut cat = tokio_cat();
                        let mut stdin = cat.stdin.take().unwrap();
                        let input = input.clone();
                        let (output, ()) = tokio::join!(cat.wait_with_output(), async move {
                            stdin.write_all(&input).await.unwrap();
                        });
                        assert_eq!(output.unwrap().stdout.len(), CAT);
                    });
                }),
            ),
            (
                "multiproc",
                Box::new(|| {
                    runtime.block_on(async {
                        let output = Command::new("cat").input(input.clone()).output().await.unwrap();
                        assert_eq!(output.stdout.len(), CAT);
                    });
                }),
            ),
        ],
    );
    compare(
        &row("256 MiB through cat, streamed", runtime),
        7,
        1,
        vec![
            ("limit: 1 MiB pipes, two threads", Box::new(|| cat_limit(&input, |_| {}))),
            (
                "tokio::process",
                Box::new(|| {
                    runtime.block_on(async {
                        let mut cat = tokio_cat();
                        let (mut stdin, mut stdout) = (cat.stdin.take().unwrap(), cat.stdout.take().unwrap());
                        let input = input.clone();
                        let writer = tokio::spawn(async move { stdin.write_all(&input).await.unwrap() });
                        assert_eq!(count(&mut stdout).await, CAT);
                        writer.await.unwrap();
                        cat.wait().await.unwrap();
                    });
                }),
            ),
            (
                "multiproc",
                Box::new(|| {
                    runtime.block_on(async {
                        let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
                        let (mut stdin, mut stdout) = (cat.stdin.take().unwrap(), cat.stdout.take().unwrap());
                        let input = input.clone();
                        let writer = tokio::spawn(async move { stdin.write_all(&input).await.unwrap() });
                        assert_eq!(count(&mut stdout).await, CAT);
                        writer.await.unwrap();
                        cat.wait().await.unwrap();
                    });
                }),
            ),
        ],
    );
}

async fn count(stdout: &mut (impl tokio::io::AsyncRead + Unpin)) -> usize {
    let mut buf = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        match stdout.read(&mut buf).await.unwrap() {
            0 => return total,
            count => total += count,
        }
    }
}

/// A start must not cost more in a host that has touched a lot of memory.
fn large_host(runtime: &Runtime) {
    let run = |host| {
        compare(
            &row("/bin/true in a small or large host", runtime),
            15,
            100,
            vec![(
                host,
                Box::new(|| {
                    runtime.block_on(async { assert!(Command::new("/bin/true").status().await.unwrap().success()) });
                }),
            )],
        );
    };
    run("limit: host as it is");
    let touched = vec![1_u8; 4 << 30];
    run("host with 4 GiB touched");
    drop(black_box(touched));
}

/// Fds, threads and memory after many starts.
fn flat(runtime: &Runtime) {
    let state = |after| {
        let row = row(after, runtime);
        let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
        line(&row, "open fds", f64::from(u32::try_from(fds).unwrap()), "");
        line(&row, "threads", proc_field("/proc/self/status", "Threads:"), "");
        line(&row, "RSS", proc_field("/proc/self/status", "VmRSS:") / 1024.0, "MiB");
    };
    let start = |times| {
        runtime.block_on(async {
            for _ in 0..times {
                Command::new("/bin/true").output().await.unwrap();
            }
        });
    };
    start(100);
    state("after 100 starts");
    start(10_000);
    state("after 10,100 starts");
}
