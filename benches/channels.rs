//! Channels beside a bare tokio `UnixStream`, in one run and in one process each side: `cargo bench --bench channels`.
//!
//! Plain `std::time` and no framework: each line is the median of nine runs, which is steady enough to compare lines with
//! each other, and nothing has to be learnt to read it. `-- large` runs that part alone; so do `one_way` and `round_trips`. With
//! `several` behind that, it is a runtime of several threads.

use std::time::{Duration, Instant};

use futures::{SinkExt as _, StreamExt as _};
use multiproc::{
    Duplex, QueueReceiver, Receiver, Sender, SharedBytes, SharedBytesMut, channel, duplex, queue, spawn_process, task,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

multiproc::test_support!();

const SMALL: u32 = 200_000;
const ROUNDS: u32 = 5_000;
const RUNS: usize = 9;

fn main() {
    let several = std::env::args().any(|argument| argument == "several");
    let mut runtime = if several {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = runtime.enable_all().build().unwrap();
    runtime.block_on(async {
        let only = std::env::args().nth(1).filter(|argument| !argument.starts_with('-'));
        let wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
        if wanted("one_way") {
            one_way().await;
        }
        if wanted("round_trips") {
            round_trips().await;
        }
        if wanted("large") {
            large().await;
        }
    });
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn report(what: &str, time: Duration, count: u32) {
    let each = time.as_secs_f64() / f64::from(count);
    println!("{what:<58} {:>10.2} µs {:>12.0} /s", each * 1e6, 1.0 / each);
}

async fn count(mut rx: Receiver<[u64; 4]>, done: Sender<u32>) {
    let mut count = 0;
    while let Some(message) = rx.recv().await.unwrap() {
        count += 1;
        if message[0] == u64::MAX {
            done.send(count).await.unwrap();
        }
    }
}

async fn count_items(rx: QueueReceiver<[u64; 4]>, done: Sender<u32>) {
    let mut count = 0;
    while let Some(item) = rx.recv().await.unwrap() {
        count += 1;
        if item[0] == u64::MAX {
            done.send(count).await.unwrap();
        }
    }
}

fn message(n: u32) -> [u64; 4] {
    [if n + 1 == SMALL { u64::MAX } else { u64::from(n) % 100 }, 1, 2, 3]
}

async fn one_way() {
    println!("one way to another process, 4 small numbers a message");
    let (mut tx, rx) = channel().unwrap();
    let (done, mut counted) = channel().unwrap();
    let child = spawn_process(task!(count(rx, done).await)).await.unwrap();
    // A send each, 500 at once, from 64 tasks, fed: in turns.
    let mut times = [const { Vec::new() }; 4];
    for _ in 0..RUNS {
        let start = Instant::now();
        for n in 0..SMALL {
            tx.send(message(n)).await.unwrap();
        }
        counted.recv().await.unwrap();
        times[0].push(start.elapsed());
        let start = Instant::now();
        for first in (0..SMALL).step_by(500) {
            let sends = (first..first + 500).map(|n| tx.send(message(n)));
            drop(futures::future::try_join_all(sends).await.unwrap());
        }
        counted.recv().await.unwrap();
        times[1].push(start.elapsed());
        let start = Instant::now();
        let shared = std::sync::Arc::new(tx);
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..64 {
            let tx = std::sync::Arc::clone(&shared);
            tasks.spawn(async move {
                for n in 0..SMALL / 64 {
                    tx.send(message(n)).await.unwrap();
                }
            });
        }
        tasks.join_all().await;
        tx = std::sync::Arc::into_inner(shared).unwrap();
        tx.send(message(SMALL - 1)).await.unwrap();
        counted.recv().await.unwrap();
        times[2].push(start.elapsed());
        let start = Instant::now();
        for n in 0..SMALL {
            tx.feed(message(n)).await.unwrap();
        }
        tx.flush().await.unwrap();
        counted.recv().await.unwrap();
        times[3].push(start.elapsed());
    }
    let [each, at_once, tasks, fed] = times;
    report("  Sender::send, each awaited", median(each), SMALL);
    report("  Sender::send, 500 at once", median(at_once), SMALL);
    report("  Sender::send, 64 tasks", median(tasks), SMALL);
    report("  Sink::feed, gathered", median(fed), SMALL);
    drop(tx);
    child.join().await.unwrap();

    let (tx, rx) = queue().unwrap();
    let (done, mut counted) = channel().unwrap();
    let child = spawn_process(task!(count_items(rx, done).await)).await.unwrap();
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let start = Instant::now();
        for n in 0..SMALL {
            tx.send(message(n)).await.unwrap();
        }
        counted.recv().await.unwrap();
        times.push(start.elapsed());
    }
    report("  QueueSender::send, each awaited", median(times), SMALL);
    drop(tx);
    child.join().await.unwrap();

    bare_one_way().await;
}

/// The same bytes, 20 a message, with one write each and with 64 KiB a write.
async fn bare_one_way() {
    for gathered in [false, true] {
        let (mut ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        let mut times = Vec::new();
        let reader = std::thread::spawn(move || {
            let theirs = theirs.into_std().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let mut theirs = tokio::net::UnixStream::from_std(theirs).unwrap();
                let mut buffer = vec![0; 64 << 10];
                let (mut total, whole) = (0, SMALL as usize * 20);
                loop {
                    let read = theirs.read(&mut buffer).await.unwrap();
                    total += read;
                    if total >= whole {
                        total -= whole;
                        theirs.write_all(&[1]).await.unwrap();
                    }
                    if read == 0 {
                        break;
                    }
                }
            });
        });
        for _ in 0..RUNS {
            let start = Instant::now();
            if gathered {
                let buffer = vec![7; 64_000];
                for _ in 0..SMALL as usize * 20 / buffer.len() {
                    ours.write_all(&buffer).await.unwrap();
                }
                ours.write_all(&vec![7; SMALL as usize * 20 % buffer.len()]).await.unwrap();
            } else {
                for _ in 0..SMALL {
                    ours.write_all(&[7; 20]).await.unwrap();
                }
            }
            ours.read_exact(&mut [0]).await.unwrap();
            times.push(start.elapsed());
        }
        report(
            if gathered { "  bare UnixStream, gathered" } else { "  bare UnixStream, a write each" },
            median(times),
            SMALL,
        );
        drop(ours);
        reader.join().unwrap();
    }
}

async fn echo(mut end: Duplex<u64, u64>) {
    while let Some(n) = end.next().await {
        end.send(n.unwrap()).await.unwrap();
    }
}

async fn round_trips() {
    println!("there and back, one at a time");
    let (mut ours, theirs) = duplex::<u64, u64>().unwrap();
    let child = spawn_process(task!(echo(theirs).await)).await.unwrap();
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let start = Instant::now();
        for n in 0..u64::from(ROUNDS) {
            Duplex::send(&ours, n).await.unwrap();
            assert_eq!(ours.recv().await.unwrap(), Some(n));
        }
        times.push(start.elapsed());
    }
    report("  Duplex, typed", median(times), ROUNDS);
    drop(ours);
    child.join().await.unwrap();

    let (mut ours, theirs) = tokio::net::UnixStream::pair().unwrap();
    let theirs = theirs.into_std().unwrap();
    let echo = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let mut theirs = tokio::net::UnixStream::from_std(theirs).unwrap();
            let mut buffer = [0; 17];
            while theirs.read_exact(&mut buffer).await.is_ok() {
                theirs.write_all(&buffer).await.unwrap();
            }
        });
    });
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let start = Instant::now();
        for _ in 0..ROUNDS {
            ours.write_all(&[7; 17]).await.unwrap();
            ours.read_exact(&mut [0; 17]).await.unwrap();
        }
        times.push(start.elapsed());
    }
    report("  bare UnixStream", median(times), ROUNDS);
    drop(ours);
    echo.join().unwrap();
}

