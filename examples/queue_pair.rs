//! Two processes and a queue between them: one writes, the other reads for ever, and is terminated at last.

use std::hash::{BuildHasher, RandomState};
use std::process::id;
use std::time::Duration;

use multiproc::{QueueReceiver, QueueSender, queue, spawn_process, task};

fn write(queue: QueueSender<String>) {
    println!("Process to write: {}", id());
    for value in ["A", "B", "C"] {
        println!("Put {value} to queue...");
        queue.blocking_send(value.to_string()).expect("the reader is there");
        std::thread::sleep(Duration::from_millis(100 + random() % 900));
    }
}

async fn read(queue: QueueReceiver<String>) {
    println!("Process to read: {}", id());
    // There is no end while somebody may write, and the parent may.
    while let Some(value) = queue.recv().await.expect("what was put can be read") {
        println!("Get {value} from queue.");
    }
}

/// Another number in each process and at each call.
fn random() -> u64 {
    RandomState::new().hash_one(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    multiproc::init();
    let (sender, receiver) = queue()?;
    let writer = spawn_process(task!(write(sender.clone()))).await?;
    let mut reader = spawn_process(task!(read(receiver).await)).await?;
    writer.join().await?;
    reader.terminate()?;
    println!("Reader ended: {}.", reader.wait().await?);
    Ok(())
}
