//! What a body may become, whatever the type is that is read from it. Knows no format: `reader.rs` reads, and asks here.
//!
//! The format alone bounds nothing: four bytes can announce four billion elements of a type that takes no bytes on the
//! wire (`()`, or a struct whose fields are all `#[serde(skip)]`), and two bytes a node can nest a recursive type until
//! the stack is gone. So:
//!
//! 1. **Depth.** A sequence, map, tuple, struct, enum, option or newtype is a level; at most [`MAX_DEPTH`] of them nest.
//! 2. **Stack.** No level begins when those above it have taken [`MAX_STACK`]: nodes of a few KiB take that long before
//!    they are too deep. What is left of a thread's usual 2 MiB is for the last level, and for whoever reads.
//! 3. **Memory.** A body may become values of [`FREE`] bytes plus [`PER_BYTE`] bytes for each byte that it has.
//!    - An element of a sequence, and a key and a value of a map, cost the `size_of` their type, at least 1. All that are
//!      announced are charged when the first one is asked for, before anything of them is made.
//!    - A level larger than `PER_BYTE` costs its `size_of`: a `Box` in a recursive type may hold it. Smaller ones are free,
//!      for it takes a byte of the body, or an element, to have one more of them.
//!    - Elements that can't have a byte of the body each, because more are announced than the body has bytes that no
//!      other list claims, cost `PER_BYTE` more each: for the free levels that may be boxed in them. Types of size 0
//!      don't: nothing is in them.
//! 4. **Guesses.** Elements beyond those bytes are never a `size_hint`, so what lists set aside before their elements came
//!    doesn't add up. (serde's own lists set aside at most 1 MiB each.)
//!
//! Strings and bytes need no charge, for they can't be longer than the body. An honest value costs 24 bytes or so for
//! a byte of its body where it is worst (a `Vec` of empty `Vec`s), far below the 256. What a `Deserialize` impl
//! allocates of its own accord can't be seen from here.
//!
//! Every test in here is a comparison with a constant that the compiler decides, or one on a value in a register: a list
//! of structs is read as fast as by postcard alone, and a charge a level had cost a fifth.

use crate::sys::stack;
use crate::wire::fault::Fault;

/// How many levels may nest; writing keeps to it too, so that the error is at the one who can change something.
pub(crate) const MAX_DEPTH: usize = 128;

/// The bytes of stack that levels may take before the last one.
const MAX_STACK: usize = 1 << 20;

/// The bytes of values that any body may become.
pub(super) const FREE: usize = 16 << 20;

/// The bytes of values that a body may become for each of its own bytes.
const PER_BYTE: usize = 256;

/// What may still be made of a body.
pub(super) struct Budget {
    /// Bytes of values.
    values: usize,
    /// Bytes of the body that no list has claimed for its elements.
    unclaimed: usize,
    /// Where the stack may get to.
    lowest: usize,
}

impl Budget {
    /// What a body of so many bytes buys, when it is read from here on.
    pub(super) fn of(body: usize) -> Self {
        Self {
            values: body.saturating_mul(PER_BYTE).saturating_add(FREE),
            unclaimed: body,
            lowest: stack::pointer().saturating_sub(MAX_STACK),
        }
    }

    /// Goes one level down, into a `T`, when so many may still nest.
    #[inline]
    pub(super) fn enter<T>(&mut self, depth: &mut usize) -> Result<(), Fault> {
        *depth = depth.checked_sub(1).ok_or_else(too_deep)?;
        if stack::pointer() < self.lowest {
            return Err(too_large_to_nest());
        }
        if size_of::<T>() > PER_BYTE && !self.afford(size_of::<T>()) {
            return Err(over_budget());
        }
        Ok(())
    }

    /// Charges `count` elements of a `T`, up from `paid` bytes each.
    #[inline]
    pub(super) fn pay<T>(&mut self, paid: &mut usize, count: usize) -> Result<(), Fault> {
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
            return Err(if size == 0 { too_many() } else { over_budget() });
        }
        *paid = size.max(1);
        Ok(())
    }

    /// Whether memory may be set aside for so many elements that have not come.
    #[inline]
    pub(super) fn can_hold(&self, elements: usize) -> bool {
        elements <= self.unclaimed
    }

    /// Takes the cost out of the budget, if that holds so much.
    #[inline]
    fn afford(&mut self, cost: usize) -> bool {
        match self.values.checked_sub(cost) {
            Some(values) => {
                self.values = values;
                true
            }
            None => false,
        }
    }
}

#[cold]
fn over_budget() -> Fault {
    Fault::new("it would become far more memory than its length justifies")
}

#[cold]
fn too_many() -> Fault {
    Fault::new("it has far more elements that take no memory than its length justifies")
}

#[cold]
fn too_deep() -> Fault {
    Fault::new("it is nested deeper than 128 levels")
}

#[cold]
fn too_large_to_nest() -> Fault {
    Fault::new("what is nested in it takes more than 1 MiB of stack")
}
