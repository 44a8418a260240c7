//! The body of a frame: a value in postcard's format, made and read within limits.

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{BoxError, SendError};

/// Why a value has no body.
#[derive(Debug)]
pub(crate) enum EncodeError {
    Failed(BoxError),
    TooLarge { len: u64, max: u64 },
}

impl From<EncodeError> for SendError {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::Failed(source) => Self::Encode(source),
            EncodeError::TooLarge { len, max } => Self::TooLarge { len, max },
        }
    }
}

/// Appends the value to `out`, which is as before if it fails. `max` bounds what is appended, in bytes.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T, out: &mut BytesMut, max: usize) -> Result<(), EncodeError> {
    let bytes = postcard::to_allocvec(value).map_err(|error| EncodeError::Failed(error.into()))?;
    if bytes.len() > max {
        return Err(EncodeError::TooLarge { len: bytes.len() as u64, max: max as u64 });
    }
    out.extend_from_slice(&bytes);
    Ok(())
}

/// Reads a value that takes all of `body`.
pub(crate) fn decode<T: DeserializeOwned>(body: &Bytes) -> Result<T, BoxError> {
    let (value, rest) = postcard::take_from_bytes(body)?;
    if rest.is_empty() { Ok(value) } else { Err("trailing bytes after the value".into()) }
}
