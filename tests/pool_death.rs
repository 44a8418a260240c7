//! A worker's death, by any means and at any moment, costs the one task that it was running.

#![allow(clippy::cast_possible_truncation, reason = "the numbers are small")]
#![allow(clippy::unsafe_derive_deserialize, reason = "decoding it makes nothing unsafe")]
#![allow(unsafe_code, reason = "tasks that crash, fork and write where they must not")]

mod pool_support;

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::join_all;
use multiproc::{ProcessPool, TaskError, call, is_worker, task};
use pool_support::proc::lives;
use pool_support::{Ledger, Meeting, busy, endless, is_gone, kill, meet, meet_and_give_pid, note, pid, until, within};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

multiproc::test_support!();

/// How a task ends its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Way {
    Killed,
    Terminated,
    Segfault,
    Abort,
    StackOverflow,
    Exit(i32),
}

impl Way {
    const ALL: [Self; 7] = [
        Self::Killed,
        Self::Terminated,
        Self::Segfault,
        Self::Abort,
        Self::StackOverflow,
        Self::Exit(0),
        Self::Exit(42),
    ];

    fn go(self) -> u32 {
        match self {
            Self::Killed => kill(pid(), libc::SIGKILL),
            Self::Terminated => kill(pid(), libc::SIGTERM),
            // SAFETY: not safe at all, which is the point.
            Self::Segfault => unsafe { std::ptr::null_mut::<u8>().write_volatile(1) },
            Self::Abort => std::process::abort(),
            Self::StackOverflow => {
                // Where the stack has no limit, all memory would go before it overflows.
                let limit = Rlimit { current: Some(8 << 20), ..getrlimit(Resource::Stack) };
                setrlimit(Resource::Stack, limit).unwrap();
                return deeper(1) as u32;
            }
            Self::Exit(code) => std::process::exit(code),
        }
        endless();
        0
    }

    fn is_in(self, error: &TaskError) -> bool {
        let TaskError::Died { status: Some(status), .. } = error else { return false };
        match self {
            Self::Killed => status.signal() == Some(libc::SIGKILL),
            Self::Terminated => status.signal() == Some(libc::SIGTERM),
            Self::Segfault => status.signal() == Some(libc::SIGSEGV),
            Self::Abort => status.signal() == Some(libc::SIGABRT),
            // With Rust's handler it is an abort after a message, without it the signal itself.
            Self::StackOverflow => matches!(status.signal(), Some(libc::SIGSEGV | libc::SIGABRT)),
            Self::Exit(code) => status.code() == Some(code),
        }
    }
}

#[allow(unconditional_recursion, reason = "it is to overflow the stack")]
fn deeper(n: u64) -> u64 {
    let here = std::hint::black_box([n; 512]);
    deeper(n + 1) + here[(n % 512) as usize]
}

/// Ends the worker that decodes it.
#[derive(Debug)]
struct DeadlyToDecode(Way);

impl Serialize for DeadlyToDecode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for DeadlyToDecode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let way = Way::deserialize(deserializer)?;
        if is_worker() {
            way.go();
        }
        Ok(Self(way))
    }
}

/// Ends the worker that encodes it.
#[derive(Debug, Deserialize)]
struct DeadlyToEncode(Way);

impl Serialize for DeadlyToEncode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if is_worker() {
            self.0.go();
        }
        self.0.serialize(serializer)
    }
}

/// Each way of dying, at the moment that `deadly` stands for: beside a task that goes on, and one that waits.
async fn survives<F, R>(deadly: impl Fn(&ProcessPool, Way) -> F)
where
    F: Future<Output = Result<R, TaskError>>,
    R: std::fmt::Debug,
{
    let pool = ProcessPool::new(2);
    for way in Way::ALL {
        let (bystander, guest) = busy(&pool).await;
        let (dead, next) = within(async { tokio::join!(deadly(&pool, way), pool.submit(task!(pid()))) }).await;
        let error = dead.unwrap_err();
        assert!(way.is_in(&error), "{way:?}: {error}");
        let TaskError::Died { pid: dead, .. } = error else { unreachable!("checked above") };
        assert_ne!(dead, guest.pid);
        assert_ne!(next.unwrap(), dead, "the waiting task ran in the replacement");
        assert!(is_gone(dead));
        let pid = guest.pid;
        guest.go_on().await;
        assert_eq!(within(bystander).await.unwrap(), pid, "the other task went on in its worker");
        until(|| pool.status().workers == 2).await;
    }
    assert_eq!(pool.status().counts.died, Way::ALL.len() as u64);
    within(pool.close()).await;
}

