//! The body of a frame: a value in postcard's format, made and read within limits.
//!
//! Says what happens to the buffer when it fails; how a value is written and read is in `writer.rs` and `reader.rs`.

use std::cell::Cell;
use std::mem;

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{BoxError, SendError};
use crate::wire::extra::Extra;
use crate::wire::held::Held;
use crate::wire::writer::Apart;
use crate::wire::{reader, writer};

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

/// Appends the value to `out`, which holds what it held before if that fails or panics.
///
/// `max` bounds what is appended, in bytes; no body is over `u32::MAX`. The `len` of a `TooLarge` is exact.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T, out: &mut BytesMut, max: usize) -> Result<(), EncodeError> {
    let max = (max as u64).min(u64::from(u32::MAX));
    let appended = Appended::to(out);
    match writer::write(value, &mut *appended.out, None, max) {
        Ok(len) if len <= max => {
            appended.keep();
            Ok(())
        }
        Ok(len) => Err(EncodeError::TooLarge { len, max }),
        Err(fault) => Err(EncodeError::Failed(fault.into())),
    }
}

/// Bodies up to this many bytes are copied out of the buffer in which they were made, and it is used again: many may wait, and each
/// is to take no more memory than it needs.
const SMALL: usize = 4096;

thread_local! {
    /// That buffer, while nobody on this thread encodes: a value may have another one encoded inside. A thread that ends drops it,
    /// and may then encode all the same: what else it keeps for itself may say something when it is dropped.
    static SCRATCH: Cell<Option<Box<Parts>>> = const { Cell::new(None) };
}

/// A body that is being made: what was written, and large fields that stay where they are.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    pub(crate) written: BytesMut,
    apart: Vec<Apart>,
}

impl Parts {
    /// Appends the value, as [`encode`] does; after an error or a panic it is of no more use.
    pub(crate) fn encode<T: Serialize + ?Sized>(&mut self, value: &T, max: usize) -> Result<(), EncodeError> {
        let max = (max as u64).min(u64::from(u32::MAX));
        match writer::write(value, &mut self.written, Some(&mut self.apart), max) {
            Ok(len) if len <= max => Ok(()),
            Ok(len) => Err(EncodeError::TooLarge { len, max }),
            Err(fault) => Err(EncodeError::Failed(fault.into())),
        }
    }

    /// An empty one, which is most often what this thread has.
    #[expect(clippy::unnecessary_box_returns, reason = "it stays in its place, which is quicker than to move it")]
    pub(crate) fn scratch() -> Box<Self> {
        SCRATCH.try_with(Cell::take).ok().flatten().unwrap_or_default()
    }

    /// Puts the whole body there, and gives the pieces that follow its beginning.
    pub(crate) fn finish(mut self: Box<Self>, body: &mut Held) -> Extra<Bytes> {
        if !self.is_written() || self.written.len() > SMALL {
            let (beginning, rest) = self.take(0);
            *body = beginning;
            return rest;
        }
        body.fill(&self.written);
        self.written.clear();
        if self.written.capacity() <= 2 * SMALL {
            let _ = SCRATCH.try_with(|scratch| scratch.set(Some(self)));
        }
        Extra::default()
    }

    /// How many bytes it has.
    pub(crate) fn len(&self) -> usize {
        self.written.len() + self.apart.iter().map(|(_, part)| part.len()).sum::<usize>()
    }

    /// Whether all of it was written.
    pub(crate) fn is_written(&self) -> bool {
        self.apart.is_empty()
    }

    /// Goes back to the first `len` bytes written.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.apart.clear();
        self.written.truncate(len);
    }

    /// Takes the body behind its first `start` written bytes: its beginning, and the pieces that follow that.
    pub(crate) fn take(&mut self, start: usize) -> (Held, Extra<Bytes>) {
        let mut rest = self.written.split_off(start);
        if self.apart.is_empty() {
            return (rest.freeze().into(), Extra::default());
        }
        let mut pieces = Vec::with_capacity(self.apart.len() * 2);
        let mut from = start;
        let mut first = None;
        for (at, part) in mem::take(&mut self.apart) {
            let written = rest.split_to(at - from).freeze();
            from = at;
            match first {
                None => first = Some(written),
                Some(_) => pieces.push(written),
            }
            pieces.push(part);
        }
        pieces.push(rest.freeze());
        pieces.retain(|piece| !piece.is_empty());
        (first.unwrap_or_default().into(), pieces.into())
    }
}

