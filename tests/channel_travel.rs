//! Ends of channels that travel, in tasks, results and messages.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use futures::{FutureExt as _, SinkExt as _};
use multiproc::{
    AckedQueue, AckedReceiver, CallError, Client, Duplex, Receiver, RecvError, SendError, Sender, channel, duplex,
    spawn_process, task,
};
use serde::{Deserialize, Serialize};

multiproc::test_support!();

fn upper(mut end: Duplex<String, String>) -> u32 {
    let mut count = 0;
    while let Some(text) = end.blocking_recv().unwrap() {
        end.blocking_send(text.to_uppercase()).unwrap();
        count += 1;
    }
    count
}

#[tokio::test]
async fn ends_travel_in_arguments() {
    let (mut ours, theirs) = duplex::<String, String>().unwrap();
    let child = spawn_process(task!(upper(theirs))).await.unwrap();
    for text in ["a", "bc"] {
        ours.send(text.to_owned()).await.unwrap();
        assert_eq!(ours.recv().await.unwrap(), Some(text.to_uppercase()));
    }
    drop(ours);
    assert_eq!(child.join().await.unwrap(), 2);
}

fn make() -> (Sender<u8>, Receiver<u8>) {
    let (tx, rx) = channel().unwrap();
    tx.blocking_send(1).unwrap();
    (tx, rx)
}

#[tokio::test]
async fn ends_travel_in_results() {
    let (tx, mut rx) = spawn_process(task!(make())).await.unwrap().join().await.unwrap();
    tx.send(2).await.unwrap();
    drop(tx);
    assert_eq!(rx.recv().await.unwrap(), Some(1));
    assert_eq!(rx.recv().await.unwrap(), Some(2));
    assert_eq!(rx.recv().await.unwrap(), None);
}

/// A message that carries the way to answer it.
#[derive(Serialize, Deserialize)]
struct Question {
    text: String,
    answer: Sender<String>,
}

async fn answerer(mut questions: Receiver<Question>) {
    while let Some(question) = questions.recv().await.unwrap() {
        question.answer.send(format!("{}!", question.text)).await.unwrap();
    }
}

#[tokio::test]
async fn ends_travel_in_messages() {
    let (questions, theirs) = channel().unwrap();
    let child = spawn_process(task!(answerer(theirs).await)).await.unwrap();
    for text in ["one", "two"] {
        let (answer, mut answers) = channel().unwrap();
        questions.send(Question { text: text.to_owned(), answer }).await.unwrap();
        assert_eq!(answers.recv().await.unwrap(), Some(format!("{text}!")));
        assert_eq!(answers.recv().await.unwrap(), None);
    }
    drop(questions);
    child.join().await.unwrap();
}

/// Polls it once: it waits.
fn waits(future: impl Future) -> bool {
    pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_pending()
}

#[tokio::test]
async fn the_ends_in_an_unread_message_are_closed_with_it() {
    let (questions, unread) = channel().unwrap();
    let (answer, mut answers) = channel::<String>().unwrap();
    questions.send(Question { text: String::new(), answer }).await.unwrap();
    assert!(waits(answers.recv()), "the sender is on its way");
    drop(unread);
    assert_eq!(answers.recv().await.unwrap(), None);
}

type Numbered = (u32, Option<Sender<String>>);

async fn the_rest(mut rx: Receiver<Numbered>) -> Vec<u32> {
    let mut seen = Vec::new();
    while let Some((n, answer)) = rx.recv().await.unwrap() {
        seen.push(n);
        if let Some(answer) = answer {
            answer.send(format!("here is {n}")).await.unwrap();
        }
    }
    seen
}

#[tokio::test]
async fn a_receiver_takes_what_it_has_received_along() {
    let (mut tx, mut rx) = channel::<Numbered>().unwrap();
    let (answer, mut answers) = channel().unwrap();
    let mut answer = Some(answer);
    for n in 0..5 {
        tx.feed((n, if n == 3 { answer.take() } else { None })).await.unwrap();
    }
    tx.flush().await.unwrap();
    assert_eq!(rx.recv().await.unwrap().unwrap().0, 0, "all that has come is in here now");
    let child = spawn_process(task!(the_rest(rx).await)).await.unwrap();
    tx.send((5, None)).await.unwrap();
    drop(tx);
    assert_eq!(child.join().await.unwrap(), [1, 2, 3, 4, 5]);
    assert_eq!(answers.recv().await.unwrap().as_deref(), Some("here is 3"));
    assert_eq!(answers.recv().await.unwrap(), None);
}

/// Gives what comes until the end, and what is said of a message that is fed then, and of one that is sent.
async fn what_comes_and_goes(mut end: Duplex<u32, u32>) -> (Vec<u32>, [Result<(), String>; 2]) {
    let mut seen = Vec::new();
    while let Some(n) = end.recv().await.unwrap() {
        seen.push(n);
    }
    let fed = end.feed(9).await.map_err(|error| error.to_string());
    (seen, [fed, end.send(9).await.map_err(|error| error.to_string())])
}

fn closed() -> Result<(), String> {
    Err(SendError::Closed.to_string())
}

#[tokio::test]
async fn a_duplex_that_is_closed_for_sending_travels_and_stays_so() {
    let (mut ours, mut theirs) = duplex::<u32, u32>().unwrap();
    ours.close().await.unwrap();
    theirs.send_all(&mut futures::stream::iter([1, 2].map(Ok))).await.unwrap();
    assert_eq!(ours.recv().await.unwrap(), Some(1), "all that has come is in here now");
    let child = spawn_process(task!(what_comes_and_goes(ours).await)).await.unwrap();
    assert_eq!(theirs.recv().await.unwrap(), None);
    theirs.send(3).await.unwrap();
    theirs.close().await.unwrap();
    assert_eq!(child.join().await.unwrap(), (vec![2, 3], [closed(), closed()]));
}

