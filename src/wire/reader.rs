//! Reads a value out of a body, within the budget that the body's length buys.
//!
//! The format is postcard's: it reads the primitives, this file what is made of them. It knows nothing of frames, and
//! leaves it to `budget.rs` to say what may be made.

use bytes::Bytes;
use postcard::de_flavors::Slice;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer as _, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use serde::{Deserialize, de};

use crate::sys::{buffer, identity};
use crate::wire::budget::{Budget, MAX_DEPTH};
use crate::wire::fault::Fault;
use crate::wire::known;
use crate::wire::writer::APART;

/// A field that is a part of the body keeps all of it, which is at most so many times as large.
const MOST_KEPT: usize = 8;

/// Reads a value that takes all of `body`.
pub(crate) fn read<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, Fault> {
    read_with(Reader::new(body))
}

/// As [`read`]; large fields of `Bytes` are parts of `body`, and no copies.
pub(crate) fn read_shared<'de, T: Deserialize<'de>>(body: &'de Bytes) -> Result<T, Fault> {
    read_with(Reader { shared: Some(body), ..Reader::new(body) })
}

fn read_with<'de, T: Deserialize<'de>>(mut reader: Reader<'de>) -> Result<T, Fault> {
    let value = T::deserialize(Level { reader: &mut reader, depth: MAX_DEPTH })?;
    if reader.postcard.finalize()?.is_empty() { Ok(value) } else { Err(Fault::new("bytes are left after the value")) }
}

/// The way through the body, and what may still be made of it.
struct Reader<'de> {
    postcard: postcard::Deserializer<'de, Slice<'de>>,
    /// The body, if parts of it may be kept.
    shared: Option<&'de Bytes>,
    budget: Budget,
}

impl<'de> Reader<'de> {
    fn new(body: &'de [u8]) -> Self {
        Self { postcard: postcard::Deserializer::from_bytes(body), shared: None, budget: Budget::of(body.len()) }
    }
}

/// One place in the value. It holds its depth by value, so no way out can forget to give it back.
struct Level<'a, 'de> {
    reader: &'a mut Reader<'de>,
    /// How many levels may still nest in here.
    depth: usize,
}

impl<'a, 'de> Level<'a, 'de> {
    /// Goes one level down, into a `T`.
    #[inline]
    fn enter<T>(&mut self) -> Result<(), Fault> {
        self.reader.budget.enter::<T>(&mut self.depth)
    }

    /// A place in the value that this level is.
    #[inline]
    fn place(&mut self) -> Level<'_, 'de> {
        Level { reader: &mut *self.reader, depth: self.depth }
    }

    #[inline]
    fn take<T: Deserialize<'de>>(&mut self) -> Result<T, Fault> {
        T::deserialize(&mut self.reader.postcard).map_err(Fault::from)
    }

    #[inline]
    fn list(mut self) -> Result<Elements<'a, 'de>, Fault> {
        let left = self.take()?;
        let hinted = self.reader.budget.can_hold(left);
        Ok(Elements { level: self, left, hinted, paid: 0, paid_values: 0 })
    }
}

/// Values whose bytes bound them: postcard reads one, the visitor gets it, and its error keeps its message.
macro_rules! primitives {
    ($($deserialize:ident: $type:ty => $visit:ident,)*) => {$(
        #[inline]
        fn $deserialize<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Fault> {
            visitor.$visit(self.take::<$type>()?)
        }
    )*};
}

impl<'de> Deserializer<'de> for Level<'_, 'de> {
    type Error = Fault;

    primitives! {
        deserialize_bool: bool => visit_bool,
        deserialize_i8: i8 => visit_i8,
        deserialize_i16: i16 => visit_i16,
        deserialize_i32: i32 => visit_i32,
        deserialize_i64: i64 => visit_i64,
        deserialize_i128: i128 => visit_i128,
        deserialize_u8: u8 => visit_u8,
        deserialize_u16: u16 => visit_u16,
        deserialize_u32: u32 => visit_u32,
        deserialize_u64: u64 => visit_u64,
        deserialize_u128: u128 => visit_u128,
        deserialize_f32: f32 => visit_f32,
        deserialize_f64: f64 => visit_f64,
        deserialize_char: char => visit_char,
        deserialize_str: &'de str => visit_borrowed_str,
        deserialize_string: &'de str => visit_borrowed_str,
        deserialize_bytes: &'de [u8] => visit_borrowed_bytes,
    }

    /// Large bytes are not copied into a `Bytes`, and once into anything else that owns them.
    #[inline]
    fn deserialize_byte_buf<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Fault> {
        let bytes: &'de [u8] = self.take()?;
        if bytes.len() < APART {
            return visitor.visit_borrowed_bytes(bytes);
        }
        if let Some(shared) = self.reader.shared.filter(|shared| shared.len() / MOST_KEPT <= bytes.len())
            && known::reads::<V, Bytes>()
            && let Ok(value) = identity::cast(shared.slice_ref(bytes))
        {
            return Ok(value);
        }
        visitor.visit_byte_buf(buffer::copy_to_vec(bytes))
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }

