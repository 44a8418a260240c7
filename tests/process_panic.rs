//! A panic in a task, wherever it happens, comes back as a value with all that it said; the host goes on.

mod support;

use std::process::Stdio;
use std::time::Duration;

use multiproc::{Panic, Process, ProcessBuilder, TaskError, call, spawn_process, task};
use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

multiproc::test_support!();

#[track_caller]
fn panicked<T: std::fmt::Debug>(result: Result<T, TaskError>) -> Panic {
    match result {
        Err(TaskError::Panicked(panic)) => panic,
        other => panic!("expected a panic: {other:?}"),
    }
}

async fn panic_of<T: multiproc::Task>(task: T) -> Panic
where
    T::Output: std::fmt::Debug,
{
    panicked(Process::builder().env("RUST_LIB_BACKTRACE", "0").spawn(task).await.unwrap().join().await)
}

const LINE: u32 = line!() + 4;
/// Not inlined, so that a release build's backtrace names it too.
#[inline(never)]
fn boom(what: &str) -> u8 {
    panic!("boom: {what}")
}

fn explode(what: String) -> u8 {
    boom(&what)
}

#[tokio::test]
async fn it_has_its_message_and_place() {
    let panic = panic_of(task!(explode("x".to_owned()))).await;
    assert_eq!(panic.message, "boom: x");
    assert_eq!(panic.location, Some(format!("tests/process_panic.rs:{LINE}:5")));
    assert_eq!(panic.backtrace, None);
    assert_eq!(panic.to_string(), format!("boom: x at tests/process_panic.rs:{LINE}:5"));
}

#[tokio::test]
async fn it_has_a_backtrace_where_rust_backtrace_asks_for_one() {
    let child = Process::builder()
        .env_remove("RUST_LIB_BACKTRACE")
        .env("RUST_BACKTRACE", "1")
        .spawn(task!(explode("x".to_owned())))
        .await
        .unwrap();
    let backtrace = panicked(child.join().await).backtrace.unwrap();
    assert!(backtrace.contains("process_panic::boom"), "{backtrace}");
}

#[tokio::test]
async fn the_process_exits_as_a_rust_program_that_panicked() {
    let mut child = spawn_process(task!(explode("x".to_owned()))).await.unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(101));
    assert_eq!(panicked(child.join().await).message, "boom: x");
}

async fn later() -> u8 {
    tokio::task::yield_now().await;
    panic!("later")
}

#[tokio::test]
async fn it_comes_back_from_an_async_function_too() {
    assert_eq!(panic_of(task!(later().await)).await.message, "later");
}

/// Panics when it is dropped, with another one of these.
struct Grenade(u8);

impl Drop for Grenade {
    fn drop(&mut self) {
        if self.0 > 0 {
            std::panic::panic_any(Grenade(self.0 - 1));
        }
    }
}

#[tokio::test]
async fn a_payload_that_is_not_a_string_or_panics_when_dropped() {
    let panic = panic_of(call(|()| -> u8 { std::panic::panic_any(7u8) }, ())).await;
    assert!(panic.message.contains("not a string"), "{panic}");
    assert!(panic.location.is_some());
    let panic = panic_of(call(|()| -> u8 { std::panic::panic_any(Grenade(3)) }, ())).await;
    assert!(panic.message.contains("not a string"), "{panic}");
}

/// Panics where it is told to: when it is decoded (1), encoded (2) or dropped (3) in a worker.
#[derive(Debug)]
struct Mine(u8);

impl Serialize for Mine {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        assert!(!(self.0 == 2 && multiproc::is_worker()), "while encoding");
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Mine {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let how = u8::deserialize(deserializer)?;
        assert!(!(how == 1 && multiproc::is_worker()), "while decoding");
        Ok(Self(how))
    }
}

impl Drop for Mine {
    fn drop(&mut self) {
        assert!(!(self.0 == 3 && multiproc::is_worker()), "while dropping");
    }
}

#[tokio::test]
async fn in_decoding_encoding_and_dropping() {
    assert_eq!(panic_of(call(|_: Mine| (), Mine(1))).await.message, "while decoding");
    assert_eq!(panic_of(call(|()| Mine(2), ())).await.message, "while encoding");
    assert_eq!(panic_of(call(|_: Mine| (), Mine(3))).await.message, "while dropping");
    assert_eq!(panic_of(call(|()| Mine(3), ())).await.message, "while dropping");
}

