//! The middle of a worker's life: it is sent tasks, answers them, and sooner or later there is a reason to end it.
//!
//! What the supervisor does before and after that is in `supervisor.rs`.

use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::answers::{Misbehaved, answer, begun, pace};
use super::counts::{Counts, Ending};
use super::dispatch::Turn;
use super::job::{Job, Outcome};
use super::life::WorkerState;
use super::recall::Review;
use super::seat::{Desk, is_end};
use super::state::End;
use super::supervisor::{Cause, Process, Stopping, Supervisor};
use crate::channel::inbox::Inbox;
use crate::channel::socket::{Berth, Socket};
use crate::error::{RecvError, TaskError};
use crate::process::kept::Exit;
use crate::process::lost::has_lost_its_thread;
use crate::process::spawn::died;
use crate::sys::proc;
use crate::sys::socket::Ready;
use crate::task::Answer;
use crate::wire::frame::Frame;

/// After so many frames others have their turn, who may not have had it where each frame was there at once: this thread's other
/// tasks, and what else may happen to the worker.
const MOST_IN_A_ROW: u32 = 128;

/// What has happened while a worker is served.
enum Event {
    /// The answer to its only task lies in the ledger.
    Answered,
    /// Something has come from it, or its stream has ended.
    Heard(Result<Option<Frame>, RecvError>),
    Exited,
    /// Somebody has left a word on its desk.
    Rung,
    /// What was in its outbox has left, or can't.
    Written(io::Result<()>),
    /// The task's time is up, or the worker's idle time.
    Due,
    /// The others have had their turn.
    Paused,
}

impl Supervisor {
    /// Reads one answer after the other, until there is a reason to end the process.
    pub(super) async fn work(&self, process: &mut Process, turn: Turn) -> Cause {
        let kept = process.child.kept().clone();
        let socket = Arc::clone(&process.socket);
        let ear = self.seat.ear();
        let mut exited = pin!(kept.exited());
        let mut rung = pin!(self.seat.bell.notified());
        self.seat.drive.note_other_news();
        let mut turn = Some(turn);
        // `None`: it stays, however long it is idle.
        let mut idle_until = None;
        let mut in_a_row = 0;
        loop {
            let over = match turn {
                None | Some(Turn::Busy) => None,
                Some(Turn::Idle) => {
                    idle_until = self.shared.settings.idle_timeout.and_then(|most| Instant::now().checked_add(most));
                    None
                }
                Some(Turn::Retire) => Some(Cause::Retired(End::Other)),
                Some(Turn::End) => Some(Cause::Cancelled),
            };
            let (drained, unwritten, deadline) = {
                let desk = self.seat.desk();
                let deadline = match desk.first() {
                    Some(_) if let Some(stopping) = &process.stopping => Some(stopping.until),
                    Some(job) => job.timeout().and_then(|timeout| desk.runs_since().checked_add(timeout)),
                    None => idle_until,
                };
                let drained = desk.state == WorkerState::Draining && desk.load() == 0;
                (drained, desk.is_unwritten(), deadline)
            };
            // Now that nothing of ours is left to be looked at: a caller that has its result gives the worker its next task at
            // once, on another thread, and would meet us there.
            if process.resolve() && process.apart.is_apart() {
                self.seat.drive.see_off().await;
            }
            if let Some(cause) = over.or_else(|| drained.then_some(Cause::Retired(End::Other))) {
                return cause;
            }
            let is_long_row = in_a_row >= MOST_IN_A_ROW;
            if is_long_row {
                // With a new budget, without which a deadline would not be seen.
                tokio::task::yield_now().await;
                in_a_row = 0;
            } else {
                in_a_row += 1;
            }
            let others = poll_fn(|cx| {
                if !self.seat.drive.take_other_news() {
                    return Poll::Pending;
                }
                let event = if exited.as_mut().poll(cx).is_ready() {
                    Event::Exited
                } else if rung.as_mut().poll(cx).is_ready() {
                    rung.set(self.seat.bell.notified());
                    Event::Rung
                } else {
                    return Poll::Pending;
                };
                // It has yet to be polled for the first time, or there may be more of it.
                self.seat.drive.note_other_news();
                Poll::Ready(event)
            });
            // Where it is on another processor: to read what it says of that takes longer, and can be done after that, when it has
            // its next task.
            let only_answer = poll_fn(|_| {
                let is_there = process.ring.has_answers()
                    && (self.seat.drive.take_found() || process.apart.is_apart())
                    && self.seat.desk().load() == 1;
                if is_there { Poll::Ready(()) } else { Poll::Pending }
            });
            let event = tokio::select! {
                biased;
                () = only_answer => Event::Answered,
                heard = self.hear(&mut process.inbox, &mut process.berth, &socket, &ear), if !is_long_row => {
                    Event::Heard(heard)
                }
                other = others => other,
                written = socket.when(Ready::Write, || self.seat.write_rest(&socket)), if unwritten => {
                    Event::Written(written)
                }
                () = sleep_until(deadline), if deadline.is_some() => Event::Due,
                () = std::future::ready(()), if is_long_row => Event::Paused,
            };
            let is_due = matches!(event, Event::Due);
            turn = match self.react(process, event) {
                Ok(turn) => turn,
                Err(cause) => return cause,
            };
            if is_due && turn.is_none() {
                idle_until = None;
            }
        }
    }

