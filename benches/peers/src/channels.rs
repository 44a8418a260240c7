//! Typed channels to another process: there and back, one way, and a megabyte.

use std::process::{Child, Command, Stdio};

use ipc_channel::ipc::{self, IpcOneShotServer, IpcReceiver, IpcSender};
use multiproc::{Duplex, duplex, spawn_process, task};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};

use crate::support::{Each, each, line, micros};
use crate::{Python, in_turns};

/// What goes both ways. Only a `Ping`, and bytes, are given back.
#[derive(Debug, Serialize, Deserialize)]
enum Message {
    Ping(u64),
    OneWay([u64; 4]),
    Bytes(bytes::Bytes),
}

impl Message {
    fn asks(&self) -> bool {
        !matches!(self, Self::OneWay(_))
    }
}

type IpcEnds = (IpcSender<Message>, IpcReceiver<Message>);
type TokioIpcEnds = (tokio_unix_ipc::Sender<Message>, tokio_unix_ipc::Receiver<Message>);

fn other_side(who: &str, at: &str) -> Child {
    Command::new("/proc/self/exe").args([who, at]).stdin(Stdio::null()).spawn().unwrap()
}

/// Whether this process is the other side of a peer's channel; if so, it has been that.
pub(crate) fn is_other_side() -> bool {
    let args: Vec<_> = std::env::args().collect();
    let [_, who, at] = &args[..] else { return false };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match who.as_str() {
        "ipc-channel" => {
            let (to_us, ours) = ipc::channel().unwrap();
            let (theirs, from_us) = ipc::channel().unwrap();
            IpcSender::<IpcEnds>::connect(at.clone()).unwrap().send((to_us, from_us)).unwrap();
            while let Ok(message) = ours.recv() {
                if message.asks() {
                    theirs.send(message).unwrap();
                }
            }
        }
        "tokio-unix-ipc" => runtime.block_on(async {
            let first = tokio_unix_ipc::Receiver::<TokioIpcEnds>::connect(at).await.unwrap();
            let (tx, rx) = first.recv().await.unwrap();
            while let Ok(message) = rx.recv().await {
                if message.asks() {
                    tx.send(message).await.unwrap();
                }
            }
        }),
        "remoc" => runtime.block_on(async {
            let (read, write) = UnixStream::connect(at).await.unwrap().into_split();
            let (connection, mut tx, mut rx) =
                remoc::Connect::io::<_, _, Message, Message, remoc::codec::Default>(remoc::Cfg::default(), read, write)
                    .await
                    .unwrap();
            tokio::spawn(connection);
            while let Ok(Some(message)) = rx.recv().await {
                if message.asks() {
                    tx.send(message).await.unwrap();
                }
            }
        }),
        _ => return false,
    }
    true
}

async fn give_back(mut end: Duplex<Message, Message>) {
    while let Some(message) = end.recv().await.unwrap() {
        if message.asks() {
            Duplex::send(&end, message).await.unwrap();
        }
    }
}

/// Sends with `$send` and receives with `$recv`: a number of pings; many one way and a ping behind them; bytes.
macro_rules! rounds {
    ($what:expr, $send:expr, $recv:expr) => {
        match $what {
            What::Ping => {
                each(300, async {
                    for n in 0..300 {
                        $send(Message::Ping(n)).await;
                        assert!(matches!($recv().await, Message::Ping(back) if back == n));
                    }
                })
                .await
            }
            What::OneWay => {
                each(20_000, async {
                    for n in 0..20_000 {
                        $send(Message::OneWay([n % 100, 1, 2, 3])).await;
                    }
                    $send(Message::Ping(0)).await;
                    $recv().await;
                })
                .await
            }
            What::Bytes(len) => {
                let payload = bytes::Bytes::from(vec![7_u8; len]);
                let rounds = (16 << 20 >> len.ilog2()).clamp(1, 10) as u32;
                each(rounds, async {
                    for _ in 0..rounds {
                        $send(Message::Bytes(payload.clone())).await;
                        assert!(matches!($recv().await, Message::Bytes(back) if back.len() == len));
                    }
                })
                .await
            }
        }
    };
}

