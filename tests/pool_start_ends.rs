//! Ends of channels and sync objects in a pool's start and exit tasks: what is for each worker, and what for one alone.

#![expect(clippy::needless_pass_by_value, reason = "a task owns its arguments")]

mod pool_support;

use std::error::Error;
use std::fs::File;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::future::join_all;
use multiproc::sync::{Semaphore, WatchReceiver, watch};
use multiproc::{Client, Duplex, ProcessPool, Sender, SpawnError, TaskError, call, channel, duplex, serve, task};
use pool_support::{Ledger, folder, kill, note, pid, until, within};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

multiproc::test_support!();

static LOCK: OnceLock<Semaphore> = OnceLock::new();
static CLIENT: OnceLock<Client<u32, u32>> = OnceLock::new();
static SENDER: OnceLock<Sender<u32>> = OnceLock::new();

const MOVED: &str = "was sent to another process";

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[track_caller]
fn is_encode(started: Result<(), SpawnError>, said: &str) {
    let Err(SpawnError::Worker(cause)) = started else { panic!("{started:?}") };
    assert!(matches!(*cause, SpawnError::Encode(_)), "{cause:?}");
    assert!(chain(&*cause).contains(said), "{}", chain(&*cause));
}

fn keep_lock(lock: Semaphore) {
    assert!(LOCK.set(lock).is_ok());
}

/// Fails if somebody else does it at the same time.
fn alone(file: PathBuf) {
    let permit = LOCK.get().unwrap().blocking_acquire().unwrap();
    drop(File::create_new(&file).expect("two have the lock"));
    std::thread::yield_now();
    std::fs::remove_file(&file).unwrap();
    drop(permit);
}

/// They shared one socket: each took answers that were for another, and nearly all tasks were told that it was closed.
#[tokio::test]
async fn a_lock_in_the_start_task_is_every_workers_and_every_replacements() {
    let parent = folder();
    let file = parent.path().join("held");
    let lock = Semaphore::new(1).unwrap();
    let pool = ProcessPool::builder().workers(3).on_worker_start(task!(keep_lock(lock.clone()))).build().unwrap();
    within(pool.start()).await.unwrap();
    for _ in 0..2 {
        let results = within(join_all((0..60).map(|_| pool.submit(task!(alone(file.clone())))))).await;
        for result in results {
            result.unwrap();
        }
        let dead = within(pool.submit(task!(pid()))).await.unwrap();
        kill(dead, libc::SIGKILL);
        until(|| pool.status().details.iter().all(|detail| detail.pid != Some(dead))).await;
    }
    within(pool.close()).await;
    drop(within(lock.acquire()).await.unwrap());
}

fn follow(level: WatchReceiver<u64>, place: PathBuf) {
    note(&place, level.blocking_latest().unwrap());
}

#[tokio::test]
async fn every_worker_sees_the_watched_value_in_its_start_task() {
    let ledger = Ledger::new();
    let (level, follower) = watch(7_u64).unwrap();
    let pool =
        ProcessPool::builder().workers(2).on_worker_start(task!(follow(follower, ledger.place()))).build().unwrap();
    // The newest when the worker starts, and not when the pool was built.
    within(level.send(8)).await.unwrap();
    within(pool.start()).await.unwrap();
    assert_eq!(ledger.entries(), [8, 8]);
    within(pool.close()).await;
}

fn keep_client(client: Client<u32, u32>) {
    assert!(CLIENT.set(client).is_ok());
}

fn ask(number: u32) -> u32 {
    CLIENT.get().unwrap().blocking_call(number).unwrap()
}

/// A client whose server doubles, in this runtime.
fn doubling() -> Client<u32, u32> {
    let (ours, theirs): (Duplex<u32, u32>, _) = duplex().unwrap();
    tokio::spawn(serve(theirs, |n: u32| async move { n * 2 }));
    Client::new(ours)
}

#[tokio::test]
async fn a_client_in_the_start_task_is_the_first_workers_and_start_says_so_of_another() {
    for workers in [1, 2] {
        let start = task!(keep_client(doubling()));
        let pool = ProcessPool::builder().workers(workers).on_worker_start(start).build().unwrap();
        let started = within(pool.start()).await;
        if workers == 1 {
            started.unwrap();
        } else {
            is_encode(started, MOVED);
        }
        // The one that has it does all the work.
        let answers = within(join_all((0..20).map(|number| pool.submit(task!(ask(number)))))).await;
        for (number, answer) in (0..20).zip(answers) {
            assert_eq!(answer.unwrap(), number * 2);
        }
        within(pool.close()).await;
    }
}

fn keep_sender(sender: Sender<u32>) {
    assert!(SENDER.set(sender).is_ok());
}

fn fail_with_sender(_: Sender<u32>) {
    panic!("cannot load");
}

/// Of the workers that came after the first it was only known that they could not have the end, too.
#[tokio::test]
async fn tasks_learn_why_the_start_task_failed_that_had_the_end() {
    let (sender, _receiver) = channel().unwrap();
    let pool = ProcessPool::builder()
        .workers(1)
        .restart_limit(2, Duration::from_mins(10))
        .on_worker_start(task!(fail_with_sender(sender)))
        .build()
        .unwrap();
    let error = within(pool.submit(task!(pid()))).await.unwrap_err();
    assert!(matches!(error, TaskError::Broken(_)) && chain(&error).contains("cannot load"), "{}", chain(&error));
    within(pool.close()).await;
}