#[tokio::test]
async fn a_death_while_running_costs_that_task_alone() {
    survives(|pool, way| pool.submit(call(Way::go, way))).await;
}

#[tokio::test]
async fn a_death_while_decoding_costs_that_task_alone() {
    survives(|pool, way| pool.submit(call(|_: DeadlyToDecode| (), DeadlyToDecode(way)))).await;
}

#[tokio::test]
async fn a_death_while_encoding_the_result_costs_that_task_alone() {
    survives(|pool, way| pool.submit(call(DeadlyToEncode, way))).await;
}

#[tokio::test]
async fn a_worker_killed_from_outside_in_mid_task_is_replaced() {
    let pool = ProcessPool::new(2);
    let (victim, guest) = busy(&pool).await;
    assert_eq!(victim.worker_id(), Some(guest.pid));
    kill(guest.pid, libc::SIGKILL);
    match within(victim).await {
        Err(TaskError::Died { status: Some(status), pid, unexplained_kill: true, .. }) => {
            assert_eq!((status.signal(), pid), (Some(libc::SIGKILL), guest.pid));
        }
        other => panic!("{other:?}"),
    }
    assert!(is_gone(guest.pid));
    assert_ne!(within(pool.submit(task!(pid()))).await.unwrap(), guest.pid);
    within(pool.close()).await;
}

/// One that had only been sent it would not count: then the task runs elsewhere.
#[tokio::test]
async fn a_handle_names_a_worker_once_that_has_begun_the_task() {
    let pool = ProcessPool::new(2);
    within(pool.start()).await.unwrap();
    let workers: Vec<u32> = pool.status().details.iter().filter_map(|worker| worker.pid).collect();
    for &worker in &workers {
        kill(worker, libc::SIGSTOP);
    }
    let handle = within(pool.spawn(task!(endless()))).await.unwrap();
    assert_eq!(handle.worker_id(), None);
    for &worker in &workers {
        kill(worker, libc::SIGCONT);
    }
    until(|| handle.worker_id().is_some()).await;
    let worker = handle.worker_id().unwrap();
    kill(worker, libc::SIGKILL);
    assert!(matches!(within(handle).await, Err(TaskError::Died { pid, .. }) if pid == worker));
    within(pool.cancel()).await;
}

fn eat(bytes: usize) -> usize {
    let much = vec![1_u8; bytes];
    std::hint::black_box(&much).iter().map(|&byte| usize::from(byte)).sum()
}

#[tokio::test]
async fn out_of_memory_under_a_limit_costs_that_task_alone() {
    let pool = ProcessPool::builder().workers(1).memory_limit(512 << 20).build().unwrap();
    assert_eq!(within(pool.submit(task!(eat(1 << 20)))).await.unwrap(), 1 << 20);
    match within(pool.submit(task!(eat(1 << 30)))).await {
        Err(TaskError::Died { status: Some(status), .. }) => assert_eq!(status.signal(), Some(libc::SIGABRT)),
        other => panic!("{other:?}"),
    }
    assert_eq!(within(pool.submit(task!(eat(1 << 20)))).await.unwrap(), 1 << 20, "the replacement is limited, too");
    assert!(matches!(within(pool.submit(task!(eat(1 << 30)))).await, Err(TaskError::Died { .. })));
    within(pool.close()).await;
}

#[tokio::test]
async fn arguments_that_do_not_fit_under_a_limit_cost_their_task_alone() {
    let pool = ProcessPool::builder().workers(1).memory_limit(256 << 20).build().unwrap();
    match within(pool.submit(call(|bytes: Bytes| bytes.len(), Bytes::from(vec![0; 300 << 20])))).await {
        Err(TaskError::Died { status: Some(status), .. }) => assert_eq!(status.signal(), Some(libc::SIGABRT)),
        other => panic!("{other:?}"),
    }
    assert_eq!(within(pool.submit(task!(eat(1 << 20)))).await.unwrap(), 1 << 20);
    within(pool.close()).await;
}

