//! Which visitors are those of `Bytes` and of `Vec<u8>`, so that reading can spare them the way through serde.
//!
//! A visitor of somebody else with the same result may do more than take the bytes, so the type of its value alone does
//! not tell. A type's own visitor is the one that it hands to a deserializer that only looks.

use std::any::TypeId;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::forward_to_deserialize_any;

use crate::sys::identity::{self, Known};

/// Whether a visitor is `K`'s own.
pub(crate) fn reads<'de, V: Visitor<'de>, K: Known + Deserialize<'de>>() -> bool {
    identity::is::<V::Value, K>() && K::deserialize(Look).is_err_and(|Seen(seen)| seen == Some(identity::id::<V>()))
}

/// Tells which visitor it was given, and reads nothing.
struct Look;

#[derive(Debug)]
struct Seen(Option<TypeId>);

impl<'de> Deserializer<'de> for Look {
    type Error = Seen;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Seen> {
        Err(Seen(Some(identity::id::<V>())))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("only looked")
    }
}

impl std::error::Error for Seen {}

impl de::Error for Seen {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self(None)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// Reads bytes backwards, and makes them a `Bytes` too.
    struct Backwards;

    impl Visitor<'_> for Backwards {
        type Value = Bytes;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("bytes")
        }

        fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
            Ok(bytes.iter().rev().copied().collect())
        }
    }

    struct Reversed(Bytes);

    impl<'de> Deserialize<'de> for Reversed {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_byte_buf(Backwards).map(Self)
        }
    }

    #[test]
    fn a_visitor_of_somebody_else_is_asked() {
        assert!(!reads::<Backwards, Bytes>());
        let mut bytes = vec![1; 100_000];
        bytes[0] = 2;
        let mut body = bytes::BytesMut::new();
        crate::wire::body::encode(&(1u8, Bytes::from(bytes)), &mut body, usize::MAX).unwrap();
        let (_, reversed): (u8, Reversed) = crate::wire::body::decode_shared(&body.freeze().into()).unwrap();
        assert_eq!(reversed.0.last(), Some(&2));
    }
}