fn say(number: u32) -> u32 {
    SENDER.get().unwrap().blocking_send(number).unwrap();
    pid()
}

#[tokio::test]
async fn the_worker_in_place_of_one_that_had_the_end_is_not_started_and_tasks_learn_why() {
    let (tx, mut rx) = channel().unwrap();
    let pool = ProcessPool::builder()
        .workers(1)
        .restart_limit(1, Duration::from_mins(10))
        .on_worker_start(task!(keep_sender(tx)))
        .build()
        .unwrap();
    let mut worker = 0;
    for number in 0..5 {
        worker = within(pool.submit(task!(say(number)))).await.unwrap();
        assert_eq!(within(rx.recv()).await.unwrap(), Some(number));
    }
    kill(worker, libc::SIGKILL);
    assert_eq!(within(rx.recv()).await.unwrap(), None, "nothing here keeps it open");
    let error = within(pool.submit(task!(say(5)))).await.unwrap_err();
    assert!(matches!(error, TaskError::Broken(_)), "{error:?}");
    assert!(chain(&error).contains(MOVED), "{}", chain(&error));
    within(pool.close()).await;
}

struct Unencodable;

impl Serialize for Unencodable {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("not this one"))
    }
}

impl<'de> Deserialize<'de> for Unencodable {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("nor back"))
    }
}

#[tokio::test]
async fn the_ends_in_a_start_task_that_was_not_sent_go_on() {
    let client = doubling();
    let goes_on = async || assert_eq!(within(client.call(4)).await.unwrap(), 8);
    let bad = || call(|_: (Client<u32, u32>, Unencodable)| (), (client.clone(), Unencodable));
    let good = || task!(keep_client(client.clone()));

    let built = ProcessPool::builder().on_worker_start(bad()).build();
    assert!(matches!(built, Err(SpawnError::Encode(_))), "{built:?}");
    goes_on().await;
    let built = ProcessPool::builder().on_worker_exit(bad()).build();
    assert!(matches!(built, Err(SpawnError::Encode(_))), "{built:?}");
    goes_on().await;
    let built = ProcessPool::builder().on_worker_start(good()).workers(0).build();
    assert!(matches!(built, Err(SpawnError::Invalid { .. })), "{built:?}");
    goes_on().await;
    let pool = ProcessPool::builder().on_worker_start(good()).build().unwrap();
    goes_on().await;
    drop(pool);
    goes_on().await;

    let parent = folder();
    let directory = parent.path().join("later");
    let pool = ProcessPool::builder().workers(1).on_worker_start(good()).current_dir(&directory).build().unwrap();
    match within(pool.start()).await {
        Err(SpawnError::Worker(cause)) => assert!(matches!(*cause, SpawnError::Directory { .. }), "{cause:?}"),
        other => panic!("{other:?}"),
    }
    until(|| pool.status().details.is_empty()).await;
    goes_on().await;
    std::fs::create_dir(&directory).unwrap();
    assert_eq!(within(pool.submit(task!(ask(4)))).await.unwrap(), 8);
    client.call(4).await.expect_err("it is the worker's now");
    within(pool.close()).await;
}

/// Panics when it is encoded for the first worker.
struct Flaky(Semaphore, AtomicU32);

impl Serialize for Flaky {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        assert_ne!(self.1.fetch_add(1, Ordering::Relaxed), 1, "the second time");
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Flaky {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Semaphore::deserialize(deserializer)?, AtomicU32::new(0)))
    }
}

#[tokio::test]
async fn a_start_task_that_panics_when_it_is_encoded_is_a_failed_start_and_tried_again() {
    let start = call(|flaky: Flaky| keep_lock(flaky.0), Flaky(Semaphore::new(1).unwrap(), AtomicU32::new(0)));
    let pool = ProcessPool::builder().workers(1).on_worker_start(start).build().unwrap();
    is_encode(within(pool.start()).await, "panicked: ");
    let parent = folder();
    within(pool.submit(task!(alone(parent.path().join("held"))))).await.unwrap();
    within(pool.close()).await;
}

fn leave(lock: Semaphore, place: PathBuf) {
    let _permit = lock.blocking_acquire().unwrap();
    note(&place, 0);
}

fn say_goodbye(sender: Sender<u32>) {
    sender.blocking_send(1).unwrap();
}

#[tokio::test]
async fn a_lock_in_the_exit_task_is_every_workers_and_an_end_the_first_ones() {
    let ledger = Ledger::new();
    let exit = task!(leave(Semaphore::new(1).unwrap(), ledger.place()));
    let pool = ProcessPool::builder().workers(3).on_worker_exit(exit).build().unwrap();
    within(pool.start()).await.unwrap();
    within(pool.close()).await;
    assert_eq!(ledger.entries().len(), 3);

    let (tx, mut rx) = channel().unwrap();
    let pool = ProcessPool::builder().workers(3).on_worker_exit(task!(say_goodbye(tx))).build().unwrap();
    within(pool.start()).await.unwrap();
    within(pool.close()).await;
    assert_eq!(within(rx.recv()).await.unwrap(), Some(1));
    assert_eq!(within(rx.recv()).await.unwrap(), None);
}
