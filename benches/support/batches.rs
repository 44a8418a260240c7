//! Messages of many callers in one write: the limit that many tasks at once are held against.

use std::collections::VecDeque;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::task::coop::unconstrained;

use crate::bare::{Bare, Role};

/// A task that owns a bare socket: all that callers want sent goes in one write, and who waits is told when it comes back. No
/// deadlines, no results that differ in size, nothing that survives a death.
pub(crate) struct Batches {
    wanted: mpsc::UnboundedSender<(u32, oneshot::Sender<u32>)>,
    /// Of the other side.
    pub(crate) pid: u32,
}

/// As many bytes as a small task of ours and its share of an answer take on the socket.
const SIZE: usize = 40;

/// The most that are on their way. Both sides' sockets hold them, so that neither waits for the other.
const AHEAD: usize = 2_000;

impl Batches {
    pub(crate) fn start() -> Self {
        let (sender, mut wanted) = mpsc::unbounded_channel::<(u32, oneshot::Sender<u32>)>();
        let mut bare = Bare::start(Role::GiveBackAll);
        let pid = bare.id();
        tokio::spawn(async move {
            let (mut read, mut write) = bare.socket().split();
            let (mut jobs, mut waiting) = (Vec::new(), VecDeque::new());
            let (mut out, mut back, mut filled) = (Vec::new(), vec![0; 64 << 10], 0);
            loop {
                tokio::select! {
                    count = wanted.recv_many(&mut jobs, AHEAD - waiting.len()), if waiting.len() < AHEAD => {
                        if count == 0 {
                            break;
                        }
                        for (n, done) in jobs.drain(..) {
                            out.extend_from_slice(&n.to_le_bytes());
                            out.resize(out.len() + SIZE - 4, 0);
                            waiting.push_back(done);
                        }
                        write.write_all(&out).await.unwrap();
                        out.clear();
                    }
                    count = read.read(&mut back[filled..]) => {
                        filled += count.unwrap();
                        let whole = filled / SIZE * SIZE;
                        for answer in back[..whole].chunks_exact(SIZE) {
                            let n = u32::from_le_bytes(answer[..4].try_into().unwrap());
                            let _ = waiting.pop_front().unwrap().send(n + 1);
                        }
                        back.copy_within(whole..filled, 0);
                        filled -= whole;
                    }
                }
            }
        });
        Self { wanted: sender, pid }
    }

    /// Submits, and gives what the result is to be awaited by.
    pub(crate) fn begin(&self, n: u32) -> impl Future<Output = u32> + use<> {
        let (done, result) = oneshot::channel();
        self.wanted.send((n, done)).unwrap();
        // With tokio's budget a `join_all` of this many polls all of them for every 128 that are done.
        let result = unconstrained(result);
        async { result.await.unwrap() }
    }

    pub(crate) async fn submit(&self, n: u32) -> u32 {
        self.begin(n).await
    }
}
