//! A function in a process of its own: its result comes back, whatever the runtime, the thread and the size.

mod support;

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use multiproc::{
    Duplex, Process, ProcessBuilder, Receiver, Sender, SpawnError, TaskError, call, channel, duplex, spawn_process,
    task,
};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use support::proc::children;
use support::{Other, alone, block_on, died, eventually, running, runtime};

multiproc::test_support!();

fn add(a: i32, b: i32) -> i32 {
    a + b
}

async fn add_later(a: i32, b: i32) -> i32 {
    tokio::task::yield_now().await;
    a + b
}

fn pids() -> (u32, u32) {
    (std::process::id(), std::os::unix::process::parent_id())
}

async fn three() -> i32 {
    spawn_process(task!(add(1, 2))).await.unwrap().join().await.unwrap()
}

#[tokio::test]
async fn a_result_comes_back_from_a_child_of_ours() {
    assert_eq!(three().await, 3);
    let child = spawn_process(task!(pids())).await.unwrap();
    // It may have ended by now.
    let id = child.id();
    let (pid, parent) = child.join().await.unwrap();
    assert_ne!(pid, std::process::id());
    assert_eq!(parent, std::process::id());
    assert!(id.is_none_or(|id| id == pid));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_works_on_the_multi_thread_runtime_and_in_its_tasks() {
    assert_eq!(three().await, 3);
    let tasks: Vec<_> = (0..4).map(|_| tokio::spawn(three())).collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), 3);
    }
}

#[test]
fn it_works_from_plain_threads_with_a_handle() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let handle = runtime.handle();
            scope.spawn(move || assert_eq!(handle.block_on(three()), 3));
        }
    });
}

#[test]
fn a_process_outlives_the_runtime_and_the_thread_that_started_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wait").to_str().unwrap().to_owned();
    std::fs::write(&path, "").unwrap();
    let task = task!(say_and_wait_for(path.clone()));
    let (child, _) = std::thread::spawn(|| block_on(running(Process::builder(), task))).join().unwrap();
    assert!(child.id().is_some());
    std::fs::remove_file(&path).unwrap();
    block_on(child.join()).unwrap();
}

fn heard(mut numbers: Receiver<u32>) -> u32 {
    numbers.blocking_recv().unwrap().unwrap()
}

/// It panicked: the first runtime's clock had gone with it.
#[test]
fn a_join_that_one_runtime_has_begun_goes_on_in_another() {
    let (sender, receiver) = channel().unwrap();
    let first = runtime();
    let child = first.block_on(spawn_process(task!(heard(receiver)))).unwrap();
    let mut joined = std::pin::pin!(child.join());
    assert!(first.block_on(async { joined.as_mut().now_or_never() }).is_none());
    drop(first);
    let second = runtime();
    assert!(second.block_on(async { joined.as_mut().now_or_never() }).is_none());
    sender.blocking_send(7).unwrap();
    assert_eq!(second.block_on(joined).unwrap(), 7);
}

#[test]
fn outside_a_runtime_a_start_is_an_error() {
    let mut start = std::pin::pin!(spawn_process(task!(add(1, 2))));
    let Poll::Ready(outcome) = start.as_mut().poll(&mut Context::from_waker(Waker::noop())) else { panic!() };
    let error = outcome.unwrap_err();
    assert!(matches!(&error, SpawnError::Io(error) if error.to_string() == "not in a tokio runtime"), "{error:?}");
}

#[tokio::test]
async fn async_functions_and_closures_run_there() {
    assert_eq!(spawn_process(task!(add_later(1, 2).await)).await.unwrap().join().await.unwrap(), 3);
    let text = spawn_process(call(|text: String| text.to_uppercase(), "abc".to_owned())).await.unwrap();
    assert_eq!(text.join().await.unwrap(), "ABC");
}

#[derive(Serialize, Deserialize)]
struct Unit;

#[tokio::test]
async fn nothing_as_argument_and_as_result() {
    spawn_process(call(|()| (), ())).await.unwrap().join().await.unwrap();
    let _: Unit = spawn_process(call(|unit: Unit| unit, Unit)).await.unwrap().join().await.unwrap();
}

/// What can't be encoded, and counts the attempts.
#[derive(Debug)]
struct Wordless;

impl Serialize for Wordless {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(S::Error::custom("there are no words for this"))
    }
}

