//! Places in this executable: how a function is named to another process that runs the same one.
//!
//! What travels are the distances of an [`Entry`] and of the function that it holds from the executable's load address. An entry
//! is a constant that starts with a mark, so a distance that is wrong is found out by reading, before anything is called.

use std::any::TypeId;
use std::ffi::{c_int, c_void};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::mem;
use std::ops::Range;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// What another process calls: a function of this executable.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Entry<F: Copy + 'static> {
    mark: Mark,
    pub(crate) run: F,
}

/// What an entry begins with, whatever it holds; and what that is.
#[derive(Debug)]
#[repr(C)]
struct Mark {
    words: [u64; 2],
    holds: TypeId,
}

const MARK: [u64; 2] = [0x6d75_6c74_6970_726f, 0x9f31_c7d2_5be8_04a6];

impl<F: Copy + 'static> Entry<F> {
    pub(crate) const fn new(run: F) -> Self {
        Self { mark: Mark { words: MARK, holds: TypeId::of::<F>() }, run }
    }
}

/// Where an entry lies, and what it calls: distances from the executable's load address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) entry: u64,
    pub(crate) run: u64,
}

/// Where the executable lies in this process.
#[derive(Debug)]
struct Image {
    base: usize,
    /// Readable segments.
    data: Vec<Range<usize>>,
    /// Executable segments.
    text: Vec<Range<usize>>,
    /// What it looks like: a hash of where its segments lie and of its notes, among which most linkers put the build's id.
    look: u64,
    /// Whether it names a loader, which most do.
    has_loader: bool,
}

/// What two processes compare to know that they run the same executable: a new one is started from the very file that its parent
/// runs, so this is for what comes in between, such as an emulator. Nobody is asked but this process's own memory: to look at
/// a file costs both sides of each start some microseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageId {
    look: u64,
    /// Where a known constant lies, from the load address.
    anchor: u64,
}

static ANCHOR: u8 = 0;

fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let mut image = Image { base: 0, data: Vec::new(), text: Vec::new(), look: 0, has_loader: false };
        // SAFETY: `first_object` has the callback's signature and takes `data` as the `Image` that it is; the pointer is
        // valid for the whole call. dl_iterate_phdr(3).
        unsafe { libc::dl_iterate_phdr(Some(first_object), (&raw mut image).cast()) };
        image
    })
}

/// Notes the segments of the first object that dl_iterate_phdr reports, which is the executable, and stops.
#[expect(clippy::cast_possible_truncation, reason = "an address in this process is a usize, whatever ELF calls it")]
unsafe extern "C" fn first_object(info: *mut libc::dl_phdr_info, _size: usize, data: *mut c_void) -> c_int {
    // SAFETY: the loader gives a valid info for the call, and `data` is the `Image` of `image()`.
    let (info, image) = unsafe { (&*info, &mut *data.cast::<Image>()) };
    image.base = info.dlpi_addr as usize;
    // SAFETY: the loader says that dlpi_phdr points at dlpi_phnum headers.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    // Some linkers put the notes into the segment of the code.
    let mut readable = Vec::new();
    for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD) {
        let start = image.base + header.p_vaddr as usize;
        let range = start..start + header.p_memsz as usize;
        if header.p_flags & libc::PF_R != 0 {
            readable.push(range.clone());
        }
        if header.p_flags & libc::PF_X != 0 {
            image.text.push(range);
        } else if header.p_flags & libc::PF_R != 0 {
            image.data.push(range);
        }
    }
    let notes = headers.iter().filter(|header| header.p_type == libc::PT_NOTE).filter_map(|header| {
        let (start, len) = (image.base + header.p_vaddr as usize, header.p_filesz as usize);
        let is_there = within(&readable, start, len);
        // SAFETY: it is in a readable segment of the executable, which is mapped for as long as the process lives.
        is_there.then(|| unsafe { std::slice::from_raw_parts(start as *const u8, len) })
    });
    let segments = image.data.iter().chain(&image.text).map(|range| range.start - image.base..range.end - image.base);
    image.look = look(segments, notes);
    image.has_loader = headers.iter().any(|header| header.p_type == libc::PT_INTERP);
    1
}

/// A hash of where the segments of an executable lie and of its notes. Both processes have the same hasher, of the same std.
fn look<'a>(segments: impl Iterator<Item = Range<usize>>, notes: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut hasher = DefaultHasher::new();
    segments.for_each(|segment| segment.hash(&mut hasher));
    notes.for_each(|note| note.hash(&mut hasher));
    hasher.finish()
}

/// Whether this process was started as its loader, with the executable as an argument: then the kernel, and /proc/self/exe, take the
/// loader for what runs. `AT_BASE` in getauxval(3) is where the kernel put a loader that it found named in the executable.
pub(crate) fn runs_as_its_loader() -> bool {
    // SAFETY: it takes any number, and reads what this process was given at its start.
    image().has_loader && unsafe { libc::getauxval(libc::AT_BASE) } == 0
}

/// What this process runs, as far as it can be told apart.
pub(crate) fn id() -> ImageId {
    let image = image();
    ImageId { look: image.look, anchor: ((&raw const ANCHOR) as usize).wrapping_sub(image.base) as u64 }
}

