//! A value in a frame.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{RecvError, SendError};
use crate::wire::body::{self, Parts};
use crate::wire::fds;
use crate::wire::frame::{Frame, Limits, MAX_FDS, VALUE};

/// Makes a frame of a value and the fds in it. `max` bounds the body in bytes.
pub(crate) fn encode<T: Serialize>(value: &T, max: usize) -> Result<Frame, SendError> {
    encode_within(value, Limits { body: max, fds: MAX_FDS })
}

/// As [`encode`], within the limits of an end.
pub(crate) fn encode_within<T: Serialize>(value: &T, limits: Limits) -> Result<Frame, SendError> {
    let mut parts = Parts::scratch();
    let ((), fds) = fds::collect(|| {
        parts.encode(value, limits.body)?;
        let (count, most) = (fds::held(), limits.fds);
        if count > most {
            let why = format!("{count} file descriptors in one message, where {most} may be");
            return Err(SendError::Encode(why.into()));
        }
        Ok(())
    })?;
    let mut frame = Frame { kind: VALUE, fds, ..Frame::default() };
    frame.more = parts.finish(&mut frame.body);
    Ok(frame)
}

/// Reads the value of a frame, and closes the fds that are no part of it.
pub(crate) fn decode<T: DeserializeOwned>(frame: Frame) -> Result<T, RecvError> {
    let Frame { body, fds: arrived, fds_lost, .. } = frame;
    fds::provide(arrived, || body::decode_shared(&body))
        .map_err(|error| RecvError::Decode(if fds_lost { fds::LOST.into() } else { error }))
}
