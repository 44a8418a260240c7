//! Ends of channels, and what else is one process's part of a conversation, in tasks whose workers die: no other process goes on
//! with that part, and what the dead one held is given back.

#![expect(clippy::needless_pass_by_value, reason = "a task owns its arguments")]

mod pool_support;

use std::fs::File;
use std::path::PathBuf;

use futures::StreamExt as _;
use multiproc::sync::{Barrier, Event, Semaphore, watch};
use multiproc::{
    AckedQueue, Client, Fd, ProcessPool, Receiver, Sender, SharedBytes, TaskError, call, channel, duplex, queue, task,
};
use pool_support::{Ledger, Meeting, kill, meet, note, pid, within};
use serde::Serialize;
use serde::de::DeserializeOwned;

multiproc::test_support!();

fn note_and_abort<E>((ledger, _end): (PathBuf, E)) {
    note(&ledger, 0);
    std::process::abort();
}

/// How often a task with that in it is begun that may be begun twice, and ends each of its workers.
async fn runs<E: Serialize + DeserializeOwned + Send + 'static>(pool: &ProcessPool, end: E) -> usize {
    let ledger = Ledger::new();
    let died = within(pool.submit(call(note_and_abort::<E>, (ledger.place(), end))).retries(1)).await;
    assert!(matches!(died, Err(TaskError::Died { .. })), "{died:?}");
    ledger.entries().len()
}

#[tokio::test]
async fn a_task_with_an_end_is_not_tried_again() {
    let pool = ProcessPool::new(1);
    let (tx, rx) = channel::<u8>().unwrap();
    assert_eq!(runs(&pool, tx).await, 1);
    assert_eq!(runs(&pool, rx).await, 1);
    let (ours, theirs) = duplex::<u8, u8>().unwrap();
    assert_eq!(runs(&pool, ours).await, 1);
    assert_eq!(runs(&pool, Client::new(theirs)).await, 1);
    let items = AckedQueue::<u8>::new();
    assert_eq!(runs(&pool, items.receiver().unwrap()).await, 1);
    assert_eq!(runs(&pool, Semaphore::new(1).unwrap()).await, 1);
    assert_eq!(runs(&pool, Event::new().unwrap()).await, 1);
    assert_eq!(runs(&pool, Barrier::new(2).unwrap()).await, 1);
    let (tx, rx) = watch(7_u8).unwrap();
    assert_eq!(runs(&pool, tx).await, 1);
    assert_eq!(runs(&pool, rx).await, 1);
    let file = || Fd::from(File::open("/dev/null").unwrap());
    assert_eq!(runs(&pool, (file(), vec![Some(Event::new().unwrap())], file())).await, 1, "wherever it is");
    within(pool.close()).await;
}

#[tokio::test]
async fn a_task_with_what_any_number_of_processes_may_have_is_tried_again() {
    let pool = ProcessPool::new(1);
    assert_eq!(runs(&pool, 7_u8).await, 2);
    assert_eq!(runs(&pool, Fd::from(File::open("/dev/null").unwrap())).await, 2);
    assert_eq!(runs(&pool, SharedBytes::copy_from_slice(b"hello").unwrap()).await, 2);
    let (tx, rx) = queue::<u8>().unwrap();
    assert_eq!(runs(&pool, tx).await, 2);
    assert_eq!(runs(&pool, rx).await, 2);
    within(pool.close()).await;
}

fn abort_with_permit(lock: Semaphore) {
    let _permit = lock.blocking_acquire().unwrap();
    std::process::abort();
}

/// The pool once kept its connection for the second attempt, which waited for the permit for ever.
#[tokio::test]
async fn what_a_dead_task_held_is_given_back_also_if_it_was_to_be_tried_again() {
    let pool = ProcessPool::new(1);
    let lock = Semaphore::new(1).unwrap();
    let died = within(pool.submit(task!(abort_with_permit(lock.clone()))).retries(1)).await;
    assert!(matches!(died, Err(TaskError::Died { .. })), "{died:?}");
    let permit = within(lock.acquire()).await.unwrap();
    assert!(permit.after_death());
    within(pool.close()).await;
}

fn drop_and_meet(end: Sender<u8>, place: PathBuf) {
    drop(end);
    meet(&place, 0);
}

