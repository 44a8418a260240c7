//! Ends of channels as values: what of an end goes into a message, and an end made of what came.
//!
//! A stream has one reader and one writer at a time: two processes that read would take pieces of each other's frames. So
//! encoding an end moves it, and the one that is left behind refuses to go on. What it had received and not yet given out
//! goes along, and whether it is closed for sending.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::batches::{Batch, MAX_BATCHES};
use super::receiving::Receiving;
use super::sending::Sending;
use super::socket::Socket;
use crate::sys::socket;
use crate::wire::fds;
use crate::wire::frame::Limits;

/// Limits in a message: bytes and fds.
type Bounds = (u64, u64);

/// An end that holds nothing, in a message: the fd and the limits.
#[derive(Serialize)]
struct BareOut<'a>(Given<'a>, Bounds);

#[derive(Deserialize)]
struct BareIn(Taken, Bounds);

/// A receiving side in a message: the fd, the limits, and what is unread.
#[derive(Serialize)]
struct ReceivingOut<'a>(Given<'a>, Bounds, Bytes, Vec<(Vec<Given<'a>>, bool, u64)>);

#[derive(Deserialize)]
struct ReceivingIn(Taken, Bounds, Bytes, Vec<(Vec<Taken>, bool, u64)>);

pub(super) fn serialize_sending<S: Serializer>(
    side: &Sending,
    limits: Limits,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    side.hand_over(|state| (state, BareOut(Given::new(&**side.socket()), bounds(limits))).serialize(serializer))
}

pub(super) fn deserialize_sending<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(Sending, Limits), D::Error> {
    let (state, BareIn(fd, bounds)) = Deserialize::deserialize(deserializer)?;
    Ok((Sending::resume(Arc::new(stream(fd)?), state), limits(bounds)))
}

pub(super) fn serialize_receiving<S: Serializer>(side: &Receiving, serializer: S) -> Result<S::Ok, S::Error> {
    serialize_behind((), side, serializer)
}

/// A receiving side, and in front of it what else belongs to its end.
fn serialize_behind<S: Serializer>(first: impl Serialize, side: &Receiving, serializer: S) -> Result<S::Ok, S::Error> {
    side.hand_over(|unread, batches| {
        let mut out = Vec::new();
        for batch in batches {
            out.push((batch.fds.iter().map(Given::new).collect(), batch.lost, batch.within as u64));
        }
        let side = ReceivingOut(Given::new(&**side.socket()), bounds(side.limits()), unread.freeze(), out);
        (first, side).serialize(serializer)
    })
}

pub(super) fn deserialize_receiving<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Receiving, D::Error> {
    let ((), side) = Deserialize::deserialize(deserializer)?;
    resume(side)
}

fn resume<E: serde::de::Error>(ReceivingIn(fd, bounds, unread, batches): ReceivingIn) -> Result<Receiving, E> {
    // Each is looked at for each frame.
    if batches.len() > MAX_BATCHES {
        return Err(E::custom("more file descriptors than an end of a channel has before its frames"));
    }
    let batches: VecDeque<_> = batches
        .into_iter()
        .map(|(fds, lost, within)| Batch {
            fds: fds.into_iter().map(Taken::into_fd).collect(),
            lost,
            within: usize::try_from(within).unwrap_or(usize::MAX),
        })
        .collect();
    Ok(Receiving::resume(Arc::new(stream(fd)?), limits(bounds), BytesMut::from(unread), batches))
}

/// Both sides of one socket, on their way out; the limits are the receiving side's.
pub(super) struct BothOut<'a>(pub(super) &'a Sending, pub(super) &'a Receiving);

impl Serialize for BothOut<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.hand_over(|state| serialize_behind(state, self.1, serializer))
    }
}

/// Both sides of one socket that came.
pub(super) struct BothIn(pub(super) Sending, pub(super) Receiving);

impl<'de> Deserialize<'de> for BothIn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (state, receiving) = Deserialize::deserialize(deserializer)?;
        let receiving = resume(receiving)?;
        Ok(Self(Sending::resume(Arc::clone(receiving.socket()), state), receiving))
    }
}

/// An end of a queue, which stays as it is: any number of processes may hold it.
pub(super) fn serialize_shared<S: Serializer>(
    socket: &Socket,
    within: Limits,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    BareOut(Given::new(socket), bounds(within)).serialize(serializer)
}

pub(super) fn deserialize_shared<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(Socket, Limits), D::Error> {
    let BareIn(Taken(fd), bounds) = Deserialize::deserialize(deserializer)?;
    if socket::is_packet(&fd) {
        Ok((Socket::new(fd), limits(bounds)))
    } else {
        Err(serde::de::Error::custom("a file descriptor that is no end of a queue"))
    }
}

fn stream<E: serde::de::Error>(Taken(fd): Taken) -> Result<Socket, E> {
    if socket::is_stream(&fd) {
        Ok(Socket::new(fd))
    } else {
        Err(E::custom("a file descriptor that is no end of a channel"))
    }
}

fn bounds(limits: Limits) -> Bounds {
    (limits.body as u64, limits.fds as u64)
}

fn limits((body, fds): Bounds) -> Limits {
    let whole = |number| usize::try_from(number).unwrap_or(usize::MAX);
    Limits::new(whole(body), whole(fds))
}

/// An fd on its way out; a duplicate travels.
pub(super) struct Given<'a>(BorrowedFd<'a>);

impl<'a> Given<'a> {
    pub(super) fn new(fd: &'a impl AsFd) -> Self {
        Self(fd.as_fd())
    }
}

impl Serialize for Given<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fds::serialize(self.0, serializer)
    }
}

/// An fd that came.
pub(super) struct Taken(OwnedFd);

impl Taken {
    pub(super) fn into_fd(self) -> OwnedFd {
        self.0
    }
}

impl<'de> Deserialize<'de> for Taken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        fds::deserialize(deserializer).map(Self)
    }
}
