//! Channels: fds in messages, also where fds are scarce.

#![expect(clippy::needless_pass_by_value, reason = "a task owns its arguments")]

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read as _, Seek as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use futures::FutureExt as _;
use multiproc::{
    AckedQueue, Duplex, Fd, ProcessPool, QueueSender, Receiver, RecvError, SendError, Sender, SpawnError, TaskError,
    TrySendError, call, channel, duplex, queue, spawn_process, task,
};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{PidfdFlags, Resource, Rlimit, Uid, getpid, getrlimit, pidfd_open, setrlimit};
use rustix::thread::set_thread_res_uid;
use support::kernel::io_uring;

mod support;

multiproc::test_support!();

type Parcels = (Fd<File>, Vec<Fd<UnixStream>>, Option<Fd<PipeWriter>>, Fd<TcpListener>, Fd);

/// Uses each of them, and gives back one of its own.
fn use_all((mut file, sockets, pipe, listener, bare): Parcels) -> (Fd<PipeReader>, String) {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    for mut socket in sockets {
        socket.write_all(b"socket").unwrap();
    }
    pipe.unwrap().write_all(b"pipe").unwrap();
    listener.accept().unwrap().0.write_all(b"tcp").unwrap();
    File::from(bare.into_inner()).write_all(b"bare").unwrap();
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"from the child").unwrap();
    (Fd::from(reader), text)
}

fn rest(mut from: impl std::io::Read) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
async fn files_sockets_and_pipes_travel_in_arguments_and_results() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"a file").unwrap();
    file.rewind().unwrap();
    let (one, theirs_one) = UnixStream::pair().unwrap();
    let (two, theirs_two) = UnixStream::pair().unwrap();
    let (pipe, theirs_pipe) = std::io::pipe().unwrap();
    let (bare, theirs_bare) = std::io::pipe().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let sockets = vec![theirs_one.into(), theirs_two.into()];
    let all = (file.into(), sockets, Some(theirs_pipe.into()), listener.into(), OwnedFd::from(theirs_bare).into());
    let child = spawn_process(task!(use_all(all))).await.unwrap();
    let (reader, text) = child.join().await.unwrap();
    assert_eq!(text, "a file");
    // What was sent is closed here, so each of them has an end.
    assert_eq!([rest(one), rest(two), rest(pipe), rest(tcp), rest(bare)], ["socket", "socket", "pipe", "tcp", "bare"]);
    assert_eq!(rest(reader.into_inner()), "from the child");
}

#[tokio::test]
async fn fds_travel_in_messages_and_in_items_of_a_queue() {
    let (tx, mut rx) = channel::<(u8, Fd<PipeWriter>)>().unwrap();
    let (queue_tx, queue_rx) = queue::<(Vec<u8>, Fd<PipeWriter>)>().unwrap();
    for len in [0, 100_000] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        tx.send((7, writer.into())).await.unwrap();
        let (seven, writer) = rx.recv().await.unwrap().unwrap();
        assert_eq!(seven, 7);
        queue_tx.send((vec![1; len], writer)).await.unwrap();
        let (bytes, mut writer) = queue_rx.recv().await.unwrap().unwrap();
        assert_eq!(bytes.len(), len);
        writer.write_all(b"x").unwrap();
        drop(writer);
        assert_eq!(rest(&mut reader), "x");
    }
}

#[tokio::test]
async fn fds_of_a_message_that_nobody_reads_are_closed() {
    let (tx, rx) = channel::<Fd<PipeWriter>>().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    tx.send(writer.into()).await.unwrap();
    drop(rx);
    assert_eq!(rest(reader), "");
}

#[test]
fn outside_a_message_an_fd_has_no_encoding() {
    let file = Fd::from(File::open("/dev/null").unwrap());
    let mut codec = multiproc::wire::Codec::<Fd<File>>::new(100);
    let refused = tokio_util::codec::Encoder::encode(&mut codec, file, &mut bytes::BytesMut::new());
    assert!(matches!(refused, Err(SendError::Encode(_))));
}

