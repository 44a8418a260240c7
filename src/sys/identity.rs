//! Whether a value of a generic type is of a type that we know better: bytes, which need not be copied or walked through.
//!
//! serde shows a value as its parts, one by one, and has no word for "these bytes are shared" or "these may be kept".

use std::any::TypeId;
use std::marker::PhantomData;
use std::mem::{self, ManuallyDrop};
use std::ptr;

use bytes::Bytes;

/// A type without lifetimes, so that whatever has its [`id`] is this very type.
pub(crate) trait Known: 'static {}

impl Known for Bytes {}
impl Known for Vec<u8> {}

/// As [`TypeId::of`], for types that may borrow: those that differ in their lifetimes alone have the same one.
#[inline]
pub(crate) fn id<T: ?Sized>() -> TypeId {
    trait Identified {
        fn id(&self) -> TypeId
        where
            Self: 'static;
    }
    impl<T: ?Sized> Identified for PhantomData<T> {
        #[inline]
        fn id(&self) -> TypeId
        where
            Self: 'static,
        {
            TypeId::of::<T>()
        }
    }
    let of: &dyn Identified = &PhantomData::<T>;
    // SAFETY: only the bound changes, which has no representation. What is called behind it asks for the id of a type,
    // lifetimes erased as the compiler does it, and touches no value.
    let of: &(dyn Identified + 'static) = unsafe { mem::transmute(of) };
    of.id()
}

/// Whether `T` is `K`.
#[inline]
pub(crate) fn is<T: ?Sized, K: Known>() -> bool {
    id::<T>() == TypeId::of::<K>()
}

/// The value, if it is a `K` or a reference to one: serde shows the elements of a list as such.
#[inline]
pub(crate) fn known<T: ?Sized, K: Known>(value: &T) -> Option<&K> {
    if is::<T, K>() {
        // SAFETY: `T` is `K`, checked above: a `Known` type has no lifetimes in which they could differ.
        Some(unsafe { &*ptr::from_ref(value).cast::<K>() })
    } else if id::<T>() == TypeId::of::<&'static K>() {
        // SAFETY: `T` is a `&K` of some lifetime, checked above, which is not shorter than that of the borrow of it.
        Some(unsafe { *ptr::from_ref(value).cast::<&K>() })
    } else {
        None
    }
}

/// The value as a `T`, if that is `K`.
#[inline]
pub(crate) fn cast<K: Known, T>(value: K) -> Result<T, K> {
    if is::<T, K>() {
        let value = ManuallyDrop::new(value);
        // SAFETY: `T` is `K`, checked above, and the original is not used or dropped any more.
        Ok(unsafe { mem::transmute_copy::<K, T>(&value) })
    } else {
        Err(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Wrapper<'a>(#[expect(dead_code, reason = "only its type counts")] &'a Bytes);

    #[test]
    fn a_type_is_itself_and_no_other() {
        let bytes = Bytes::from_static(b"abc");
        assert_eq!(known::<_, Bytes>(&bytes).unwrap().as_ptr(), bytes.as_ptr());
        assert!(known::<_, Vec<u8>>(&bytes).is_none());
        assert_eq!(known::<_, Bytes>(&&bytes).unwrap().as_ptr(), bytes.as_ptr());
        assert!(known::<_, Bytes>(&&&bytes).is_none());
        assert!(known::<_, Bytes>(&Wrapper(&bytes)).is_none());
        assert!(known::<[u8], Vec<u8>>(&bytes[..]).is_none());
        assert!(known::<_, Vec<u8>>(&vec![1i8]).is_none());
        assert_eq!(cast::<_, Bytes>(bytes.clone()).unwrap(), bytes);
        assert_eq!(cast::<_, Vec<u8>>(bytes.clone()).unwrap_err(), bytes);
        assert_eq!(cast::<_, Vec<u8>>(vec![7u8]).unwrap(), [7]);
    }
}