#[tokio::test]
async fn an_end_is_gone_when_the_task_drops_it_also_if_that_was_to_be_tried_again() {
    let pool = ProcessPool::new(1);
    let meeting = Meeting::new();
    let (tx, mut rx) = channel().unwrap();
    let running = tokio::spawn(pool.submit(task!(drop_and_meet(tx, meeting.place()))).retries(1));
    let guest = meeting.guest().await;
    assert_eq!(within(rx.recv()).await.unwrap(), None);
    guest.go_on().await;
    within(running).await.unwrap().unwrap();
    within(pool.close()).await;
}

fn say_pid(to: Sender<u32>) {
    to.blocking_send(pid()).unwrap();
}

#[tokio::test]
async fn a_task_with_an_end_that_was_not_begun_runs_elsewhere() {
    let pool = ProcessPool::new(1);
    let worker = within(pool.submit(task!(pid()))).await.unwrap();
    kill(worker, libc::SIGSTOP);
    let (tx, mut rx) = channel().unwrap();
    let sent = within(pool.spawn(task!(say_pid(tx)))).await.unwrap();
    kill(worker, libc::SIGKILL);
    within(sent).await.unwrap();
    assert_ne!(within(rx.recv()).await.unwrap().unwrap(), worker);
    assert_eq!(within(rx.recv()).await.unwrap(), None);
    within(pool.close()).await;
}

fn abort_with_permit_at_first((lock, n): (Semaphore, u32)) -> u32 {
    let _permit = lock.blocking_acquire().unwrap();
    if n == 0 {
        std::process::abort();
    }
    n
}

/// The calls behind it in its chunk once waited for its permit for ever.
#[tokio::test]
async fn what_a_dead_call_of_a_map_held_is_given_back_to_its_neighbours() {
    for workers in [1, 2] {
        let pool = ProcessPool::new(workers);
        let lock = Semaphore::new(1).unwrap();
        let inputs = (0..4).map(|n| (lock.clone(), n));
        let results: Vec<_> = within(pool.map(inputs, abort_with_permit_at_first).chunk(2).collect()).await;
        assert!(matches!(results[..], [Err(TaskError::Died { .. }), Ok(1), Ok(2), Ok(3)]), "{results:?}");
        within(pool.close()).await;
    }
}

fn take_one((end, n): (Option<Receiver<u32>>, u32)) -> u32 {
    end.map_or(n, |mut end| end.blocking_recv().unwrap().unwrap())
}

#[tokio::test]
async fn inputs_with_ends_are_chunks_of_their_own_and_those_between_them_are_not() {
    for (ends, chunks) in [([0, 0, 0, 0, 0], 1), ([1, 0, 0, 0, 0], 2), ([0, 0, 1, 0, 0], 3), ([0, 1, 1, 0, 1], 5)] {
        let pool = ProcessPool::new(1);
        let inputs = ends.into_iter().zip(0..).map(|(has_end, n)| {
            let end = (has_end == 1).then(|| {
                let (tx, rx) = channel().unwrap();
                tx.blocking_send(n).unwrap();
                rx
            });
            (end, n)
        });
        let results: Vec<_> = within(pool.map(inputs, take_one).chunk(5).collect()).await;
        assert!(matches!(results[..], [Ok(0), Ok(1), Ok(2), Ok(3), Ok(4)]), "{results:?}");
        assert_eq!(pool.status().counts.done, chunks);
        within(pool.close()).await;
    }
}

fn drop_and_meet_one((end, place): (Sender<u8>, PathBuf)) {
    drop_and_meet(end, place);
}

#[tokio::test]
async fn an_end_in_a_map_is_gone_when_its_call_drops_it() {
    let pool = ProcessPool::new(1);
    let meeting = Meeting::new();
    let (mut inputs, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let (tx, rx) = channel().unwrap();
        inputs.push((tx, meeting.place()));
        ends.push(rx);
    }
    let running = tokio::spawn(pool.map(inputs, drop_and_meet_one).chunk(2).collect::<Vec<_>>());
    for mut end in ends {
        let guest = meeting.guest().await;
        assert_eq!(within(end.recv()).await.unwrap(), None);
        guest.go_on().await;
    }
    assert!(within(running).await.unwrap().iter().all(Result::is_ok));
    within(pool.close()).await;
}