/// Fds that are no files: fstat(2) knows no type of them.
type Anonymous = (Fd, Fd, Fd);

/// Uses each of them, for the process that sent them.
fn use_anonymous((event, watch, process): Anonymous, sender: u32) -> Anonymous {
    let mut events = Vec::with_capacity(1);
    epoll::wait(&watch, rustix::buffer::spare_capacity(&mut events), None).unwrap();
    assert_eq!(events.pop().unwrap().data.u64(), 7);
    let mut count = [0; 8];
    rustix::io::read(&event, &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 3);
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd())).unwrap();
    assert!(info.lines().any(|line| line == format!("Pid:\t{sender}")), "{info}");
    (event, watch, process)
}

fn anonymous() -> Anonymous {
    let event = eventfd(3, EventfdFlags::CLOEXEC).unwrap();
    let watch = epoll::create(CreateFlags::CLOEXEC).unwrap();
    epoll::add(&watch, &event, EventData::new_u64(7), EventFlags::IN).unwrap();
    (event.into(), watch.into(), pidfd_open(getpid(), PidfdFlags::empty()).unwrap().into())
}

#[tokio::test]
async fn eventfds_epolls_and_pidfds_travel_in_arguments_results_and_messages() {
    let pool = ProcessPool::new(1);
    let back = pool.submit(task!(use_anonymous(anonymous(), std::process::id()))).await.unwrap();
    let (tx, mut rx) = channel().unwrap();
    tx.send(back).await.unwrap();
    let (event, watch, process) = rx.recv().await.unwrap().unwrap();
    rustix::io::write(&event, &3_u64.to_ne_bytes()).unwrap();
    use_anonymous((event, watch, process), std::process::id());
    pool.close().await;
}

/// What it takes to see that a message may have it is more than that.
#[test]
fn an_eventfd_travels_where_one_more_fd_may_be_open() {
    support::alone("an_eventfd_travels_where_one_more_fd_may_be_open", || {
        let (tx, mut rx) = channel().unwrap();
        let (event, ..) = anonymous();
        let before = leave_one();
        tx.blocking_send(event).unwrap();
        setrlimit(Resource::Nofile, before).unwrap();
        let event = rx.blocking_recv().unwrap().unwrap();
        rustix::io::read(&event, &mut [0; 8]).unwrap();
    });
}

fn give_io_uring() -> Fd {
    io_uring().expect("the host may have one")
}

/// Each of the pool's workers was stuck with such a task, one after the other, and one with such a result ended.
#[tokio::test]
async fn an_fd_that_no_message_carries_is_an_encode_error_of_its_task_alone() {
    let Some(fd) = io_uring() else { return };
    let pool = ProcessPool::new(1);
    let worker = pool.submit(task!(std::process::id())).await.unwrap();
    let argument = pool.submit(call(drop::<Fd>, fd)).await;
    assert!(matches!(argument, Err(TaskError::Encode(_))), "{argument:?}");
    let result = pool.submit(task!(give_io_uring())).await;
    assert!(matches!(result, Err(TaskError::Encode(_))), "{result:?}");
    assert_eq!(pool.submit(task!(std::process::id())).await.unwrap(), worker, "it goes on");
    pool.close().await;

    let argument = spawn_process(call(drop::<Fd>, give_io_uring())).await;
    assert!(matches!(argument, Err(SpawnError::Encode(_))), "{argument:?}");
    let result = spawn_process(task!(give_io_uring())).await.unwrap().join().await;
    assert!(matches!(result, Err(TaskError::Encode(_))), "{result:?}");
}