extern "C" fn linger(_: i32) {
    // SAFETY: it touches no memory, and may be called in a signal handler.
    unsafe { libc::usleep(300_000) };
}

extern "C" fn linger_for_long(_: i32) {
    // SAFETY: as above.
    unsafe { libc::sleep(60) };
}

/// As above, where the workers take long to die (they dump core, say): the task was once taken back from each of them
/// meanwhile, went to the next one, and ended them for ever.
#[tokio::test]
async fn a_task_that_slowly_ends_each_worker_before_it_is_begun_ends_a_few_of_them() {
    for (long, signal) in [(false, libc::SIGABRT), (true, libc::SIGKILL)] {
        let prepare = call(
            |long: bool| {
                let linger = if long { linger_for_long } else { linger };
                // SAFETY: the handlers do what handlers may. abort(3) comes back to them only once.
                unsafe { libc::signal(libc::SIGABRT, linger as *const () as libc::sighandler_t) };
            },
            long,
        );
        let pool = ProcessPool::builder().workers(1).memory_limit(256 << 20).on_worker_start(prepare).build().unwrap();
        match within(pool.submit(call(|bytes: Bytes| bytes.len(), Bytes::from(vec![0; 300 << 20])))).await {
            Err(TaskError::Died { status: Some(status), .. }) => assert_eq!(status.signal(), Some(signal)),
            other => panic!("{other:?}"),
        }
        assert_eq!(within(pool.submit(task!(eat(1 << 20)))).await.unwrap(), 1 << 20);
        let counts = pool.status().counts;
        assert_eq!((counts.died, counts.restarts), (1, 4));
        within(pool.close()).await;
    }
}

#[tokio::test]
async fn a_task_that_becomes_another_program_is_killed_and_costs_itself_alone() {
    let pool = ProcessPool::new(1);
    let become_another = call(|()| -> u32 { panic!("{}", Command::new("sleep").arg("1000").exec()) }, ());
    let error = within(pool.submit(become_another)).await.unwrap_err();
    assert!(Way::Killed.is_in(&error), "{error:?}");
    assert_ne!(within(pool.submit(task!(pid()))).await.unwrap(), std::process::id());
    within(pool.close()).await;
}

#[tokio::test]
async fn an_idle_worker_that_dies_is_replaced() {
    let pool = ProcessPool::new(1);
    let first = within(pool.submit(task!(pid()))).await.unwrap();
    kill(first, libc::SIGKILL);
    until(|| pool.status().details.iter().any(|worker| worker.pid.is_some_and(|pid| pid != first))).await;
    assert_ne!(within(pool.submit(task!(pid()))).await.unwrap(), first);
    assert!(is_gone(first));
    within(pool.close()).await;
}

/// Dies the first `deaths` times.
fn die_at_first(place: PathBuf, deaths: u64) -> u64 {
    let before = note(&place, 0);
    if before < deaths {
        std::process::abort();
    }
    before
}

#[tokio::test]
async fn retries_run_a_task_again_after_a_death_and_no_oftener() {
    let pool = ProcessPool::new(1);
    let ledger = Ledger::new();
    assert_eq!(within(pool.submit(task!(die_at_first(ledger.place(), 2))).retries(2)).await.unwrap(), 2);
    assert_eq!(ledger.entries().len(), 3);
    let ledger = Ledger::new();
    let died = within(pool.submit(task!(die_at_first(ledger.place(), 9))).retries(2)).await;
    assert!(matches!(died, Err(TaskError::Died { .. })), "{died:?}");
    assert_eq!(ledger.entries().len(), 3, "once, and two more times");
    let ledger = Ledger::new();
    let died = within(pool.submit(task!(die_at_first(ledger.place(), 9)))).await;
    assert!(matches!(died, Err(TaskError::Died { .. })), "{died:?}");
    assert_eq!(ledger.entries().len(), 1, "a task that was begun is not begun again");
    within(pool.close()).await;
}

fn note_and_panic(place: PathBuf) {
    note(&place, 0);
    panic!("an answer");
}

