//! A task's error, of any kind, leaves its worker and the pool as they were.

#![allow(clippy::cast_possible_truncation, reason = "the numbers are small")]

mod pool_support;

use multiproc::{ProcessPool, TaskError, TrySubmitError, call, is_worker, task};
use pool_support::{pid, within};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

multiproc::test_support!();

/// When a [`Touchy`] value makes trouble, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum When {
    Never,
    PanicsWhenEncodedHere,
    FailsWhenEncodedHere,
    PanicsWhenDecodedThere,
    FailsWhenDecodedThere,
    PanicsWhenDroppedThere,
    PanicsWhenEncodedThere,
    FailsWhenEncodedThere,
    PanicsWhenDecodedHere,
    FailsWhenDecodedHere,
}

/// An argument and a result that makes trouble on its way.
#[derive(Debug)]
struct Touchy(When);

impl Serialize for Touchy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (self.0, is_worker()) {
            (When::PanicsWhenEncodedHere, false) | (When::PanicsWhenEncodedThere, true) => panic!("while encoding"),
            (When::FailsWhenEncodedHere, false) | (When::FailsWhenEncodedThere, true) => {
                Err(S::Error::custom("can't be encoded"))
            }
            (when, _) => when.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Touchy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let when = When::deserialize(deserializer)?;
        match (when, is_worker()) {
            (When::PanicsWhenDecodedHere, false) | (When::PanicsWhenDecodedThere, true) => panic!("while decoding"),
            (When::FailsWhenDecodedHere, false) | (When::FailsWhenDecodedThere, true) => {
                Err(D::Error::custom("can't be decoded"))
            }
            _ => Ok(Self(when)),
        }
    }
}

impl Drop for Touchy {
    fn drop(&mut self) {
        assert!(self.0 != When::PanicsWhenDroppedThere || !is_worker(), "while dropping");
    }
}

/// Takes one and gives one back.
fn pass(value: Touchy) -> Touchy {
    value
}

/// Takes one and drops it.
fn take(value: Touchy) {
    drop(value);
}

#[tokio::test]
async fn an_error_on_the_way_there_or_back_fails_that_task_and_keeps_the_worker() {
    let pool = ProcessPool::new(1);
    let worker = within(pool.submit(task!(pid()))).await.unwrap();
    let panicked = |error: &TaskError, message: &str| match error {
        TaskError::Panicked(panic) => panic.message == message,
        _ => false,
    };
    for when in [
        When::PanicsWhenEncodedHere,
        When::FailsWhenEncodedHere,
        When::PanicsWhenDecodedThere,
        When::FailsWhenDecodedThere,
        When::PanicsWhenDroppedThere,
        When::PanicsWhenEncodedThere,
        When::FailsWhenEncodedThere,
        When::PanicsWhenDecodedHere,
        When::FailsWhenDecodedHere,
    ] {
        for _ in 0..3 {
            let error = within(pool.submit(task!(pass(Touchy(when))))).await.unwrap_err();
            let right = match when {
                When::PanicsWhenEncodedHere | When::PanicsWhenEncodedThere => panicked(&error, "while encoding"),
                When::PanicsWhenDecodedHere | When::PanicsWhenDecodedThere => panicked(&error, "while decoding"),
                When::PanicsWhenDroppedThere => panicked(&error, "while dropping"),
                When::FailsWhenEncodedHere | When::FailsWhenEncodedThere => matches!(error, TaskError::Encode(_)),
                When::FailsWhenDecodedHere | When::FailsWhenDecodedThere => matches!(error, TaskError::Decode(_)),
                When::Never => false,
            };
            assert!(right, "{when:?}: {error:?}");
            assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), worker, "{when:?}: the same worker");
        }
    }
    let dropped = within(pool.submit(task!(take(Touchy(When::PanicsWhenDroppedThere))))).await.unwrap_err();
    assert!(panicked(&dropped, "while dropping"), "{dropped:?}");
    within(pool.submit(task!(pass(Touchy(When::Never))))).await.unwrap();
    assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), worker);
    within(pool.close()).await;
}

#[tokio::test]
async fn a_task_that_cannot_be_encoded_starts_no_process() {
    let pool = ProcessPool::new(1);
    let bad = || task!(take(Touchy(When::FailsWhenEncodedHere)));
    assert!(matches!(within(pool.submit(bad())).await, Err(TaskError::Encode(_))));
    assert!(matches!(within(pool.spawn(bad())).await, Err(TaskError::Encode(_))));
    assert!(matches!(pool.try_submit(bad()), Err(TrySubmitError::Refused(TaskError::Encode(_)))));
    assert!(pool.status().details.is_empty());
    // The slot that try_submit took is free again.
    within(pool.try_submit(task!(take(Touchy(When::Never)))).unwrap()).await.unwrap();
    within(pool.close()).await;
}