/// It lay there for two seconds with each of the workers that it was given to.
#[test]
fn a_task_that_turns_out_to_be_unsendable_only_when_it_is_sent_fails_at_once() {
    support::alone("a_task_that_turns_out_to_be_unsendable_only_when_it_is_sent_fails_at_once", || {
        let Some(fd) = io_uring() else { return };
        support::block_on(async {
            let pool = ProcessPool::new(1);
            let worker = pool.submit(task!(std::process::id())).await.unwrap();
            let before = leave_one();
            let mut unsendable = std::pin::pin!(pool.submit(call(drop::<Fd>, fd)));
            assert!(unsendable.as_mut().now_or_never().is_none(), "there is an fd to try it");
            setrlimit(Resource::Nofile, before).unwrap();
            let outcome = tokio::time::timeout(Duration::from_secs(4), unsendable).await.expect("they are stuck");
            assert!(matches!(outcome, Err(TaskError::Died { .. })), "{outcome:?}");
            assert_ne!(pool.submit(task!(std::process::id())).await.unwrap(), worker);
            pool.close().await;
        });
    });
}

/// The channel had failed with it.
#[tokio::test]
async fn an_fd_that_no_message_carries_is_refused_and_the_channel_goes_on() {
    let Some(fd) = io_uring() else { return };
    let (tx, mut rx) = channel::<Option<Fd>>().unwrap();
    let (queue_tx, queue_rx) = queue::<Option<Fd>>().unwrap();
    assert!(matches!(tx.send(Some(fd)).await, Err(SendError::Encode(_))));
    assert!(matches!(queue_tx.send(io_uring()).await, Err(SendError::Encode(_))));
    tx.send(None).await.unwrap();
    queue_tx.send(None).await.unwrap();
    assert!(rx.recv().await.unwrap().unwrap().is_none());
    assert!(queue_rx.recv().await.unwrap().unwrap().is_none());
}

/// Allows so many fds more than are open now, and gives the former limit.
fn allow(more: u64) -> Rlimit {
    let before = getrlimit(Resource::Nofile);
    let next = std::fs::File::open("/dev/null").unwrap();
    let highest = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap().parse::<u64>().unwrap())
        .max()
        .unwrap();
    drop(next);
    setrlimit(Resource::Nofile, Rlimit { current: Some(highest + more), maximum: before.maximum }).unwrap();
    before
}

/// Allows just one fd more, and gives the former limit. What fills the gaps stays open.
fn leave_one() -> Rlimit {
    let before = allow(1);
    let mut gaps = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        gaps.push(file);
    }
    drop(gaps.pop());
    std::mem::forget(gaps);
    before
}

type Parcel = Option<Sender<u8>>;

/// Reads with no fd free, and then with enough.
fn read_at_the_limit(mut parcels: Receiver<(u32, Parcel)>, mut go: Duplex<String, ()>) {
    go.blocking_recv().unwrap();
    // Fills the gaps, too.
    let before = allow(0);
    let mut gaps = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        gaps.push(file);
    }
    let first = parcels.blocking_recv();
    drop(gaps);
    setrlimit(Resource::Nofile, before).unwrap();
    match first {
        Err(RecvError::Decode(why)) => {
            assert_eq!(
                why.to_string(),
                "file descriptors of the message could not be taken in: too many are open here"
            );
        }
        other => panic!("{other:?}"),
    }
    let mut rest = Vec::new();
    while let Some((n, parcel)) = parcels.blocking_recv().unwrap() {
        if let Some(parcel) = parcel {
            parcel.blocking_send(7).unwrap();
        }
        rest.push(n);
    }
    go.blocking_send(format!("{rest:?}")).unwrap();
}

/// Leaves this worker no fd for what comes with its next task.
fn fill_up() {
    allow(0);
    while let Ok(file) = File::open("/dev/null") {
        std::mem::forget(file);
    }
}

/// It said that they had not come with the message.
#[tokio::test]
async fn a_task_whose_fds_the_worker_has_no_room_for_says_so() {
    let pool = ProcessPool::new(1);
    pool.submit(task!(fill_up())).await.unwrap();
    let (end, _gone) = channel::<u8>().unwrap();
    match pool.submit(call(drop, end)).await {
        Err(TaskError::Decode(why)) => assert!(why.to_string().contains("too many are open here"), "{why}"),
        other => panic!("{other:?}"),
    }
    pool.close().await;
}