    #[inline]
    fn deserialize_option<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Fault> {
        match self.take::<u8>()? {
            0 => visitor.visit_none(),
            1 => {
                self.enter::<V::Value>()?;
                visitor.visit_some(self)
            }
            _ => Err(Fault::new("an option is neither 0 nor 1")),
        }
    }

    #[inline]
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }

    #[inline]
    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(mut self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        self.enter::<V::Value>()?;
        visitor.visit_newtype_struct(self)
    }

    #[inline]
    fn deserialize_seq<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Fault> {
        self.enter::<V::Value>()?;
        // The compiler decides the first of these. Byte by byte, as serde sees it, it becomes the same.
        if identity::is::<V::Value, Vec<u8>>() && known::reads::<V, Vec<u8>>() {
            let bytes: &'de [u8] = self.take()?;
            if let Ok(value) = identity::cast(buffer::copy_to_vec(bytes)) {
                return Ok(value);
            }
        }
        visitor.visit_seq(self.list()?)
    }

    #[inline]
    fn deserialize_map<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Fault> {
        self.enter::<V::Value>()?;
        visitor.visit_map(self.list()?)
    }

    #[inline]
    fn deserialize_tuple<V: Visitor<'de>>(mut self, len: usize, visitor: V) -> Result<V::Value, Fault> {
        self.enter::<V::Value>()?;
        visitor.visit_seq(Fields { level: self, left: len })
    }

    #[inline]
    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_tuple(len, visitor)
    }

    #[inline]
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_tuple(fields.len(), visitor)
    }

    #[inline]
    fn deserialize_enum<V: Visitor<'de>>(
        mut self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.enter::<V::Value>()?;
        visitor.visit_enum(self)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Fault> {
        Err(not_self_describing())
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Fault> {
        Err(not_self_describing())
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Fault> {
        Err(not_self_describing())
    }
}

#[cold]
fn not_self_describing() -> Fault {
    Fault::new(
        "its type needs a format that describes itself, and this one does not \
         (as with `#[serde(untagged)]`, `tag`, `flatten`, or `serde_json::Value`)",
    )
}

/// The fields of a tuple or struct: their number is the type's, not the sender's.
struct Fields<'a, 'de> {
    level: Level<'a, 'de>,
    left: usize,
}

impl<'de> SeqAccess<'de> for Fields<'_, 'de> {
    type Error = Fault;

    #[inline]
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        seed.deserialize(self.level.place()).map(Some)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

/// The elements of a sequence, or the keys and values of a map: the sender says how many.
struct Elements<'a, 'de> {
    level: Level<'a, 'de>,
    left: usize,
    /// Whether the count is one that may be set aside memory for.
    hinted: bool,
    /// What has been charged for each element, or key, that is left.
    paid: usize,
    /// What has been charged for each value that is left.
    paid_values: usize,
}

impl<'de> SeqAccess<'de> for Elements<'_, 'de> {
    type Error = Fault;

    #[inline]
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.level.reader.budget.pay::<T::Value>(&mut self.paid, self.left)?;
        self.left = left;
        seed.deserialize(self.level.place()).map(Some)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.hinted.then_some(self.left)
    }
}

impl<'de> MapAccess<'de> for Elements<'_, 'de> {
    type Error = Fault;

    #[inline]
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        self.next_element_seed(seed)
    }

    #[inline]
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        // This value's key has been counted off already.
        self.level.reader.budget.pay::<V::Value>(&mut self.paid_values, self.left.saturating_add(1))?;
        seed.deserialize(self.level.place())
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.hinted.then_some(self.left)
    }
}

impl<'a, 'de> EnumAccess<'de> for Level<'a, 'de> {
    type Error = Fault;
    type Variant = Level<'a, 'de>;

    #[inline]
    fn variant_seed<V: DeserializeSeed<'de>>(mut self, seed: V) -> Result<(V::Value, Self), Fault> {
        let variant = self.take::<u32>()?;
        let deserializer: de::value::U32Deserializer<Fault> = variant.into_deserializer();
        Ok((seed.deserialize(deserializer)?, self))
    }
}

/// What a variant holds is on the enum's own level.
impl<'de> VariantAccess<'de> for Level<'_, 'de> {
    type Error = Fault;

    #[inline]
    fn unit_variant(self) -> Result<(), Fault> {
        Ok(())
    }

    #[inline]
    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Fault> {
        seed.deserialize(self)
    }

    #[inline]
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_seq(Fields { level: self, left: len })
    }

    #[inline]
    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_seq(Fields { level: self, left: fields.len() })
    }
}

#[cfg(test)]
mod tests;
