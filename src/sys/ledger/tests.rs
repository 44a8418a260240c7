use super::*;
use crate::sys::worker::on_last_processor;

fn pair() -> (Writer, Reader, Arc<Ledger>) {
    let (ledger, fd) = Ledger::create().unwrap();
    let ledger = Arc::new(ledger);
    (Writer::new(Arc::new(Ledger::open(fd).unwrap())), Reader::new(Arc::clone(&ledger)), ledger)
}

#[test]
fn a_task_is_begun_or_taken_back_and_never_both() {
    let (ledger, fd) = Ledger::create().unwrap();
    let worker = Ledger::open(fd).unwrap();
    assert!(worker.claim(1));
    assert!(!worker.claim(1));
    assert_eq!(ledger.take_back(4), 1);
    assert!(!worker.claim(2) && !worker.claim(3) && !worker.claim(4));
    assert!(worker.claim(5));
    assert_eq!(ledger.take_back(5), 5, "begun: there is nothing to take back");
}

#[test]
fn under_a_race_each_task_has_exactly_one_owner() {
    const LAST: u64 = 20_000;
    let (ledger, fd) = Ledger::create().unwrap();
    let worker = Ledger::open(fd).unwrap();
    let begun = std::thread::scope(|scope| {
        let begun = scope.spawn(|| (1..=LAST).filter(|&number| worker.claim(number)).collect::<Vec<_>>());
        let mut kept = Vec::new();
        for until in (100..=LAST).step_by(100) {
            kept.push((ledger.take_back(until), until));
        }
        let begun = begun.join().unwrap();
        for (last_begun, until) in kept {
            assert!(begun.iter().all(|&number| number <= last_begun || number > until), "{last_begun} {until}");
        }
        begun
    });
    assert!(begun.is_sorted());
}

#[test]
fn a_task_is_asked_to_stop_and_no_other_and_who_waits_for_it_wakes() {
    let (ledger, fd) = Ledger::create().unwrap();
    let worker = Ledger::open(fd).unwrap();
    assert!(!worker.is_to_stop(1));
    assert!(!worker.is_to_stop(0), "there is no task before the first");
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            while !worker.is_to_stop(7) {
                let seen = worker.stops();
                if !worker.is_to_stop(7) {
                    worker.wait_for_stop(seen);
                }
            }
        });
        ledger.ask_to_stop(7);
        waits.join().unwrap();
    });
    assert!(!worker.is_to_stop(6) && !worker.is_to_stop(8));
}

#[test]
fn answers_come_out_as_they_went_in_across_the_rings_end() {
    let (mut writer, mut reader, _) = pair();
    let (mut sent, mut got) = (Vec::new(), BytesMut::new());
    for round in 0..5_000_usize {
        let answer: Vec<u8> = (0..round % 97).map(|byte| (byte * round).to_le_bytes()[0]).collect();
        assert!(writer.append(&answer));
        sent.extend(answer);
        if round % 7 == 0 {
            reader.take(&mut got).unwrap();
        }
    }
    reader.take(&mut got).unwrap();
    assert_eq!(sent, got);
}

#[test]
fn a_full_ring_refuses_an_answer_whole_wherever_it_begins() {
    let (mut writer, mut reader, _) = pair();
    for round in 0..64_usize {
        let (mut sent, mut got) = (Vec::new(), BytesMut::new());
        let answer: Vec<u8> = (0..=round * 13).map(|byte| (byte + round).to_le_bytes()[0]).collect();
        while writer.append(&answer) {
            sent.extend_from_slice(&answer);
        }
        assert!(CAPACITY - sent.len() < answer.len());
        assert_eq!(reader.take(&mut got).unwrap(), sent.len());
        assert!(sent == got);
    }
}

#[test]
fn a_hostile_length_is_an_error_and_not_a_read_past_the_ring() {
    let (_, mut reader, ledger) = pair();
    for lie in [CAPACITY as u64 + 1, u64::MAX, 1 << 63] {
        ledger.word(WRITTEN).store(lie, Ordering::Relaxed);
        assert!(reader.take(&mut BytesMut::new()).is_err());
    }
}

