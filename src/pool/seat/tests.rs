use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};

use super::pace::{AHEAD, LATE, LEAST, UNSHARED};
use super::*;
use crate::channel::inbox::Inbox;
use crate::error::TaskError;
use crate::pool::glance::GLANCE;
use crate::pool::job::{Awaits, Wishes};
use crate::sys::ledger::Writer;
use crate::sys::worker::on_last_processor;
use crate::wire::frame::{Frame, Limits};

/// As many tasks as a worker is sent after one answer that took so long to come.
fn room_after(waited: Duration, own: Option<Duration>) -> usize {
    let mut desk = Desk { state: WorkerState::Busy, ..Desk::empty() };
    desk.clock.since = Instant::now().checked_sub(waited).unwrap();
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
fn the_next_task_is_at_hand_unless_tasks_take_long() {
    let mut desk = Desk { state: WorkerState::Busy, ..Desk::empty() };
    for (pace, room) in [(AHEAD * 2, 2), (LATE, 2), (LATE * 2, 1)] {
        desk.pace = Some(pace);
        assert_eq!(desk.room(usize::MAX), room, "{pace:?}, and the one that runs counts");
    }
}

#[test]
fn a_worker_that_claims_to_take_no_time_gets_a_bounded_share() {
    let mut desk = Desk { state: WorkerState::Busy, ..Desk::empty() };
    desk.clock.since = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
    desk.answered(1, Some(Duration::from_nanos(1)));
    assert_eq!(desk.room(1), 250);
}

#[test]
fn what_takes_longer_than_to_wake_another_worker_is_shared() {
    let mut desk = Desk { state: WorkerState::Busy, ..Desk::empty() };
    desk.clock.since = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
    desk.answered(1, Some(UNSHARED / 10));
    assert_eq!(desk.room(3), 10);
    assert_eq!(desk.room(12), 12);
    desk.pace = Some(UNSHARED * 2);
    assert_eq!(desk.room(3), 3);
}

/// A desk of a process that is told of by this socket, with one frame of this number to be written.
fn desk_with(socket: &Arc<Socket>, id: u64) -> Desk {
    let mut desk = Desk { socket: Some(Arc::clone(socket)), ..Desk::empty() };
    desk.outbox.push(frame(id));
    desk
}

fn frame(id: u64) -> Frame {
    Frame { kind: 1, id, ..Frame::default() }
}

fn pair() -> (Arc<Socket>, Socket) {
    let (here, there) = crate::sys::socket::stream_pair().unwrap();
    (Arc::new(Socket::new(here)), Socket::new(there))
}

#[test]
fn what_is_given_while_somebody_writes_leaves_behind_that_and_once() {
    let (socket, peer) = pair();
    let mut desk = desk_with(&socket, 1);
    let (socket, mut first) = desk.lend_outbox().unwrap();
    desk.outbox.push(frame(2));
    assert!(desk.lend_outbox().is_none(), "two writers at a time");
    assert!(!desk.is_unwritten() && desk.write(&socket, &mut Vec::new()).is_ok(), "nor is the supervisor one");
    first.flush(&*socket).unwrap();
    let (socket, mut second) = desk.take_outbox(socket, first, true, &mut Vec::new()).expect("there is more");
    second.flush(&*socket).unwrap();
    assert!(desk.take_outbox(socket, second, true, &mut Vec::new()).is_none());
    let mut inbox = Inbox::new(Limits::default().with_body(1024));
    let ids = [(); 2].map(|()| inbox.try_frame(&peer).unwrap().unwrap().id);
    assert_eq!((ids, inbox.try_frame(&peer).unwrap().is_none()), ([1, 2], true));
    desk.outbox.push(frame(3));
    assert!(desk.lend_outbox().is_some());
}

#[test]
fn what_did_not_fit_is_back_on_the_desk_in_its_order() {
    let (socket, peer) = pair();
    let mut desk = desk_with(&socket, 1);
    let (socket, unsent) = desk.lend_outbox().unwrap();
    desk.outbox.push(frame(2));
    assert!(
        desk.take_outbox(Arc::clone(&socket), unsent, false, &mut Vec::new()).is_none(),
        "it is the supervisor's now"
    );
    assert!(desk.is_unwritten());
    desk.write(&socket, &mut Vec::new()).unwrap();
    let mut inbox = Inbox::new(Limits::default().with_body(1024));
    let ids = [(); 2].map(|()| inbox.try_frame(&peer).unwrap().unwrap().id);
    assert_eq!(ids, [1, 2]);
}

#[test]
fn the_next_process_gets_nothing_that_was_for_the_one_before() {
    let ((old, _peer), (new, _new_peer)) = (pair(), pair());
    let mut desk = desk_with(&old, 1);
    let (old, unsent) = desk.lend_outbox().unwrap();
    desk.clear(&mut Vec::new());
    assert!(desk.take_outbox(Arc::clone(&old), unsent, false, &mut Vec::new()).is_none());
    assert!(desk.outbox.is_empty());

    let mut desk = desk_with(&old, 1);
    let (old, unsent) = desk.lend_outbox().unwrap();
    desk = desk_with(&new, 1);
    let (new, fresh) = desk.lend_outbox().unwrap();
    assert!(desk.take_outbox(old, unsent, false, &mut Vec::new()).is_none());
    assert!(desk.pen == Pen::Lent && desk.outbox.is_empty(), "who writes to the new one goes on");
    desk.take_outbox(new, fresh, false, &mut Vec::new());
    assert_eq!(desk.outbox.len(), crate::wire::frame::HEAD_LEN);
}

#[test]
fn a_tasks_time_begins_when_its_worker_begins_it() {
    let ledger = Arc::new(Ledger::create().unwrap().0);
    let sent = [Sent { id: 1, job: job() }].into();
    let mut desk = Desk { ledger: Some(Arc::clone(&ledger)), sent, ..Desk::empty() };
    let long = Duration::from_secs(100);
    let ago = Instant::now().checked_sub(long).unwrap();
    desk.clock.since = ago;
    assert!(!desk.is_too_long(long / 2), "it is not begun");
    assert!(desk.clock.since > ago);
    ledger.note_began();
    assert!(ledger.claim(1));
    desk.clock.since = ago;
    assert!(!desk.is_too_long(long / 2), "it has just begun");
    desk.clock.since = ago;
    ledger.note_began();
    assert!(desk.is_too_long(long / 2), "its worker can't go on saying so");
}

#[test]
fn a_worker_whose_task_waits_for_fds_is_not_taken_for_stuck() {
    let (ours, _theirs) = crate::sys::socket::stream_pair().unwrap();
    let socket = Arc::new(Socket::new(ours));
    let mut desk = desk_with(&socket, 1);
    desk.state = WorkerState::Stalled;
    desk.congested = true;
    assert!(!(0..2 * STUCK).any(|_| desk.look()));
    // One that has not read what it was sent is in the way itself.
    crate::sys::socket::send(&*socket, &[std::io::IoSlice::new(b"unread")], &[]).unwrap();
    assert!((0..2 * STUCK).any(|_| desk.look()) && desk.is_stuck());
    desk.seen = Seen::default();
    // It has left, or there is room for it and its worker does not read.
    desk.congested = false;
    assert!((0..2 * STUCK).any(|_| desk.look()) && desk.is_stuck());
}

/// Its result may be large, and may hold fds.
#[test]
fn a_task_that_was_taken_back_lives_no_longer_than_somebody_wants_it() {
    let mut desk = busy_desk(&job());
    let job = desk.recall().pop().unwrap();
    assert_eq!(desk.state, WorkerState::Stalled);
    let left = Arc::downgrade(&job);
    drop(job);
    assert!(left.upgrade().is_none());
}

#[test]
fn workers_that_are_stuck_at_once_are_held_against_a_task_once_and_each_death_is() {
    let job = job();
    let mut before = 0;
    for (is_stuck, counts) in [(true, 1), (true, 1), (false, 3)] {
        let mut desks = [(); 3].map(|()| busy_desk(&job));
        for desk in &mut desks {
            assert!(Arc::ptr_eq(&desk.recall()[0], &job));
        }
        for desk in &mut desks {
            desk.suspect(is_stuck);
        }
        assert_eq!(job.bounces(), before + counts);
        before += counts;
    }
}

/// What such a worker had was once given to the next one for ever.
#[test]
fn a_task_over_which_several_workers_have_lied_before_they_began_it_is_not_given_to_another() {
    let pool = crate::pool::ProcessPool::new(1);
    let (shared, job, seat) = (pool.shared(), job(), Seat::new(0, None));
    // So that it stays in the queue.
    assert!(shared.take_permit());
    let lie = || {
        *seat.desk() = Desk { sent: VecDeque::new(), last_id: 0, ..busy_desk(&job) };
        assert!(seat.desk().send(Arc::clone(&job), &seat).is_ok());
        shared.disown(&seat, |_| TaskError::Closed);
        let mut waiting = std::mem::take(&mut shared.state().waiting);
        waiting.pop().is_some()
    };
    while !job.stays() {
        assert!(lie());
    }
    assert!(!lie() && !job.is_wanted());
    assert_eq!(shared.state().counts.died, 1);
}

fn job() -> Arc<Job> {
    let parcel = crate::task::pack(&crate::call(|()| (), ()), 1024).unwrap();
    Job::new("pool", parcel, Wishes::default(), Awaits::Outcome(None), None)
}

/// A desk of a worker that was sent this task and has not begun it.
fn busy_desk(job: &Arc<Job>) -> Desk {
    let ledger = Some(Arc::new(Ledger::create().unwrap().0));
    let sent = [Sent { id: 1, job: Arc::clone(job) }].into();
    Desk { state: WorkerState::Busy, ledger, sent, last_id: 1, ..Desk::empty() }
}

/// Counts how often it is woken.
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn who_waits_nearby_or_on_another_processor_for_an_only_task_is_woken_before_its_answer_is_read_and_loses_nothing() {
    on_last_processor(|| {
        let (job, seat) = (job(), Seat::new(0, None));
        *seat.desk() = Desk { sent: VecDeque::new(), last_id: 0, ..busy_desk(&job) };
        let woken = Arc::new(Woken(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        let count = || woken.0.load(Ordering::Relaxed);
        let is_ready = |cx: &mut Context<'_>| job.poll_outcome(cx).is_ready();

        assert!(!is_ready(&mut cx));
        seat.herald();
        assert_eq!(count(), 0, "no worker has it");
        assert!(seat.desk().send(Arc::clone(&job), &seat).is_ok());
        seat.herald();
        seat.herald();
        assert_eq!(count(), 1, "once for each time that he waits");
        assert!(!is_ready(&mut cx), "he is too early");
        if let Some(ledger) = &seat.desk().ledger {
            ledger.note_sender();
        }
        seat.herald();
        assert_eq!(count(), 1, "he is on this processor");
        seat.desk().nearby = true;
        seat.herald();
        assert_eq!(count(), 2, "and may be the first to read it");
        assert!(!is_ready(&mut cx));
        job.resolve(Err(TaskError::Cancelled.into()));
        assert_eq!(count(), 3);
        assert!(is_ready(&mut cx));
    });
}

/// Has the supervisor polled where it is woken.
struct Visits(Arc<Seat>);

impl Wake for Visits {
    fn wake(self: Arc<Self>) {
        self.0.drive_here();
    }
}

/// It panicked in one of 128 polls, as tokio's list of what is to be polled again was in use.
#[test]
fn in_a_waker_that_tokio_calls_no_supervisor_is_polled() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let seat = Seat::new(0, Some(runtime.handle().clone()));
    let polls = Arc::new(AtomicUsize::new(0));
    let count = || polls.load(Ordering::Relaxed);
    runtime.block_on(async {
        let counted = Arc::clone(&polls);
        let supervision = std::future::poll_fn(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            std::task::Poll::Pending
        });
        seat.drive(runtime.handle(), supervision);
        tokio::task::yield_now().await;
        let polled = count();
        let job = job();
        *seat.desk() = busy_desk(&job);
        assert!(seat.desk().send(Arc::clone(&job), &seat).is_ok());
        let waker = Waker::from(Arc::new(Visits(Arc::clone(&seat))));
        assert!(job.poll_outcome(&mut Context::from_waker(&waker)).is_pending());
        seat.drive.note_other_news();
        Waker::from(Arc::clone(&seat)).wake();
        Waker::from(job).wake();
        assert_eq!(count(), polled);
        tokio::task::yield_now().await;
        assert!(count() > polled, "its task does what is to be done");
    });
}

#[test]
fn an_answer_is_expected_soon_from_a_worker_whose_last_one_was_there_soon() {
    on_last_processor(|| {
        let seat = Seat::new(0, None);
        let expected = |last: Option<Duration>, nearby| {
            let (ledger, fd) = Ledger::create().unwrap();
            let worker = Ledger::open(fd).unwrap();
            let gives = |ledger: Arc<Ledger>| {
                *seat.desk() = Desk { state: WorkerState::Idle, ledger: Some(ledger), last, ..Desk::empty() };
                seat.give(job(), nearby, Instant::now()).unwrap_or_else(|_| panic!("it can be sent"))
            };
            let ledger = Arc::new(ledger);
            let apart = gives(Arc::clone(&ledger));
            assert!(worker.shares_processor());
            (apart, gives(ledger))
        };
        let (soon, never) = ((Expected::Soon, Expected::SoonHere), (Expected::Sometime, Expected::Sometime));
        assert_eq!(expected(None, true), never, "there was none");
        assert_eq!(expected(Some(GLANCE), true), soon);
        assert_eq!(expected(Some(GLANCE), false), never, "he is not where it could be taken in");
        assert_eq!(expected(Some(GLANCE * 2), true), never, "to look for the last one would have been in vain");
    });
}

/// In a runtime with threads it would stay there, and both would sleep for each task.
#[test]
fn a_worker_with_whom_a_processor_is_shared_for_many_tiny_tasks_is_asked_to_leave() {
    let asked_after = |runtime: &tokio::runtime::Runtime, last| {
        let seat = Seat::new(0, Some(runtime.handle().clone()));
        let (ledger, fd) = Ledger::create().unwrap();
        let (ledger, worker) = (Arc::new(ledger), Ledger::open(fd).unwrap());
        let mut desk = Desk { ledger: Some(Arc::clone(&ledger)), ..Desk::empty() };
        (0..1000).find(|_| {
            // Both are here.
            worker.shares_processor();
            (desk.state, desk.last) = (WorkerState::Idle, last);
            *seat.desk() = std::mem::replace(&mut desk, Desk::empty());
            assert!(seat.give(job(), true, Instant::now()).is_ok());
            desk = std::mem::replace(&mut *seat.desk(), Desk::empty());
            desk.sent.clear();
            worker.is_to_leave()
        })
    };
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let one_thread = tokio::runtime::Builder::new_current_thread().build().unwrap();
    on_last_processor(|| {
        assert!(asked_after(&threads, Some(GLANCE)).is_some_and(|after| after > 1));
        assert_eq!(asked_after(&threads, Some(GLANCE * 2)), None, "they are not tiny");
        assert_eq!(asked_after(&one_thread, Some(GLANCE)), None);
    });
}

/// Nothing else runs in this runtime meanwhile, neither its reactor nor a supervisor's task.
#[test]
fn who_finds_an_answer_takes_it_in_himself_unless_another_task_has_come() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let pool = crate::pool::ProcessPool::new(1);
    let (shared, job) = (pool.shared(), job());
    let number = |job: &Job| job.set_number(shared.next_number(&mut shared.state()));
    number(&job);
    let (ledger, fd) = Ledger::create().unwrap();
    let seat = Seat::new(0, Some(runtime.handle().clone()));
    *seat.desk() = Desk { state: WorkerState::Busy, ledger: Some(Arc::new(ledger)), ..Desk::empty() };
    assert!(seat.desk().send(Arc::clone(&job), &seat).is_ok());
    runtime.block_on(async {
        let (its_seat, its_job) = (Arc::downgrade(&seat), Arc::clone(&job));
        seat.drive(
            runtime.handle(),
            std::future::poll_fn(move |_| {
                if its_seat.upgrade().is_some_and(|seat| seat.drive.take_found()) {
                    its_job.resolve(Err(TaskError::TimedOut.into()));
                }
                std::task::Poll::Pending
            }),
        );
        tokio::task::yield_now().await;
        shared.glance(&job);
        assert!(job.is_sent(), "there is none");
        let mut worker = Writer::new(Arc::new(Ledger::open(fd).unwrap()));
        assert!(worker.append(&[0; 20]));
        shared.glance(&job);
        assert!(!job.is_wanted(), "it was taken in");
    });
    assert!(shared.is_last(&job));
    number(&self::job());
    assert!(!shared.is_last(&job), "nor is it looked for any more");
}