async fn sum(mut end: Duplex<u64, SharedBytes>) {
    while let Some(bytes) = end.recv().await.unwrap() {
        // A byte of each page: that it is there is what is measured, not the sum.
        let sum = bytes.iter().step_by(4096).map(|byte| u64::from(*byte)).sum();
        Duplex::send(&end, sum).await.unwrap();
    }
}

async fn echo_bytes(mut end: Duplex<bytes::Bytes, bytes::Bytes>) {
    while let Some(bytes) = end.recv().await.unwrap() {
        Duplex::send(&end, bytes).await.unwrap();
    }
}

async fn large() {
    const LEN: usize = 64 << 20;
    println!("64 MiB");
    let source = vec![7u8; LEN];
    let mut target = vec![1u8; LEN];
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let start = Instant::now();
        target.copy_from_slice(std::hint::black_box(&source));
        std::hint::black_box(&mut target);
        times.push(start.elapsed());
    }
    report("  one memcpy into warm memory", median(times), 1);

    let (mut ours, theirs) = duplex::<SharedBytes, u64>().unwrap();
    let child = spawn_process(task!(sum(theirs).await)).await.unwrap();
    let (mut filled, mut sent, mut copied) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let start = Instant::now();
        let mut bytes = SharedBytesMut::new(LEN).unwrap();
        bytes.copy_from_slice(&source);
        filled.push(start.elapsed());
        let bytes = bytes.freeze().unwrap();
        Duplex::send(&ours, bytes).await.unwrap();
        assert_eq!(ours.recv().await.unwrap(), Some(7 * LEN as u64 / 4096));
        sent.push(start.elapsed());
        let start = Instant::now();
        Duplex::send(&ours, SharedBytes::copy_from_slice(&source).unwrap()).await.unwrap();
        assert_eq!(ours.recv().await.unwrap(), Some(7 * LEN as u64 / 4096));
        copied.push(start.elapsed());
    }
    report("  SharedBytes: made and filled", median(filled), 1);
    report("  SharedBytes: made, filled, sent, each page read", median(sent), 1);
    report("  SharedBytes: copied from a slice, sent, each page read", median(copied), 1);
    drop(ours);
    child.join().await.unwrap();

    // Side by side, a run of each at a time, so that what else the machine does hits both.
    let (mut typed, theirs) = duplex::<bytes::Bytes, bytes::Bytes>().unwrap();
    let child = spawn_process(task!(echo_bytes(theirs).await)).await.unwrap();
    let payload = bytes::Bytes::from(source);
    let (mut bare, theirs) = tokio::net::UnixStream::pair().unwrap();
    let theirs = theirs.into_std().unwrap();
    let echo = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let mut theirs = tokio::net::UnixStream::from_std(theirs).unwrap();
            let mut buffer = vec![0; LEN];
            while theirs.read_exact(&mut buffer).await.is_ok() {
                theirs.write_all(&buffer).await.unwrap();
            }
        });
    });
    let (mut typed_times, mut bare_times) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let start = Instant::now();
        Duplex::send(&typed, payload.clone()).await.unwrap();
        assert_eq!(typed.recv().await.unwrap().unwrap().len(), LEN);
        typed_times.push(start.elapsed());
        let start = Instant::now();
        bare.write_all(&payload).await.unwrap();
        bare.read_exact(&mut target).await.unwrap();
        bare_times.push(start.elapsed());
    }
    report("  Bytes there and back, Duplex", median(typed_times), 1);
    report("  the same over a bare UnixStream, warm memory", median(bare_times), 1);
    drop(typed);
    child.join().await.unwrap();
    drop(bare);
    echo.join().unwrap();
}