#[tokio::test]
async fn fds_that_the_receiver_has_no_room_for_cost_that_message_alone() {
    let (tx, theirs) = channel::<(u32, Parcel)>().unwrap();
    let (mut go, theirs_go) = duplex().unwrap();
    let child = spawn_process(task!(read_at_the_limit(theirs, theirs_go))).await.unwrap();
    let (end, mut gone) = channel().unwrap();
    tx.send((0, Some(end))).await.unwrap();
    tx.send((1, None)).await.unwrap();
    let (end, mut alive) = channel().unwrap();
    tx.send((2, Some(end))).await.unwrap();
    go.send(()).await.unwrap();
    assert_eq!(gone.recv().await.unwrap(), None, "it was closed");
    drop(tx);
    assert_eq!(alive.recv().await.unwrap(), Some(7));
    assert_eq!(go.recv().await.unwrap().as_deref(), Some("[1, 2]"));
    child.join().await.unwrap();
}

/// What the host printed went into it.
#[test]
fn fds_that_arrive_are_none_of_stdio_where_the_host_has_closed_that() {
    support::alone("fds_that_arrive_are_none_of_stdio_where_the_host_has_closed_that", || {
        let (tx, mut rx) = channel::<(u8, Option<Fd<File>>)>().unwrap();
        let null = || Some(Fd::from(File::options().read(true).write(true).open("/dev/null").unwrap()));
        for n in [1, 2] {
            tx.blocking_send((n, null())).unwrap();
        }
        tx.blocking_send((3, None)).unwrap();
        #[expect(unsafe_code, reason = "it is a host that closes its stdout")]
        // SAFETY: nobody uses it meanwhile but std, which does not mind.
        drop(unsafe { OwnedFd::from_raw_fd(1) });
        let (_, fd) = rx.blocking_recv().unwrap().unwrap();
        assert!(fd.as_ref().unwrap().as_raw_fd() > 2);
        assert!(!support::exists("/proc/self/fd/1"));
        // There is room below 3 alone.
        let before = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(3), maximum: before.maximum }).unwrap();
        let second = rx.blocking_recv();
        setrlimit(Resource::Nofile, before).unwrap();
        let stdout = File::options().write(true).open("/dev/null").unwrap();
        assert_eq!(stdout.as_raw_fd(), 1);
        std::mem::forget(stdout);
        assert!(matches!(second, Err(RecvError::Decode(why)) if why.to_string().contains("too many are open here")));
        assert_eq!(rx.blocking_recv().unwrap().unwrap().0, 3);
    });
}

#[tokio::test]
async fn more_than_64_fds_are_refused_at_the_sender() {
    let (tx, mut rx) = channel::<Vec<Sender<u8>>>().unwrap();
    let ends = |count| (0..count).map(|_| channel().unwrap().0).collect::<Vec<_>>();
    assert!(matches!(tx.send(ends(65)).await, Err(SendError::Encode(_))));
    tx.send(ends(64)).await.unwrap();
    assert_eq!(rx.recv().await.unwrap().unwrap().len(), 64);
}

/// At the sender, at the receiver, and after they have travelled.
#[tokio::test]
async fn more_fds_than_an_end_allows_are_refused_by_both_sides() {
    let ends = |count| (0..count).map(|_| channel::<u8>().unwrap().0).collect::<Vec<_>>();
    let (tx, rx) = channel::<Vec<Sender<u8>>>().unwrap();
    let (there, mut back) = channel().unwrap();
    there.send((tx.max_fds(3), rx.max_fds(2))).await.unwrap();
    let (tx, mut rx) = back.recv().await.unwrap().unwrap();
    match tx.send(ends(4)).await {
        Err(SendError::Encode(why)) => assert_eq!(why.to_string(), "4 file descriptors in one message, where 3 may be"),
        other => panic!("{other:?}"),
    }
    tx.send(ends(2)).await.unwrap();
    assert_eq!(rx.recv().await.unwrap().unwrap().len(), 2, "the channel goes on");
    tx.send(ends(3)).await.unwrap();
    for _ in 0..2 {
        assert!(matches!(rx.recv().await, Err(RecvError::Protocol { .. })));
    }

    let (ours, theirs) = duplex::<Vec<Sender<u8>>, Vec<Sender<u8>>>().unwrap();
    let (ours, mut theirs) = (ours.max_fds(1), theirs.max_fds(0));
    assert!(matches!(ours.send(ends(2)).await, Err(SendError::Encode(_))));
    ours.send(ends(1)).await.unwrap();
    assert!(matches!(theirs.recv().await, Err(RecvError::Protocol { .. })));
}

