//! A task on its way: encoded here, found and run there, its result decoded here.
//!
//! What a task is to those who write one is in `task.rs`.

use std::any::type_name;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::de::DeserializeOwned;

use super::Task;
use super::panic::caught;
use crate::error::{BoxError, Panic, SpawnError, TaskError};
use crate::sys::image::{self, Entry, Place};
use crate::sys::original;
use crate::wire::body::{self, EncodeError, Parts};
use crate::wire::extra::Extra;
use crate::wire::fds;
use crate::wire::frame::Frame;
use crate::wire::held::Held;
use crate::wire::message::{Arguments, Failure, Run};
use crate::wire::passenger::Passenger;

/// What the worker calls for a task: decodes the arguments, runs, encodes the result into `out`.
pub(crate) type Runner =
    fn(Arguments<'_>, Extra<Passenger>, &mut Parts, usize) -> Result<Extra<Passenger>, Box<Failure>>;

/// Gives each task type its entry, a constant in the executable.
trait HasEntry {
    const ENTRY: &'static Entry<Runner>;
}

impl<T: Task> HasEntry for T {
    const ENTRY: &'static Entry<Runner> = &Entry::new(run::<T>);
}

fn run<T: Task>(
    arguments: Arguments<'_>,
    arrived: Extra<Passenger>,
    out: &mut Parts,
    max: usize,
) -> Result<Extra<Passenger>, Box<Failure>> {
    let task: T = fds::provide(arrived, || arguments.decode()).map_err(|error| Failure::Decode(error.to_string()))?;
    let output = task.run();
    // Before anything is encoded or dropped: of two that return only one may answer.
    original::end_copy(0);
    match fds::collect(|| out.encode(&output, max)) {
        Ok(((), leaving)) => Ok(leaving),
        Err(EncodeError::Failed(error)) => Err(Failure::Encode(error.to_string()).into()),
        Err(EncodeError::TooLarge { len, max }) => Err(Failure::TooLarge { len, max }.into()),
    }
}

/// Finds what a Run message names. A wrong place or another function than meant is `None`.
pub(crate) fn resolve(place: Place) -> Option<&'static Entry<Runner>> {
    image::entry_at(place)
}

/// A task on its way: encoded, and free of its type.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) name: &'static str,
    /// Where its code is.
    pub(crate) place: Place,
    /// Its arguments, where they were written: they are moved once, to where they stay.
    pub(crate) arguments: Box<Parts>,
    pub(crate) fds: Extra<Passenger>,
}

impl Parcel {
    /// The frame that has it run.
    pub(crate) fn into_frame(self, id: u64) -> Frame {
        let mut arguments = Held::default();
        let rest = self.arguments.finish(&mut arguments);
        Run::frame(id, self.place, (arguments, rest), self.fds)
    }
}

/// Why a task can't be sent.
#[derive(Debug)]
pub(crate) enum PackError {
    Encode(BoxError),
    TooLarge { len: u64, max: u64 },
    Panicked(Panic),
    Foreign { task: &'static str },
}

impl From<PackError> for SpawnError {
    fn from(error: PackError) -> Self {
        match error {
            PackError::Encode(source) => Self::Encode(source),
            PackError::TooLarge { len, max } => Self::TooLarge { len, max },
            PackError::Panicked(panic) => Self::Encode(format!("panicked: {panic}").into()),
            PackError::Foreign { task } => Self::ForeignCode { task },
        }
    }
}

impl From<PackError> for TaskError {
    fn from(error: PackError) -> Self {
        match error {
            PackError::Encode(source) => Self::Encode(source),
            PackError::TooLarge { len, max } => Self::TooLarge { len, max },
            PackError::Panicked(panic) => Self::Panicked(panic),
            PackError::Foreign { task } => Self::Spawn(SpawnError::ForeignCode { task }),
        }
    }
}

/// Encodes a task. `max` bounds the body in bytes.
#[inline]
pub(crate) fn pack<T: Task>(task: &T, max: usize) -> Result<Parcel, PackError> {
    pack_for((T::ENTRY, type_name::<T>()), task.task_name(), |parts| parts.encode(task, max))
}

/// Makes a parcel for an entry and the name of its type; `encode` appends the arguments.
#[inline]
pub(crate) fn pack_for(
    (entry, of): (&'static Entry<Runner>, &'static str),
    name: &'static str,
    encode: impl FnOnce(&mut Parts) -> Result<(), EncodeError>,
) -> Result<Parcel, PackError> {
    let place = image::place_of(entry).ok_or(PackError::Foreign { task: of })?;
    let mut arguments = Parts::scratch();
    match catch_unwind(AssertUnwindSafe(|| fds::collect(|| encode(&mut arguments)))) {
        Ok(Ok(((), fds))) => Ok(Parcel { name, place, arguments, fds }),
        Ok(Err(EncodeError::Failed(source))) => Err(PackError::Encode(source)),
        Ok(Err(EncodeError::TooLarge { len, max })) => Err(PackError::TooLarge { len, max }),
        Err(payload) => Err(PackError::Panicked(caught(payload))),
    }
}

/// What has come back of a task: its result, encoded.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) body: Held,
    pub(crate) fds: Extra<Passenger>,
    /// Some of its fds could not be taken in, as this process had none free.
    pub(crate) fds_lost: bool,
}

impl From<Frame> for Answer {
    fn from(frame: Frame) -> Self {
        let Frame { body, fds, fds_lost, .. } = frame;
        Self { body, fds, fds_lost }
    }
}

/// Decodes a task's result, and takes the fds out of what it came in.
pub(crate) fn unpack<R: DeserializeOwned>(answer: &mut Answer) -> Result<R, TaskError> {
    let arrived = std::mem::take(&mut answer.fds);
    match catch_unwind(AssertUnwindSafe(|| fds::provide(arrived, || body::decode_shared(&answer.body)))) {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(error)) => Err(TaskError::Decode(if answer.fds_lost { fds::LOST.into() } else { error })),
        Err(payload) => Err(TaskError::Panicked(caught(payload))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call;

    fn place_of<T: Task>(task: T) -> Place {
        Run::parse(&mut pack(&task, 1024).unwrap().into_frame(1).body).unwrap().place
    }

    /// By their names, as closures of one function, they were the same.
    #[test]
    fn the_place_of_one_task_with_the_code_of_another_is_none() {
        let (one, other) = (place_of(call(|x: u32| x + 1, 1)), place_of(call(|x: u32| x * 7, 1)));
        assert!(resolve(one).is_some() && resolve(other).is_some());
        assert!(resolve(Place { run: other.run, ..one }).is_none());
    }
}
