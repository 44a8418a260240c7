//! Ends in a message that could not be sent: they have gone nowhere, and go on where they are.

#![expect(clippy::needless_pass_by_value, reason = "a task owns its arguments")]

mod support;

use std::sync::{Arc, Mutex, PoisonError};

use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use multiproc::sync::watch;
use multiproc::{
    AckedQueue, AckedReceiver, Client, Duplex, Process, ProcessPool, Receiver, SendError, Sender, SpawnError,
    TaskError, TrySendError, TrySubmitError, channel, duplex, queue, serve, spawn_process, task,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

multiproc::test_support!();

/// An end of which somebody here has another hold.
struct Kept<T>(Arc<Mutex<T>>);

impl<T> Kept<T> {
    fn new(end: T) -> Self {
        Self(Arc::new(Mutex::new(end)))
    }

    fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T> Clone for Kept<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Serialize> Serialize for Kept<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.with(|end| end.serialize(serializer))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Kept<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::new)
    }
}

/// What stands behind the ends in a message, and may keep it from being sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    Fine,
    Fails,
    Panics,
    Long,
}

impl Serialize for Rest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Fine => serializer.serialize_str(""),
            Self::Fails => Err(serde::ser::Error::custom("not to be sent")),
            Self::Panics => panic!("on purpose"),
            Self::Long => serializer.serialize_str(&"x".repeat(2000)),
        }
    }
}

impl<'de> Deserialize<'de> for Rest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|_| Self::Fine)
    }
}

type Ends = (Kept<Sender<u8>>, Kept<Receiver<u8>>, Kept<Duplex<u8, u8>>, Kept<AckedReceiver<u8>>, Client<u8, u8>);

/// One of each, with what is at the other side.
struct Pairs {
    ends: Ends,
    heard: Receiver<u8>,
    told: Sender<u8>,
    other: Duplex<u8, u8>,
    jobs: AckedQueue<u8>,
    doubling: tokio::task::JoinHandle<Result<(), multiproc::RecvError>>,
}

impl Pairs {
    fn new() -> Self {
        let ((tx, heard), (told, rx), (both, other)) = (channel().unwrap(), channel().unwrap(), duplex().unwrap());
        let (calls, called) = duplex().unwrap();
        let doubling = tokio::spawn(serve(called, |n: u8| async move { n.wrapping_mul(2) }));
        let jobs = AckedQueue::new();
        let consumer = jobs.receiver().unwrap();
        let ends = (Kept::new(tx), Kept::new(rx), Kept::new(both), Kept::new(consumer), Client::new(calls));
        Self { ends, heard, told, other, jobs, doubling }
    }

    fn message(&self, rest: Rest) -> (Ends, Rest) {
        (self.ends.clone(), rest)
    }

    /// Uses them all.
    #[track_caller]
    fn go_on(&mut self) {
        let (tx, rx, both, consumer, client) = &self.ends;
        tx.with(|tx| tx.blocking_send(1)).unwrap();
        assert_eq!(self.heard.blocking_recv().unwrap(), Some(1));
        self.told.blocking_send(2).unwrap();
        assert_eq!(rx.with(Receiver::blocking_recv).unwrap(), Some(2));
        both.with(|both| both.blocking_send(3)).unwrap();
        assert_eq!(self.other.blocking_recv().unwrap(), Some(3));
        self.other.blocking_send(4).unwrap();
        assert_eq!(both.with(Duplex::blocking_recv).unwrap(), Some(4));
        self.jobs.blocking_send(5).unwrap();
        consumer.with(AckedReceiver::blocking_recv).unwrap().unwrap().ack().unwrap();
        // Its server is a task of this runtime.
        assert_eq!(tokio::task::block_in_place(|| client.blocking_call(6)).unwrap(), 12);
    }

    async fn end(self) {
        drop(self.ends);
        self.doubling.await.unwrap().unwrap();
    }
}

