//! The newest version of a value, for many processes. Old versions are kept for nobody, so nobody can hold them up.

mod board;

use std::any::type_name;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::sync::watch::Sender;

use self::board::{Answer, Board, Encoded, Kept, Newest, Request, Role};
use crate::channel::broker::Holder;
use crate::error::{CallError, RecvError, SendError};

/// Makes a value of which every process can read the newest version, and await the next one.
///
/// The versions are kept by this process, encoded; what a reader has not read when the next one comes, it never reads. Both
/// ends can be cloned and sent to other processes any number of times.
///
/// A value may hold files, shared bytes and ends of a [`queue`](crate::queue), of which every reader gets its own. An end of a
/// channel, a client, or an object of [`sync`](crate::sync) is for one process, and refused; it stays where it is.
///
/// # Errors
///
/// `Encode` and `TooLarge` if the first value can't be sent, `Io` if the system gives no sockets or no thread.
///
/// # Examples
///
/// ```
/// use multiproc::{spawn_process, sync::{WatchReceiver, watch}, task};
///
/// fn follow(mut level: WatchReceiver<u32>) -> u32 {
///     let mut last = 0;
///     while let Some(newest) = level.blocking_recv().unwrap() {
///         last = newest;
///     }
///     last
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// multiproc::init();
/// let (level, follower) = watch(1)?;
/// let child = spawn_process(task!(follow(follower.clone()))).await?;
/// level.send(2).await?;
/// level.send(3).await?;
/// assert_eq!(follower.latest().await?, 3);
/// drop(level);
/// assert_eq!(child.join().await?, 3);
/// # Ok(())
/// # }
/// ```
pub fn watch<T: Serialize>(value: T) -> Result<(WatchSender<T>, WatchReceiver<T>), SendError> {
    let newest = Newest { number: 1, value: Kept(Arc::new(Encoded::new(&value)?)), senders: 0 };
    let holder = Holder::found(Sender::new(newest), Role::Sender)?;
    let receiver = WatchReceiver::over(holder.share(Role::Receiver)?, 0);
    Ok((WatchSender::over(holder), receiver))
}

/// Gives a watched value new versions; see [`watch`].
pub struct WatchSender<T> {
    holder: Arc<Holder<Board>>,
    value: PhantomData<fn(T)>,
}

/// Reads a watched value's newest version; see [`watch`].
///
/// A clone, and what is sent to another process, has read what this one has.
pub struct WatchReceiver<T> {
    holder: Arc<Holder<Board>>,
    /// The number of the last version that `recv` gave.
    seen: u64,
    value: PhantomData<fn() -> T>,
}

impl<T: Serialize> WatchSender<T> {
    /// Makes this the newest version. When it resolves, every reader that asks gets it or a newer one.
    ///
    /// The value is encoded at once, by the caller.
    ///
    /// # Errors
    ///
    /// `Closed` if the process that made the value has ended; `Encode` and `TooLarge` for a value that can't be sent; `Io`
    /// if the system refuses, or where others have passed on more than 4,096 ends of it. That there is no reader is no error.
    ///
    /// # Cancel safety
    ///
    /// If it is dropped before it resolves, the value may be the newest version or not.
    pub fn send(&self, value: T) -> impl Future<Output = Result<(), SendError>> + Send {
        let put = Encoded::new(&value).map(Request::Put);
        drop(value);
        async move { sent(self.holder.ask(put?).await) }
    }

    /// As [`send`](Self::send), on this thread, which it blocks; not for async code.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send).
    pub fn blocking_send(&self, value: T) -> Result<(), SendError> {
        let put = Request::Put(Encoded::new(&value)?);
        drop(value);
        sent(self.holder.blocking_ask(put))
    }
}

fn sent(answer: Result<Answer, CallError>) -> Result<(), SendError> {
    match answer {
        Ok(_) => Ok(()),
        Err(CallError::Closed | CallError::Unanswered) => Err(SendError::Closed),
        Err(CallError::Encode(source)) => Err(SendError::Encode(source)),
        Err(CallError::TooLarge { len, max }) => Err(SendError::TooLarge { len, max }),
        Err(CallError::Io(error)) => Err(SendError::Io(error)),
        Err(other) => Err(SendError::Io(io::Error::other(other))),
    }
}

