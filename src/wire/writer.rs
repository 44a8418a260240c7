//! Writes a value into a buffer, within a limit.
//!
//! The format is postcard's: it writes the primitives, this file what is made of them, so that a `Serialize` impl's own
//! error keeps its message and so that values which no reader could take back are refused here, with a reason. It knows
//! nothing of frames, and leaves it to `body.rs` to cut the buffer back after an error.

use std::fmt::{Display, Write as _};

use bytes::{BufMut as _, Bytes, BytesMut};
use postcard::ser_flavors::Flavor;
use serde::Serialize;
use serde::ser::{self, Serializer};

use crate::sys::buffer::{Buffer, LARGE};
use crate::sys::identity;
use crate::wire::budget::MAX_DEPTH;
use crate::wire::fault::Fault;

/// Fields of bytes from this size on need not be copied behind the others.
pub(crate) const APART: usize = 64 * 1024;

/// Bytes that stay where they are, and their place: behind so many bytes of those that were written.
pub(crate) type Apart = (usize, Bytes);

/// Appends the value to `out` unless it is over `max` bytes, and says how many bytes it takes.
///
/// Past the limit nothing is stored any more and the rest is only counted, which gives the exact length for the error.
/// With somewhere to put them, large fields of bytes are put `apart` and not into `out`.
pub(crate) fn write<T: Serialize + ?Sized>(
    value: &T,
    out: &mut BytesMut,
    apart: Option<&mut Vec<Apart>>,
    max: u64,
) -> Result<u64, Fault> {
    let mut postcard = postcard::Serializer { output: Limited { out, apart, len: 0, max } };
    Level { postcard: &mut postcard, depth: MAX_DEPTH }.value(value)?;
    Ok(postcard.output.len)
}

/// Where postcard's bytes go: checked against the limit before the buffer grows.
struct Limited<'a> {
    out: &'a mut BytesMut,
    apart: Option<&'a mut Vec<Apart>>,
    len: u64,
    max: u64,
}

impl Limited<'_> {
    /// Puts large bytes apart if there is a place for them; says whether.
    fn put_apart(&mut self, len: usize, bytes: impl FnOnce() -> Option<Bytes>) -> bool {
        let Some(apart) = &mut self.apart else { return false };
        let total = self.len + len as u64;
        if total <= self.max {
            let Some(bytes) = bytes() else { return false };
            apart.push((self.out.len(), bytes));
        }
        self.len = total;
        true
    }
}

impl Flavor for Limited<'_> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.try_extend(&[byte])
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        // In memory of its own it is copied once, and into pages that are there already.
        if bytes.len() >= LARGE && self.put_apart(bytes.len(), || Buffer::copy(bytes).ok()) {
            return Ok(());
        }
        // No value has 2^64 bytes.
        self.len += bytes.len() as u64;
        if self.len <= self.max {
            match bytes {
                // What a small number takes is worth no call.
                [byte] => self.out.put_u8(*byte),
                _ => self.out.extend_from_slice(bytes),
            }
        }
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// One place in the value. It holds its depth by value, so no way out can forget to give it back.
struct Level<'a, 'b> {
    postcard: &'a mut postcard::Serializer<Limited<'b>>,
    /// How many levels may still nest in here.
    depth: usize,
}

impl<'b> Level<'_, 'b> {
    /// Goes one level down.
    #[inline]
    fn enter(self) -> Result<Self, Fault> {
        match self.depth.checked_sub(1) {
            Some(depth) => Ok(Self { depth, ..self }),
            None => Err(Fault::new("it is nested deeper than 128 levels")),
        }
    }

    /// A place at the same depth.
    #[inline]
    fn place(&mut self) -> Level<'_, 'b> {
        Level { postcard: &mut *self.postcard, depth: self.depth }
    }

    /// Writes what stands here.
    #[inline]
    fn value<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Fault> {
        // The compiler decides these two.
        if let Some(bytes) = identity::known::<T, Bytes>(value) {
            self.bytes(bytes)
        } else if let Some(bytes) = identity::known::<T, Vec<u8>>(value) {
            // Byte by byte, as serde sees it, it becomes the same.
            self.enter()?.serialize_bytes(bytes)
        } else {
            value.serialize(self)
        }
    }

    fn bytes(mut self, bytes: &Bytes) -> Result<(), Fault> {
        if bytes.len() < APART || self.postcard.output.apart.is_none() {
            return self.serialize_bytes(bytes);
        }
        self.put(&bytes.len())?;
        self.postcard.output.put_apart(bytes.len(), || Some(bytes.clone()));
        Ok(())
    }

    #[inline]
    fn put<T: Serialize + ?Sized>(&mut self, primitive: &T) -> Result<(), Fault> {
        primitive.serialize(&mut *self.postcard).map_err(Fault::from)
    }

    #[inline]
    fn list(mut self, len: Option<usize>) -> Result<Self, Fault> {
        let Some(len) = len else {
            return Err(Fault::new(
                "a list or map does not say its length before its elements (as with `#[serde(flatten)]`)",
            ));
        };
        self.put(&len)?;
        self.enter()
    }

    #[inline]
    fn variant(mut self, variant: u32) -> Result<Self, Fault> {
        self.put(&variant)?;
        self.enter()
    }
}

