//! A function in a process of its own: what comes back from it.

use multiproc::{SpawnError, TaskError, call, spawn_process, task};

multiproc::test_support!();

fn add(a: i32, b: i32) -> i32 {
    a + b
}

fn pids() -> (u32, u32) {
    (std::process::id(), std::os::unix::process::parent_id())
}

#[tokio::test]
async fn a_result_comes_back_from_a_child_of_ours() {
    assert_eq!(spawn_process(task!(add(1, 2))).await.unwrap().join().await.unwrap(), 3);
    let child = spawn_process(task!(pids())).await.unwrap();
    let id = child.id();
    let (pid, parent) = child.join().await.unwrap();
    assert_ne!(pid, std::process::id());
    assert_eq!(parent, std::process::id());
    assert_eq!(id, Some(pid));
}

fn boom(what: &str) -> u8 {
    panic!("boom: {what}")
}

#[tokio::test]
async fn a_panic_comes_back_with_its_message_and_place() {
    let child = spawn_process(call(|what: String| boom(&what), "x".to_string())).await.unwrap();
    match child.join().await {
        Err(TaskError::Panicked(panic)) => {
            assert_eq!(panic.message, "boom: x");
            assert!(panic.location.unwrap().starts_with("tests/process_join.rs:"));
        }
        other => panic!("{other:?}"),
    }
}