#[tokio::test]
async fn a_panic_is_an_answer_and_no_retry() {
    let pool = ProcessPool::new(1);
    let ledger = Ledger::new();
    let panicked = within(pool.submit(task!(note_and_panic(ledger.place()))).retries(5)).await;
    assert!(matches!(panicked, Err(TaskError::Panicked(_))));
    assert_eq!(ledger.entries().len(), 1);
}

/// What a task may do to the socket over which its worker talks to us.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Vandalism {
    /// Closes every fd but stdio.
    CloseAll,
    /// Writes bytes that are no frame, and goes on.
    Garbage,
    /// Writes the beginning of a frame, and exits.
    HalfAFrame,
    /// Announces a body of 2⁶³ bytes.
    Lie,
    /// Ends the stream in one direction, and goes on.
    Shutdown,
    /// Leaves a process behind that holds the socket open, and exits.
    Fork,
}

fn vandalise(what: Vandalism) {
    let fds = fds();
    let write = |bytes: &[u8]| {
        for &fd in &fds {
            // SAFETY: the bytes are live; what is no socket takes them or does not.
            unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
        }
    };
    match what {
        Vandalism::CloseAll => {
            for &fd in &fds {
                // SAFETY: not safe; the worker has to bear it.
                unsafe { libc::close(fd) };
            }
        }
        Vandalism::Garbage => write(&[0xff; 1000]),
        Vandalism::HalfAFrame => {
            write(&[0, 0, 0]);
            std::process::exit(7);
        }
        Vandalism::Lie => write(&(1_u64 << 63).to_be_bytes().repeat(4)),
        Vandalism::Shutdown => {
            for &fd in &fds {
                // SAFETY: it touches no memory.
                unsafe { libc::shutdown(fd, libc::SHUT_WR) };
            }
        }
        Vandalism::Fork => {
            // SAFETY: the child calls only pause(2) and _exit(2), which are allowed after fork.
            unsafe {
                if libc::fork() == 0 {
                    loop {
                        libc::pause();
                    }
                }
            }
            std::process::exit(7);
        }
    }
    endless();
}

#[tokio::test]
async fn whatever_a_task_does_to_its_socket_it_dies_alone() {
    use Vandalism::{CloseAll, Fork, Garbage, HalfAFrame, Lie, Shutdown};
    let pool = ProcessPool::new(2);
    for what in [CloseAll, Garbage, HalfAFrame, Lie, Shutdown, Fork] {
        let (bystander, guest) = busy(&pool).await;
        match within(pool.submit(task!(vandalise(what)))).await {
            Err(TaskError::Died { status, pid, .. }) => {
                if matches!(what, HalfAFrame | Fork) {
                    assert_eq!(status.unwrap().code(), Some(7), "{what:?}");
                }
                until(|| is_gone(pid)).await;
            }
            other => panic!("{what:?}: {other:?}"),
        }
        guest.go_on().await;
        within(bystander).await.unwrap();
    }
    within(pool.close()).await;
}

/// Goes on in two processes, in the first one once the second has ended. Gives whether this is the first.
fn fork_and_go_on() -> bool {
    // SAFETY: the worker has no other thread that could hold a lock of the allocator's.
    let copy = unsafe { libc::fork() };
    if copy > 0 {
        // SAFETY: it may write no status.
        unsafe { libc::waitpid(copy, std::ptr::null_mut(), 0) };
    }
    copy != 0
}

fn fork_and_panic() {
    panic!("{}", if fork_and_go_on() { "the first" } else { "the copy" });
}

