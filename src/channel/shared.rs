//! Bytes that several processes read in place: written once, sealed, and passed on as an fd.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::travel::{Given, Taken};
use crate::sys::memory::{Draft, Sealed};

/// Bytes that are being written, and can be shared with other processes once they are [frozen](Self::freeze).
///
/// They lie in memory of their own (a memfd), zeroed at first and aligned to a page. As numbers or other plain data they
/// are a [`SharedSliceMut`](crate::SharedSliceMut).
///
/// # Examples
///
/// ```
/// use multiproc::{SharedBytes, SharedBytesMut, spawn_process, task};
///
/// fn sum(bytes: SharedBytes) -> u64 {
///     bytes.iter().map(|byte| u64::from(*byte)).sum()
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// multiproc::init();
/// let mut bytes = SharedBytesMut::new(1 << 20)?;
/// bytes.fill(1);
/// let bytes = bytes.freeze()?;
/// let first = spawn_process(task!(sum(bytes.clone()))).await?;
/// let second = spawn_process(task!(sum(bytes.clone()))).await?;
/// assert_eq!(first.join().await?, 1 << 20);
/// assert_eq!(second.join().await?, 1 << 20);
/// # Ok(())
/// # }
/// ```
pub struct SharedBytesMut {
    draft: Draft,
}

impl SharedBytesMut {
    /// Makes `len` bytes, all of them 0. No bytes at all are fine.
    ///
    /// The memory is taken at once; it belongs to no file system and counts as this process's.
    ///
    /// # Errors
    ///
    /// If there is no memory, no range of addresses or no free fd for it. More memory than the machine has free just now, swap
    /// included, is refused before any is taken; what a container may have of it is not looked at.
    pub fn new(len: usize) -> io::Result<Self> {
        Ok(Self { draft: Draft::new(len)? })
    }

    /// Makes them unchangeable, for this process and everyone else, and for good.
    ///
    /// It costs no copy, unless some other thread is just forking: the kernel seals nothing that another process could
    /// write, so until that one has executed its program the bytes are copied.
    ///
    /// # Errors
    ///
    /// If the system refuses: no range of addresses is left; or, for a copy, no memory or no free fd.
    pub fn freeze(self) -> io::Result<SharedBytes> {
        Ok(SharedBytes { sealed: Arc::new(self.draft.seal()?) })
    }
}

impl Deref for SharedBytesMut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.draft.bytes()
    }
}

impl DerefMut for SharedBytesMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.draft.bytes_mut()
    }
}

impl fmt::Debug for SharedBytesMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedBytesMut").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// Bytes that any number of processes read in place, without a copy; made by [`SharedBytesMut::freeze`] or
/// [`copy_from_slice`](Self::copy_from_slice).
///
/// It is a value: in a task's arguments, its result or a message, what travels is an fd. Clones, here and in other
/// processes, are the same memory, which is given back when the last of them is gone. It is aligned to a page.
///
/// Nobody can change the bytes, not even the process that wrote them: the kernel keeps them sealed. Memory that comes from
/// another process is refused unless its seals say so (a `Decode` error), so a slice of it stays what it is.
///
/// Memory is never used a second time: a seal can't be broken, and without one somebody could write what others read. So
/// each new value costs its pages: the kernel has to find, clear, count and map each of them, which takes longer than to fill
/// it. They are huge ones, and few, where the system allows it (`shmem_enabled` in
/// Documentation/admin-guide/mm/transhuge.rst of Linux). A value that is sent again costs no new pages, but they are mapped each
/// time that it arrives and is read, which takes about as long as to read them. Whoever is to read it again and again keeps it: a
/// worker in a static, say, that [`on_worker_start`](crate::PoolBuilder::on_worker_start) fills.
///
/// It pays from some hundred KiB on, and where several processes read the same: below that, a `Vec<u8>` or
/// [`Bytes`] in a message is faster than making the memory.
#[derive(Clone)]
pub struct SharedBytes {
    sealed: Arc<Sealed>,
}

impl SharedBytes {
    /// Makes shared bytes of a copy of these. It costs little more than half of what it does to write the same into a
    /// [`SharedBytesMut`], which is for those who make the bytes in place.
    ///
    /// # Errors
    ///
    /// If there is no memory, no range of addresses or no free fd for it.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let table: Vec<u8> = (0..=255).collect();
    /// let shared = multiproc::SharedBytes::copy_from_slice(&table)?;
    /// assert_eq!(shared[..], table);
    /// # Ok(())
    /// # }
    /// ```
    pub fn copy_from_slice(bytes: &[u8]) -> io::Result<Self> {
        Ok(Self { sealed: Arc::new(Sealed::copy(bytes)?) })
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.sealed.bytes()
    }
}

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// The same memory, without a copy.
impl From<SharedBytes> for Bytes {
    fn from(shared: SharedBytes) -> Self {
        Self::from_owner(shared)
    }
}

/// The length, and the fd.
#[derive(Serialize)]
struct Out<'a>(u64, Given<'a>);

#[derive(Deserialize)]
struct In(u64, Taken);

impl Serialize for SharedBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Out(self.len() as u64, Given::new(self.sealed.fd())).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SharedBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let In(len, taken) = Deserialize::deserialize(deserializer)?;
        let len = usize::try_from(len).map_err(D::Error::custom)?;
        let sealed = Sealed::new(taken.into_fd(), len).map_err(D::Error::custom)?;
        Ok(Self { sealed: Arc::new(sealed) })
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedBytes").field("len", &self.len()).finish_non_exhaustive()
    }
}
