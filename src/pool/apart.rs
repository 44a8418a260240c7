//! Whether a worker is on another processor than who reads its answers, who is then woken early.
//!
//! To wake a processor that sleeps takes some 20 µs of a virtual machine, in which a small task is done. Where the worker is on
//! another one, its reading of a task wakes this side too, which is up by the time of the answer. Where both share one, that would
//! only be a turn more through the scheduler for each task.

use std::sync::Arc;

use crate::channel::socket::{Berth, Socket};
use crate::sys::ledger::Ledger;

/// By so many answers there must have been more of the one kind than of the other before it changes: that takes two system calls.
const SURE: u8 = 16;

/// Where the answers of a worker came from.
#[derive(Debug)]
pub(super) struct Apart {
    ledger: Arc<Ledger>,
    /// How many more of them came from another processor, and were waited for.
    surplus: u8,
    /// Whether the last answer was found, and nothing has come since that tells of it.
    found: bool,
}

impl Apart {
    pub(super) fn new(ledger: Arc<Ledger>) -> Self {
        Self { ledger, surplus: 0, found: false }
    }

    /// Whether it was on another one than this thread is when it had its last task.
    pub(super) fn is_apart(&self) -> bool {
        self.ledger.is_apart()
    }

    /// Something came from it, to this thread.
    pub(super) fn heard(&mut self, socket: &Socket, berth: &mut Berth) {
        self.found = false;
        let apart = self.ledger.is_apart();
        self.count(apart, socket, berth);
    }

    /// The answer to its only task was found in the ledger. Where nothing comes that tells of it, nobody is to be woken.
    pub(super) fn answered(&mut self, socket: &Socket, berth: &mut Berth) {
        if self.found {
            self.count(false, socket, berth);
        }
        self.found = true;
    }

    fn count(&mut self, apart: bool, socket: &Socket, berth: &mut Berth) {
        self.surplus = if apart { SURE.min(self.surplus + 1) } else { self.surplus.saturating_sub(1) };
        match self.surplus {
            0 => socket.wake_early(false, berth),
            SURE => socket.wake_early(true, berth),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket;
    use crate::sys::worker::on_last_processor;

    #[test]
    fn who_finds_answers_of_which_nothing_is_told_is_not_woken_early_any_more() {
        on_last_processor(|| {
            let socket = Socket::new(socket::stream_pair().unwrap().0);
            let (mut apart, mut berth) = (Apart::new(Arc::new(Ledger::create().unwrap().0)), Berth::default());
            for _ in 0..SURE {
                apart.heard(&socket, &mut berth);
            }
            // Each of which is told of afterwards.
            for _ in 0..2 * SURE {
                apart.answered(&socket, &mut berth);
                apart.heard(&socket, &mut berth);
            }
            assert!(socket.is_woken_early());
            for _ in 0..SURE {
                apart.answered(&socket, &mut berth);
                assert!(socket.is_woken_early());
            }
            apart.answered(&socket, &mut berth);
            assert!(!socket.is_woken_early());
        });
    }

    #[test]
    fn who_reads_answers_is_woken_early_once_most_of_them_come_from_another_processor() {
        on_last_processor(|| {
            let socket = Socket::new(socket::stream_pair().unwrap().0);
            let (ledger, fd) = Ledger::create().unwrap();
            let worker = Ledger::open(fd).unwrap();
            let (mut apart, mut berth) = (Apart::new(Arc::new(ledger)), Berth::default());
            for _ in 1..SURE {
                apart.heard(&socket, &mut berth);
                assert!(!socket.is_woken_early());
            }
            apart.heard(&socket, &mut berth);
            assert!(socket.is_woken_early());
            worker.shares_processor();
            for _ in 1..SURE {
                apart.heard(&socket, &mut berth);
                assert!(socket.is_woken_early());
            }
            apart.heard(&socket, &mut berth);
            assert!(!socket.is_woken_early());
        });
    }
}
