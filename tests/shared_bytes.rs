//! Shared bytes: read in place by any number of processes, and by nobody while they can change.

#![expect(clippy::needless_pass_by_value, reason = "a task owns its arguments")]

use bytes::Bytes;
use multiproc::{
    Duplex, SharedBytes, SharedBytesMut, SharedSlice, SharedSliceMut, channel, duplex, spawn_process, task,
};

multiproc::test_support!();

fn pattern(len: usize) -> SharedBytes {
    let mut bytes = SharedBytesMut::new(len).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    for (byte, i) in bytes.iter_mut().zip(0u32..) {
        *byte = i.to_le_bytes()[1] ^ 0x55;
    }
    bytes.freeze().unwrap()
}

fn first_last_and_len(bytes: SharedBytes) -> (Option<u8>, Option<u8>, usize) {
    (bytes.first().copied(), bytes.last().copied(), bytes.len())
}

#[tokio::test]
async fn bytes_of_every_length_arrive() {
    for len in [0, 1, 4095, 4096, 4097, 16 << 20] {
        let bytes = pattern(len);
        let child = spawn_process(task!(first_last_and_len(bytes.clone()))).await.unwrap();
        assert_eq!(child.join().await.unwrap(), (bytes.first().copied(), bytes.last().copied(), len));
        let copied = SharedBytes::copy_from_slice(&bytes).unwrap();
        assert!(copied[..] == bytes[..]);
        let child = spawn_process(task!(first_last_and_len(copied))).await.unwrap();
        assert_eq!(child.join().await.unwrap(), (bytes.first().copied(), bytes.last().copied(), len));
    }
}

#[tokio::test]
async fn a_clone_and_an_arrival_are_the_same_memory() {
    let (tx, mut rx) = channel().unwrap();
    let bytes = pattern(1 << 20);
    assert_eq!(bytes.as_ptr(), bytes.clone().as_ptr());
    tx.send(bytes.clone()).await.unwrap();
    let arrived = rx.recv().await.unwrap().unwrap();
    assert!(arrived[..] == bytes[..]);
    drop(bytes);
    assert_eq!(arrived[300], 1 ^ 0x55, "it outlives the one that was sent");
    let whole = Bytes::from(arrived);
    assert_eq!(whole.slice(256..258)[..], [1 ^ 0x55; 2]);
    assert_eq!(whole.as_ptr().align_offset(4096), 0);
}

fn make(len: usize) -> SharedBytes {
    pattern(len)
}

#[tokio::test]
async fn a_result_outlives_the_process_that_made_it() {
    let bytes = spawn_process(task!(make(1 << 20))).await.unwrap().join().await.unwrap();
    assert!(bytes[..] == pattern(1 << 20)[..]);
}

async fn quarters(mut end: Duplex<u64, (SharedBytes, usize)>) {
    while let Some((bytes, part)) = end.recv().await.unwrap() {
        let quarter = bytes.len() / 4;
        end.send(bytes[part * quarter..][..quarter].iter().map(|byte| u64::from(*byte)).sum()).await.unwrap();
    }
}

#[tokio::test]
async fn four_processes_work_on_one_array_with_no_copy() {
    let bytes = pattern(4 << 20);
    let mut workers = Vec::new();
    for part in 0..4 {
        let (ours, theirs) = duplex().unwrap();
        let child = spawn_process(task!(quarters(theirs).await)).await.unwrap();
        ours.send((bytes.clone(), part)).await.unwrap();
        workers.push((child, ours));
    }
    let mut sum = 0;
    for (child, mut end) in workers {
        sum += end.recv().await.unwrap().unwrap();
        drop(end);
        child.join().await.unwrap();
    }
    assert_eq!(sum, bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>());
}

fn squares(numbers: SharedSlice<u64>) -> SharedSlice<[u32; 2]> {
    let mut squares = SharedSliceMut::<[u32; 2]>::new(numbers.len()).unwrap();
    for (square, n) in squares.iter_mut().zip(&*numbers) {
        *square = [u32::try_from(*n).unwrap(), u32::try_from(n * n).unwrap()];
    }
    squares.freeze().unwrap()
}

#[tokio::test]
async fn slices_of_plain_data_arrive_as_such() {
    for len in [0, 1, 1000, 3 << 20] {
        let mut numbers = SharedSliceMut::<u64>::new(len).unwrap();
        for (number, n) in numbers.iter_mut().zip((0..1000).cycle()) {
            *number = n;
        }
        let child = spawn_process(task!(squares(numbers.freeze().unwrap()))).await.unwrap();
        let squares = child.join().await.unwrap();
        assert_eq!(squares.len(), len);
        assert!(squares.iter().zip((0..1000).cycle()).all(|(square, n)| *square == [n, n * n]));
    }
}

#[test]
fn bytes_that_are_no_whole_number_of_elements_are_refused() {
    assert!(SharedSlice::<u32>::try_from(pattern(7)).is_err());
    assert_eq!(SharedSlice::<u32>::try_from(pattern(8)).unwrap().len(), 2);
}
