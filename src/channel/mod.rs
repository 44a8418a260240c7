//! Typed channels over Unix sockets, and the framed transport below them that everything here uses.
//!
//! ```text
//!  Sender  Receiver  Duplex        typed ends; travel.rs makes them values, moved.rs says whether they have gone
//!  value.rs                        what goes through them: a value in a frame
//!  sending.rs  receiving.rs        one direction each: who waits, who moves, what is an end
//!  line.rs                         what of a sending side is behind its lock
//!  parent.rs                       a channel between two programs
//!  departure.rs  gather.rs         one frame's way out; and when it waits for others
//!  flusher.rs                      who goes on when the socket is full
//!  background.rs                   the thread with a runtime of its own on which that, and more, is done
//!  service/                        calls: requests and their answers, many at once over one duplex
//!  broker.rs                       one process that keeps something for many; see `sync/`
//!  listener/                       duplexes between processes that are no relatives
//!  queue/                          many to many: items as packets, on a socket that all holders share
//!  acked/                          items that are done when a consumer says so, by a broker
//!  shared.rs   slice.rs            bytes that are not copied at all, and as numbers
//!  fd.rs                           files, sockets and pipes as values
//!  outbox.rs   inbox.rs            frames that leave and arrive, gathered
//!  batches.rs                      the fds that have come for frames
//!  socket.rs                       a socket that tasks and threads can wait for
//!  turns.rs    block.rs            whose turn it is of the tasks that wait for one; and how a thread waits for a future
//! ```

mod acked;
pub(crate) mod background;
mod batches;
mod block;
pub(crate) mod broker;
#[cfg(test)]
mod cost;
mod departure;
mod duplex;
mod fd;
pub(crate) mod flusher;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub(crate) mod fuzz;
mod gather;
pub(crate) mod inbox;
mod line;
mod listener;
mod moved;
pub(crate) mod outbox;
mod parent;
mod queue;
mod receiver;
mod receiving;
mod sender;
mod sending;
mod service;
mod shared;
mod slice;
pub(crate) mod socket;
#[cfg(test)]
mod tests;
mod travel;
mod turns;
pub(crate) mod value;

use std::io;

pub use acked::{AckedQueue, AckedReceiver, Delivery};
pub use duplex::{Duplex, duplex};
pub use fd::Fd;
pub use listener::{Listener, Peer, blocking_connect, connect, connect_to};
pub use parent::from_parent;
pub(crate) use parent::{ChildEnd, for_child};
pub use queue::{QueueReceiver, QueueSender, queue};
pub use receiver::Receiver;
pub use sender::Sender;
pub use service::{Client, blocking_serve, serve};
pub use shared::{SharedBytes, SharedBytesMut};
pub use slice::{SharedSlice, SharedSliceMut};

use crate::sys::socket as sys;

/// Makes a channel: what is sent into the one end is received from the other, in this process or any other.
///
/// Both ends are values: put one into a task's arguments, its result, or a message, and it arrives in that process.
/// Messages are any serde values, files and ends of other channels among them. A channel needs no runtime to be made, and
/// its ends can be used in async code and, with the `blocking_` methods, in plain functions.
///
/// A sender waits while its receiver does not receive: about 300 KiB are under way at most, besides the message itself.
/// For many senders or many receivers, see [`queue`](crate::queue); for both directions, [`duplex`](crate::duplex).
///
/// # Errors
///
/// If the system gives no sockets, most often because this process has as many open files as it may.
///
/// # Examples
///
/// ```
/// use multiproc::{Receiver, Sender, channel, spawn_process, task};
///
/// fn shout(mut lines: Receiver<String>, loud: Sender<String>) {
///     while let Some(line) = lines.blocking_recv().unwrap() {
///         loud.blocking_send(line.to_uppercase()).unwrap();
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// multiproc::init();
/// let (lines, theirs) = channel()?;
/// let (loud, mut answers) = channel()?;
/// let child = spawn_process(task!(shout(theirs, loud))).await?;
/// lines.send("hello".to_owned()).await?;
/// assert_eq!(answers.recv().await?.as_deref(), Some("HELLO"));
/// drop(lines);
/// assert_eq!(answers.recv().await?, None);
/// child.join().await?;
/// # Ok(())
/// # }
/// ```
pub fn channel<T>() -> io::Result<(Sender<T>, Receiver<T>)> {
    let (sending, receiving) = sys::stream_pair()?;
    // Of the other direction nobody knows, so nobody can wait for it.
    sys::end_sending(&receiving)?;
    Ok((Sender::new(sending), Receiver::new(receiving)))
}
