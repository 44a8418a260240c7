//! Messages of channels, beside a bare socket of tokio's.

use std::fmt::Debug;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use futures::future::{join_all, maybe_done};
use futures::{SinkExt as _, StreamExt as _};
use multiproc::{Duplex, Process, Receiver, Sender, channel, duplex, spawn_process, task};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::bare::{Bare, Role};
use crate::support::{Each, each, line, mean, micros};

/// How many are sent in a row.
const MESSAGES: u32 = 50_000;

type Message = [u64; 4];

async fn count(mut rx: Receiver<Message>, done: Sender<u32>) {
    let mut count = 0;
    while let Some(message) = rx.recv().await.unwrap() {
        count += 1;
        if message[0] == 0 {
            done.send(count).await.unwrap();
        }
    }
}

async fn give_back(mut end: Duplex<u64, u64>) {
    while let Some(n) = end.next().await {
        end.send(n.unwrap()).await.unwrap();
    }
}

/// The last one of a row asks for the count.
fn message(n: u32) -> Message {
    [u64::from(n + 1 < MESSAGES), 1, 2, 3]
}

/// A process that counts messages.
struct Counting {
    tx: Sender<Message>,
    counted: Receiver<u32>,
    process: Process<()>,
}

impl Counting {
    async fn start() -> Self {
        let (tx, rx) = channel().unwrap();
        let (done, counted) = channel().unwrap();
        let process = spawn_process(task!(count(rx, done).await)).await.unwrap();
        Self { tx, counted, process }
    }

    async fn end(self) {
        drop(self.tx);
        self.process.join().await.unwrap();
    }
}

/// What a message takes: each awaited before the next, several at a time, and there and back. What is held against a limit is so
/// with as many pairs of processes as that; as for tasks, the mean is what counts.
pub(crate) async fn channels(place: &str, pairs: usize) {
    let place = if pairs > 1 { format!("{place}, {pairs} pairs") } else { place.to_owned() };
    let mut drawn = Vec::new();
    for _ in 0..pairs {
        drawn.push(each_awaited().await);
    }
    let row = format!("one way, each awaited, {place}");
    line(&row, "limit: a bare write each", 1e6 / mean_of(&drawn, 0), "/s");
    line(&row, "multiproc", 1e6 / mean_of(&drawn, 1), "/s");
    several(&place, pairs).await;
    let mut drawn = Vec::new();
    for _ in 0..pairs {
        drawn.push(there_and_back().await);
    }
    let row = format!("typed message there and back, {place}");
    line(&row, "limit: tokio's UnixStream", mean_of(&drawn, 0), "µs");
    line(&row, "multiproc", mean_of(&drawn, 1), "µs");
}

fn mean_of(drawn: &[Vec<Each>], who: usize) -> f64 {
    mean(drawn.iter().map(|each| micros(each[who].time)))
}

async fn each_awaited() -> Vec<Each> {
    let mut counting = Counting::start().await;
    // Both sides of the limit are tokio's, as both sides of a channel are.
    let mut bare = Bare::start(Role::CountAsync(20 * MESSAGES as usize));
    let mut awaited = async || {
        each(MESSAGES, async {
            for n in 0..MESSAGES {
                counting.tx.send(message(n)).await.unwrap();
            }
            counting.counted.recv().await.unwrap();
        })
        .await
    };
    let mut write_each = async || {
        each(MESSAGES, async {
            for _ in 0..MESSAGES {
                bare.socket().write_all(&[7; 20]).await.unwrap();
            }
            bare.socket().read_exact(&mut [0]).await.unwrap();
        })
        .await
    };
    let times = crate::in_turns!(5; write_each(), awaited());
    counting.end().await;
    times
}

/// What waits together leaves together.
async fn several(place: &str, pairs: usize) {
    let [mut in_turn, mut joined, mut in_many, mut fed] = [const { Vec::new() }; 4];
    for _ in 0..pairs {
        let Counting { tx, mut counted, process } = Counting::start().await;
        let mut waiting = async |together: bool| {
            each(MESSAGES, async {
                for first in (0..MESSAGES).step_by(500) {
                    let sends = (first..first + 500).map(|n| tx.send(message(n)));
                    if together {
                        for sent in join_all(sends).await {
                            sent.unwrap();
                        }
                    } else {
                        one_after_the_other(sends).await;
                    }
                }
                counted.recv().await.unwrap();
            })
            .await
        };
        let times = crate::in_turns!(5; waiting(false), waiting(true));
        in_turn.push(vec![times[0]]);
        joined.push(vec![times[1]]);
        let tx = Arc::new(tx);
        let mut by_many = async || {
            each(MESSAGES, async {
                // All but the last, which is to be that.
                let senders = (0..256).map(|of| {
                    let tx = Arc::clone(&tx);
                    tokio::spawn(async move {
                        for n in (of..MESSAGES - 1).step_by(256) {
                            tx.send(message(n)).await.unwrap();
                        }
                    })
                });
                join_all(senders).await.into_iter().for_each(|sender| sender.unwrap());
                tx.send(message(MESSAGES - 1)).await.unwrap();
                counted.recv().await.unwrap();
            })
            .await
        };
        in_many.push(crate::in_turns!(5; by_many()));
        let mut tx = Arc::into_inner(tx).unwrap();
        let mut pass_on = async || {
            each(MESSAGES, async {
                for n in 0..MESSAGES {
                    tx.feed(message(n)).await.unwrap();
                }
                tx.flush().await.unwrap();
                counted.recv().await.unwrap();
            })
            .await
        };
        fed.push(crate::in_turns!(5; pass_on()));
        Counting { tx, counted, process }.end().await;
    }
    let ways = [
        ("500 waiting in one task", in_turn),
        ("500 waiting by join_all", joined),
        ("256 tasks that send", in_many),
        ("fed to the Sink", fed),
    ];
    for (how, drawn) in ways {
        line(&format!("one way, {how}, {place}"), "multiproc", 1e6 / mean_of(&drawn, 0), "/s");
    }
}

/// Has all of them begin, and then awaits each.
async fn one_after_the_other<E: Debug>(sends: impl Iterator<Item = impl Future<Output = Result<(), E>>>) {
    let mut sends: Vec<_> = sends.map(|send| Box::pin(maybe_done(send))).collect();
    poll_fn(|cx| {
        for send in &mut sends {
            let _ = send.as_mut().poll(cx);
        }
        Poll::Ready(())
    })
    .await;
    for mut send in sends {
        send.as_mut().await;
        send.as_mut().take_output().unwrap().unwrap();
    }
}

async fn there_and_back() -> Vec<Each> {
    let (mut ours, theirs) = duplex::<u64, u64>().unwrap();
    let child = spawn_process(task!(give_back(theirs).await)).await.unwrap();
    let mut bare = Bare::start(Role::GiveBackAsync(18));
    let mut typed = async |rounds: u32| {
        each(rounds, async {
            for n in 0..u64::from(rounds) {
                Duplex::send(&ours, n).await.unwrap();
                assert_eq!(ours.recv().await.unwrap(), Some(n));
            }
        })
        .await
    };
    let times = crate::in_turns!(5; bare.ping(18, 2_000), typed(2_000));
    drop(ours);
    child.join().await.unwrap();
    times
}