struct Nested;

impl Drop for Nested {
    fn drop(&mut self) {
        std::panic::panic_any(Self);
    }
}

fn payload(kind: u8) {
    match kind {
        0 => panic!("plain"),
        1 => panic!("{}", String::from("formatted")),
        2 => std::panic::panic_any(17_u64),
        3 => std::panic::resume_unwind(Box::new(vec![1, 2, 3])),
        _ => std::panic::panic_any(Nested),
    }
}

#[tokio::test]
async fn any_payload_of_a_panic_is_reported() {
    let pool = ProcessPool::new(1);
    let worker = within(pool.submit(task!(pid()))).await.unwrap();
    let mut messages = Vec::new();
    for kind in 0..4 {
        match within(pool.submit(task!(payload(kind)))).await {
            Err(TaskError::Panicked(panic)) => messages.push((panic.message, panic.location.is_some())),
            other => panic!("{other:?}"),
        }
    }
    let other = "a panic payload that is not a string".to_owned();
    // A resumed unwinding has passed no panic hook, so nobody knows where it began.
    let expected = [("plain".into(), true), ("formatted".into(), true), (other.clone(), true), (other, false)];
    assert_eq!(messages, expected);
    assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), worker);
    // A payload that panics while it is dropped, with a payload that does so too, without end.
    let endless = within(pool.submit(task!(payload(4)))).await;
    assert!(matches!(endless, Err(TaskError::Panicked(_) | TaskError::Died { .. })), "{endless:?}");
    within(pool.submit(task!(pid()))).await.unwrap();
    within(pool.close()).await;
}

#[tokio::test]
async fn a_panic_says_where_and_does_not_stick_to_the_next_one() {
    let pool = ProcessPool::new(1);
    for line in 0..3_u32 {
        match within(pool.submit(call(|line: u32| -> u32 { panic!("number {line}") }, line))).await {
            Err(TaskError::Panicked(panic)) => {
                assert_eq!(panic.message, format!("number {line}"));
                assert!(panic.location.unwrap().contains("tests/pool_errors.rs:"));
            }
            other => panic!("{other:?}"),
        }
    }
    // One that the task caught itself is nobody's business.
    let caught = call(|()| std::panic::catch_unwind(|| panic!("caught")).is_err(), ());
    assert!(within(pool.submit(caught)).await.unwrap());
    assert_eq!(pool.status().counts.failed, 3);
    within(pool.close()).await;
}

/// 2 GiB and a byte, as an argument or a result.
struct Huge;

impl Serialize for Huge {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&vec![0; (1 << 31) + 1])
    }
}

impl<'de> Deserialize<'de> for Huge {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Ok(Self)
    }
}

#[tokio::test]
async fn what_is_too_large_fails_alone() {
    let pool = ProcessPool::new(1);
    let worker = within(pool.submit(task!(pid()))).await.unwrap();
    let argument = within(pool.submit(call(|_: Huge| (), Huge))).await.unwrap_err();
    assert!(matches!(argument, TaskError::TooLarge { len, max } if len > max), "{argument:?}");
    let result = within(pool.submit(call(|()| Huge, ()))).await.map(drop).unwrap_err();
    assert!(matches!(result, TaskError::TooLarge { len, max } if len > max), "{result:?}");
    assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), worker);
    within(pool.close()).await;
}

/// Takes a byte on the wire where there is none of it, and a KiB in memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Wide([[u64; 16]; 8]);

#[tokio::test]
async fn what_would_become_far_more_than_its_length_justifies_fails_alone() {
    const COUNT: usize = 30_000;
    let pool = ProcessPool::new(1);
    let worker = within(pool.submit(task!(pid()))).await.unwrap();
    let argument = within(pool.submit(call(|wide: Vec<Option<Wide>>| wide.len(), vec![None; COUNT]))).await.map(drop);
    let result = within(pool.submit(call(|()| vec![None::<Wide>; COUNT], ()))).await.map(drop);
    for error in [argument, result] {
        let Err(TaskError::Decode(source)) = error else { panic!("{error:?}") };
        assert_eq!(source.to_string(), "it would become far more memory than its length justifies");
    }
    let boxed = within(pool.submit(call(|()| vec![None::<Box<Wide>>; COUNT], ()))).await.unwrap();
    assert_eq!(boxed.len(), COUNT);
    assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), worker);
    within(pool.close()).await;
}
