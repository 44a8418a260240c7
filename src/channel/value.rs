//! A value in a frame.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{RecvError, SendError};
use crate::wire::body::{self, Parts};
use crate::wire::fds;
use crate::wire::frame::{Frame, VALUE};

/// Makes a frame of a value and the fds in it. `max` bounds the body in bytes.
pub(crate) fn encode<T: Serialize>(value: &T, max: usize) -> Result<Frame, SendError> {
    let mut parts = Parts::default();
    let (encoded, fds) = fds::collect(|| parts.encode(value, max));
    encoded?;
    let (body, more) = parts.take(0);
    Ok(Frame { kind: VALUE, id: 0, body, more, fds })
}

/// Reads the value of a frame, and closes the fds that are no part of it.
pub(crate) fn decode<T: DeserializeOwned>(frame: Frame) -> Result<T, RecvError> {
    let Frame { body, fds: arrived, .. } = frame;
    fds::provide(arrived, || body::decode_shared(&body)).map_err(RecvError::Decode)
}