impl<'de> Deserialize<'de> for Wordless {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Ok(Self)
    }
}

#[test]
fn arguments_that_cannot_be_encoded_are_an_error_before_any_process_exists() {
    alone("arguments_that_cannot_be_encoded_are_an_error_before_any_process_exists", || {
        block_on(async {
            let refused = spawn_process(call(|_: Wordless| (), Wordless)).await;
            assert!(matches!(refused, Err(SpawnError::Encode(_))), "{refused:?}");
            assert_eq!(children(), []);
            assert_eq!(three().await, 3);
        });
    });
}

#[tokio::test]
async fn a_result_that_cannot_be_encoded_is_an_error() {
    let child = spawn_process(call(|()| Wordless, ())).await.unwrap();
    let result = child.join().await;
    assert!(matches!(result, Err(TaskError::Encode(_))), "{result:?}");
}

/// Encodes as nothing and can't be decoded again.
#[derive(Debug, Serialize)]
struct OneWay;

impl<'de> Deserialize<'de> for OneWay {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("not this way"))
    }
}

#[tokio::test]
async fn what_cannot_be_decoded_is_an_error_on_either_side() {
    let result = spawn_process(call(|_: OneWay| (), OneWay)).await.unwrap().join().await;
    assert!(matches!(result, Err(TaskError::Decode(_))), "{result:?}");
    let result = spawn_process(call(|()| OneWay, ())).await.unwrap().join().await;
    assert!(matches!(result, Err(TaskError::Decode(_))), "{result:?}");
}

const LARGE: usize = 100 << 20;

fn next_bytes(bytes: Bytes) -> Bytes {
    bytes.iter().map(|byte| byte.wrapping_add(1)).collect::<Vec<u8>>().into()
}

#[tokio::test]
async fn a_hundred_mib_go_there_and_back_also_with_wait_before_join() {
    let bytes = Bytes::from((0..=u8::MAX).cycle().take(LARGE).collect::<Vec<u8>>());
    let mut child = spawn_process(call(next_bytes, bytes.clone())).await.unwrap();
    assert!(child.wait().await.unwrap().success());
    assert_eq!(child.id(), None);
    let back = child.join().await.unwrap();
    assert!(back.len() == LARGE && back.iter().zip(&bytes).all(|(new, old)| *new == old.wrapping_add(1)));
}

#[tokio::test]
async fn wait_may_be_dropped_and_repeated_and_loses_nothing() {
    let mut child = spawn_process(call(next_bytes, Bytes::from(vec![1; 1 << 20]))).await.unwrap();
    let status = loop {
        // At most one poll each: it is dropped wherever it stands.
        tokio::select! {
            biased;
            status = child.wait() => break status.unwrap(),
            () = tokio::task::yield_now() => {}
        }
    };
    assert_eq!(child.wait().await.unwrap(), status);
    assert_eq!(child.join().await.unwrap(), vec![2; 1 << 20]);
}

/// Runs a shell's script in this process's place.
fn become_shell(script: String) -> u8 {
    panic!("{}", Command::new("/bin/sh").arg("-c").arg(script).exec())
}

#[tokio::test]
async fn a_task_that_becomes_another_program_ends_as_that_does() {
    let mut child = spawn_process(task!(become_shell("exit 3".into()))).await.unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(3));
    assert_eq!(died(child.join().await).unwrap().code(), Some(3));
}

fn say_and_wait_for(path: String) {
    println!("running");
    // Until the host has removed the file.
    while support::exists(&path) {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::fs::write(path + ".done", "").unwrap();
}

#[tokio::test]
async fn a_detached_process_runs_to_its_end_and_is_reaped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wait").to_str().unwrap().to_owned();
    std::fs::write(&path, "").unwrap();
    let (child, _) = running(Process::builder(), task!(say_and_wait_for(path.clone()))).await;
    let other = Other::new(child.id().unwrap());
    child.detach();
    std::fs::remove_file(&path).unwrap();
    other.is_reaped_within(Duration::from_secs(10));
    assert!(support::exists(path + ".done"));
}

fn tell_len(bytes: Vec<u8>, tx: Sender<usize>) {
    tx.blocking_send(bytes.len()).unwrap();
}

