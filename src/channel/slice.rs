//! Shared bytes as numbers, or other plain data.

use std::any::type_name;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::shared::{SharedBytes, SharedBytesMut};

/// Plain data that is being written, and can be shared with other processes once it is [frozen](Self::freeze); see
/// [`SharedBytesMut`].
///
/// # Examples
///
/// ```
/// use multiproc::{SharedSlice, SharedSliceMut, spawn_process, task};
///
/// fn sum(numbers: SharedSlice<f64>) -> f64 {
///     numbers.iter().sum()
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// multiproc::init();
/// let mut numbers = SharedSliceMut::new(1 << 20)?;
/// numbers.fill(0.5);
/// let child = spawn_process(task!(sum(numbers.freeze()?))).await?;
/// assert_eq!(child.join().await?, 524_288.0);
/// # Ok(())
/// # }
/// ```
pub struct SharedSliceMut<T> {
    bytes: SharedBytesMut,
    element: PhantomData<fn(T) -> T>,
}

impl<T: Pod> SharedSliceMut<T> {
    /// Makes `len` elements, all of whose bytes are 0.
    ///
    /// # Errors
    ///
    /// As for [`SharedBytesMut::new`].
    pub fn new(len: usize) -> io::Result<Self> {
        const { aligned::<T>() };
        let len = len.checked_mul(size_of::<T>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { bytes: SharedBytesMut::new(len)?, element: PhantomData })
    }

    /// Makes them unchangeable, for this process and everyone else, and for good.
    ///
    /// # Errors
    ///
    /// As for [`SharedBytesMut::freeze`].
    pub fn freeze(self) -> io::Result<SharedSlice<T>> {
        Ok(SharedSlice { bytes: self.bytes.freeze()?, element: PhantomData })
    }
}

impl<T: Pod> Deref for SharedSliceMut<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.bytes)
    }
}

impl<T: Pod> DerefMut for SharedSliceMut<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.bytes)
    }
}

impl<T> fmt::Debug for SharedSliceMut<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedSliceMut").field("element", &type_name::<T>()).finish_non_exhaustive()
    }
}

/// Plain data that any number of processes read in place, without a copy: numbers, arrays of them, and structs that are
/// [`Pod`]; see [`SharedBytes`], whose promises hold.
///
/// That the bytes are `T`s is the sender's word, as for every message; any bytes are some `T`, so nothing worse than a
/// wrong number can come of it. A length that is no whole number of them is a `Decode` error.
pub struct SharedSlice<T> {
    bytes: SharedBytes,
    element: PhantomData<fn() -> T>,
}

impl<T> SharedSlice<T> {
    /// The same memory, as bytes.
    pub fn into_bytes(self) -> SharedBytes {
        self.bytes
    }
}

impl<T: Pod> Deref for SharedSlice<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.bytes)
    }
}

impl<T: Pod> AsRef<[T]> for SharedSlice<T> {
    fn as_ref(&self) -> &[T] {
        self
    }
}

/// Gives the bytes back if they are no whole number of `T`s.
impl<T: Pod> TryFrom<SharedBytes> for SharedSlice<T> {
    type Error = SharedBytes;

    fn try_from(bytes: SharedBytes) -> Result<Self, SharedBytes> {
        const { aligned::<T>() };
        if bytes.len().is_multiple_of(size_of::<T>()) { Ok(Self { bytes, element: PhantomData }) } else { Err(bytes) }
    }
}

impl<T> Clone for SharedSlice<T> {
    fn clone(&self) -> Self {
        Self { bytes: self.bytes.clone(), element: PhantomData }
    }
}

impl<T> Serialize for SharedSlice<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.bytes.serialize(serializer)
    }
}

impl<'de, T: Pod> Deserialize<'de> for SharedSlice<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = SharedBytes::deserialize(deserializer)?;
        Self::try_from(bytes).map_err(|_| serde::de::Error::custom("shared bytes that are no whole number of elements"))
    }
}

impl<T> fmt::Debug for SharedSlice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedSlice").field("element", &type_name::<T>()).finish_non_exhaustive()
    }
}

/// Shared memory begins at a page; an element must have a size, to say how many there are.
const fn aligned<T>() {
    assert!(align_of::<T>() <= 4096 && size_of::<T>() > 0, "an element has a size, and is aligned to a page at most");
}