/// The copy answered, too, read what was sent to its worker, and claimed tasks that nobody ran then.
#[tokio::test]
async fn of_a_task_that_forks_and_returns_twice_only_the_first_process_goes_on() {
    let pool = ProcessPool::builder().workers(1).on_worker_start(call(|()| fork_and_go_on(), ())).build().unwrap();
    within(pool.start()).await.unwrap();
    let worker = pool.status().details[0].pid;
    for round in 0..10 {
        let forked = pool.submit(call(|()| (fork_and_go_on(), pid()), ()));
        let neighbours = join_all((0..10).map(|_| pool.submit(task!(pid()))));
        let panicked = pool.submit(task!(fork_and_panic()));
        let (forked, panicked, neighbours) = within(async { tokio::join!(forked, panicked, neighbours) }).await;
        assert_eq!(forked.unwrap(), (true, worker.unwrap()), "{round}");
        assert!(matches!(&panicked, Err(TaskError::Panicked(p)) if p.message == "the first"), "{panicked:?}");
        assert!(neighbours.into_iter().all(|pid| pid.unwrap() == worker.unwrap()), "{round}");
    }
    assert_eq!(pool.status().counts.died, 0);
    within(pool.close()).await;
}

#[tokio::test]
async fn of_a_call_in_a_chunk_that_forks_and_returns_twice_only_the_first_process_goes_on() {
    let pool = ProcessPool::new(1);
    let call = |n: u32| match n {
        50 => u32::from(fork_and_go_on()),
        60 => panic!("{}", fork_and_go_on()),
        n => n,
    };
    let results: Vec<_> = within(pool.map(0..100, call).chunk(100).collect()).await;
    for (n, result) in (0..).zip(results) {
        match (n, result) {
            (50, result) => assert_eq!(result.unwrap(), 1),
            (60, Err(TaskError::Panicked(panic))) => assert_eq!(panic.message, "true"),
            (n, result) => assert_eq!(result.unwrap(), n),
        }
    }
    assert_eq!(pool.status().counts.died, 0);
    within(pool.close()).await;
}

/// Answers tasks of these numbers, over any socket that the worker has.
fn answer(ids: &[u64]) {
    let forged: Vec<u8> = ids
        .iter()
        // Length 0, version 1, kind 26 (Done), no fds; see the frame's drawing.
        .flat_map(|id| [0, 0, 0, 0, 1, 26, 0, 0].into_iter().chain(id.to_le_bytes()))
        .collect();
    say(&forged);
}

/// Sends this over any socket that the worker has.
fn say(bytes: &[u8]) {
    for fd in fds() {
        // SAFETY: the bytes are live; what is no socket doesn't take them.
        unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
    }
}

/// What is open besides stdio.
fn fds() -> Vec<i32> {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&fd| fd > 2)
        .collect()
}

/// Two answers to one task, in one write: the first is as good as any, the second ends the worker. The first one's task was
/// once forgotten together with the second.
fn forge() {
    answer(&[1, 1, 77]);
    endless();
}

#[tokio::test]
async fn forged_answers_end_the_worker_and_lose_no_task() {
    for _ in 0..20 {
        let pool = ProcessPool::new(1);
        let forged = within(pool.submit(task!(forge()))).await;
        assert!(matches!(forged, Ok(()) | Err(TaskError::Died { .. })), "{forged:?}");
        within(pool.submit(task!(pid()))).await.unwrap();
        within(pool.close()).await;
    }
}

/// Answers a task that it was never sent, and ends as soon as it is sent another one for that.
fn lie(place: PathBuf) {
    meet(&place, 0);
    answer(&[77]);
    let is_socket = |fd: &i32| {
        std::fs::read_link(format!("/proc/self/fd/{fd}"))
            .is_ok_and(|link| link.to_string_lossy().starts_with("socket:"))
    };
    let mut sockets: Vec<_> =
        fds().into_iter().filter(is_socket).map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    // SAFETY: the list is live and so long.
    unsafe { libc::poll(sockets.as_mut_ptr(), sockets.len() as u64, -1) };
}

/// It was once given the next tasks ahead before it was ended, and had time to begin them.
#[tokio::test]
async fn a_worker_that_has_lied_gets_no_other_task() {
    let pool = ProcessPool::new(1);
    // So that it counts as one that is quick, which has tasks ahead.
    for _ in 0..20 {
        within(pool.submit(task!(pid()))).await.unwrap();
    }
    let meeting = Meeting::new();
    let liar = tokio::spawn(pool.submit(task!(lie(meeting.place()))));
    let guest = meeting.guest().await;
    let others = tokio::spawn(join_all((0..20).map(|_| pool.submit(task!(pid())))));
    until(|| pool.status().queued == 20).await;
    let pid = guest.pid;
    guest.go_on().await;
    assert!(matches!(within(liar).await.unwrap(), Err(TaskError::Died { pid: dead, .. }) if dead == pid));
    for other in within(others).await.unwrap() {
        assert_ne!(other.unwrap(), pid);
    }
    within(pool.close()).await;
}

