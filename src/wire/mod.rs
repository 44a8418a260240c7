//! Pure bytes: the frame, the body in it, and what parent and worker say to each other.
//!
//! No I/O and no runtime, so all of it can be fuzzed. Bytes in here come from another process and are not trusted:
//! limits are checked before memory is taken, and nothing panics.

pub(crate) mod body;
pub(crate) mod budget;
pub(crate) mod fault;
pub(crate) mod fds;
pub(crate) mod frame;
pub(crate) mod writer;
