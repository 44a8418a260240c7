//! Thumbnails of all PNG and JPEG files below a directory, made in a pool of processes.
//!
//! ```text
//! cargo run --release --example thumbnails -- [DIR] [--into DIR]
//! ```
//!
//! Images from anywhere are what a decoder in your own process should not see: one that makes it crash, take all memory or
//! loop costs its own thumbnail here, and nothing else. Without DIR it takes what is in /usr/share; without `--into` the
//! thumbnails go to a folder that is removed again.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use image::{ImageReader, Limits};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use multiproc::{PoolStatus, ProcessPool, task};

const SIZE: u32 = 64;

/// Runs in a worker. A path is sent as an `OsString`: serde refuses a `Path` that is not UTF-8.
fn thumbnail(from: OsString, to: OsString) -> Result<(), String> {
    let mut reader =
        ImageReader::open(from).and_then(ImageReader::with_guessed_format).map_err(|error| error.to_string())?;
    // The worker's memory limit is what counts; the decoder need not have one of its own.
    reader.limits(Limits::no_limits());
    let image = reader.decode().map_err(|error| error.to_string())?;
    image.thumbnail(SIZE, SIZE).to_rgba8().save(to).map_err(|error| error.to_string())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    multiproc::init();
    let (from, into) = arguments();
    let temporary = tempfile::tempdir()?;
    let into = into.unwrap_or_else(|| temporary.path().to_owned());
    fs::create_dir_all(&into)?;

    let pool = ProcessPool::builder()
        .name("thumbs")
        .nice(10)
        // A decoder that leaks is replaced in time, one that wants too much is stopped.
        .max_tasks_per_worker(1000)
        .max_worker_memory(256 << 20)
        .memory_limit(2 << 30)
        .task_timeout(Duration::from_secs(10))
        .build()?;

    let images = images(&from);
    let bar = ProgressBar::new(images.len() as u64)
        .with_style(ProgressStyle::with_template("{bar:30} {pos} of {len}, {eta} to go  {msg}")?);
    let begun = Instant::now();
    let submitted = stream::iter(images).enumerate().map(|(number, path)| {
        let to = into.join(format!("{number}.png")).into_os_string();
        let name = path.display().to_string();
        let task = pool.submit(task!(thumbnail(path.into_os_string(), to))).name(name.clone());
        async move { (name, task.await) }
    });
    // So many are under way at once: enough that no worker waits, few enough that memory stays small.
    let mut results = submitted.buffer_unordered(256);
    let mut failed = 0;
    while let Some((name, result)) = results.next().await {
        let why = match result {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(why),
            // What happened to the process: it died, took too long, panicked.
            Err(error) => Some(error.to_string()),
        };
        if let Some(why) = why {
            failed += 1;
            bar.suspend(|| println!("{name}: {why}"));
        }
        bar.inc(1);
        if bar.position().is_multiple_of(100) {
            bar.set_message(summary(&pool.status()));
        }
    }
    bar.finish_and_clear();
    let made = bar.position() - failed;
    println!("{made} thumbnails in {:.1?}, {failed} failed; {}", begun.elapsed(), summary(&pool.status()));
    pool.close().await;
    Ok(())
}

fn summary(status: &PoolStatus) -> String {
    let memory = status.details.iter().filter_map(|worker| worker.memory).sum();
    format!(
        "{} workers in {}, {} replaced; half took up to {:.1?}, 99 % up to {:.1?}",
        status.workers,
        HumanBytes(memory),
        status.counts.restarts,
        status.run.p50,
        status.run.p99
    )
}

/// The images below a directory, in the order of their paths. Symbolic links are not followed.
fn images(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            let path = entry.path();
            let is_image =
                || path.extension().is_some_and(|end| ["png", "jpg", "jpeg"].iter().any(|known| end == *known));
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() && is_image() {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn arguments() -> (PathBuf, Option<PathBuf>) {
    let (mut from, mut into) = (PathBuf::from("/usr/share"), None);
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--into" {
            into = arguments.next().map(PathBuf::from);
        } else {
            from = PathBuf::from(argument);
        }
    }
    (from, into)
}