/// What a worker may say that is no answer.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Lie {
    /// A frame of a kind that there is not.
    Kind,
    /// An answer that is none: a failure without a word.
    Body,
    /// What is no frame.
    Header,
}

/// Lies, and goes on with what its worker has ahead as soon as it is told to.
fn lie_and_go_on(place: PathBuf, lie: Lie) {
    match lie {
        Lie::Kind => say(&[0, 0, 0, 0, 1, 99, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]),
        Lie::Body => say(&[0, 0, 0, 0, 1, 27, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]),
        Lie::Header => say(&[0xff; 16]),
    }
    meet(&place, 0);
}

/// It had the tasks ahead for as long as it had to exit by itself, and the one that it had begun by then died with it.
#[tokio::test]
async fn a_worker_that_has_said_what_is_no_answer_begins_no_other_task() {
    for lie in [Lie::Kind, Lie::Body, Lie::Header] {
        let pool = ProcessPool::new(1);
        for _ in 0..20 {
            within(pool.submit(task!(pid()))).await.unwrap();
        }
        let (meeting, others) = (Meeting::new(), Meeting::new());
        // Behind a quick one the liar and what is to come behind that are sent together.
        let quick = tokio::spawn(pool.submit(task!(pid())));
        let liar = tokio::spawn(pool.submit(task!(lie_and_go_on(meeting.place(), lie))));
        let place = others.place();
        let innocent: Vec<_> =
            (0..20).map(|id| tokio::spawn(pool.submit(task!(meet_and_give_pid(place.clone(), id))))).collect();
        let guest = meeting.guest().await;
        let pid = guest.pid;
        // What was said before has come, too.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        guest.go_on().await;
        let letting_go = tokio::spawn(async move {
            loop {
                let guest = others.guest().await;
                // One that the liar has begun has no end of its own.
                if guest.pid == pid { std::mem::forget(guest) } else { guest.go_on().await }
            }
        });
        within(quick).await.unwrap().unwrap();
        // It may have answered in time.
        let _ = within(liar).await.unwrap();
        for task in innocent {
            assert_ne!(within(task).await.unwrap().unwrap(), pid, "{lie:?}");
        }
        letting_go.abort();
        within(pool.close()).await;
    }
}

/// It was once taken for one that had finished a task, which an idle one has not.
#[tokio::test]
async fn an_idle_worker_that_answers_nothing_is_replaced() {
    let (pool, meeting) = (ProcessPool::new(1), Meeting::new());
    let lie_later = call(
        |place: PathBuf| {
            std::thread::spawn(move || {
                meet(&place, 0);
                answer(&[77]);
            });
            pid()
        },
        meeting.place(),
    );
    let liar = within(pool.submit(lie_later)).await.unwrap();
    until(|| pool.status().busy == 0).await;
    meeting.guest().await.go_on().await;
    until(|| pool.status().counts.restarts == 1).await;
    assert_ne!(within(pool.submit(task!(pid()))).await.unwrap(), liar);
    within(pool.close()).await;
}

/// Writes into the ledger that it has begun what it was never sent.
fn claim_all() -> u32 {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let ledger = maps.lines().find(|line| line.contains("/memfd:multiproc")).expect("a worker has one");
    let start = usize::from_str_radix(ledger.split('-').next().unwrap(), 16).unwrap();
    // SAFETY: the mapping is there for as long as the worker is; see the ledger's drawing.
    unsafe { (*(start as *const AtomicU64)).store(u64::MAX, Ordering::Release) };
    pid()
}

/// All that it was sent from then on was taken for begun, and was never taken back.
#[tokio::test]
async fn a_worker_that_claims_what_it_was_never_sent_is_replaced() {
    let pool = ProcessPool::new(1);
    let liar = within(pool.submit(task!(claim_all()))).await.expect("it was done by then");
    until(|| pool.status().counts.restarts == 1).await;
    assert_ne!(within(pool.submit(task!(pid()))).await.unwrap(), liar);
    within(pool.close()).await;
}

