//! Two tasks side by side, each ending in every way: each gets its own outcome, whatever becomes of the other.

mod pool_support;

use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use multiproc::{ProcessPool, TaskError, is_worker, task};
use pool_support::{Meeting, endless, kill, meet, meet_and_give_pid, pid, until, within};
use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};

multiproc::test_support!();

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum End {
    Ok,
    Err,
    Panic,
    Die,
    Hang,
    Undecodable,
    Unencodable,
    TooLarge,
}

impl End {
    const ALL: [Self; 8] =
        [Self::Ok, Self::Err, Self::Panic, Self::Die, Self::Hang, Self::Undecodable, Self::Unencodable, Self::TooLarge];

    fn matches(self, id: u64, outcome: &Result<Result<Answer, String>, TaskError>) -> bool {
        match (self, outcome) {
            (Self::Ok, Ok(Ok(answer))) => answer.id == id,
            (Self::Err, Ok(Err(said))) => *said == format!("error of {id}"),
            (Self::Panic, Err(TaskError::Panicked(panic))) => panic.message == format!("panic of {id}"),
            (Self::Die, Err(TaskError::Died { status: Some(status), .. })) => {
                std::os::unix::process::ExitStatusExt::signal(status) == Some(libc::SIGKILL)
            }
            (Self::Hang, Err(TaskError::TimedOut))
            | (Self::Undecodable, Err(TaskError::Decode(_)))
            | (Self::Unencodable, Err(TaskError::Encode(_)))
            | (Self::TooLarge, Err(TaskError::TooLarge { .. })) => true,
            _ => false,
        }
    }
}

#[derive(Debug, Deserialize)]
struct Answer {
    id: u64,
    #[serde(deserialize_with = "decodable")]
    end: End,
}

impl Serialize for Answer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.end == End::Unencodable {
            return Err(S::Error::custom("can't be encoded"));
        }
        if self.end == End::TooLarge {
            // 2 GiB and a byte. Nobody writes to it, so it takes no memory.
            return serializer.serialize_bytes(&vec![0; (1 << 31) + 1]);
        }
        (self.id, self.end).serialize(serializer)
    }
}

fn decodable<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<End, D::Error> {
    match End::deserialize(deserializer)? {
        End::Undecodable if !is_worker() => Err(serde::de::Error::custom("can't be decoded")),
        end => Ok(end),
    }
}

fn run(meeting: PathBuf, id: u64, end: End) -> Result<Answer, String> {
    meet(&meeting, id);
    match end {
        End::Ok | End::Undecodable | End::Unencodable | End::TooLarge => Ok(Answer { id, end }),
        End::Err => Err(format!("error of {id}")),
        End::Panic => panic!("panic of {id}"),
        End::Die => {
            kill(pid(), libc::SIGKILL);
            endless();
            unreachable!("it is killed")
        }
        End::Hang => {
            endless();
            unreachable!("it is endless")
        }
    }
}

async fn every_pair(pool: &ProcessPool, first_goes_first: bool) {
    let meeting = Meeting::new();
    let mut id = 0;
    for one in End::ALL {
        for other in End::ALL {
            id += 2;
            let submit = |id, end| {
                let submit = pool.submit(task!(run(meeting.place(), id, end)));
                // Only those that hang need one. The clock runs while a task waits at the meeting, too.
                if end == End::Hang { submit.timeout(Duration::from_millis(100)) } else { submit }
            };
            let let_go = async {
                // Both run at the same time, but for one that hangs and on a busy machine timed out on its way here.
                let mut guests = Vec::new();
                while guests.len() < 2 {
                    match tokio::time::timeout(Duration::from_secs(2), meeting.guest()).await {
                        Ok(guest) if guest.id < id => {}
                        Ok(guest) => guests.push(guest),
                        Err(_) => break,
                    }
                }
                guests.sort_by_key(|guest| guest.id);
                if !first_goes_first {
                    guests.reverse();
                }
                for guest in guests {
                    guest.go_on().await;
                }
            };
            let (left, right, ()) =
                within(async { tokio::join!(submit(id, one), submit(id + 1, other), let_go) }).await;
            assert!(one.matches(id, &left), "{one:?} beside {other:?}: {left:?}");
            assert!(other.matches(id + 1, &right), "{other:?} beside {one:?}: {right:?}");
        }
    }
    let counts = pool.status().counts;
    assert_eq!(counts.died, 16);
    assert_eq!(counts.timed_out, 16);
}

#[tokio::test]
async fn each_pair_of_outcomes_on_one_thread() {
    let pool = ProcessPool::new(2);
    every_pair(&pool, true).await;
    within(pool.close()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_pair_of_outcomes_on_many_threads() {
    let pool = ProcessPool::new(2);
    every_pair(&pool, false).await;
    within(pool.close()).await;
}

/// What an executor may have for a waker, which panics when it is told.
struct Touchy;

impl Wake for Touchy {
    fn wake(self: Arc<Self>) {
        panic!("a waker's own fault");
    }
}

/// Polls a future once for somebody whose waker panics.
fn poll_touchily<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(&Waker::from(Arc::new(Touchy))))
}

#[tokio::test]
async fn a_waker_that_panics_costs_neither_its_own_task_nor_another() {
    let pool = ProcessPool::new(1);
    let worker = within(pool.submit(task!(pid()))).await.unwrap();
    let mut own = pin!(pool.submit(task!(pid())));
    assert!(poll_touchily(own.as_mut()).is_pending());
    assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), worker);
    assert_eq!(within(own).await.unwrap(), worker);
    assert_eq!(pool.status().counts.restarts, 0);
    within(pool.close()).await;
}

/// The worker that was to be started for it was once forgotten, so that it never ran and the pool never closed.
#[tokio::test]
async fn a_waker_that_panics_when_there_is_a_slot_keeps_no_worker_from_its_start() {
    let pool = ProcessPool::new(1);
    let meeting = Meeting::new();
    let first = within(pool.spawn(task!(meet_and_give_pid(meeting.place(), 1)))).await.unwrap();
    let guest = meeting.guest().await;
    let mut second = pin!(pool.spawn(task!(meet_and_give_pid(meeting.place(), 2))));
    assert!(poll_touchily(second.as_mut()).is_pending());
    pool.resize(2);
    let other = meeting.guest().await;
    assert_eq!((guest.id, other.id), (1, 2));
    guest.go_on().await;
    other.go_on().await;
    within(first).await.unwrap();
    within(within(second).await.unwrap()).await.unwrap();
    within(pool.close()).await;
}

#[tokio::test]
async fn a_waker_that_panics_when_the_pool_is_cancelled_keeps_no_other_from_being_ended() {
    let pool = ProcessPool::new(2);
    let meeting = Meeting::new();
    let mut tasks: Vec<_> = (0..4).map(|id| pool.submit(task!(meet_and_give_pid(meeting.place(), id)))).collect();
    for task in &mut tasks {
        assert!(poll_touchily(Pin::new(task)).is_pending());
    }
    let guests = [meeting.guest().await, meeting.guest().await];
    within(pool.cancel()).await;
    for task in tasks {
        assert!(matches!(within(task).await, Err(TaskError::Cancelled)));
    }
    for guest in guests {
        until(|| pool_support::is_gone(guest.pid)).await;
    }
}