macro_rules! primitives {
    ($($serialize:ident: $type:ty,)*) => {$(
        #[inline]
        fn $serialize(mut self, value: $type) -> Result<(), Fault> {
            self.put(&value)
        }
    )*};
}

impl Serializer for Level<'_, '_> {
    type Ok = ();
    type Error = Fault;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    primitives! {
        serialize_bool: bool,
        serialize_i8: i8,
        serialize_i16: i16,
        serialize_i32: i32,
        serialize_i64: i64,
        serialize_i128: i128,
        serialize_u8: u8,
        serialize_u16: u16,
        serialize_u32: u32,
        serialize_u64: u64,
        serialize_u128: u128,
        serialize_f32: f32,
        serialize_f64: f64,
        serialize_char: char,
        serialize_str: &str,
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }

    #[inline]
    fn serialize_bytes(self, bytes: &[u8]) -> Result<(), Fault> {
        self.postcard.serialize_bytes(bytes).map_err(Fault::from)
    }

    /// Formats once and then writes: postcard formats twice, and tears the body if the two differ.
    fn collect_str<T: Display + ?Sized>(self, value: &T) -> Result<(), Fault> {
        let mut text = String::new();
        write!(text, "{value}").map_err(|_| Fault::new("a value's Display failed"))?;
        self.serialize_str(&text)
    }

    #[inline]
    fn serialize_none(mut self) -> Result<(), Fault> {
        self.put(&0u8)
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(mut self, value: &T) -> Result<(), Fault> {
        self.put(&1u8)?;
        self.enter()?.value(value)
    }

    #[inline]
    fn serialize_unit(self) -> Result<(), Fault> {
        Ok(())
    }

    #[inline]
    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Fault> {
        Ok(())
    }

    #[inline]
    fn serialize_unit_variant(self, _: &'static str, variant: u32, _: &'static str) -> Result<(), Fault> {
        self.variant(variant).map(drop)
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), Fault> {
        self.enter()?.value(value)
    }

    #[inline]
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        variant: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), Fault> {
        self.variant(variant)?.value(value)
    }

    #[inline]
    fn serialize_seq(self, len: Option<usize>) -> Result<Self, Fault> {
        self.list(len)
    }

    #[inline]
    fn serialize_map(self, len: Option<usize>) -> Result<Self, Fault> {
        self.list(len)
    }

    #[inline]
    fn serialize_tuple(self, _: usize) -> Result<Self, Fault> {
        self.enter()
    }

    #[inline]
    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Fault> {
        self.enter()
    }

    #[inline]
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Fault> {
        self.enter()
    }

    #[inline]
    fn serialize_tuple_variant(self, _: &'static str, variant: u32, _: &'static str, _: usize) -> Result<Self, Fault> {
        self.variant(variant)
    }

    #[inline]
    fn serialize_struct_variant(self, _: &'static str, variant: u32, _: &'static str, _: usize) -> Result<Self, Fault> {
        self.variant(variant)
    }
}

/// What is made of parts: each part is written where it stands, with nothing around it.
macro_rules! parts {
    ($($serialize:ident: $part:ident $(, $also:ident)?;)*) => {$(
        impl ser::$serialize for Level<'_, '_> {
            type Ok = ();
            type Error = Fault;

            #[inline]
            fn $part<T: Serialize + ?Sized>(&mut self, part: &T) -> Result<(), Fault> {
                self.place().value(part)
            }

            $(
                #[inline]
                fn $also<T: Serialize + ?Sized>(&mut self, part: &T) -> Result<(), Fault> {
                    self.place().value(part)
                }
            )?

            #[inline]
            fn end(self) -> Result<(), Fault> {
                Ok(())
            }
        }
    )*};
}

parts! {
    SerializeSeq: serialize_element;
    SerializeTuple: serialize_element;
    SerializeTupleStruct: serialize_field;
    SerializeTupleVariant: serialize_field;
    SerializeMap: serialize_key, serialize_value;
}

macro_rules! fields {
    ($($serialize:ident)*) => {$(
        impl ser::$serialize for Level<'_, '_> {
            type Ok = ();
            type Error = Fault;

            #[inline]
            fn serialize_field<T: Serialize + ?Sized>(&mut self, _: &'static str, field: &T) -> Result<(), Fault> {
                self.place().value(field)
            }

            /// Fields have no names on the wire, so a reader would take the next field for this one.
            fn skip_field(&mut self, name: &'static str) -> Result<(), Fault> {
                Err(Fault::new(format!("field `{name}` is left out (`skip_serializing_if`), and this format needs it")))
            }

            #[inline]
            fn end(self) -> Result<(), Fault> {
                Ok(())
            }
        }
    )*};
}

fields! { SerializeStruct SerializeStructVariant }

#[cfg(test)]
mod tests;
