//! What can be sent away: a value that another process decodes and runs.
//!
//! A task's type says which code runs, its value holds the arguments. Nothing is registered: see `sys/image.rs` for how
//! the other process finds the code, and `parcel.rs` for what travels. This file does not start processes.

pub(crate) mod panic;
mod parcel;

use std::any::type_name;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;

pub(crate) use panic::unheeded;
pub(crate) use parcel::{Answer, PackError, Parcel, Runner, pack, pack_for, resolve, unpack};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::sys::image;

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
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a task that another process can run",
    label = "not a `Task`",
    note = "write the call itself: `task!(function(arguments))`, or `task!(function(arguments).await)`",
    note = "a closure that captures nothing is given with its argument: `call(|x| .., argument)`"
)]
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
#[must_use = "it does nothing unless a pool or a process is given it"]
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
#[must_use = "it does nothing unless a pool or a process is given it"]
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

/// What travels of a call. It adds no bytes, but makes the arguments a part of something: bytes that only write themselves are copied,
/// or walked through.
#[derive(Serialize, Deserialize)]
struct Args<A>(A);

macro_rules! only_the_arguments {
    ($name:ident) => {
        impl<F, A: Serialize> Serialize for $name<F, A> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                Args(&self.args).serialize(serializer)
            }
        }

        impl<'de, F, A: Deserialize<'de>> Deserialize<'de> for $name<F, A> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let Args(args) = Args::deserialize(deserializer)?;
                Ok(Self { name: type_name::<F>(), args, function: PhantomData })
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
