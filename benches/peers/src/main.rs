//! This library beside its peers, in turns: what each does for the same work. `benches/measure` runs it.
//!
//! No limits in here: `benches/limits.rs` has those. Where a peer has no async API it is called on this thread, which is
//! how its users call it.

mod channels;
#[path = "../../support/mod.rs"]
mod support;

use std::cell::RefCell;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use futures::future::join_all;
use multiproc::{ProcessPool, call, spawn_process};
use rayon::prelude::*;
use support::{each, line, micros};

fn main() {
    procspawn::init();
    multiproc::init();
    if channels::is_other_side() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let python = Python::start();
        tasks(&python).await;
        starts(&python).await;
        channels::all(&python).await;
    });
}

/// A Python that measures one round of something each time that it is asked.
pub(crate) struct Python {
    child: RefCell<(Child, BufReader<ChildStdout>)>,
}

impl Python {
    fn start() -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers.py");
        let mut child =
            Command::new("python3").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child: RefCell::new((child, answers)) }
    }

    /// Seconds for each of what it did, as Python measured them.
    pub(crate) async fn round(&self, what: &str) -> Duration {
        let (child, answers) = &mut *self.child.borrow_mut();
        writeln!(child.stdin.as_ref().unwrap(), "{what}").unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        Duration::from_secs_f64(answer.trim().parse().unwrap())
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // Which closes its stdin first, and so ends it and its workers; killed, it would leave them.
        let _ = self.child.get_mut().0.wait();
    }
}

fn spin() {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1) {
        std::hint::spin_loop();
    }
}

async fn tasks(python: &Python) {
    let ours = ProcessPool::new(2);
    ours.start().await.unwrap();
    let theirs = procspawn::Pool::new(2).unwrap();

    const ROUNDS: u32 = 300;
    let multiproc = async || {
        each(ROUNDS, async {
            for n in 0..ROUNDS {
                assert_eq!(ours.submit(call(|n: u32| n + 1, n)).await.unwrap(), n + 1);
            }
        })
        .await
    };
    let procspawn = async || {
        each(ROUNDS, async {
            for n in 0..ROUNDS {
                assert_eq!(procspawn::spawn!(in theirs, (n) || n + 1).join().unwrap(), n + 1);
            }
        })
        .await
    };
    let blocking = async || {
        each(ROUNDS, async {
            for n in 0..ROUNDS {
                assert_eq!(tokio::task::spawn_blocking(move || n + 1).await.unwrap(), n + 1);
            }
        })
        .await
    };
    let names =
        ["multiproc", "procspawn::Pool", "multiprocessing.Pool", "ProcessPoolExecutor", "in-process: spawn_blocking"];
    let times = in_turns!(
        5; multiproc(), procspawn(), python.round("pool one"), python.round("executor one"), blocking()
    );
    for (name, time) in names.into_iter().zip(times) {
        line("peers: one task there and back", name, micros(time), "µs");
    }

    let multiproc = async |count: u32| {
        each(count, async {
            for result in join_all((0..count).map(|n| ours.submit(call(|n: u32| n + 1, n)))).await {
                result.unwrap();
            }
        })
        .await
    };
    let procspawn = async |count: u32| {
        each(count, async {
            let all: Vec<_> = (0..count).map(|n| procspawn::spawn!(in theirs, (n) || n + 1)).collect();
            for one in all {
                one.join().unwrap();
            }
        })
        .await
    };
    let blocking = async |count: u32| {
        each(count, async {
            join_all((0..count).map(|n| tokio::task::spawn_blocking(move || n + 1))).await;
        })
        .await
    };
    let times = in_turns!(
        3; multiproc(100_000), procspawn(300), python.round("pool many"), python.round("executor many"), blocking(100_000)
    );
    for (name, time) in names.into_iter().zip(times) {
        line("peers: many tasks at once, 2 workers", name, 1e6 / micros(time), "/s");
    }

    let multiproc = async || {
        each(1, async {
            for result in join_all((0..200).map(|_| ours.submit(call(|()| spin(), ())))).await {
                result.unwrap();
            }
        })
        .await
    };
    let procspawn = async || {
        each(1, async {
            let all: Vec<_> = (0..200).map(|_| procspawn::spawn!(in theirs, () || spin())).collect();
            all.into_iter().for_each(|one| one.join().unwrap());
        })
        .await
    };
    let in_process = async || each(1, async { (0..200).into_par_iter().for_each(|_| spin()) }).await;
    let names = ["multiproc", "procspawn::Pool", "ProcessPoolExecutor", "in-process: rayon"];
    let times = in_turns!(3; multiproc(), procspawn(), python.round("executor jobs"), in_process());
    for (name, time) in names.into_iter().zip(times) {
        line("peers: 200 jobs of 1 ms, 2 workers", name, micros(time) / 1e3, "ms");
    }
    ours.close().await;
    theirs.shutdown();
}

async fn starts(python: &Python) {
    let multiproc = async || {
        each(1, async { assert_eq!(spawn_process(call(|n: u32| n + 1, 1)).await.unwrap().join().await.unwrap(), 2) })
            .await
    };
    let procspawn =
        async || each(1, async { assert_eq!(procspawn::spawn(1, |n: u32| n + 1).join().unwrap(), 2) }).await;
    let times = in_turns!(21; multiproc(), procspawn(), python.round("fork"));
    for (name, time) in ["multiproc", "procspawn", "multiprocessing, fork"].into_iter().zip(times) {
        line("peers: a function in a new process", name, micros(time), "µs");
    }
    let times = in_turns!(3; python.round("spawn"));
    line("peers: a function in a new process", "multiprocessing, spawn", micros(times[0]), "µs");

    let multiproc = async || {
        each(20, async {
            for _ in 0..20 {
                assert!(multiproc::Command::new("/bin/true").output().await.unwrap().status.success());
            }
        })
        .await
    };
    let tokio = async || {
        each(20, async {
            for _ in 0..20 {
                assert!(tokio::process::Command::new("/bin/true").output().await.unwrap().status.success());
            }
        })
        .await
    };
    let std = async || {
        each(20, async {
            for _ in 0..20 {
                assert!(Command::new("/bin/true").output().unwrap().status.success());
            }
        })
        .await
    };
    let times = in_turns!(9; multiproc(), tokio(), std());
    for (name, time) in ["multiproc", "tokio::process", "std::process"].into_iter().zip(times) {
        line("peers: /bin/true, captured", name, micros(time), "µs");
    }
}
