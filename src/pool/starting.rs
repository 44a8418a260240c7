//! The beginning of a worker's life: its process is started, shakes hands, and runs the pool's start task.
//!
//! When that is tried, and how often, is in `supervisor.rs`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::task::coop;

use super::answers::{Ring, answer};
use super::apart::Apart;
use super::chore::Errand;
use super::counts::Counts;
use super::ending::KILL_WITHIN;
use super::output::{Listening, heard_out};
use super::seat::is_end;
use super::supervisor::{Process, Supervisor, random};
use crate::channel::inbox::Inbox;
use crate::channel::socket::{Berth, Socket};
use crate::error::{SpawnError, TaskError};
use crate::process::kept::Kept;
use crate::process::lost::Looks;
use crate::process::spawn::died;
use crate::process::start::{self, Worker};
use crate::process::within::within;
use crate::sys::ledger::Reader;
use crate::sys::socket::Ready;
use crate::sys::worker::has_one_processor;
use crate::wire::frame::Frame;
use crate::wire::message;

/// With more pipes than this of ended ones whose lines were not all told, no process is started: it prints, too.
const MOST_UNHEARD: usize = 8;

impl Supervisor {
    /// Starts a process and makes it ready, unless it is of no use any more. One that does not get ready is killed, and
    /// has ended by then. Adds who reads what it prints.
    pub(super) async fn start(&self, listening: &mut Vec<Listening>) -> Result<Process, SpawnError> {
        let settings = &self.shared.settings;
        let name = format!("{}-{}", settings.name, self.seat.index);
        let place = message::Seat { pool: settings.name.clone(), index: self.seat.index as u64 };
        let first = async {
            heard_out(listening, MOST_UNHEARD).await;
            // Encoded first: where that fails, no process is needed.
            let errand = match &settings.on_start {
                Some(task) => Some(task.errand().await?),
                None => None,
            };
            Ok::<_, SpawnError>((errand, start::first_words(&settings.plan, &name, Some(place), None).await?))
        };
        let (errand, words) = tokio::select! {
            biased;
            () = self.unneeded() => return Err(SpawnError::Cancelled),
            first = first => first?,
        };
        // This takes a millisecond or so, and is not given up half-way: then nobody would know when the process has ended.
        let mut worker = start::launch(&settings.plan, &name, words).await?;
        let kept = worker.child.kept().clone();
        let ready = match self.listen(&mut worker) {
            Ok(mut more) => {
                listening.append(&mut more);
                tokio::select! {
                    biased;
                    () = self.unneeded() => Err(SpawnError::Cancelled),
                    ready = self.make_ready(worker, errand) => ready,
                }
            }
            Err(error) => {
                drop(worker);
                Err(error)
            }
        };
        if ready.is_err() {
            // It was dropped, and so killed.
            let _ = within(KILL_WITHIN, kept.exited_watched()).await;
        }
        ready
    }

    /// Has what the process prints read, if somebody wants it.
    fn listen(&self, worker: &mut Worker) -> Result<Vec<Listening>, SpawnError> {
        let (settings, pid) = (&self.shared.settings, worker.child.kept().pid());
        let out = settings.on_stdout_line.clone().zip(worker.stdout.take());
        let err = settings.on_stderr_line.clone().zip(worker.stderr.take());
        let both = out.into_iter().chain(err);
        Ok(both.map(|(listener, pipe)| Listening::begin(listener, pid, pipe)).collect::<Result<_, _>>()?)
    }

    /// Shakes hands with a new process and runs the pool's start task in it.
    async fn make_ready(&self, mut worker: Worker, errand: Option<Errand<'_>>) -> Result<Process, SpawnError> {
        worker.shake_hands(&self.shared.settings.plan).await?;
        let Worker { child, socket, mut inbox, outbox, ledger, .. } = worker;
        let (socket, ledger) = (Arc::new(socket), Arc::new(ledger.ok_or(SpawnError::Cancelled)?));
        let mut ring = Ring::new(Reader::new(Arc::clone(&ledger)));
        let settings = &self.shared.settings;
        {
            let mut desk = self.seat.desk();
            desk.set_up(child.kept().clone(), Arc::clone(&socket), Arc::clone(&ledger), outbox);
            desk.max_tasks = settings.max_tasks.map(a_little_less);
        }
        let looks = !settings.plan.busy_poll.is_zero() && !has_one_processor();
        self.shared.may_look.store(looks, Ordering::Relaxed);
        let max_memory = settings.max_memory.map(a_little_less);
        if let Some(errand) = errand {
            self.perform(errand, &socket, &mut inbox, &mut ring, child.kept())
                .await
                .map_err(|error| SpawnError::StartTask(Box::new(error)))?;
        }
        Ok(Process {
            child,
            socket,
            inbox,
            berth: Berth::default(),
            ring,
            apart: Apart::new(ledger),
            answers: Vec::new(),
            pace: None,
            answered: Vec::new(),
            counts: Counts::default(),
            unfinished: Vec::new(),
            max_memory,
            stopping: None,
        })
    }

    /// Writes all that is in the outbox, or has somebody else write it who is about to.
    async fn write_all(&self, socket: &Socket) -> io::Result<()> {
        while !self.seat.desk().is_written() {
            socket.when(Ready::Write, || self.seat.write_rest(socket)).await?;
            // To whoever has it lent. That is another thread, between two system calls.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Runs one of the pool's own tasks in the process and waits for its answer.
    pub(super) async fn perform(
        &self,
        errand: Errand<'_>,
        socket: &Socket,
        inbox: &mut Inbox,
        ring: &mut Ring,
        kept: &Kept,
    ) -> Result<(), TaskError> {
        let name = errand.name;
        let id = self.seat.desk().take_id();
        errand.send(|frame| self.seat.desk().push(Frame { id, ..frame }));
        let answer = async {
            if let Err(error) = self.write_all(socket).await
                && !is_end(&error)
            {
                return Some(Err(TaskError::Encode(error.into()).into()));
            }
            let mut answers = Vec::new();
            // What comes first may be a bell that was rung for what came before.
            loop {
                let frame = inbox.frame(socket).await.ok()??;
                answers.extend(answer(frame).ok()?);
                ring.take(&mut answers).ok()?;
                // It has nothing else to answer.
                if let Some((number, outcome)) = answers.pop() {
                    return (number == id).then_some(outcome);
                }
                // One that rings without end must not keep this thread.
                coop::consume_budget().await;
            }
        };
        let answer_or_end = async {
            tokio::select! {
                biased;
                outcome = answer => outcome,
                _ = kept.exited() => None,
            }
        };
        if let Some(Some(outcome)) = Looks::new().unless_lost(kept.pid(), answer_or_end).await {
            return outcome.map(drop).map_err(|error| *error);
        }
        let _ = kept.signal_group(libc::SIGKILL);
        Err(died(kept, &kept.exited_watched().await, name.into()))
    }
}

/// Up to a tenth less than a limit, so that workers that started together are not replaced together. A limit below ten is
/// what it is.
fn a_little_less(limit: u64) -> u64 {
    limit - (limit / 10).saturating_mul(random().into()) / 256
}
