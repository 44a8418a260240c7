//! What can be sent away: a value that another process decodes and runs.
//!
//! A task's type says which code runs, its value holds the arguments. Nothing is registered: see `sys/image.rs` for how
//! the other process finds the code. This file does not start processes.

use std::any::type_name;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{BoxError, Panic, SpawnError, TaskError};
use crate::sys::image::{self, Entry};
use crate::wire::body::{self, EncodeError, Parts};
use crate::wire::fds;
use crate::wire::frame::Frame;
use crate::wire::message::{Failure, Run};

/// A function call that can be sent to another process: its type is the function, its value the arguments.
///
/// Most tasks are made by [`task!`](crate::task) or [`call`]; implement the trait for a type of your own where the
/// arguments deserve a name. Only the value's serde representation travels. The other process runs the same executable,
/// so `run` is the same code there.
///
/// # Examples
///
/// ```
/// use multiproc::{ProcessPool, Task};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Resize { width: u32, height: u32, factor: u32 }
///
/// impl Task for Resize {
///     type Output = (u32, u32);
///     fn run(self) -> (u32, u32) { (self.width * self.factor, self.height * self.factor) }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// multiproc::init();
/// let pool = ProcessPool::new(1);
/// assert_eq!(pool.submit(Resize { width: 3, height: 4, factor: 2 }).await?, (6, 8));
/// # pool.close().await;
/// # Ok(())
/// # }
/// ```
pub trait Task: Serialize + DeserializeOwned + Send + 'static {
    /// What the call gives back.
    type Output: Serialize + DeserializeOwned + Send + 'static;

    /// Does the work. It runs in the other process, on a thread outside any async runtime.
    fn run(self) -> Self::Output;

    /// What errors call this task. [`task!`](crate::task) tasks give the function's path as it was written.
    #[doc(hidden)]
    fn task_name(&self) -> &'static str {
        type_name::<Self>()
    }
}

/// Makes a [`Task`] of a function, or of a closure that captures nothing, and its arguments.
///
/// The function takes one value; several arguments are a tuple. Generic functions and closures work as they are:
/// nothing has to be registered. See [`task!`](crate::task) for the form that looks like a call.
///
/// A closure that captures is refused when the program is compiled: pass what it needs as an argument.
///
/// ```compile_fail
/// let factor = 3;
/// let _ = multiproc::call(move |x: u32| x * factor, 4);
/// ```
/// ```
/// let factor = 3;
/// let _ = multiproc::call(|(x, factor): (u32, u32)| x * factor, (4, factor));
/// ```
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// multiproc::init();
/// let child = multiproc::spawn_process(multiproc::call(|(x, y)| x + y, (1, 2))).await?;
/// assert_eq!(child.join().await?, 3);
/// # Ok(())
/// # }
/// ```
pub fn call<F, A, R>(function: F, args: A) -> Call<F, A>
where
    F: Fn(A) -> R + Copy + Send + 'static,
    A: Serialize + DeserializeOwned + Send + 'static,
    R: Serialize + DeserializeOwned + Send + 'static,
{
    // In each of the three, not in one that they share: the compiler names the caller of the function that has it.
    const { captures_nothing::<F>() };
    // Having had the value is what allows the other process to make it again; see `image::conjure`.
    let _: F = function;
    Call { name: type_name::<F>(), args, function: PhantomData }
}

/// As [`call`], with the function's path as the caller wrote it; for the macro, whose closure has no name.
#[doc(hidden)]
pub fn call_named<F, A, R>(name: &'static str, function: F, args: A) -> Call<F, A>
where
    F: Fn(A) -> R + Copy + Send + 'static,
    A: Serialize + DeserializeOwned + Send + 'static,
    R: Serialize + DeserializeOwned + Send + 'static,
{
    const { captures_nothing::<F>() };
    let _: F = function;
    Call { name, args, function: PhantomData }
}

/// A call of a function with its arguments, made by [`call`] and [`task!`](crate::task).
pub struct Call<F, A> {
    name: &'static str,
    args: A,
    function: PhantomData<fn() -> F>,
}

impl<F, A, R> Task for Call<F, A>
where
    F: Fn(A) -> R + Copy + Send + 'static,
    A: Serialize + DeserializeOwned + Send + 'static,
    R: Serialize + DeserializeOwned + Send + 'static,
{
    type Output = R;

    fn run(self) -> R {
        image::conjure::<F>()(self.args)
    }

    fn task_name(&self) -> &'static str {
        self.name
    }
}