#[tokio::test]
async fn more_fds_than_an_end_of_a_queue_allows_are_refused_by_both_sides() {
    let ends = |count| (0..count).map(|_| channel::<u8>().unwrap().0).collect::<Vec<_>>();
    let (tx, rx) = queue::<Vec<Sender<u8>>>().unwrap();
    let (there, mut back) = channel().unwrap();
    there.send((tx.max_fds(3), rx.max_fds(2))).await.unwrap();
    let (tx, rx) = back.recv().await.unwrap().unwrap();
    assert!(matches!(tx.send(ends(4)).await, Err(SendError::Encode(_))));
    assert!(matches!(tx.clone().try_send(ends(4)), Err(TrySendError::Refused(SendError::Encode(_)))));
    let (mut theirs, ours): (Vec<_>, Vec<_>) = (0..3).map(|_| channel::<u8>().unwrap()).unzip();
    tx.send(theirs.split_off(0)).await.unwrap();
    tx.send(ends(2)).await.unwrap();
    assert!(matches!(rx.clone().recv().await, Err(RecvError::Decode(_))));
    for mut end in ours {
        assert_eq!(end.recv().await.unwrap(), None, "what was refused is closed");
    }
    assert_eq!(rx.recv().await.unwrap().unwrap().len(), 2, "the queue goes on");
}

#[tokio::test]
async fn a_consumer_that_may_not_take_an_items_fds_leaves_it_to_others() {
    let jobs = AckedQueue::<Vec<Sender<u8>>>::new().max_fds(2);
    let ends = |count| (0..count).map(|_| channel::<u8>().unwrap().0).collect::<Vec<_>>();
    assert!(matches!(jobs.send(ends(3)).await, Err(SendError::Encode(_))));
    jobs.send(ends(2)).await.unwrap();
    let mut small = jobs.receiver().unwrap().max_fds(1);
    assert!(matches!(small.recv().await, Err(RecvError::Protocol { .. })));
    let mut short = jobs.receiver().unwrap().max_message(1);
    drop(small);
    assert!(matches!(short.recv().await, Err(RecvError::TooLarge { .. })));
    drop(short);
    let mut other = jobs.receiver().unwrap();
    let item = other.recv().await.unwrap().unwrap();
    assert_eq!(item.len(), 2);
    item.ack().unwrap();
    jobs.finished().await;
}

/// A user may have only so many fds under way; root may have more, so this thread becomes somebody else. Says whether it has:
/// otherwise this user's other tests have fds under way, too, and can end a want of them.
fn become_somebody(user: u32) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        let user = Uid::from_raw(user);
        set_thread_res_uid(user, user, user).unwrap();
    }
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(150), maximum: before.maximum }).unwrap();
    is_root
}

fn many_under_way(tx: Sender<Vec<Sender<u8>>>, queue_tx: QueueSender<Vec<Sender<u8>>>, mut go: Duplex<(), ()>) {
    become_somebody(65534);
    let ends = || (0..20).map(|_| channel().unwrap().0).collect::<Vec<_>>();
    go.blocking_send(()).unwrap();
    for _ in 0..20 {
        tx.blocking_send(ends()).unwrap();
        queue_tx.blocking_send(ends()).unwrap();
    }
    let _ = go.blocking_recv();
}

