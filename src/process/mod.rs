//! Child processes: our own functions in one, other people's programs as subprocesses, and the keeper that owns reaping
//! for every child there is.

pub(crate) mod keeper;
pub(crate) mod kept;
pub(crate) mod spawn;
pub(crate) mod start;

pub use spawn::{Process, ProcessBuilder, spawn_process};