impl<T: DeserializeOwned> WatchReceiver<T> {
    /// Waits for a version that is newer than the last one that it gave, and gives the newest; the first call gives the
    /// current one. `None` once that was given and every sender is gone, in every process, or the process that made the
    /// value is.
    ///
    /// # Errors
    ///
    /// `Decode` for a version that can't be decoded; the next call waits for the next one. `Io` if the system refuses.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn recv(&mut self) -> Result<Option<T>, RecvError> {
        let answer = self.holder.ask(Request::Next(self.seen)).await;
        self.newer(answer)
    }

    /// As [`recv`](Self::recv), on this thread, which it blocks; not for async code.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv).
    pub fn blocking_recv(&mut self) -> Result<Option<T>, RecvError> {
        let answer = self.holder.blocking_ask(Request::Next(self.seen));
        self.newer(answer)
    }

    /// The newest version now, whether or not it was given before; also when the senders are gone.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv); `Truncated` if the process that made the value has ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn latest(&self) -> Result<T, RecvError> {
        latest(self.holder.ask(Request::Next(0)).await)
    }

    /// As [`latest`](Self::latest), on this thread, which it blocks; not for async code.
    ///
    /// # Errors
    ///
    /// As for [`latest`](Self::latest).
    pub fn blocking_latest(&self) -> Result<T, RecvError> {
        latest(self.holder.blocking_ask(Request::Next(0)))
    }

    fn newer(&mut self, answer: Result<Answer, CallError>) -> Result<Option<T>, RecvError> {
        match answer {
            Ok(Answer::Version(number, encoded)) => {
                self.seen = number;
                encoded.decode().map(Some)
            }
            Ok(Answer::Done) | Err(CallError::Closed | CallError::Unanswered) => Ok(None),
            Err(error) => Err(received(error)),
        }
    }
}

fn latest<T: DeserializeOwned>(answer: Result<Answer, CallError>) -> Result<T, RecvError> {
    match answer {
        Ok(Answer::Version(_, encoded)) => encoded.decode(),
        Ok(Answer::Done) | Err(CallError::Closed | CallError::Unanswered) => Err(RecvError::Truncated),
        Err(error) => Err(received(error)),
    }
}

fn received(error: CallError) -> RecvError {
    match error {
        CallError::Io(error) => RecvError::Io(error),
        CallError::Decode(source) => RecvError::Decode(source),
        CallError::Refused { .. } => RecvError::Io(io::Error::other(error)),
        other => RecvError::Decode(other.into()),
    }
}

impl<T> WatchSender<T> {
    fn over(holder: Holder<Board>) -> Self {
        Self { holder: Arc::new(holder), value: PhantomData }
    }
}

impl<T> WatchReceiver<T> {
    fn over(holder: Holder<Board>, seen: u64) -> Self {
        Self { holder: Arc::new(holder), seen, value: PhantomData }
    }
}

impl<T> Clone for WatchSender<T> {
    fn clone(&self) -> Self {
        Self { holder: Arc::clone(&self.holder), value: PhantomData }
    }
}

impl<T> Clone for WatchReceiver<T> {
    fn clone(&self) -> Self {
        Self { holder: Arc::clone(&self.holder), seen: self.seen, value: PhantomData }
    }
}

impl<T> Serialize for WatchSender<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.holder.serialize(Role::Sender, serializer)
    }
}

impl<'de, T> Deserialize<'de> for WatchSender<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Holder::deserialize(deserializer).map(Self::over)
    }
}

impl<T> Serialize for WatchReceiver<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.seen, Shared(&self.holder)).serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for WatchReceiver<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (seen, Taken(holder)) = Deserialize::deserialize(deserializer)?;
        Ok(Self::over(holder, seen))
    }
}

/// A holder beside something else in a message.
struct Shared<'a>(&'a Holder<Board>);

impl Serialize for Shared<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(Role::Receiver, serializer)
    }
}

struct Taken(Holder<Board>);

impl<'de> Deserialize<'de> for Taken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Holder::deserialize(deserializer).map(Self)
    }
}

impl<T> fmt::Debug for WatchSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchSender").field("value", &type_name::<T>()).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for WatchReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchReceiver").field("value", &type_name::<T>()).finish_non_exhaustive()
    }
}
