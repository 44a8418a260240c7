//! Pure bytes: values as frames, for a connection of your own.
//!
//! Channels and pools frame their messages by themselves; [`Codec`] is for those who have a stream of bytes already. Nothing
//! is read or written in here, and there is no runtime, so all of it can be fuzzed; of fds there are only the duplicates that
//! travel. The bytes come from another process and are not trusted: limits are checked before memory is taken, and nothing
//! panics.

pub(crate) mod body;
mod budget;
mod codec;
pub(crate) mod extra;
pub(crate) mod fault;
pub(crate) mod fds;
pub(crate) mod frame;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
pub(crate) mod held;
mod known;
pub(crate) mod message;
pub(crate) mod passenger;
mod reader;
pub(crate) mod writer;

pub use codec::Codec;
