//! One worker's place in the pool: what the dispatcher, the callers and the supervisor share of it.
//!
//! A caller that has a task for an idle worker writes it here at once; only what does not fit into the socket, and what
//! needs a clock, wakes the supervisor. Whoever wants a task's worker ended leaves a word here; the supervisor, which
//! alone knows whether that task is still the one that runs, acts on it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::job::Job;
use super::life::{Event, WorkerState};
use crate::channel::outbox::Outbox;
use crate::channel::socket::Socket;
use crate::wire::frame::Frame;
use crate::wire::message::Kind;

#[derive(Debug)]
pub(super) struct Seat {
    /// Numbers the pool's workers, from 0, in the order in which they were first wanted.
    pub(super) index: usize,
    desk: Mutex<Desk>,
    /// Rings when the supervisor should look at the desk.
    pub(super) bell: Notify,
}

/// What lies on the worker's desk.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) state: WorkerState,
    pub(super) pid: Option<u32>,
    pub(super) socket: Option<Arc<Socket>>,
    pub(super) outbox: Outbox,
    pub(super) running: Option<Running>,
    /// Tasks that this process has answered.
    pub(super) done: u64,
    next_id: u64,
}

/// The task that a worker is running.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) id: u64,
    pub(super) job: Arc<Job>,
    pub(super) since: Instant,
}

impl Seat {
    pub(super) fn new(index: usize) -> Arc<Self> {
        Arc::new(Self { index, desk: Mutex::new(Desk::empty()), bell: Notify::new() })
    }

    pub(super) fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.desk().pid
    }

    /// Sends a task to this idle worker. `false`: nobody wants the task any more, and the worker is still idle.
    pub(super) fn give(self: &Arc<Self>, job: &Arc<Job>) -> bool {
        let mut desk = self.desk();
        let Some((body, fds)) = job.send(self) else { return false };
        desk.apply(Event::Sent);
        let id = desk.take_id();
        desk.running = Some(Running { id, job: Arc::clone(job), since: Instant::now() });
        desk.outbox.push(Frame { kind: Kind::Run as u8, id, body, fds });
        // Written here and now, in the caller's task; an error means that the worker is ending, which its supervisor sees.
        let socket = desk.socket.clone();
        let unsent = socket.is_none_or(|socket| desk.outbox.flush(&*socket).is_err());
        drop(desk);
        if unsent || job.timeout.is_some() {
            self.bell.notify_one();
        }
        true
    }
}

impl Desk {
    fn empty() -> Self {
        Self {
            state: WorkerState::Starting,
            pid: None,
            socket: None,
            outbox: Outbox::default(),
            running: None,
            done: 0,
            next_id: 1,
        }
    }

    /// Clears the desk for the next process; a task must not lie on it.
    pub(super) fn clear(&mut self) {
        *self = Self::empty();
    }

    /// Moves the worker's life on.
    pub(super) fn apply(&mut self, event: Event) {
        let next = self.state.on(event);
        debug_assert!(next.is_some(), "{:?} can't happen to a worker that is {:?}", event, self.state);
        if let Some(next) = next {
            self.state = next;
        }
    }

    /// The number of the next task for this process.
    pub(super) fn take_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }
}
