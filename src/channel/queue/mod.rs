//! Queues: many senders and many receivers, in any processes, and each item goes to exactly one.
//!
//! All senders share one end of a `SOCK_SEQPACKET` pair and all receivers the other one. The kernel hands each packet
//! over whole, so there is no lock that a killed process could hold and no half-written item that it could leave. It
//! wakes everyone who waits for each packet: nobody's death can take a wake-up with it.

mod packet;
mod receiver;
mod sender;
#[cfg(test)]
mod tests;

use std::io;

pub use receiver::QueueReceiver;
pub use sender::QueueSender;

use crate::sys::socket as sys;

/// Makes a queue: each item that any of its senders sends goes to exactly one of its receivers.
///
/// Both ends can be cloned, and sent to other processes any number of times. What one sender sends, one after the other,
/// stays in order. The queue ends when the last sender, in whatever process, is gone and all items have been taken; sends
/// fail when the last receiver is gone.
///
/// A process that is killed inside `send` or `recv` harms nobody else: an item is in the queue whole or not at all, and
/// what the process had not yet taken goes to the others. The item that it was working on is gone with it.
///
/// Senders wait while the receivers are behind. The kernel bounds how much is in the queue: some 200 KiB as it counts, which
/// are a few hundred small items or four of 64 KiB and more.
///
/// # Errors
///
/// If the system gives no sockets, most often because this process has as many open files as it may.
///
/// # Examples
///
/// ```
/// use multiproc::{QueueReceiver, QueueSender, queue, spawn_process, task};
///
/// fn work(jobs: QueueReceiver<u64>, results: QueueSender<u64>) {
///     while let Some(n) = jobs.blocking_recv().unwrap() {
///         results.blocking_send(n * n).unwrap();
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// multiproc::init();
/// let (jobs, theirs) = queue()?;
/// let (results, squares) = queue()?;
/// let first = spawn_process(task!(work(theirs.clone(), results.clone()))).await?;
/// let second = spawn_process(task!(work(theirs, results))).await?;
/// for n in 1..=4 {
///     jobs.send(n).await?;
/// }
/// drop(jobs);
/// let mut sum = 0;
/// while let Some(square) = squares.recv().await? {
///     sum += square;
/// }
/// assert_eq!(sum, 30);
/// first.join().await?;
/// second.join().await?;
/// # Ok(())
/// # }
/// ```
pub fn queue<T>() -> io::Result<(QueueSender<T>, QueueReceiver<T>)> {
    let (sending, receiving) = sys::packet_pair()?;
    // Of the other direction nobody knows, so nobody can wait for it.
    sys::end_sending(&receiving)?;
    Ok((QueueSender::new(sending), QueueReceiver::new(receiving)))
}