/// Reads a value that takes all of `body`.
pub(crate) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, BoxError> {
    Ok(reader::read(body)?)
}

/// As [`decode`]; large fields of `Bytes` are parts of `body`, and no copies.
pub(crate) fn decode_shared<T: DeserializeOwned>(body: &Held) -> Result<T, BoxError> {
    decode_part(body, body.shared())
}

/// As [`decode_shared`], for a part of a body, `whole`, that makes up most of it: what keeps a part keeps all of it.
pub(crate) fn decode_part<T: DeserializeOwned>(part: &[u8], whole: Option<&Bytes>) -> Result<T, BoxError> {
    match whole {
        Some(whole) if part.len() > whole.len() / 2 => Ok(reader::read_shared(&whole.slice_ref(part))?),
        _ => decode(part),
    }
}

/// Cuts a buffer back to what it held, unless told to keep the rest: also when a user's `Serialize` panics.
pub(crate) struct Appended<'a> {
    pub(crate) out: &'a mut BytesMut,
    start: usize,
    kept: bool,
}

impl<'a> Appended<'a> {
    pub(crate) fn to(out: &'a mut BytesMut) -> Self {
        Self { start: out.len(), out, kept: false }
    }

    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Appended<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.out.truncate(self.start);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use serde::{Serializer, ser};

    use super::*;

    /// Writes a byte, and then does not go on.
    enum Stops {
        Fails,
        Panics,
    }

    impl Serialize for Stops {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            ser::SerializeTuple::serialize_element(&mut serializer.serialize_tuple(2)?, &7u8)?;
            match self {
                Self::Fails => Err(ser::Error::custom("no more")),
                Self::Panics => panic!("no more"),
            }
        }
    }

    #[test]
    fn the_buffer_is_as_before_after_an_error_and_after_a_panic() {
        let mut out = BytesMut::from("before");
        assert!(
            matches!(encode(&Stops::Fails, &mut out, 9), Err(EncodeError::Failed(why)) if why.to_string() == "no more")
        );
        catch_unwind(AssertUnwindSafe(|| encode(&Stops::Panics, &mut out, 9))).unwrap_err();
        assert!(matches!(encode("ten bytes", &mut out, 9), Err(EncodeError::TooLarge { len: 10, max: 9 })));
        assert_eq!(out, "before");
        encode("8 bytes.", &mut out, 9).unwrap();
        assert_eq!(out, "before\x088 bytes.");
        assert_eq!(decode::<String>(&out.split_off(6).freeze()).unwrap(), "8 bytes.");
    }

    #[test]
    fn a_large_field_of_bytes_is_copied_once_into_a_buffer_of_its_size() {
        let field = Bytes::from(vec![7; 1 << 20]);
        let mut out = BytesMut::new();
        encode(&(1u8, &field), &mut out, usize::MAX).unwrap();
        assert_eq!(out.len(), field.len() + 4);
        assert!(out.capacity() < field.len() + 1024);
    }

    #[test]
    fn a_body_in_pieces_reads_as_one() {
        let field = Bytes::from(vec![7; 1 << 20]);
        let value = (1u8, field.clone(), "between".to_owned(), vec![3u8; 2 << 20], field.clone());
        let mut parts = Parts { written: BytesMut::from("head"), ..Parts::default() };
        parts.encode(&value, usize::MAX).unwrap();
        let (first, more) = parts.take(4);
        assert_eq!(parts.written, "head");
        assert!(more.len() == 5 && more[0].as_ptr() == field.as_ptr());
        let mut whole = BytesMut::from(&first[..]);
        for piece in &*more {
            whole.extend_from_slice(piece);
        }
        let whole = whole.freeze();
        let read: (u8, Bytes, String, Vec<u8>, Bytes) = decode_shared(&whole.clone().into()).unwrap();
        assert!(read == value);
        assert!(whole.as_ptr_range().contains(&read.1.as_ptr()), "it was not copied");
        assert!(matches!(parts.encode(&value, 100), Err(EncodeError::TooLarge { len: 4_194_318.., max: 100 })));
    }
}