/// Where the entry lies in the executable, or `None` if it, or what it calls, is in a shared library.
pub(crate) fn place_of<F: Copy + 'static>(entry: &'static Entry<F>) -> Option<Place> {
    let image = image();
    let (address, run) = (std::ptr::from_ref(entry) as usize, address_of(entry.run));
    let inside = within(&image.data, address, mem::size_of::<Entry<F>>()) && within(&image.text, run, 1);
    inside.then(|| Place { entry: (address - image.base) as u64, run: (run - image.base) as u64 })
}

/// The entry at this place of the executable, or `None` if there is none, or one that calls something else.
pub(crate) fn entry_at<F: Copy + 'static>(place: Place) -> Option<&'static Entry<F>> {
    let image = image();
    let address = image.base.checked_add(usize::try_from(place.entry).ok()?)?;
    if !within(&image.data, address, mem::size_of::<Entry<F>>()) || address % mem::align_of::<Entry<F>>() != 0 {
        return None;
    }
    // SAFETY: the address is aligned and inside a readable segment of the executable (checked above), which is mapped for
    // as long as the process lives; any bytes are valid u64s.
    let words = unsafe { std::ptr::read(address as *const [u64; 2]) };
    if words != MARK {
        return None;
    }
    // SAFETY: as above; and the words say that `Entry::new` made this constant, so it begins with a whole `Mark`.
    let mark = unsafe { &*(address as *const Mark) };
    if mark.holds != TypeId::of::<F>() {
        return None;
    }
    // SAFETY: as above; and the mark says that what the entry holds is an `F`.
    let entry = unsafe { &*(address as *const Entry<F>) };
    (address_of(entry.run).wrapping_sub(image.base) as u64 == place.run).then_some(entry)
}

/// Where a function lies in this process.
fn address_of<F: Copy + 'static>(function: F) -> usize {
    const { assert!(mem::size_of::<F>() == mem::size_of::<usize>(), "an entry holds a function pointer") };
    // SAFETY: F is as large as a pointer (asserted above), and every function pointer is a valid integer.
    unsafe { mem::transmute_copy::<F, usize>(&function) }
}

fn within(ranges: &[Range<usize>], start: usize, len: usize) -> bool {
    ranges.iter().any(|range| start >= range.start && start.checked_add(len).is_some_and(|end| end <= range.end))
}

/// Makes a zero-sized value of a function's or closure's type out of nothing.
///
/// Only for a type of which the process that asked had a value: the parent took one in `call`, and both processes run
/// the same executable. `Copy` says that a second one may exist; the size is asserted, so there is nothing to forge.
pub(crate) fn conjure<F: Copy + 'static>() -> F {
    const { assert!(mem::size_of::<F>() == 0, "a function sent to another process must not capture anything") };
    // SAFETY: F has no bytes (asserted above), is Copy, and a value of it exists in the process that sent the task.
    unsafe { mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seven() -> u8 {
        7
    }

    static ENTRY: Entry<fn() -> u8> = Entry::new(seven);

    #[test]
    fn an_executable_looks_like_its_segments_and_its_build_id() {
        let of = |sizes: &[usize], id: &str| {
            look(sizes.iter().map(|size| 0x1000..0x1000 + size), [id.as_bytes()].into_iter())
        };
        let this = of(&[0x2000, 0x3000], "build 1");
        assert_eq!(this, of(&[0x2000, 0x3000], "build 1"));
        for other in [of(&[0x2000, 0x3001], "build 1"), of(&[0x2000], "build 1"), of(&[0x2000, 0x3000], "build 2")] {
            assert_ne!(this, other);
        }
    }

    #[test]
    fn an_entry_is_found_again_by_its_place() {
        let place = place_of(&ENTRY).unwrap();
        assert_eq!((entry_at::<fn() -> u8>(place).unwrap().run)(), 7);
    }

    #[test]
    fn a_wrong_place_finds_nothing() {
        let place = place_of(&ENTRY).unwrap();
        let Place { entry, run } = place;
        for wrong in [0, 1, entry + 1, entry + 8, entry - 8, u64::MAX, u64::MAX / 2, 1 << 40] {
            assert!(entry_at::<fn() -> u8>(Place { entry: wrong, ..place }).is_none(), "{wrong}");
        }
        for wrong in [0, run + 1, run - 1, u64::MAX] {
            assert!(entry_at::<fn() -> u8>(Place { run: wrong, ..place }).is_none(), "{wrong}");
        }
    }

    /// Nothing but a habit said that all entries hold the same type.
    #[test]
    fn an_entry_of_another_type_is_none() {
        let place = place_of(&ENTRY).unwrap();
        assert!(entry_at::<fn() -> u16>(place).is_none());
    }

    #[test]
    fn code_outside_the_executable_has_no_place() {
        let leaked: &'static Entry<fn() -> u8> = Box::leak(Box::new(Entry::new(seven as fn() -> u8)));
        assert!(place_of(leaked).is_none());
        // SAFETY: only the address of the libc function is used, never called.
        let foreign = unsafe { mem::transmute::<unsafe extern "C" fn() -> i32, fn() -> u8>(libc::getpid) };
        let entry: &'static Entry<fn() -> u8> = Box::leak(Box::new(Entry::new(foreign)));
        assert!(place_of(entry).is_none());
    }
}
