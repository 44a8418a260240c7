use super::*;
use crate::pool::job::{Awaits, Wishes};

/// A task that may go ahead, as a small one may, or not.
fn job(number: u64, may_go_ahead: bool) -> Arc<Job> {
    let parcel = crate::task::pack(&crate::call(|_: Vec<u8>| (), vec![1; 20 << 10]), 1 << 20).unwrap();
    let small = crate::task::pack(&crate::call(|()| (), ()), 1024).unwrap();
    let parcel = if may_go_ahead { small } else { parcel };
    let job = Job::new("pool", parcel, Wishes::default(), Awaits::Outcome(None), None);
    assert_eq!(job.may_go_ahead, may_go_ahead);
    job.set_number(number);
    job
}

fn numbers(jobs: &[Arc<Job>]) -> Vec<u64> {
    jobs.iter().map(|job| job.number()).collect()
}

#[test]
fn what_comes_back_to_the_queue_is_where_it_was() {
    let mut queue = Queue::default();
    for number in [5, 6, 2, 4, 1, 3] {
        queue.put_back(job(number, number % 2 == 0));
    }
    assert!(queue.iter().map(|job| job.number()).eq(1..=6));
}

#[test]
fn those_that_may_go_ahead_are_taken_up_to_the_first_one_that_may_not() {
    let mut queue = Queue::default();
    let mut batch = Vec::new();
    for number in 1..=6 {
        queue.push(job(number, number != 4));
    }
    queue.pop_ahead(2, &mut batch);
    assert_eq!(numbers(&batch), [1, 2]);
    queue.pop_ahead(4, &mut batch);
    assert_eq!(numbers(&batch), [1, 2, 3]);
    // Whoever is idle takes it, and there is none any more.
    assert_eq!(queue.pop().unwrap().number(), 4);
    queue.pop_ahead(4, &mut batch);
    assert_eq!(numbers(&batch), [1, 2, 3, 5, 6]);
    assert!(queue.is_empty());
}

#[test]
fn one_that_may_not_go_ahead_and_nobody_wants_does_not_hold_up_others() {
    let leaves: [fn(&mut Queue); 4] = [
        |queue| assert_eq!(queue.sweep(), 1),
        |queue| assert!(queue.pop_unwanted().is_some()),
        |queue| assert!(queue.pop().is_some()),
        // It goes with the others.
        |_| {},
    ];
    for leave in leaves {
        let mut queue = Queue::default();
        let large = job(1, false);
        queue.push(Arc::clone(&large));
        queue.push(job(2, true));
        assert!(large.abandon().is_none());
        leave(&mut queue);
        let mut batch = Vec::new();
        queue.pop_ahead(2, &mut batch);
        assert_eq!(batch.last().unwrap().number(), 2);
        assert_eq!(queue.staying, 0);
    }
}

#[test]
fn what_is_swept_is_what_nobody_wants() {
    let mut queue = Queue::default();
    let jobs: Vec<_> = (1..=8).map(|number| job(number, number > 4)).collect();
    for job in &jobs {
        queue.push(Arc::clone(job));
    }
    for job in jobs.iter().step_by(2) {
        assert!(job.abandon().is_none());
    }
    assert_eq!(queue.sweep(), 4);
    assert!(queue.iter().map(|job| job.number()).eq([2, 4, 6, 8]));
    assert_eq!((queue.len(), queue.staying), (4, 2));
    assert_eq!(queue.take().len(), 4);
    assert_eq!((queue.len(), queue.staying), (0, 0));
}
