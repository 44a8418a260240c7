//! A value in a frame.

use bytes::BytesMut;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{RecvError, SendError};
use crate::wire::frame::{Frame, VALUE};
use crate::wire::{body, fds};

/// Makes a frame of a value and the fds in it. `max` bounds the body in bytes.
pub(super) fn encode<T: Serialize>(value: &T, max: usize) -> Result<Frame, SendError> {
    let mut bytes = BytesMut::new();
    let (encoded, fds) = fds::collect(|| body::encode(value, &mut bytes, max));
    encoded?;
    Ok(Frame { kind: VALUE, id: 0, body: bytes.freeze(), fds })
}

/// Reads the value of a frame, and closes the fds that are no part of it.
pub(super) fn decode<T: DeserializeOwned>(frame: Frame) -> Result<T, RecvError> {
    let Frame { body, fds: arrived, .. } = frame;
    fds::provide(arrived, || body::decode(&body)).map_err(RecvError::Decode)
}