/// Panics when the host decodes it.
#[derive(Debug, Serialize)]
struct Trap;

impl<'de> Deserialize<'de> for Trap {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        panic!("the host decodes")
    }
}

#[tokio::test]
async fn in_decoding_the_result_here() {
    assert_eq!(panic_of(call(|()| Trap, ())).await.message, "the host decodes");
}

#[tokio::test]
async fn one_that_the_task_caught_itself_is_not_the_one_that_is_reported() {
    let panic = panic_of(call(
        |()| -> u8 {
            let _ = std::panic::catch_unwind(|| panic!("caught"));
            panic!("fatal")
        },
        (),
    ))
    .await;
    assert_eq!(panic.message, "fatal");
    let line = panic.location.unwrap();
    assert!(line.starts_with("tests/process_panic.rs:"), "{line}");
}

struct CatchesWhenDropped;

impl Drop for CatchesWhenDropped {
    fn drop(&mut self) {
        let _ = std::panic::catch_unwind(|| panic!("caught while unwinding"));
    }
}

#[tokio::test]
async fn one_that_was_caught_while_unwinding_is_not_the_one_that_is_reported() {
    let panic = panic_of(call(
        |()| -> u8 {
            let _catches = CatchesWhenDropped;
            panic!("fatal")
        },
        (),
    ))
    .await;
    assert_eq!(panic.message, "fatal");
}

/// What a process printed to stderr, and how its task went.
async fn printed<T: multiproc::Task>(task: T) -> (String, Result<T::Output, TaskError>) {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let process = Process::builder().env("RUST_LIB_BACKTRACE", "0").stderr(writer).spawn(task).await.unwrap();
    let result = process.join().await;
    let mut said = String::new();
    std::io::Read::read_to_string(&mut reader, &mut said).unwrap();
    (said, result)
}

async fn survive() -> bool {
    let _ = std::panic::catch_unwind(|| panic!("caught"));
    tokio::spawn(async { panic!("in a tokio task") }).await.is_err()
}

/// A task that leaves a thread which has stderr for itself, and survives a panic.
fn survive_beside_one_that_holds_stderr() -> u8 {
    let (held, holds) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _err = std::io::stderr().lock();
        held.send(()).unwrap();
        loop {
            std::thread::park();
        }
    });
    holds.recv().unwrap();
    let _ = std::panic::catch_unwind(|| panic!("caught"));
    7
}

/// It had no answer.
#[tokio::test]
async fn one_that_is_printed_waits_for_no_lock() {
    let printing = printed(task!(survive_beside_one_that_holds_stderr()));
    let (said, survived) = tokio::time::timeout(Duration::from_secs(20), printing).await.unwrap();
    assert_eq!(survived.unwrap(), 7);
    assert!(said.contains("caught"), "{said}");
}

/// It was neither printed nor given.
#[tokio::test]
async fn one_that_the_task_survives_is_printed_and_one_that_is_given_is_not() {
    let (said, survived) = printed(task!(survive().await)).await;
    assert!(survived.unwrap());
    let lines: Vec<_> = said.lines().filter(|line| !line.is_empty()).collect();
    let [first, "caught", second, "in a tokio task"] = lines[..] else { panic!("{said}") };
    for line in [first, second] {
        assert!(line.starts_with("thread '") && line.contains(" panicked at tests/process_panic.rs:"), "{said}");
    }

    let caught_before = call(
        |()| -> u8 {
            for _ in 0..20 {
                let _ = std::panic::catch_unwind(|| panic!("caught"));
            }
            panic!("fatal")
        },
        (),
    );
    let (said, result) = printed(caught_before).await;
    assert_eq!(panicked(result).message, "fatal");
    assert_eq!(said.lines().filter(|&line| line == "caught").count(), 20);
    assert!(!said.contains("fatal"), "{said}");
}

#[tokio::test]
async fn one_of_a_thread_of_the_task_is_reported_when_the_task_passes_it_on() {
    let panic = panic_of(call(
        |()| -> u8 { std::panic::resume_unwind(std::thread::spawn(|| panic!("elsewhere")).join().unwrap_err()) },
        (),
    ))
    .await;
    assert_eq!(panic.message, "elsewhere");
}

