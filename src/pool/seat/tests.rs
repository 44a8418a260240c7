use super::*;

/// As many tasks as a worker is sent after one answer that took so long to come.
fn room_after(waited: Duration, own: Option<Duration>) -> usize {
    let mut desk = Desk { state: WorkerState::Busy, ..Desk::empty() };
    desk.since = Instant::now().checked_sub(waited).unwrap();
    desk.answered(1, own);
    desk.room(usize::MAX)
}

#[test]
fn a_worker_that_had_to_wait_for_a_processor_is_as_quick_as_it_says() {
    let long = Duration::from_millis(100);
    assert_eq!(room_after(long, None), 1);
    assert_eq!(room_after(long, Some(AHEAD / 50)), 50);
    assert_eq!(room_after(long, Some(LEAST)), MOST_SENT);
    // And never slower than it looked.
    assert_eq!(room_after(long, Some(Duration::MAX)), 1);
}

#[test]
fn a_worker_that_claims_to_take_no_time_gets_a_bounded_share() {
    let mut desk = Desk { state: WorkerState::Busy, ..Desk::empty() };
    desk.since = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
    desk.answered(1, Some(Duration::from_nanos(1)));
    assert_eq!(desk.room(1), 250);
}

#[test]
fn what_takes_longer_than_to_wake_another_worker_is_shared() {
    let mut desk = Desk { state: WorkerState::Busy, ..Desk::empty() };
    desk.since = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
    desk.answered(1, Some(UNSHARED / 10));
    assert_eq!(desk.room(3), 10);
    assert_eq!(desk.room(12), 12);
    desk.pace = Some(UNSHARED * 2);
    assert_eq!(desk.room(3), 3);
}
