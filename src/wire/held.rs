//! Encoded bytes as they are held: a few lie in the value itself, more in memory of their own.
//!
//! Most tasks, results and messages are a few bytes. An allocation for each, which is given back again, is most of a tenth of
//! what a task costs its host where a hundred thousand wait. It does not know what the bytes are.
//!
//! To move a few bytes right after they were written takes long: a processor waits where it reads in larger pieces than it has just
//! written in. So what hands them on in a frame is inlined up to who takes the frame, where most of the moves go; and a worker has
//! one place for what it reads, where a task's arguments stay until they are decoded. A tiny task took its worker 310 ns with the
//! moves, 245 with those inlined, and takes 190.

use std::fmt;
use std::ops::Deref;

use bytes::{Buf as _, Bytes, BytesMut};

/// How many are few: with their number they take no more room than `Bytes` does.
const FEW: usize = 23;

/// Bytes that don't change.
#[derive(Clone)]
pub(crate) enum Held {
    Few { len: u8, bytes: [u8; FEW] },
    Many(Bytes),
}

impl Held {
    /// A copy, in no more memory than it needs.
    #[inline]
    pub(crate) fn copy(source: &[u8]) -> Self {
        let mut copy = Self::default();
        copy.fill(source);
        copy
    }

    /// Becomes a copy, in its place: a processor waits where bytes are read in larger pieces than they were just written in, as when
    /// a value is moved right after it was made.
    #[inline]
    pub(crate) fn fill(&mut self, source: &[u8]) {
        match self {
            Self::Few { len, bytes } if source.len() <= FEW => {
                bytes[..source.len()].copy_from_slice(source);
                #[expect(clippy::cast_possible_truncation, reason = "it is at most FEW")]
                let few = source.len() as u8;
                *len = few;
            }
            _ if source.len() <= FEW => *self = Self::copy(source),
            _ => *self = Self::Many(Bytes::copy_from_slice(source)),
        }
    }

    /// Becomes the first `len` bytes of a buffer, which loses them.
    #[inline]
    pub(crate) fn take_from(&mut self, source: &mut BytesMut, len: usize) {
        if len > FEW {
            *self = Self::Many(source.split_to(len).freeze());
        } else {
            self.fill(&source[..len]);
            source.advance(len);
        }
    }

    /// Them, if parts of them can be kept.
    pub(crate) fn shared(&self) -> Option<&Bytes> {
        match self {
            Self::Few { .. } => None,
            Self::Many(bytes) => Some(bytes),
        }
    }

    /// The same bytes, to be kept beside these.
    pub(crate) fn to_bytes(&self) -> Bytes {
        match self {
            Self::Few { .. } => Bytes::copy_from_slice(self),
            Self::Many(bytes) => bytes.clone(),
        }
    }

    /// The same bytes, in place of these.
    #[inline]
    pub(crate) fn into_bytes(self) -> Bytes {
        match self {
            Self::Few { .. } => self.to_bytes(),
            Self::Many(bytes) => bytes,
        }
    }
}

impl Default for Held {
    fn default() -> Self {
        Self::Few { len: 0, bytes: [0; FEW] }
    }
}

impl From<Bytes> for Held {
    #[inline]
    fn from(bytes: Bytes) -> Self {
        Self::Many(bytes)
    }
}

impl Deref for Held {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Few { len, bytes } => &bytes[..usize::from(*len)],
            Self::Many(bytes) => bytes,
        }
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Held {}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_many_are_the_same_bytes() {
        assert_eq!(size_of::<Held>(), size_of::<Bytes>());
        let source: Vec<u8> = (0..).take(FEW + 2).collect();
        for len in 0..source.len() {
            let held = Held::copy(&source[..len]);
            assert_eq!(matches!(held, Held::Few { .. }), len <= FEW);
            assert!(*held == source[..len] && held.to_bytes() == source[..len]);
            for other in [0, FEW, FEW + 2] {
                let mut refilled = Held::copy(&source[..other]);
                refilled.fill(&source[..len]);
                assert_eq!(refilled, held);
            }
            assert_eq!(held, Held::from(held.to_bytes()));
            assert_eq!(held.into_bytes(), source[..len]);
        }
    }
}