/// As [`call_named`], for a function that gives a future; the macro's `.await` form.
#[doc(hidden)]
pub fn call_async<F, A, Fut>(name: &'static str, function: F, args: A) -> CallAsync<F, A>
where
    F: Fn(A) -> Fut + Copy + Send + 'static,
    Fut: Future,
    A: Serialize + DeserializeOwned + Send + 'static,
    Fut::Output: Serialize + DeserializeOwned + Send + 'static,
{
    const { captures_nothing::<F>() };
    let _: F = function;
    CallAsync { name, args, function: PhantomData }
}

/// A call of an async function with its arguments, made by [`task!`](crate::task).
pub struct CallAsync<F, A> {
    name: &'static str,
    args: A,
    function: PhantomData<fn() -> F>,
}

impl<F, A, Fut> Task for CallAsync<F, A>
where
    F: Fn(A) -> Fut + Copy + Send + 'static,
    Fut: Future,
    A: Serialize + DeserializeOwned + Send + 'static,
    Fut::Output: Serialize + DeserializeOwned + Send + 'static,
{
    type Output = Fut::Output;

    /// Drives the future on a current-thread runtime, which this thread makes once and keeps.
    ///
    /// # Panics
    /// If no runtime can be made, or if it is called from inside one: a worker calls it outside.
    fn run(self) -> Fut::Output {
        thread_local! {
            // Never dropped: a task that ends the process would drop its own runtime under itself, which aborts.
            static RUNTIME: std::cell::OnceCell<std::mem::ManuallyDrop<tokio::runtime::Runtime>> =
                const { std::cell::OnceCell::new() };
        }
        RUNTIME.with(|runtime| {
            let runtime = runtime.get_or_init(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.expect("a runtime for an async task needs an epoll instance and an eventfd");
                std::mem::ManuallyDrop::new(runtime)
            });
            runtime.block_on(async { image::conjure::<F>()(self.args).await })
        })
    }

    fn task_name(&self) -> &'static str {
        self.name
    }
}

const fn captures_nothing<F>() {
    assert!(
        size_of::<F>() == 0,
        "a function that is sent to another process must not capture anything (and must not be a function pointer): \
         pass what it needs as an argument"
    );
}

macro_rules! only_the_arguments {
    ($name:ident) => {
        impl<F, A: Serialize> Serialize for $name<F, A> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.args.serialize(serializer)
            }
        }

        impl<'de, F, A: Deserialize<'de>> Deserialize<'de> for $name<F, A> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Ok(Self { name: type_name::<F>(), args: A::deserialize(deserializer)?, function: PhantomData })
            }
        }

        impl<F, A: fmt::Debug> fmt::Debug for $name<F, A> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", self.name, self.args)
            }
        }
    };
}

only_the_arguments!(Call);
only_the_arguments!(CallAsync);

/// Makes a [`Task`] that looks like the call it is: `task!(f(a, b))`, or `task!(f(a).await)` for an async function.
///
/// The arguments are evaluated here and travel; the function runs in the other process. They must own what they hold
/// (`String`, not `&str`) and be serde values. The function is named by a path, generics included:
/// `task!(geo::area::<f64>(3.0))`.
///
/// # Examples
///
/// ```
/// use multiproc::{ProcessPool, task};
///
/// fn add(a: u32, b: u32) -> u32 { a + b }
/// async fn later(text: String) -> usize { tokio::task::yield_now().await; text.len() }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// multiproc::init();
/// let pool = ProcessPool::new(1);
/// assert_eq!(pool.submit(task!(add(40, 2))).await?, 42);
/// assert_eq!(pool.submit(task!(later("seven b".to_string()).await)).await?, 7);
/// # pool.close().await;
/// # Ok(())
/// # }
/// ```
#[macro_export]
macro_rules! task {
    // The call's own parentheses are the last token tree, with or without `.await` behind it.
    (@path [$($path:tt)+] ($($arg:expr),* $(,)?)) => {
        $crate::task!(@name call_named [$($path)+] [] [$($arg,)*] $($arg,)*)
    };
    (@path [$($path:tt)+] ($($arg:expr),* $(,)?) .await) => {
        $crate::task!(@name call_async [$($path)+] [] [$($arg,)*] $($arg,)*)
    };
    (@path [$($path:tt)*] $next:tt $($rest:tt)*) => {
        $crate::task!(@path [$($path)* $next] $($rest)*)
    };
    // One parameter for each argument: `arg` is another name at each step, by hygiene.
    (@name $make:ident [$($path:tt)+] [$($param:ident)*] [$($arg:expr,)*] $first:expr, $($left:expr,)*) => {
        $crate::task!(@name $make [$($path)+] [$($param)* arg] [$($arg,)*] $($left,)*)
    };
    (@name $make:ident [$($path:tt)+] [$($param:ident)*] [$($arg:expr,)*]) => {
        $crate::__private::$make(
            ::core::stringify!($($path)+),
            |($($param,)*)| $($path)+($($param),*),
            ($($arg,)*),
        )
    };
    (@ $($wrong:tt)*) => {
        ::core::compile_error!("expected a call: `task!(function(arguments))` or `task!(function(arguments).await)`")
    };
    ($($call:tt)+) => {
        $crate::task!(@path [] $($call)+)
    };
}