    /// The next frame.
    async fn hear(
        &self,
        inbox: &mut Inbox,
        berth: &mut Berth,
        socket: &Socket,
        ear: &Waker,
    ) -> Result<Option<Frame>, RecvError> {
        poll_fn(|_| {
            let heard = inbox.poll_frame_at(&mut Context::from_waker(ear), socket, berth);
            self.seat.drive.is_amid_frame(inbox.awaited() > 0);
            heard
        })
        .await
    }

    /// Does what follows from an event: gives the worker's next turn, if it is another one, or why the process is to end.
    fn react(&self, process: &mut Process, event: Event) -> Result<Option<Turn>, Cause> {
        match event {
            Event::Answered => {
                process.apart.answered(&process.socket, &mut process.berth);
                self.take_answers(process).map_err(|Misbehaved| self.disown(process))
            }
            Event::Heard(Ok(Some(frame))) => self.heard(process, frame).map_err(|Misbehaved| self.disown(process)),
            // The end of the stream, in whatever way.
            Event::Heard(Ok(None) | Err(RecvError::Truncated | RecvError::Io(_))) | Event::Exited => Err(Cause::Died),
            Event::Heard(Err(_)) => Err(self.disown(process)),
            Event::Rung => {
                let turn = self.rung(process)?;
                // What nobody wants any more is taken from it by now.
                self.seat.write_left();
                Ok(turn)
            }
            Event::Written(Ok(())) | Event::Paused => Ok(None),
            // It will never come to what it was given, which need not be waited for. What it runs is its own affair.
            Event::Written(Err(error)) if !is_end(&error) && self.seat.desk().is_before_first() => Err(Cause::Stuck),
            Event::Written(Err(_)) => {
                // It is ending. What is left of the tasks can't be sent, and the end will be seen.
                self.seat.abandon();
                Ok(None)
            }
            // What it has answered by now is in time.
            Event::Due => match self.take_answers(process).map_err(|Misbehaved| self.disown(process))? {
                Some(turn) => Ok(Some(turn)),
                None => self.deadline_passed(process).map_or(Ok(None), Err),
            },
        }
    }

    /// Somebody has left a word on the worker's desk.
    fn rung(&self, process: &mut Process) -> Result<Option<Turn>, Cause> {
        // What it has answered by now is not unwanted.
        if let Some(turn) = self.take_answers(process).map_err(|Misbehaved| self.disown(process))? {
            return Ok(Some(turn));
        }
        match self.shared.review(&self.seat) {
            Review::Fine if self.seat.desk().is_long() && has_lost_its_thread(process.child.kept().pid()) => {
                Err(Cause::Died)
            }
            Review::Fine => Ok(None),
            Review::Unwanted => self.stop_task(process, Cause::Cancelled).map_or(Ok(None), Err),
            Review::Stuck => Err(Cause::Stuck),
            Review::Unloaded => Ok(Some(self.shared.answered(&self.seat, &mut Counts::default(), [], false))),
        }
    }

    /// Gives a worker that lies no chance to begin anything more. What it has answered before that is taken in at its end, which
    /// is next.
    fn disown(&self, process: &Process) -> Cause {
        let kept = process.child.kept();
        self.shared.disown(&self.seat, |job| died(kept, &Exit::UNKNOWN, job.name.clone()));
        Cause::Died
    }

    /// The running task's time is up, or the worker's idle time; unless the one became the other in this moment.
    fn deadline_passed(&self, process: &mut Process) -> Option<Cause> {
        if let Some(stopping) = &process.stopping {
            return (stopping.until <= Instant::now()).then_some(stopping.cause);
        }
        match self.shared.is_too_long(&self.seat) {
            Some(true) => self.stop_task(process, Cause::TimedOut),
            Some(false) => None,
            None => self.shared.withdraw_idle(&self.seat).then_some(Cause::Retired(End::TooLongIdle)),
        }
    }

    /// Ends the task that runs. Where the pool grants a grace it is asked to stop by itself first; otherwise its worker is
    /// to be ended, for the cause that is given back.
    fn stop_task(&self, process: &mut Process, cause: Cause) -> Option<Cause> {
        let grace = self.shared.settings.cancel_grace;
        if grace.is_zero() {
            return Some(cause);
        }
        if process.stopping.is_none() {
            let Some(id) = self.seat.desk().ask_to_stop() else { return Some(cause) };
            // The other half is for the process, from SIGTERM on.
            process.stopping = Some(Stopping { id, cause, until: after(grace / 2) });
        }
        None
    }

