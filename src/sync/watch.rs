//! The newest version of a value, for many processes. Old versions are kept for nobody, so nobody can hold them up.

use std::any::type_name;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::sync::watch::Sender;

use crate::channel::broker::{Desk, Holder};
use crate::channel::{Fd, value};
use crate::error::{CallError, RecvError, SendError};
use crate::wire::frame::{Frame, Limits, VALUE};

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

/// Why a value is refused of which each reader would get the same end.
const FOR_ONE: &str = "an end of a channel, a client, or an object of `sync` can't be given to everyone who watches";

/// A value that is encoded, with its fds.
#[derive(Debug, Serialize, Deserialize)]
struct Encoded(Bytes, Vec<Fd<OwnedFd>>);

impl Encoded {
    fn new<T: Serialize>(value: &T) -> Result<Self, SendError> {
        let frame = value::encode_within(value, Limits::default())?;
        if frame.fds.moves().any() {
            return Err(SendError::Encode(FOR_ONE.into()));
        }
        let body = if frame.more.is_empty() {
            frame.body.into_bytes()
        } else {
            let mut whole = BytesMut::with_capacity(frame.wire_len());
            whole.extend_from_slice(&frame.body);
            frame.more.iter().for_each(|part| whole.extend_from_slice(part));
            whole.freeze()
        };
        Ok(Self(body, frame.fds.into_vec().into_iter().map(|fd| Fd::from(fd.into_fd())).collect()))
    }

    fn decode<T: DeserializeOwned>(self) -> Result<T, RecvError> {
        let fds = self.1.into_iter().map(|fd| fd.into_inner().into()).collect();
        value::decode(Frame { kind: VALUE, body: self.0.into(), fds, ..Frame::default() })
    }
}

#[derive(Serialize, Deserialize)]
enum Role {
    Sender,
    Receiver,
}

#[derive(Serialize, Deserialize)]
enum Request {
    Put(Encoded),
    /// The newest version, when it is newer than this one.
    Next(u64),
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Version(u64, Kept),
    Done,
}

/// Encoded once for all who read it.
#[derive(Clone, Debug)]
struct Kept(Arc<Encoded>);

impl Serialize for Kept {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Kept {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Encoded::deserialize(deserializer).map(|encoded| Self(Arc::new(encoded)))
    }
}

impl Kept {
    fn decode<T: DeserializeOwned>(self) -> Result<T, RecvError> {
        Arc::into_inner(self.0).expect("what has just been received has one owner").decode()
    }
}

#[derive(Debug)]
struct Newest {
    number: u64,
    value: Kept,
    senders: usize,
}

struct Board {
    newest: Arc<Sender<Newest>>,
    role: Role,
}

impl Desk for Board {
    type Role = Role;
    type Request = Request;
    type Answer = Answer;
    type Shared = Sender<Newest>;

    fn open(newest: &Arc<Self::Shared>, role: Role) -> Self {
        if matches!(role, Role::Sender) {
            newest.send_modify(|newest| newest.senders += 1);
        }
        Self { newest: Arc::clone(newest), role }
    }

    async fn handle(self: &Arc<Self>, request: Request) -> Answer {
        match request {
            Request::Put(encoded) => {
                let mut value = Kept(Arc::new(encoded));
                self.newest.send_modify(|newest| {
                    newest.number += 1;
                    mem::swap(&mut newest.value, &mut value);
                });
                // The old one goes when nothing is locked: its bytes may have an owner, and its fds are closed.
                drop(value);
                Answer::Done
            }
            Request::Next(seen) => {
                let mut changes = self.newest.subscribe();
                match changes.wait_for(|newest| newest.number > seen || newest.senders == 0).await {
                    Ok(newest) if newest.number > seen => Answer::Version(newest.number, newest.value.clone()),
                    _ => Answer::Done,
                }
            }
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        if matches!(self.role, Role::Sender) {
            self.newest.send_modify(|newest| newest.senders -= 1);
        }
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
