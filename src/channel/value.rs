//! A value in a frame.

use std::cell::Cell;

use bytes::BytesMut;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{RecvError, SendError};
use crate::wire::body::{self, Parts};
use crate::wire::extra::Extra;
use crate::wire::fds;
use crate::wire::frame::{Frame, Limits, VALUE};
use crate::wire::held::Held;

/// Bodies up to this many bytes are made in a buffer that is used again, and then cost one allocation of their size.
const SMALL: usize = 1024;

thread_local! {
    /// That buffer, while nobody on this thread encodes.
    static BUFFER: Cell<Option<BytesMut>> = const { Cell::new(None) };
}

/// Makes a frame of a value and the fds in it. `max` bounds the body in bytes.
pub(crate) fn encode<T: Serialize>(value: &T, max: usize) -> Result<Frame, SendError> {
    let mut parts = Parts::new(BUFFER.take().unwrap_or_default());
    let (encoded, fds) = fds::collect(|| parts.encode(value, max));
    if encoded.is_ok() && parts.is_written() && parts.written.len() <= SMALL {
        let body = Held::copy(&parts.written);
        parts.written.clear();
        BUFFER.set(Some(parts.written));
        return Ok(Frame { kind: VALUE, id: 0, body, more: Extra::default(), fds });
    }
    encoded?;
    let (body, more) = parts.take(0);
    Ok(Frame { kind: VALUE, id: 0, body, more, fds })
}

/// As [`encode`], within the limits of an end.
pub(crate) fn encode_within<T: Serialize>(value: &T, limits: Limits) -> Result<Frame, SendError> {
    let frame = encode(value, limits.body)?;
    if frame.fds.len() > limits.fds {
        let (count, most) = (frame.fds.len(), limits.fds);
        return Err(SendError::Encode(format!("{count} file descriptors in one message, where {most} may be").into()));
    }
    Ok(frame)
}

/// Reads the value of a frame, and closes the fds that are no part of it.
pub(crate) fn decode<T: DeserializeOwned>(frame: Frame) -> Result<T, RecvError> {
    let Frame { body, fds: arrived, .. } = frame;
    fds::provide(arrived, || body::decode_shared(&body)).map_err(RecvError::Decode)
}
