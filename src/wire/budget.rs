//! Reads a value out of a body, within a budget that the body's length buys.
//!
//! The format alone bounds nothing: four bytes can announce four billion elements of a type that takes no bytes on the
//! wire (`()`, or a struct whose fields are all `#[serde(skip)]`), and two bytes a node can nest a recursive type until
//! the stack is gone. So, whatever the type is:
//!
//! 1. **Depth.** A sequence, map, tuple, struct, enum, option or newtype is a level; at most [`MAX_DEPTH`] of them nest.
//! 2. **Memory.** A body may become values of [`FREE`] bytes plus [`PER_BYTE`] bytes for each byte that it has.
//!    - An element of a sequence, and a key and a value of a map, cost the `size_of` their type, at least 1. All that are
//!      announced are charged when the first one is asked for, before anything of them is made.
//!    - A level larger than `PER_BYTE` costs its `size_of`: a `Box` in a recursive type may hold it. Smaller ones are free,
//!      for it takes a byte of the body, or an element, to have one more of them.
//!    - Elements that can't have a byte of the body each, because more are announced than the body has bytes that no
//!      other list claims, cost `PER_BYTE` more each: for the free levels that may be boxed in them. Types of size 0
//!      don't: nothing is in them.
//! 3. **Guesses.** Elements beyond those bytes are never a `size_hint`, so what lists set aside before their elements came
//!    doesn't add up. (serde's own lists set aside at most 1 MiB each.)
//!
//! Strings and bytes need no charge, for they can't be longer than the body. An honest value costs 24 bytes or so for
//! a byte of its body where it is worst (a `Vec` of empty `Vec`s), far below the 256. What a `Deserialize` impl
//! allocates of its own accord can't be seen from here.
//!
//! Every test in here is a comparison with a constant that the compiler decides, or one on a value in a register: a list
//! of structs is read as fast as by postcard alone, and a charge a level had cost a fifth.
//!
//! The format is postcard's: it reads the primitives, this file what is made of them. It knows nothing of frames.

use bytes::Bytes;
use postcard::de_flavors::Slice;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer as _, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use serde::{Deserialize, de};

use crate::sys::{buffer, identity};
use crate::wire::fault::Fault;
use crate::wire::known;
use crate::wire::writer::APART;

/// How many levels may nest; writing keeps to it too, so that the error is at the one who can change something.
pub(crate) const MAX_DEPTH: usize = 128;

/// The bytes of values that any body may become.
const FREE: usize = 16 << 20;

/// The bytes of values that a body may become for each of its own bytes.
const PER_BYTE: usize = 256;

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
    /// Bytes of values.
    budget: usize,
    /// Bytes of the body that no list has claimed for its elements.
    unclaimed: usize,
}

impl<'de> Reader<'de> {
    fn new(body: &'de [u8]) -> Self {
        Self {
            postcard: postcard::Deserializer::from_bytes(body),
            shared: None,
            budget: body.len().saturating_mul(PER_BYTE).saturating_add(FREE),
            unclaimed: body.len(),
        }
    }

    /// Takes the cost out of the budget, if that holds so much.
    #[inline]
    fn afford(&mut self, cost: usize) -> bool {
        match self.budget.checked_sub(cost) {
            Some(budget) => {
                self.budget = budget;
                true
            }
            None => false,
        }
    }

    /// Charges `count` elements of a `T`, up from `paid` bytes each.
    #[inline]
    fn pay<T>(&mut self, paid: &mut usize, count: usize) -> Result<(), Fault> {
        // Elements of a list are of one type in practice, so only the first call gets past this line.
        if size_of::<T>().max(1) <= *paid { Ok(()) } else { self.pay_list(size_of::<T>(), paid, count) }
    }

    fn pay_list(&mut self, size: usize, paid: &mut usize, count: usize) -> Result<(), Fault> {
        let hidden = match self.unclaimed.checked_sub(count) {
            _ if size == 0 => 0,
            Some(unclaimed) => {
                self.unclaimed = unclaimed;
                0
            }
            None => PER_BYTE,
        };
        if !self.afford(count.saturating_mul(size.max(1) + hidden)) {
            return Err(over_budget());
        }
        *paid = size.max(1);
        Ok(())
    }
}

#[cold]
fn over_budget() -> Fault {
    Fault::new("it would become far more memory than its length justifies")
}

#[cold]
fn too_deep() -> Fault {
    Fault::new("it is nested deeper than 128 levels")
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
        if self.depth == 0 {
            return Err(too_deep());
        }
        if size_of::<T>() > PER_BYTE && !self.reader.afford(size_of::<T>()) {
            return Err(over_budget());
        }
        self.depth -= 1;
        Ok(())
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
        let hinted = left <= self.reader.unclaimed;
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
        self.level.reader.pay::<T::Value>(&mut self.paid, self.left)?;
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
        self.level.reader.pay::<V::Value>(&mut self.paid_values, self.left.saturating_add(1))?;
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