#[tokio::test]
async fn with_too_many_fds_under_way_a_send_waits() {
    let (tx, mut rx) = channel::<Vec<Sender<u8>>>().unwrap();
    let (queue_tx, queue_rx) = queue().unwrap();
    let (mut go, theirs) = duplex().unwrap();
    let child = spawn_process(task!(many_under_way(tx, queue_tx, theirs))).await.unwrap();
    go.recv().await.unwrap().unwrap();
    // Until it waits for the limit.
    support::proc::until_it_waits(child.id().unwrap()).await;
    for _ in 0..20 {
        assert_eq!(rx.recv().await.unwrap().unwrap().len(), 20);
        assert_eq!(queue_rx.recv().await.unwrap().unwrap().len(), 20);
    }
    drop(go);
    child.join().await.unwrap();
}

type Many = Vec<Sender<u8>>;

/// Has as many fds under way as this user may have.
fn congest(tx: &QueueSender<Many>) {
    let ends = || (0..20).map(|_| channel().unwrap().0).collect::<Vec<_>>();
    while tx.try_send(ends()).is_ok() {}
}

fn null() -> Fd<File> {
    File::open("/dev/null").unwrap().into()
}

fn give_past_the_limit(tx: QueueSender<Many>, go: Duplex<(), ()>) -> Fd<File> {
    become_somebody(65533);
    congest(&tx);
    go.blocking_send(()).unwrap();
    null()
}

#[tokio::test]
async fn with_too_many_fds_under_way_a_result_waits() {
    let (tx, rx) = queue().unwrap();
    let (mut go, theirs) = duplex().unwrap();
    let child = spawn_process(task!(give_past_the_limit(tx, theirs))).await.unwrap();
    go.recv().await.unwrap().unwrap();
    support::proc::until_it_waits(child.id().unwrap()).await;
    while rx.recv().await.unwrap().is_some() {}
    child.join().await.unwrap();
}

fn take(fd: Fd<File>) -> u32 {
    drop(fd);
    7
}

/// Polls what is not to end yet until all has happened on this thread that does not wait for anything. Says whether it waits.
async fn waits<F: Future>(mut future: std::pin::Pin<&mut F>) -> bool {
    for _ in 0..1000 {
        if future.as_mut().now_or_never().is_some() {
            return false;
        }
        tokio::task::yield_now().await;
    }
    true
}

/// A pool that has nothing but this thread to send with.
async fn use_a_pool_past_the_limit() {
    let is_alone = become_somebody(65532);
    let (tx, rx) = queue().unwrap();
    // No failed start is forgiven.
    let pool = || ProcessPool::builder().workers(1).restart_limit(0, Duration::from_hours(1)).build().unwrap();
    let never = pool();
    let pool = pool();
    congest(&tx);
    let mut first = std::pin::pin!(pool.submit(task!(take(null()))));
    if waits(first.as_mut()).await {
        while rx.try_recv().is_ok() {}
        assert_eq!(first.await.unwrap(), 7, "its worker's ledger is an fd, too");
    } else {
        assert!(!is_alone, "it ended");
    }
    while rx.try_recv().is_ok() {}

    congest(&tx);
    let mut second = std::pin::pin!(pool.submit(task!(take(null()))));
    if waits(second.as_mut()).await {
        while rx.try_recv().is_ok() {}
        assert_eq!(second.await.unwrap(), 7);
    } else {
        assert!(!is_alone, "it ended");
    }
    assert_eq!(pool.status().counts.restarts, 0);
    if !is_alone {
        return;
    }

    congest(&tx);
    let mut third = std::pin::pin!(pool.submit(task!(take(null()))));
    assert!(waits(third.as_mut()).await, "it ended");
    pool.cancel().await;
    assert!(third.await.is_err(), "what waits can be cancelled");
    let mut fourth = std::pin::pin!(never.submit(task!(take(null()))));
    assert!(waits(fourth.as_mut()).await, "it ended");
    never.cancel().await;
    assert!(fourth.await.is_err());
}

#[tokio::test]
async fn with_too_many_fds_under_way_a_pool_waits() {
    spawn_process(task!(use_a_pool_past_the_limit().await)).await.unwrap().join().await.unwrap();
}
