//! Child processes: our own functions in one, other people's programs as subprocesses, and the keeper that owns reaping
//! for every child there is.

mod builder;
mod child;
mod command;
mod exchange;
mod handshake;
mod in_child;
mod input;
pub(crate) mod keeper;
pub(crate) mod kept;
mod launch;
mod lines;
pub(crate) mod lost;
mod phase;
mod pipes;
pub(crate) mod program;
pub(crate) mod spawn;
pub(crate) mod start;
mod starter;
mod timer;
mod verbs;
mod verdict;
pub(crate) mod within;

pub use builder::ProcessBuilder;
pub use child::Child;
pub use command::Command;
pub use lines::Source;
pub use pipes::{ChildStderr, ChildStdin, ChildStdout};
pub use spawn::{Process, spawn_process};
