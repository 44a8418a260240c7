//! One array of numbers, worked on by four processes with no copy: `cargo run --release --example shared_array`.
//!
//! Each process reads the whole array where it lies and writes its own quarter of the result, which comes back the same way.

use multiproc::{SharedSlice, SharedSliceMut, spawn_process, task};

const LEN: usize = 4 << 20;

/// A quarter of the running mean over 64 numbers.
fn quarter(numbers: SharedSlice<f64>, part: usize) -> Result<SharedSlice<f64>, String> {
    let smooth = || {
        let len = numbers.len() / 4;
        let mut smoothed = SharedSliceMut::<f64>::new(len)?;
        for (i, mean) in smoothed.iter_mut().enumerate() {
            let last = part * len + i;
            let window = &numbers[last.saturating_sub(63)..=last];
            *mean = window.iter().sum::<f64>() / 64.0;
        }
        smoothed.freeze()
    };
    smooth().map_err(|error| error.to_string())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    multiproc::init();
    let mut numbers = SharedSliceMut::<f64>::new(LEN)?;
    for (number, value) in numbers.iter_mut().zip((0..1000).cycle()) {
        *number = f64::from(value);
    }
    let numbers = numbers.freeze()?;

    let mut workers = Vec::new();
    for part in 0..4 {
        workers.push(spawn_process(task!(quarter(numbers.clone(), part))).await?);
    }
    let mut smoothed = Vec::new();
    for worker in workers {
        smoothed.push(worker.join().await??);
    }
    for (part, quarter) in smoothed.iter().enumerate() {
        println!("quarter {part}: {} numbers, the last is {}", quarter.len(), quarter[quarter.len() - 1]);
    }
    Ok(())
}