#[tokio::test]
async fn a_task_may_have_a_panic_hook_of_its_own() {
    let panic = panic_of(call(
        |()| -> u8 {
            std::panic::set_hook(Box::new(|_| ()));
            panic!("with a hook")
        },
        (),
    ))
    .await;
    assert_eq!(panic.message, "with a hook");
}

extern "C" fn callback() {
    panic!("in a callback of C code")
}

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("again")
    }
}

#[tokio::test]
async fn one_that_cannot_unwind_is_a_death_that_still_says_its_message() {
    let panic = panic_of(call(|()| callback(), ())).await;
    assert_eq!(panic.message, "in a callback of C code");
    assert!(panic.location.unwrap().starts_with("tests/process_panic.rs:"));
    let twice = call(
        |()| -> u8 {
            let _drop = PanicsWhenDropped;
            panic!("once")
        },
        (),
    );
    let panic = panic_of(twice).await;
    assert!(["once", "again"].contains(&&*panic.message), "{panic}");
}

#[tokio::test]
async fn the_host_goes_on() {
    for _ in 0..3 {
        assert_eq!(panic_of(task!(explode("x".to_owned()))).await.message, "boom: x");
    }
    assert_eq!(spawn_process(call(|n: u8| n + 1, 1)).await.unwrap().join().await.unwrap(), 2);
}

/// Takes the memory that this process may have, but for `left` bytes.
fn take_all_but(left: usize) -> Vec<Vec<u8>> {
    const BLOCK: usize = 64 << 10;
    let mut taken = Vec::with_capacity(16 << 10);
    let mut block = Vec::new();
    while block.try_reserve_exact(BLOCK).is_ok() {
        taken.push(std::mem::take(&mut block));
    }
    taken.truncate(taken.len() - left / BLOCK);
    taken
}

#[inline(never)]
fn squeeze() {
    let _taken = take_all_but(8 << 20);
    panic!("near the limit")
}

/// A worker that makes backtraces and says nothing else.
fn traced() -> ProcessBuilder {
    Process::builder().env_remove("RUST_LIB_BACKTRACE").env("RUST_BACKTRACE", "1").stderr(Stdio::null())
}

async fn join<T: multiproc::Task>(builder: ProcessBuilder, task: T) -> Result<T::Output, TaskError> {
    let process = builder.spawn(task).await.unwrap();
    tokio::time::timeout(Duration::from_mins(1), process.join()).await.expect("it hangs")
}

#[tokio::test]
async fn one_near_the_memory_limit_has_its_message_and_backtrace() {
    let panic = panicked(join(traced().memory_limit(256 << 20), task!(squeeze())).await);
    assert_eq!(panic.message, "near the limit");
    let backtrace = panic.backtrace.unwrap();
    assert!(backtrace.contains("process_panic::squeeze"), "{backtrace}");
}

#[tokio::test]
async fn one_of_a_thread_near_the_memory_limit_ends_that_thread_alone() {
    let elsewhere = call(|()| std::thread::spawn(squeeze).join().is_err(), ());
    assert!(join(traced().memory_limit(256 << 20), elsewhere).await.unwrap());
}

fn rooms_around_a_panic() -> (usize, usize) {
    let before = take_all_but(0).len();
    let _ = std::panic::catch_unwind(|| panic!("caught"));
    (before, take_all_but(0).len())
}

#[tokio::test]
async fn what_its_backtrace_keeps_in_memory_is_not_taken_from_the_next_task() {
    let rooms = join(traced().memory_limit(256 << 20), task!(rooms_around_a_panic())).await.unwrap();
    // But for a MiB, as the heap is not quite what it was.
    assert!(rooms.1 + 16 >= rooms.0, "{rooms:?}");
}

/// As `squeeze`, under a limit that can't be lifted.
fn squeeze_hard() {
    let limit = Rlimit { current: Some(256 << 20), maximum: Some(256 << 20) };
    setrlimit(Resource::As, limit).unwrap();
    squeeze();
}

#[tokio::test]
async fn one_near_a_memory_limit_that_cannot_be_lifted_has_its_message_and_no_backtrace() {
    let panic = panicked(join(traced(), task!(squeeze_hard())).await);
    assert_eq!(panic.message, "near the limit");
    assert!(panic.location.unwrap().starts_with("tests/process_panic.rs:"));
    assert_eq!(panic.backtrace, None);
    let elsewhere = call(|()| std::thread::spawn(squeeze_hard).join().is_err(), ());
    assert!(join(traced(), elsewhere).await.unwrap());
}
