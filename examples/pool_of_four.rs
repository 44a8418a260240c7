//! Five tasks of random length for four processes: the fifth waits until one of the others is done.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use multiproc::{ProcessPool, task};

fn long_time_task(name: u32) {
    println!("Run task {name} ({})...", std::process::id());
    let begun = Instant::now();
    std::thread::sleep(Duration::from_millis(200 + random() % 1800));
    println!("Task {name} runs {:.2} seconds.", begun.elapsed().as_secs_f64());
}

/// Another number in each process and at each call.
fn random() -> u64 {
    RandomState::new().hash_one(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    multiproc::init();
    println!("Parent process {}.", std::process::id());
    let pool = ProcessPool::new(4);
    let tasks = (0..5).map(|name| pool.submit(task!(long_time_task(name))));
    println!("Waiting for all subprocesses done...");
    try_join_all(tasks).await?;
    pool.close().await;
    println!("All subprocesses done.");
    Ok(())
}
