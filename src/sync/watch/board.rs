//! What the process has that made a watched value: its newest version, encoded, and the answers to those who send and read.

use std::mem;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::sync::watch::Sender;

use crate::channel::broker::Desk;
use crate::channel::{Fd, value};
use crate::error::{RecvError, SendError};
use crate::wire::frame::{Frame, Limits, VALUE};

/// Why a value is refused of which each reader would get the same end.
const FOR_ONE: &str = "an end of a channel, a client, or an object of `sync` can't be given to everyone who watches";

/// A value that is encoded, with its fds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Encoded(Bytes, Vec<Fd<OwnedFd>>);

impl Encoded {
    pub(super) fn new<T: Serialize>(value: &T) -> Result<Self, SendError> {
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

    pub(super) fn decode<T: DeserializeOwned>(self) -> Result<T, RecvError> {
        let fds = self.1.into_iter().map(|fd| fd.into_inner().into()).collect();
        value::decode(Frame { kind: VALUE, body: self.0.into(), fds, ..Frame::default() })
    }
}

#[derive(Serialize, Deserialize)]
pub(super) enum Role {
    Sender,
    Receiver,
}

#[derive(Serialize, Deserialize)]
pub(super) enum Request {
    Put(Encoded),
    /// The newest version, when it is newer than this one.
    Next(u64),
}

#[derive(Serialize, Deserialize)]
pub(super) enum Answer {
    Version(u64, Kept),
    Done,
}

/// Encoded once for all who read it.
#[derive(Clone, Debug)]
pub(super) struct Kept(pub(super) Arc<Encoded>);

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
    pub(super) fn decode<T: DeserializeOwned>(self) -> Result<T, RecvError> {
        Arc::into_inner(self.0).expect("what has just been received has one owner").decode()
    }
}

#[derive(Debug)]
pub(super) struct Newest {
    pub(super) number: u64,
    pub(super) value: Kept,
    pub(super) senders: usize,
}

pub(super) struct Board {
    newest: Arc<Sender<Newest>>,
    role: Role,
}

impl Desk for Board {
    type Role = Role;
    type Request = Request;
    type Told = ();
    type Answer = Answer;
    type Shared = Sender<Newest>;

    fn open(newest: &Arc<Self::Shared>, role: Role) -> Self {
        if matches!(role, Role::Sender) {
            newest.send_modify(|newest| newest.senders += 1);
        }
        Self { newest: Arc::clone(newest), role }
    }

    fn hear(&self, (): ()) {}

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