#[derive(Clone, Copy)]
enum What {
    Ping,
    OneWay,
    Bytes(usize),
}

pub(crate) async fn all(python: &Python) {
    let (mut ours, theirs) = duplex::<Message, Message>().unwrap();
    let child = spawn_process(task!(give_back(theirs).await)).await.unwrap();

    let (server, at) = IpcOneShotServer::<IpcEnds>::new().unwrap();
    let mut ipc_child = other_side("ipc-channel", &at);
    let (_, (ipc_tx, ipc_rx)) = server.accept().unwrap();

    let bootstrapper = tokio_unix_ipc::Bootstrapper::new().unwrap();
    let mut tokio_ipc_child = other_side("tokio-unix-ipc", bootstrapper.path().to_str().unwrap());
    let (tokio_ipc_tx, their_rx) = tokio_unix_ipc::channel::<Message, Message>().unwrap();
    let (their_tx, tokio_ipc_rx) = tokio_unix_ipc::channel::<Message, Message>().unwrap();
    bootstrapper.send((their_tx, their_rx)).await.unwrap();

    let dir = std::env::temp_dir().join(format!("peers-{}", std::process::id()));
    let listener = UnixListener::bind(&dir).unwrap();
    let mut remoc_child = other_side("remoc", dir.to_str().unwrap());
    let (read, write) = listener.accept().await.unwrap().0.into_split();
    std::fs::remove_file(&dir).unwrap();
    let (connection, mut remoc_tx, mut remoc_rx) =
        remoc::Connect::io::<_, _, Message, Message, remoc::codec::Default>(remoc::Cfg::default(), read, write)
            .await
            .unwrap();
    tokio::spawn(connection);

    let mut multiproc = async |what: What| -> Each {
        rounds!(what, async |message| Duplex::send(&ours, message).await.unwrap(), async || {
            ours.recv().await.unwrap().unwrap()
        })
    };
    let ipc_channel = async |what: What| -> Each {
        rounds!(what, async |message| ipc_tx.send(message).unwrap(), async || ipc_rx.recv().unwrap())
    };
    let tokio_unix_ipc = async |what: What| -> Each {
        rounds!(what, async |message| tokio_ipc_tx.send(message).await.unwrap(), async || tokio_ipc_rx
            .recv()
            .await
            .unwrap())
    };
    let mut remoc = async |what: What| -> Each {
        rounds!(what, async |message| remoc_tx.send(message).await.unwrap(), async || {
            remoc_rx.recv().await.unwrap().unwrap()
        })
    };
    let names = ["multiproc::Duplex", "ipc-channel, blocking", "tokio-unix-ipc", "remoc", "multiprocessing.Pipe"];
    for (row, what, asks, runs, rate) in [
        ("peers: typed there and back", What::Ping, "pipe one", 5, false),
        ("peers: typed, one way, each awaited", What::OneWay, "pipe way", 3, true),
        ("peers: 1 MiB there and back", What::Bytes(1 << 20), "pipe 1048576", 3, false),
    ] {
        let times = in_turns!(
            runs; multiproc(what), ipc_channel(what), tokio_unix_ipc(what), remoc(what), python.round(asks)
        );
        for (name, time) in names.into_iter().zip(times) {
            if rate {
                line(row, name, 1e6 / micros(time), "/s");
            } else {
                line(row, name, micros(time), "µs");
            }
        }
    }
    // remoc takes 16 MiB at most.
    let what = What::Bytes(64 << 20);
    let times = in_turns!(
        3; multiproc(what), ipc_channel(what), tokio_unix_ipc(what), python.round("pipe 67108864")
    );
    for (name, time) in [names[0], names[1], names[2], names[4]].into_iter().zip(times) {
        line("peers: 64 MiB there and back", name, micros(time) / 1e3, "ms");
    }
    for child in [&mut ipc_child, &mut tokio_ipc_child, &mut remoc_child] {
        let _ = child.kill();
        let _ = child.wait();
    }
    drop(ours);
    child.join().await.unwrap();
}