/// What the worker calls for a task: decodes the arguments, runs, encodes the result into `out`.
pub(crate) type Runner = fn(Bytes, Vec<OwnedFd>, &mut Parts, usize) -> Result<Vec<OwnedFd>, Failure>;

/// Gives each task type its entry, a constant in the executable.
trait HasEntry {
    const ENTRY: &'static Entry<Runner>;
}

impl<T: Task> HasEntry for T {
    const ENTRY: &'static Entry<Runner> = &Entry::new(type_name::<T>, run::<T>);
}

fn run<T: Task>(arguments: Bytes, arrived: Vec<OwnedFd>, out: &mut Parts, max: usize) -> Result<Vec<OwnedFd>, Failure> {
    let task: T = fds::provide(arrived, || body::decode_shared(&arguments))
        .map_err(|error| Failure::Decode(error.to_string()))?;
    // A large argument has been decoded; its bytes need not stay while the task runs.
    drop(arguments);
    let output = task.run();
    let (encoded, leaving) = fds::collect(|| out.encode(&output, max));
    match encoded {
        Ok(()) => Ok(leaving),
        Err(EncodeError::Failed(error)) => Err(Failure::Encode(error.to_string())),
        Err(EncodeError::TooLarge { len, max }) => Err(Failure::TooLarge { len, max }),
    }
}

/// Finds what a Run message names. A wrong place or another function than meant is `None`.
pub(crate) fn resolve(run: &Run) -> Option<&'static Entry<Runner>> {
    image::entry_at::<Runner>(run.entry).filter(|entry| check((entry.name)()) == run.check)
}

/// A task on its way: encoded, and free of its type.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) name: &'static str,
    pub(crate) body: Bytes,
    /// What follows the body's beginning.
    pub(crate) more: Vec<Bytes>,
    pub(crate) fds: Vec<OwnedFd>,
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
pub(crate) fn pack<T: Task>(task: &T, max: usize) -> Result<Parcel, PackError> {
    pack_for((T::ENTRY, type_name::<T>()), task.task_name(), |parts| parts.encode(task, max))
}

/// Makes a parcel for an entry and its name; `encode` appends the arguments.
pub(crate) fn pack_for(
    (entry, of): (&'static Entry<Runner>, &'static str),
    name: &'static str,
    encode: impl FnOnce(&mut Parts) -> Result<(), EncodeError>,
) -> Result<Parcel, PackError> {
    let entry = image::offset_of(entry).ok_or(PackError::Foreign { task: of })?;
    let mut parts = Parts::new(Run::begin(entry, check(of)));
    let packed = catch_unwind(AssertUnwindSafe(|| fds::collect(|| encode(&mut parts))));
    match packed {
        Ok((Ok(()), fds)) => {
            let (body, more) =
                if parts.is_written() { (Run::finish(parts.written), Vec::new()) } else { parts.take(0) };
            Ok(Parcel { name, body, more, fds })
        }
        Ok((Err(EncodeError::Failed(source)), _)) => Err(PackError::Encode(source)),
        Ok((Err(EncodeError::TooLarge { len, max }), _)) => Err(PackError::TooLarge { len, max }),
        Err(payload) => Err(PackError::Panicked(Panic::new(panic_message(payload)))),
    }
}

/// Decodes a task's result from the frame that brought it.
pub(crate) fn unpack<R: DeserializeOwned>(frame: Frame) -> Result<R, TaskError> {
    let Frame { body, fds: arrived, .. } = frame;
    match catch_unwind(AssertUnwindSafe(|| fds::provide(arrived, || body::decode_shared(&body)))) {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(error)) => Err(TaskError::Decode(error)),
        Err(payload) => Err(TaskError::Panicked(Panic::new(panic_message(payload)))),
    }
}

/// The text of a panic's payload. Never panics, even if the payload does when it is dropped.
pub(crate) fn panic_message(payload: Box<dyn std::any::Any + Send>) -> String {
    let message = if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic payload that is not a string".to_owned()
    };
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        // Its drop might panic again and again.
        std::mem::forget(second);
    }
    message
}

/// A few bits of a name: enough to find out that a place is another function's, and cheap at each task.
fn check(name: &str) -> u64 {
    let end = name.as_bytes().last_chunk::<8>().map_or(0, |end| u64::from_le_bytes(*end));
    end.rotate_left(8) ^ name.len() as u64
}