/// Not at once: a process that another test is just starting has a copy of all fds for a moment.
macro_rules! until_closed {
    ($said:expr, $closed:pat) => {
        while !matches!($said.await, Err($closed)) {}
    };
}

#[tokio::test]
async fn a_duplex_whose_peer_has_gone_travels_with_what_came() {
    for is_known in [false, true] {
        let (ours, theirs) = duplex::<u32, u32>().unwrap();
        for n in [1, 2] {
            theirs.send(n).await.unwrap();
        }
        drop(theirs);
        if is_known {
            until_closed!(ours.send(9), SendError::Closed);
        }
        let child = spawn_process(task!(what_comes_and_goes(ours).await)).await.unwrap();
        let fed = if is_known { closed() } else { Ok(()) };
        assert_eq!(child.join().await.unwrap(), (vec![1, 2], [fed, closed()]));
    }
}

async fn is_closed(mut tx: Sender<u8>) -> bool {
    matches!(tx.feed(1).await, Err(SendError::Closed)) && matches!(tx.send(1).await, Err(SendError::Closed))
}

#[tokio::test]
async fn a_sender_that_is_closed_is_closed_where_it_goes() {
    let (mut done, mut rx) = channel().unwrap();
    done.close().await.unwrap();
    let (unheard, _) = channel().unwrap();
    until_closed!(unheard.send(1), SendError::Closed);
    for tx in [done, unheard] {
        assert!(spawn_process(task!(is_closed(tx).await)).await.unwrap().join().await.unwrap());
    }
    assert_eq!(rx.recv().await.unwrap(), None);
}

fn consumer_of_who_ends() -> AckedReceiver<u8> {
    let jobs = AckedQueue::new();
    let consumer = jobs.receiver().unwrap();
    // Not dropped, which would say to the consumer that there is nothing more.
    std::mem::forget(jobs);
    consumer
}

async fn have_gone(client: Client<u8, u8>, mut consumer: AckedReceiver<u8>) -> bool {
    matches!(client.call(1).await, Err(CallError::Closed)) && matches!(consumer.recv().await, Err(RecvError::Truncated))
}

#[tokio::test]
async fn a_client_and_a_consumer_that_know_their_other_side_gone_travel() {
    let (calls, _) = duplex().unwrap();
    let client = Client::new(calls);
    until_closed!(client.call(1), CallError::Closed);
    let mut consumer = spawn_process(task!(consumer_of_who_ends())).await.unwrap().join().await.unwrap();
    assert!(matches!(consumer.recv().await, Err(RecvError::Truncated)));
    let child = spawn_process(task!(have_gone(client, consumer).await)).await.unwrap();
    assert!(child.join().await.unwrap());
}

#[tokio::test]
async fn a_closed_end_that_is_not_sent_after_all_stays_closed() {
    let (mut ours, theirs) = duplex::<u32, u32>().unwrap();
    ours.close().await.unwrap();
    let (mut parcel, _unread) = channel::<&Duplex<u32, u32>>().unwrap();
    parcel.close().await.unwrap();
    assert!(matches!(parcel.send(&ours).await, Err(SendError::Closed)));
    drop(parcel);
    assert!(matches!(ours.send(1).await, Err(SendError::Closed)));
    assert!(matches!(ours.feed(1).now_or_never(), Some(Err(SendError::Closed))));
    theirs.send(2).await.unwrap();
    assert_eq!(ours.recv().await.unwrap(), Some(2));
}

#[tokio::test]
async fn an_end_that_was_sent_away_refuses_to_go_on() {
    /// Keeps what it encodes.
    #[derive(Debug)]
    struct Kept<T>(Arc<T>);
    impl<T: Serialize> Serialize for Kept<T> {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            self.0.serialize(serializer)
        }
    }
    let (tx, mut rx) = channel::<u8>().unwrap();
    let tx = Arc::new(tx);
    let (parcel, mut parcels) = channel::<Kept<Sender<u8>>>().unwrap();
    parcel.send(Kept(Arc::clone(&tx))).await.unwrap();
    assert!(matches!(tx.send(1).await, Err(SendError::Io(_))));
    assert!(matches!(parcel.send(Kept(Arc::clone(&tx))).await, Err(SendError::Encode(_))));
    drop((tx, parcel));
    assert!(waits(rx.recv()), "the one that is on its way holds the channel open");
    let _ = &mut parcels;
}

#[tokio::test]
async fn a_sender_with_a_message_under_way_cannot_be_sent() {
    let (tx, rx) = channel::<Vec<u8>>().unwrap();
    assert!(waits(tx.send(vec![0; 8 << 20])));
    let (parcel, _parcels) = channel().unwrap();
    let error = parcel.send(tx).await.unwrap_err();
    assert!(matches!(error, SendError::Encode(_)), "{error:?}");
    drop(rx);
}

#[test]
fn an_end_is_no_value_outside_a_message() {
    let (tx, rx) = channel::<u8>().unwrap();
    assert!(postcard::to_allocvec(&tx).is_err());
    assert!(postcard::to_allocvec(&rx).is_err());
    tx.blocking_send(1).unwrap();
}