    /// A frame has come.
    fn heard(&self, process: &mut Process, frame: Frame) -> Result<Option<Turn>, Misbehaved> {
        process.apart.heard(&process.socket, &mut process.berth);
        // What lies in the ledger is older than what came through the socket.
        process.ring.take(&mut process.answers)?;
        if let Some(id) = begun(&frame) {
            self.seat.desk().note_begun(id);
        } else {
            process.pace = pace(&frame);
        }
        process.answers.extend(answer(frame)?);
        match self.settle_answers(process)? {
            // It has come to what was taken from it, and is as good as any other.
            None if self.seat.desk().state == WorkerState::Stalled => {
                Ok(Some(self.shared.answered(&self.seat, &mut Counts::default(), [], false)))
            }
            turn => Ok(turn),
        }
    }

    /// Takes the tasks that the worker has answered off its desk, and gives it its next ones. They are to be
    /// [resolved](Process::resolve) then. `None`: it has answered nothing.
    fn take_answers(&self, process: &mut Process) -> Result<Option<Turn>, Misbehaved> {
        process.ring.take(&mut process.answers)?;
        self.settle_answers(process)
    }

    /// As [`take_answers`](Self::take_answers), of those that have been taken out of the ledger.
    fn settle_answers(&self, process: &mut Process) -> Result<Option<Turn>, Misbehaved> {
        if process.answers.is_empty() {
            process.pace = None;
            return Ok(None);
        }
        self.match_answers(process)?;
        let pid = process.child.kept().pid();
        let worn = process.max_memory.is_some_and(|most| resident_memory(pid).is_some_and(|now| now > most));
        // The worker gets its next tasks before these ones' callers get the results.
        Ok(Some(self.shared.answered(&self.seat, &mut process.counts, process.unfinished.drain(..), worn)))
    }

    /// Takes the answered tasks off the desk. From an answer to no task on nothing counts; what came before does, or
    /// those tasks, which are off the desk, would never end.
    pub(super) fn match_answers(&self, process: &mut Process) -> Result<(), Misbehaved> {
        let mut desk = self.seat.desk();
        // Some may be here from an earlier call, and have been counted.
        let (answered, unfinished) = (process.answered.len(), process.unfinished.len());
        let mut honest = if desk.claims_too_much() { Err(Misbehaved) } else { Ok(()) };
        for (id, outcome) in process.answers.drain(..) {
            let Some(job) = desk.answer(id) else {
                honest = Err(Misbehaved);
                break;
            };
            let stopped = process.stopping.take_if(|stopping| stopping.id == id).map(|stopping| stopping.cause);
            if stopped.is_none() && !job.is_chunk {
                // As most are: it is moved no more than it has to be.
                process.counts.add(if outcome.is_ok() { Ending::Done } else { Ending::Failed });
                process.answered.push((job, outcome));
                continue;
            }
            let late = stopped == Some(Cause::TimedOut);
            let outcome = match outcome {
                outcome if job.is_chunk => match answer_chunk(&desk, id, &job, outcome, late) {
                    Ok(Some(outcome)) => outcome,
                    Ok(None) => {
                        // As for a call that takes its worker along.
                        if late {
                            process.counts.add(Ending::TimedOut);
                        }
                        process.unfinished.push(job);
                        continue;
                    }
                    Err(misbehaved) => {
                        process.counts.add(Ending::Failed);
                        process.answered.push((job, Err(Box::new(TaskError::Decode("not a chunk's answer".into())))));
                        honest = Err(misbehaved);
                        break;
                    }
                },
                _ if late => Err(TaskError::TimedOut.into()),
                outcome => outcome,
            };
            let ending = match (stopped, &outcome) {
                (Some(Cause::TimedOut), _) => Ending::TimedOut,
                (Some(_), _) => Ending::Cancelled,
                (None, Ok(_)) => Ending::Done,
                (None, Err(_)) => Ending::Failed,
            };
            process.counts.add(ending);
            process.answered.push((job, outcome));
        }
        let count = process.answered.len() - answered + process.unfinished.len() - unfinished;
        if count == 0 {
            return honest;
        }
        let start = desk.clock.since;
        let each = desk.answered(count, process.pace.take());
        drop(desk);
        let jobs = process.answered[answered..].iter().map(|(job, _)| job);
        let jobs = jobs.chain(&process.unfinished[unfinished..]).map(|job| &**job);
        self.shared.times.note(start, each, jobs, process.child.kept().pid());
        honest
    }
}

/// Takes a chunk's answer. Gives the chunk's own outcome, if it has one by now; otherwise it is to go on.
fn answer_chunk(desk: &Desk, id: u64, job: &Job, outcome: Outcome, late: bool) -> Result<Option<Outcome>, Misbehaved> {
    match outcome {
        Ok(answer) => job.answer_part(answer, late.then_some(TaskError::TimedOut)),
        // The last words of a worker that ends with a panic, for want of unwinding: it ends the call that ran.
        Err(error) => {
            desk.keep_parts(id, job);
            let again = job.fail_part(|| if late { TaskError::TimedOut } else { *error });
            Ok((!again).then(|| Ok(Answer::default())))
        }
    }
}

/// The time after so long, or one that nobody lives to see.
pub(super) fn after(time: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(time).unwrap_or(now + Duration::from_hours(24 * 365 * 30))
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// How many bytes of a process are in memory, where /proc shows that; `statm` in proc(5).
pub(super) fn resident_memory(pid: u32) -> Option<u64> {
    let statm = proc::read(pid, "statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
