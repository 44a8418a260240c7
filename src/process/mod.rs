//! Child processes: other people's programs as subprocesses, and the keeper that owns reaping for every child there is.

pub(crate) mod keeper;
pub(crate) mod kept;