#[test]
fn what_is_kept_is_there_for_its_task_alone_and_as_far_as_it_came() {
    let (ledger, fd) = Ledger::create().unwrap();
    let worker = Arc::new(Ledger::open(fd).unwrap());
    assert_eq!(ledger.kept(7).unwrap(), (0, Bytes::new()));
    let mut keeper = Keeper::begin(Arc::clone(&worker), 7);
    let mut whole = Vec::new();
    for part in 0..100_u8 {
        let result = vec![part; usize::from(part) % 19];
        assert!(keeper.keep(&result));
        whole.extend(result);
        assert_eq!(ledger.kept(7).unwrap(), (u32::from(part) + 1, Bytes::copy_from_slice(&whole)));
    }
    assert!(!keeper.keep(&vec![0; KEPT]) && ledger.kept_parts(7) == 100, "whole or not at all");
    assert_eq!(ledger.kept_parts(8), 0);
    let mut next = Keeper::begin(worker, 8);
    assert_eq!((ledger.kept_parts(7), ledger.kept(8).unwrap()), (0, (0, Bytes::new())));
    assert!(next.keep(&vec![3; KEPT]) && !next.keep(&[1]) && next.keep(&[]));
    assert_eq!(ledger.kept(8).unwrap(), (2, Bytes::from(vec![3; KEPT])));
    ledger.word(KEPT_SO_FAR).store(KEPT as u64 + 1, Ordering::Relaxed);
    assert!(ledger.kept(8).is_err(), "a length that lies");
}

#[test]
fn a_worker_cannot_change_its_size() {
    let (_ledger, fd) = Ledger::create().unwrap();
    assert!(rustix::fs::ftruncate(&fd, 0).is_err());
    assert!(Ledger::open(rustix::fs::memfd_create(c"x", MemfdFlags::CLOEXEC).unwrap()).is_err());
}

#[test]
fn each_side_can_tell_whether_the_other_one_is_on_its_processor() {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let all = sched_getaffinity(None).unwrap();
    let mut processors = (0..CpuSet::MAX_CPU).filter(|&processor| all.is_set(processor));
    let be_on = |processor| {
        let mut one = CpuSet::new();
        one.set(processor);
        sched_setaffinity(None, &one).unwrap();
    };
    let (ledger, fd) = Ledger::create().unwrap();
    let worker = Ledger::open(fd).unwrap();
    be_on(processors.next().unwrap());
    ledger.note_sender();
    assert!(worker.shares_processor() && !ledger.is_apart());
    if let Some(another) = processors.next() {
        be_on(another);
        assert!(ledger.is_apart() && !worker.shares_processor());
        assert!(!ledger.is_apart(), "it has been here since");
    }
    sched_setaffinity(None, &all).unwrap();
}

#[test]
fn the_worker_sees_what_the_parent_has_taken_and_the_parent_what_there_is_to_take() {
    let (mut writer, mut reader, ledger) = pair();
    assert!(writer.is_taken() && !reader.has_answers() && !ledger.has_answers());
    assert!(writer.append(&[1; 3]));
    assert!(!writer.is_taken() && reader.has_answers() && ledger.has_answers());
    assert_eq!(reader.take(&mut BytesMut::new()).unwrap(), 3);
    assert!(writer.is_taken() && !reader.has_answers() && !ledger.has_answers());
}

#[test]
fn who_sends_a_task_wants_nothing_yet_but_its_answer() {
    let (ledger, fd) = Ledger::create().unwrap();
    let worker = Ledger::open(fd).unwrap();
    let wants = || (worker.is_looked_for(), worker.is_to_leave());
    assert_eq!(wants(), (false, false));
    ledger.look_for_answer(true);
    assert_eq!(wants(), (true, false));
    ledger.note_sender();
    assert_eq!(wants(), (false, false));
    ledger.ask_to_leave();
    assert_eq!(wants(), (false, true));
    ledger.note_sender();
    assert_eq!(wants(), (false, false));
}

#[test]
fn who_sends_a_task_is_told_whether_its_worker_was_on_another_processor() {
    on_last_processor(|| {
        let (ledger, fd) = Ledger::create().unwrap();
        let worker = Ledger::open(fd).unwrap();
        assert!(ledger.note_sender(), "it has yet to say so");
        assert!(worker.shares_processor());
        assert!(!ledger.note_sender());
    });
}