/// What did not fit into the socket was written by `join` and `wait` alone.
#[tokio::test]
async fn a_task_with_large_arguments_begins_although_nobody_waits_for_its_end() {
    let (tx, mut rx) = channel().unwrap();
    let child = spawn_process(task!(tell_len(vec![1; 32 << 20], tx))).await.unwrap();
    let len = tokio::time::timeout(Duration::from_secs(20), rx.recv()).await.expect("it does not begin");
    assert_eq!(len.unwrap(), Some(32 << 20));
    child.join().await.unwrap();
}

#[tokio::test]
async fn a_detached_process_has_its_large_arguments() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("len").to_str().unwrap().to_owned();
    let write = |(path, bytes): (String, Bytes)| std::fs::write(path, bytes.len().to_string()).unwrap();
    spawn_process(call(write, (path.clone(), Bytes::from(vec![7; 32 << 20])))).await.unwrap().detach();
    let is_written = || std::fs::read_to_string(&path).is_ok_and(|len| len == (32 << 20).to_string());
    assert!(eventually(Duration::from_secs(20), is_written));
}

#[tokio::test]
async fn a_hundred_are_spawned_at_once_and_joined() {
    let all: Vec<_> = (0..100).map(|n| tokio::spawn(spawn_process(task!(add(n, n))))).collect();
    for (n, child) in (0..).zip(all) {
        assert_eq!(child.await.unwrap().unwrap().join().await.unwrap(), 2 * n);
    }
}

/// One process deeper, until that is refused; says how deep it went.
fn dive() -> u32 {
    block_on(async {
        match spawn_process(task!(dive())).await {
            Ok(child) => child.join().await.unwrap(),
            Err(SpawnError::TooDeep { depth }) => depth,
            Err(other) => panic!("{other}"),
        }
    })
}

#[tokio::test]
async fn a_child_starts_children_up_to_a_depth_with_a_clear_error() {
    assert_eq!(spawn_process(task!(dive())).await.unwrap().join().await.unwrap(), 8);
}

fn threads_start_processes() -> i32 {
    let threads: Vec<_> = (0..3).map(|_| std::thread::spawn(|| block_on(three()))).collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).sum()
}

#[tokio::test]
async fn a_childs_own_threads_start_children() {
    assert_eq!(spawn_process(task!(threads_start_processes())).await.unwrap().join().await.unwrap(), 9);
}

#[test]
fn futures_are_send_and_handles_are_shared() {
    fn send<T: Send>(value: T) -> T {
        value
    }
    fn handle<T: Send + Sync + std::fmt::Debug + 'static>() {}
    handle::<Process<std::cell::Cell<u8>>>();
    handle::<ProcessBuilder>();
    handle::<SpawnError>();
    handle::<TaskError>();
    drop(send(spawn_process(call(|cell: std::cell::Cell<u8>| cell, std::cell::Cell::new(1)))));
    drop(send(async {
        let mut child = spawn_process(task!(add(1, 2))).await.unwrap();
        let _ = child.wait().await;
        let _ = child.stop(Duration::ZERO).await;
        let _ = child.join().await;
    }));
}

/// Sends until something is still under way, and returns when that has left, too.
async fn fill(tx: Sender<Vec<u8>>, mut go: Duplex<u32, ()>) {
    let mut count = 0;
    let mut last = loop {
        count += 1;
        let mut send = Box::pin(tx.send(vec![7; 40_000]));
        // The first time it may wait for others to come along.
        if send.as_mut().now_or_never().is_none() && send.as_mut().now_or_never().is_none() {
            break send;
        }
    };
    go.send(count).await.unwrap();
    go.recv().await.unwrap();
    assert!(last.as_mut().now_or_never().is_some(), "there is room by now");
}

/// The socket had room for the last of it, and does not say so: that it does only once it is mostly empty.
#[tokio::test]
async fn an_exit_does_not_wait_where_all_has_left_already() {
    let (tx, mut rx) = channel().unwrap();
    let (mut go, theirs) = duplex().unwrap();
    let child = spawn_process(task!(fill(tx, theirs).await)).await.unwrap();
    let count = go.recv().await.unwrap().unwrap();
    rx.recv().await.unwrap().unwrap();
    let begun = Instant::now();
    go.send(()).await.unwrap();
    child.join().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3), "for so long it waits for what nobody takes");
    for _ in 1..count {
        rx.recv().await.unwrap().unwrap();
    }
    assert_eq!(rx.recv().await.unwrap(), None);
}