fn refused(sent: Result<(), SendError>) {
    assert!(matches!(sent, Err(SendError::Encode(_) | SendError::TooLarge { .. })), "{sent:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ends_in_a_message_that_cannot_be_sent_go_on() {
    let mut pairs = Pairs::new();
    for (rest, max_fds) in [(Rest::Fails, 64), (Rest::Long, 64), (Rest::Fine, 4)] {
        let (tx, _rx) = channel().unwrap();
        let mut tx = tx.max_message(1000).max_fds(max_fds);
        refused(tx.send(pairs.message(rest)).await);
        pairs.go_on();
        refused(tx.blocking_send(pairs.message(rest)));
        pairs.go_on();
        refused(tx.feed(pairs.message(rest)).await);
        pairs.go_on();

        let (queue_tx, _rx) = queue().unwrap();
        let queue_tx = queue_tx.max_message(1000).max_fds(max_fds);
        refused(queue_tx.send(pairs.message(rest)).await);
        pairs.go_on();
        let refusal = queue_tx.try_send(pairs.message(rest));
        assert!(matches!(refusal, Err(TrySendError::Refused(_))));
        pairs.go_on();

        let acked = AckedQueue::new().max_message(1000).max_fds(max_fds);
        refused(acked.send(pairs.message(rest)).await);
        pairs.go_on();

        let (calls, _called) = duplex::<(Ends, Rest), u8>().unwrap();
        let client = Client::new(calls.max_message(1000).max_fds(max_fds));
        assert!(client.call(pairs.message(rest)).await.is_err());
        pairs.go_on();
    }
    assert!(watch(pairs.message(Rest::Fails)).is_err());
    pairs.go_on();
    let (tx, _rx) = channel().unwrap();
    let panics = std::panic::AssertUnwindSafe(async { tx.send(pairs.message(Rest::Panics)).await });
    assert!(panics.catch_unwind().await.is_err());
    pairs.go_on();
    // And then they can be sent.
    let (tx, mut rx) = channel().unwrap();
    tx.send(pairs.message(Rest::Fine)).await.unwrap();
    assert!(pairs.ends.0.with(|tx| tx.blocking_send(1)).is_err());
    assert!(matches!(pairs.ends.4.call(1).await, Err(multiproc::CallError::Io(_))));
    let (ends, _) = rx.recv().await.unwrap().unwrap();
    pairs.ends = ends;
    pairs.go_on();
    pairs.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ends_in_an_answer_that_cannot_be_sent_go_on() {
    let mut pairs = Pairs::new();
    let (calls, called) = duplex().unwrap();
    let ends = pairs.ends.clone();
    let service = tokio::spawn(serve(called, move |()| {
        let ends = ends.clone();
        async move { (ends, Rest::Fails) }
    }));
    let client = Client::<(), (Ends, Rest)>::new(calls);
    assert!(matches!(client.call(()).await, Err(multiproc::CallError::Refused { .. })));
    pairs.go_on();
    drop(client);
    service.await.unwrap().unwrap();
    pairs.end().await;
}

fn take(message: (Ends, Rest)) -> Ends {
    message.0
}

fn count(messages: Vec<(Ends, Rest)>) -> usize {
    messages.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ends_in_a_task_that_cannot_be_sent_go_on() {
    let mut pairs = Pairs::new();
    let pool = ProcessPool::new(1);
    assert!(matches!(spawn_process(task!(take(pairs.message(Rest::Fails)))).await, Err(SpawnError::Encode(_))));
    pairs.go_on();
    assert!(matches!(pool.submit(task!(take(pairs.message(Rest::Fails)))).await, Err(TaskError::Encode(_))));
    pairs.go_on();
    assert!(matches!(pool.submit(task!(take(pairs.message(Rest::Panics)))).await, Err(TaskError::Panicked(_))));
    pairs.go_on();
    let refusal = pool.try_submit(task!(take(pairs.message(Rest::Fails))));
    assert!(matches!(refusal, Err(TrySubmitError::Refused(_))));
    pairs.go_on();
    // More fds than one message has, though each value has few.
    let many = (0..20).map(|_| Pairs::new()).collect::<Vec<_>>();
    let mut messages: Vec<_> = many.iter().map(|pairs| pairs.message(Rest::Fine)).collect();
    messages.push(pairs.message(Rest::Fine));
    assert!(matches!(pool.submit(task!(count(messages))).await, Err(TaskError::Encode(_))));
    pairs.go_on();
    for mut pairs in many {
        pairs.go_on();
        pairs.end().await;
    }
    pool.close().await;
    pairs.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ends_in_a_task_whose_process_cannot_be_started_go_on() {
    let mut pairs = Pairs::new();
    let start = Process::builder().current_dir("/no/such/directory").spawn(task!(take(pairs.message(Rest::Fine))));
    assert!(matches!(start.await, Err(SpawnError::Directory { .. })));
    pairs.go_on();
    pairs.end().await;
}

/// Alone in a chunk, and beside others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ends_in_an_input_that_cannot_be_sent_go_on() {
    let pool = ProcessPool::new(1);
    for rest in [Rest::Fails, Rest::Panics] {
        let (mut bad, mut good) = (Pairs::new(), Pairs::new());
        let inputs = vec![good.message(Rest::Fine), bad.message(rest)];
        let results: Vec<_> = pool.map(inputs, take).chunk(2).collect().await;
        bad.go_on();
        let mut results = results.into_iter();
        good.ends = results.next().unwrap().unwrap();
        good.go_on();
        assert!(results.next().unwrap().is_err());
        good.end().await;
        bad.end().await;
    }
    pool.close().await;
}

/// Of a value that may hold ends; what holds none only takes up room.
type Some5 = (Option<(Ends, Rest)>, Vec<u8>);

fn nothing(bytes: usize) -> Some5 {
    (None, vec![0; bytes])
}

impl Pairs {
    fn some(&self) -> Some5 {
        (Some(self.message(Rest::Fine)), Vec::new())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ends_in_a_message_that_is_given_up_before_it_leaves_go_on() {
    let mut pairs = Pairs::new();
    let (tx, rx) = channel::<Some5>().unwrap();
    drop(tx.send(pairs.some()));
    pairs.go_on();
    let mut first = Box::pin(tx.send(nothing(8 << 20)));
    assert!(first.as_mut().now_or_never().is_none());
    assert!(tx.send(pairs.some()).now_or_never().is_none());
    pairs.go_on();
    drop((rx, first));

    let (both, other) = duplex::<Some5, u8>().unwrap();
    drop(both.send(pairs.some()));
    pairs.go_on();
    drop(other);

    let (mut queue_tx, queue_rx) = queue::<Some5>().unwrap();
    drop(queue_tx.send(pairs.some()));
    pairs.go_on();
    while queue_tx.try_send(nothing(1000)).is_ok() {}
    assert!(queue_tx.send(pairs.some()).now_or_never().is_none());
    pairs.go_on();
    queue_tx.start_send_unpin(pairs.some()).unwrap();
    drop(queue_tx);
    pairs.go_on();
    drop(queue_rx);

    let acked = AckedQueue::<Some5>::new();
    drop(acked.send(pairs.some()));
    pairs.go_on();
    for _ in 0..1024 {
        acked.send(nothing(0)).await.unwrap();
    }
    assert!(acked.send(pairs.some()).now_or_never().is_none());
    pairs.go_on();

    let (calls, called) = duplex::<Some5, u8>().unwrap();
    let client = Client::new(calls);
    drop(client.call(pairs.some()));
    pairs.go_on();
    let mut first = Box::pin(client.call(nothing(8 << 20)));
    assert!(first.as_mut().now_or_never().is_none());
    assert!(client.call(pairs.some()).now_or_never().is_none());
    pairs.go_on();
    drop((first, called));
    pairs.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ends_in_a_message_that_nobody_can_receive_go_on() {
    fn closed(sent: Result<(), SendError>) {
        assert!(matches!(sent, Err(SendError::Closed)), "{sent:?}");
    }
    let mut pairs = Pairs::new();
    // The first one finds it out, and the others know.
    for blocking in [false, true] {
        let (mut tx, _) = channel().unwrap();
        for _ in 0..2 {
            let message = pairs.message(Rest::Fine);
            closed(if blocking { tx.blocking_send(message) } else { tx.send(message).await });
            pairs.go_on();
        }
        closed(tx.start_send_unpin(pairs.message(Rest::Fine)));
        pairs.go_on();

        let (mut both, _) = duplex::<_, u8>().unwrap();
        for _ in 0..2 {
            let message = pairs.message(Rest::Fine);
            closed(if blocking { both.blocking_send(message) } else { both.send(message).await });
            pairs.go_on();
        }
        closed(both.start_send_unpin(pairs.message(Rest::Fine)));
        pairs.go_on();

        let (mut queue_tx, _) = queue().unwrap();
        let message = pairs.message(Rest::Fine);
        closed(if blocking { queue_tx.blocking_send(message) } else { queue_tx.send(message).await });
        pairs.go_on();
        closed(queue_tx.start_send_unpin(pairs.message(Rest::Fine)));
        pairs.go_on();

        let (calls, _) = duplex::<(Ends, Rest), u8>().unwrap();
        let client = Client::new(calls);
        for _ in 0..2 {
            let message = pairs.message(Rest::Fine);
            assert!(if blocking { client.blocking_call(message) } else { client.call(message).await }.is_err());
            pairs.go_on();
        }
    }
    let (mut tx, mut rx) = channel().unwrap();
    tx.close().await.unwrap();
    closed(tx.start_send_unpin(pairs.message(Rest::Fine)));
    pairs.go_on();
    assert!(rx.recv().await.unwrap().is_none());
    let (mut queue_tx, queue_rx) = queue().unwrap();
    queue_tx.close().await.unwrap();
    closed(queue_tx.start_send_unpin(pairs.message(Rest::Fine)));
    closed(queue_tx.send(pairs.message(Rest::Fine)).await);
    closed(queue_tx.blocking_send(pairs.message(Rest::Fine)));
    pairs.go_on();
    assert!(queue_rx.recv().await.unwrap().is_none());
    // What a sink was fed leaves with the next flush, or never.
    let (mut tx, rx) = channel().unwrap();
    tx.feed(pairs.message(Rest::Fine)).await.unwrap();
    drop(rx);
    closed(tx.flush().await);
    pairs.go_on();
    pairs.end().await;
}

/// In a process of its own: one that another test starts just then has the client's socket until it is its program.
#[test]
fn the_ends_in_an_answer_whose_caller_has_gone_go_on() {
    support::alone("the_ends_in_an_answer_whose_caller_has_gone_go_on", || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut pairs = Pairs::new();
            let (calls, called) = duplex::<(), (Ends, Rest)>().unwrap();
            let (at_work, works) = std::sync::mpsc::channel();
            let (go, may_go) = std::sync::mpsc::channel();
            let ends = pairs.ends.clone();
            let service = std::thread::spawn(move || {
                multiproc::blocking_serve(called, move |()| {
                    at_work.send(()).unwrap();
                    may_go.recv().unwrap();
                    (ends.clone(), Rest::Fine)
                })
            });
            let asking = std::thread::spawn(move || {
                // In a runtime of its own, which has gone with the client: what just reads for that in another thread keeps it a
                // moment longer.
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let client = Client::new(calls);
                runtime.block_on(async {
                    let mut call = std::pin::pin!(client.call(()));
                    assert!(call.as_mut().now_or_never().is_none());
                    works.recv().unwrap();
                });
            });
            asking.join().unwrap();
            go.send(()).unwrap();
            let _ = service.join().unwrap();
            pairs.go_on();
            pairs.end().await;
        });
    });
}

fn wait_for_word(mut word: Receiver<()>) {
    word.blocking_recv().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ends_in_a_task_that_no_worker_begins_go_on() {
    let mut pairs = Pairs::new();
    let pool = ProcessPool::new(1);
    let (word, heard) = channel().unwrap();
    let blocked = pool.spawn(task!(wait_for_word(heard))).await.unwrap();
    assert!(pool.submit(task!(take(pairs.message(Rest::Fine)))).now_or_never().is_none());
    pairs.go_on();
    assert!(pool.spawn(task!(take(pairs.message(Rest::Fine)))).now_or_never().is_none());
    pairs.go_on();
    assert!(pool.try_submit(task!(take(pairs.message(Rest::Fine)))).is_err());
    pairs.go_on();
    let inputs = vec![pairs.message(Rest::Fine)];
    assert!(pool.map(inputs, take).next().now_or_never().is_none());
    pairs.go_on();
    word.send(()).await.unwrap();
    blocked.await.unwrap();
    pool.close().await;
    let submitted = pool.submit(task!(take(pairs.message(Rest::Fine)))).await;
    assert!(matches!(submitted, Err(TaskError::Closed)));
    pairs.go_on();
    assert!(pool.spawn(task!(take(pairs.message(Rest::Fine)))).await.is_err());
    pairs.go_on();
    assert!(pool.try_submit(task!(take(pairs.message(Rest::Fine)))).is_err());
    pairs.go_on();
    let results: Vec<_> = pool.map(vec![pairs.message(Rest::Fine)], take).collect().await;
    assert!(results.iter().all(Result::is_err));
    pairs.go_on();
    pairs.end().await;
}

/// An item that looks into its own queue's receiver while that is on its way, and can't be sent then.
struct Looks(Kept<AckedReceiver<u8>>);

impl Serialize for Looks {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        self.0.with(|rx| assert!(!matches!(rx.recv().now_or_never(), Some(Ok(_)))));
        Err(serde::ser::Error::custom("not to be sent"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_was_polled_while_it_was_moved_receives_once_that_is_called_off() {
    let jobs = AckedQueue::new();
    let receiver = Kept::new(jobs.receiver().unwrap());
    let failed = spawn_process(task!(look((receiver.clone(), Looks(receiver.clone()))))).await;
    assert!(matches!(failed, Err(SpawnError::Encode(_))));
    jobs.send(7).await.unwrap();
    let mut rx = Arc::into_inner(receiver.0).unwrap().into_inner().unwrap();
    let item = tokio::time::timeout(std::time::Duration::from_secs(20), rx.recv()).await;
    assert_eq!(*item.expect("it is in the queue").unwrap().unwrap(), 7);
}

impl<'de> Deserialize<'de> for Looks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Kept::deserialize(deserializer).map(Self)
    }
}

fn look(_: (Kept<AckedReceiver<u8>>, Looks)) {}