fn leave_a_grandchild() -> (u32, u32) {
    #[allow(clippy::zombie_processes, reason = "it is to outlive its parent")]
    let child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    (pid(), child.id())
}

#[tokio::test]
async fn what_a_worker_started_goes_with_it() {
    let pool = ProcessPool::new(1);
    let (worker, grandchild) = within(pool.submit(task!(leave_a_grandchild()))).await.unwrap();
    kill(worker, libc::SIGKILL);
    // It is an orphan by then, which whoever inherits orphans here reaps or not; that it runs no more is the point.
    until(|| is_gone(worker) && !lives(grandchild)).await;
    let (_, grandchild) = within(pool.submit(task!(leave_a_grandchild()))).await.unwrap();
    within(pool.close()).await;
    until(|| !lives(grandchild)).await;
}

fn meet_then_note(meeting: PathBuf, ledger: PathBuf, id: u64) -> u64 {
    note(&ledger, id);
    meet(&meeting, id);
    id
}

#[tokio::test]
async fn what_waits_behind_a_death_runs_once() {
    let pool = ProcessPool::new(1);
    let (meeting, ledger) = (Meeting::new(), Ledger::new());
    let victim = within(pool.spawn(task!(meet_then_note(meeting.place(), ledger.place(), 1000)))).await.unwrap();
    let tiny = |id| pool.submit(task!(note_it(ledger.place(), id)));
    let waiting = tokio::spawn(join_all((0..200).map(tiny)));
    let guest = meeting.guest().await;
    until(|| pool.status().queued == 200).await;
    kill(guest.pid, libc::SIGKILL);
    assert!(matches!(within(victim).await, Err(TaskError::Died { .. })));
    for (id, result) in within(waiting).await.unwrap().into_iter().enumerate() {
        assert_eq!(result.unwrap(), id as u64);
    }
    let mut entries = ledger.entries();
    assert_eq!(entries.remove(0), 1000);
    assert_eq!(entries, (0..200).collect::<Vec<_>>(), "each once, in the order in which they came");
    within(pool.close()).await;
}

fn note_it(place: PathBuf, id: u64) -> u64 {
    note(&place, id);
    id
}

/// A worker that has tasks ahead dies again and again. What lay behind the deadly task has nothing to do with it, however
/// often that happens: it was once taken for the reason after three deaths.
#[tokio::test]
async fn tasks_behind_many_deaths_are_not_blamed_for_them() {
    let pool = ProcessPool::new(1);
    let ledger = Ledger::new();
    let submit = |deadly: bool, id| {
        pool.submit(call(
            |(place, deadly, id): (PathBuf, bool, u64)| {
                if deadly {
                    std::process::exit(1);
                }
                note(&place, id)
            },
            (ledger.place(), deadly, id),
        ))
    };
    let deaths = (0..20).map(|n| submit(n % 2 == 1, n));
    let results = within(join_all(deaths.chain((20..120).map(|id| submit(false, id))))).await;
    for (n, result) in results.into_iter().enumerate() {
        match result {
            Ok(_) => assert!(n >= 20 || n % 2 == 0),
            Err(TaskError::Died { .. }) => assert!(n < 20 && n % 2 == 1, "{n} was not deadly"),
            Err(other) => panic!("{other:?}"),
        }
    }
    let expected: Vec<u64> = (0..20).step_by(2).chain(20..120).collect();
    assert_eq!(ledger.entries(), expected, "each once, and in order");
    within(pool.close()).await;
}

/// A task that was sent to a worker which was dead or dying by then was never begun, so it runs elsewhere.
#[tokio::test]
async fn a_task_sent_to_a_worker_that_is_dead_already_runs_elsewhere() {
    let pool = ProcessPool::new(1);
    let ledger = Ledger::new();
    for id in 0..100 {
        let idle = within(pool.submit(task!(pid()))).await.unwrap();
        kill(idle, libc::SIGKILL);
        assert_eq!(within(pool.submit(task!(note_it(ledger.place(), id)))).await.unwrap(), id);
    }
    assert_eq!(ledger.entries(), (0..100).collect::<Vec<_>>());
}
