//! Channels: large values, whose bytes are copied as little as can be and arrive all the same.

#![expect(clippy::needless_pass_by_value, reason = "a task owns its arguments")]

use bytes::Bytes;
use multiproc::{Duplex, ProcessPool, QueueReceiver, QueueSender, duplex, queue, spawn_process, task};
use serde::{Deserialize, Serialize};

multiproc::test_support!();

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Part {
    Shared(Bytes),
    Own(Vec<u8>),
    Text(String),
    Numbers(Vec<u32>),
    All { first: Option<Bytes>, between: u64, rest: Vec<Bytes> },
}

fn bytes(len: usize, seed: u32) -> Vec<u8> {
    (0u32..).map(|i| (i.wrapping_mul(seed) >> 7).to_le_bytes()[0]).take(len).collect()
}

fn parts() -> Vec<Part> {
    let mut parts = Vec::new();
    for len in [0, 100, (64 << 10) - 1, 64 << 10, (1 << 20) - 3, 1 << 20, 5_000_001] {
        let shared = Bytes::from(bytes(len, 40_503));
        parts.push(Part::Shared(shared.clone()));
        parts.push(Part::Own(bytes(len, 9_973)));
        parts.push(Part::Text("ä".repeat(len / 2)));
        parts.push(Part::Numbers((0..u32::try_from(len / 4).unwrap()).collect()));
        let rest = vec![shared.slice(len / 2..), Bytes::from_static(b"small"), shared.clone()];
        parts.push(Part::All { first: Some(shared), between: 7, rest });
    }
    parts
}

async fn echo(mut end: Duplex<Part, Part>) {
    let mut kept = Vec::new();
    while let Some(part) = end.recv().await.unwrap() {
        // Memory that is used again must not change what is still held.
        kept.push(part.clone());
        end.send(part).await.unwrap();
    }
    assert!(kept == parts());
}

#[tokio::test]
async fn values_of_every_size_come_back_as_they_were_over_a_duplex() {
    let (mut ours, theirs) = duplex().unwrap();
    let child = spawn_process(task!(echo(theirs).await)).await.unwrap();
    for part in parts() {
        ours.send(part.clone()).await.unwrap();
        assert!(ours.recv().await.unwrap() == Some(part));
    }
    drop(ours);
    child.join().await.unwrap();
}

fn relay(from: QueueReceiver<Part>, to: QueueSender<Part>) {
    while let Some(part) = from.blocking_recv().unwrap() {
        to.blocking_send(part).unwrap();
    }
}

#[tokio::test]
async fn values_of_every_size_come_back_as_they_were_over_a_queue() {
    let ((tx, from), (to, rx)) = (queue().unwrap(), queue().unwrap());
    let child = spawn_process(task!(relay(from, to))).await.unwrap();
    for part in parts() {
        tx.send(part.clone()).await.unwrap();
        assert!(rx.recv().await.unwrap() == Some(part));
    }
    drop(tx);
    child.join().await.unwrap();
}

fn same(parts: Vec<Part>, one: Part) -> (Part, Vec<Part>) {
    (one, parts)
}

#[tokio::test]
async fn values_of_every_size_come_back_as_they_were_from_a_pool_and_a_process() {
    let pool = ProcessPool::new(2);
    for part in parts() {
        let both = vec![part.clone(), part.clone()];
        assert!(pool.submit(task!(same(both.clone(), part.clone()))).await.unwrap() == (part, both));
    }
    pool.close().await;
    let child = spawn_process(task!(same(parts(), Part::Own(bytes(3 << 20, 3))))).await.unwrap();
    assert!(child.join().await.unwrap() == (Part::Own(bytes(3 << 20, 3)), parts()));
}
