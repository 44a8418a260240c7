//! Work that is not lost with who does it: `cargo run --example work_queue`.
//!
//! Four consumers, each in a process of its own, crash again and again; each job is done all the same.

use multiproc::{AckedQueue, AckedReceiver, QueueSender, queue, spawn_process, task};
use tokio::task::JoinSet;

const JOBS: u64 = 60;

/// Squares numbers. Some of them crash it, the first time.
fn consume(mut jobs: AckedReceiver<u64>, results: QueueSender<(u64, u64)>) {
    while let Some(job) = jobs.blocking_recv().unwrap() {
        if *job % 7 == 0 && !job.is_redelivered() {
            std::process::abort();
        }
        results.blocking_send((*job, *job * *job)).unwrap();
        job.ack().unwrap();
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    multiproc::init();
    let jobs = AckedQueue::new();
    let (results_in, results) = queue()?;

    let mut consumers = JoinSet::new();
    for _ in 0..4 {
        let child = spawn_process(task!(consume(jobs.receiver()?, results_in.clone()))).await?;
        consumers.spawn(child.join());
    }
    for job in 1..=JOBS {
        jobs.send(job).await?;
    }

    let mut crashes = 0;
    let mut finished = std::pin::pin!(jobs.finished());
    loop {
        tokio::select! {
            () = &mut finished => break,
            Some(ended) = consumers.join_next() => {
                crashes += 1;
                eprintln!("a consumer went: {}; here is another", ended?.unwrap_err());
                let child = spawn_process(task!(consume(jobs.receiver()?, results_in.clone()))).await?;
                consumers.spawn(child.join());
            }
        }
    }
    drop(results_in);

    let mut sum = 0;
    for _ in 0..JOBS {
        let (_, square) = results.recv().await?.ok_or("the results ended early")?;
        sum += square;
    }
    println!("{JOBS} squares after {crashes} crashes, their sum {sum}");
    Ok(())
}
