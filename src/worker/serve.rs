//! The worker's loop: one task after the other, answers gathered while more tasks are at hand.
//!
//! A worker of a pool has a ledger: it begins a task by claiming it there, and its small answers go into the ring there,
//! where they are safe whatever becomes of this process. The parent learns of them by a bell, once for all that were
//! answered until no more tasks are at hand, and of how long they took: measured there it would be mostly the wait for a
//! processor, where workers are many. Of what it has taken in by then it is not told; where it looks for an answer it is given a
//! moment for that. Large answers, and those with fds, go through the socket at once.

use std::hint;
use std::io::{self, Write as _};
use std::mem;
use std::os::fd::AsFd as _;
use std::process;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::BufMut as _;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use super::context;
use crate::channel::inbox::{Inbox, Patience};
use crate::channel::outbox::Outbox;
use crate::channel::socket::Socket;
use crate::error::{Panic, RecvError};
use crate::process::start;
use crate::sys::clock::monotonic_nanos;
use crate::sys::ledger::{Ledger, RING, Writer};
use crate::sys::original;
use crate::sys::socket::{self, Ready};
use crate::sys::worker as sys;
use crate::task::{self, panic, unheeded};
use crate::wire::body::Parts;
use crate::wire::extra::Extra;
use crate::wire::fds;
use crate::wire::frame::{Frame, HEAD_LEN, Head};
use crate::wire::message::{self, Failure, Hello, Kind, Life, Run};
use crate::wire::passenger::Passenger;

/// Answers up to this many bytes go into the ledger.
const SMALL: usize = RING / 16;

/// And up to so many that of a task which came alone, from another processor: to copy it takes less than for both sides to sleep,
/// and who waits for it may find it there.
const ALONE: usize = RING / 4;

/// Who looks for our answer gives us our next task soon, if he has one: for so long, in nanoseconds, we look for it before we tell of
/// the answer, and sleep.
const GLANCE: u64 = 40_000;

/// The parent is told of answers at the latest when so many bytes of them have gathered: it reads while we work.
const GATHER: u64 = RING as u64 / 4;

pub(super) struct Server<'a> {
    socket: &'a Socket,
    inbox: Inbox,
    /// What has come last: a task stays there while it runs, as to move what was just read takes long.
    frame: Frame,
    outbox: Outbox,
    answers: Option<Answers>,
    /// Results are encoded here, behind room for a header.
    scratch: Parts,
    max_body: usize,
    life: Life,
    busy_poll: Duration,
    /// Which attempt at its task the next Run is.
    attempt: u32,
}

/// The ledger, and how much of its ring the parent has been told of.
struct Answers {
    ledger: Arc<Ledger>,
    ring: Writer,
    told: u64,
    /// Whether the parent shares our processor.
    shares: bool,
    /// Since when tasks have been run that the parent has not been told of, by the clock of the ledger, and how many.
    since: Option<u64>,
    count: u32,
    /// When we had nothing to do any more, by that clock, if we have looked for a task since.
    done: Option<u64>,
    /// Whether the last task came soon after the one before it.
    prompt: bool,
    /// Whether we came to a task that had been taken back: the parent may wonder whether we ever would.
    passed: bool,
}

impl<'a> Server<'a> {
    pub(super) fn new(socket: &'a Socket, inbox: Inbox, hello: &Hello, ledger: Option<Arc<Ledger>>) -> Self {
        install_hook(socket);
        let answers = ledger.map(Answers::new);
        let max_body = usize::try_from(hello.max_body).unwrap_or(usize::MAX);
        let looks = !hello.busy_poll.is_zero() && !sys::has_one_processor();
        let busy_poll = if looks { hello.busy_poll } else { Duration::ZERO };
        let (frame, outbox, scratch) = (Frame::default(), Outbox::default(), Parts::default());
        Self { socket, inbox, frame, outbox, answers, scratch, max_body, life: hello.life, busy_poll, attempt: 1 }
    }

    /// Serves until the parent ends the stream, and gives the process's exit code.
    pub(super) fn run(mut self) -> i32 {
        loop {
            // Here it would take what is the original's to read and to claim.
            original::end_copy(start::EXIT_NO_PARENT);
            let mut came = self.inbox.buffered_into(&mut self.frame);
            if let Ok(false) = came {
                came = self.wait_for_frame();
            }
            let (socket, frame) = (self.socket, &self.frame);
            match came {
                Ok(true) if frame.kind == Kind::Attempt as u8 => {
                    self.attempt = u32::try_from(frame.id).unwrap_or(u32::MAX);
                }
                Ok(true) if frame.kind == Kind::Run as u8 => {
                    let attempt = mem::replace(&mut self.attempt, 1);
                    // What the parent has taken back runs elsewhere, or nowhere.
                    if let Some(answers) = &mut self.answers {
                        let since = answers.since.unwrap_or_else(|| answers.note_began());
                        if !answers.ledger.claim(frame.id) {
                            answers.passed = true;
                            // What it holds is to be gone before we wait for another one.
                            self.frame = Frame::default();
                            continue;
                        }
                        answers.since = Some(since);
                        answers.count = answers.count.saturating_add(1);
                        if !frame.fds.is_empty() {
                            self.outbox.push(Frame { kind: Kind::Begun as u8, id: frame.id, ..Frame::default() });
                            // As for the bell.
                            let _ = self.outbox.flush(socket);
                        }
                    }
                    let Ok(done) = self.perform(attempt) else { return start::EXIT_NO_PARENT };
                    if self.life == Life::OneTask {
                        return if done { 0 } else { start::EXIT_PANICKED };
                    }
                }
                Ok(false) => return 0,
                // As where memory for anything else can't be had, but at once: while it made a backtrace, or its core was dumped, the
                // task that it has not begun would be taken back, and go to the next worker without being counted.
                Err(RecvError::Io(error)) if error.kind() == io::ErrorKind::OutOfMemory => {
                    let _ = writeln!(io::stderr(), "memory allocation of {} bytes failed", self.inbox.awaited());
                    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
                    process::abort()
                }
                // Not our parent's language; there is nobody to tell.
                Ok(true) | Err(_) => return start::EXIT_NO_PARENT,
            }
        }
    }

    /// The next frame, of which nothing is here: reads, and looks and waits for it. `false`: there is none any more.
    #[inline(always)]
    fn wait_for_frame(&mut self) -> Result<bool, RecvError> {
        let shares = self.answers.as_mut().is_none_or(Answers::shares_processor);
        let patience = self.patience(shares);
        if let Some(came) = self.glance(shares) {
            return came;
        }
        let (socket, outbox, answers) = (self.socket, &mut self.outbox, &mut self.answers);
        self.inbox.frame_or_wait(socket, patience, &mut self.frame, || {
            tell(answers, outbox, socket);
            flush(outbox, socket)
        })
    }

    /// How to wait for the next task, by where the last one came from.
    fn patience(&self, shares: bool) -> Patience {
        if !shares || !self.busy_poll.is_zero() { Patience::Read { busy_poll: self.busy_poll } } else { Patience::Poll }
    }

    /// Looks for the next task for a moment, where the parent looks for our answer, which it is not told of then. Says whether there
    /// is one, if that is known by then.
    fn glance(&mut self, shares: bool) -> Option<Result<bool, RecvError>> {
        let answers = self.answers.as_mut()?;
        if !answers.is_looked_for() || shares && self.busy_poll.is_zero() {
            return None;
        }
        let done = *answers.done.insert(monotonic_nanos());
        while monotonic_nanos() - done < GLANCE {
            match self.inbox.try_frame(self.socket) {
                Ok(None) if shares => thread::yield_now(),
                Ok(None) => hint::spin_loop(),
                came => {
                    tell(&mut self.answers, &mut self.outbox, self.socket);
                    return Some(came.map(|frame| frame.map(|frame| self.frame = frame).is_some()));
                }
            }
        }
        None
    }

    /// Runs the task that has come, and answers. Says whether it has a result.
    fn perform(&mut self, attempt: u32) -> io::Result<bool> {
        let (id, fds) = (self.frame.id, mem::take(&mut self.frame.fds));
        context::begin(id, attempt);
        self.scratch.truncate(0);
        self.scratch.written.put_bytes(0, HEAD_LEN);
        let outcome = match Run::parse(&mut self.frame.body)
            .and_then(|run| Some((task::resolve(run.place)?, run.arguments)))
        {
            None => Err(Box::new(Failure::Decode("the parent named a function that is not in this executable".into()))),
            Some((entry, arguments)) => {
                let (result, max) = (&mut self.scratch, self.max_body);
                panic::catch(|| (entry.run)(arguments, fds, result, max))
                    .unwrap_or_else(|panic| Err(Box::new(Failure::Panicked(panic))))
            }
        };
        // The parent has started one process, and gets one answer. A copy has returned from the task before: this one has panicked.
        original::end_copy(start::EXIT_PANICKED);
        // What a task prints without a newline must not wait for the worker's end, which may be a kill.
        let _ = io::stdout().flush();
        let done = outcome.is_ok();
        let (kind, fds) = match outcome {
            Ok(fds) => (Kind::Done, fds),
            Err(failure) => {
                let failure = match *failure {
                    Failure::Decode(_) if self.frame.fds_lost => Failure::Decode(fds::LOST.into()),
                    failure => failure,
                };
                self.scratch.truncate(HEAD_LEN);
                self.scratch.written.extend_from_slice(&message::frame(Kind::Failed, id, &failure).body);
                (Kind::Failed, Extra::default())
            }
        };
        self.answer(kind, id, fds)?;
        Ok(done)
    }

    /// Sends the answer whose body lies in the scratch buffer: in the ledger if it may, else through the socket.
    fn answer(&mut self, kind: Kind, id: u64, fds: Extra<Passenger>) -> io::Result<()> {
        if let Some(answers) = &mut self.answers
            && fds.is_empty()
            && self.scratch.is_written()
            && self.scratch.written.len() <= answers.most()
        {
            let scratch = &mut self.scratch.written;
            let head = Head { len: scratch.len() - HEAD_LEN, kind: kind as u8, fds: 0, id };
            head.put(&mut &mut scratch[..HEAD_LEN]);
            if answers.ring.append(scratch) {
                if answers.ring.written() - answers.told >= GATHER {
                    tell(&mut self.answers, &mut self.outbox, self.socket);
                }
                return Ok(());
            }
        }
        let (body, more) = self.scratch.take(HEAD_LEN);
        self.outbox.push(Frame { kind: kind as u8, id, body, more, fds, ..Frame::default() });
        // At once: in the outbox it would be lost to the next task's crash.
        flush(&mut self.outbox, self.socket)
    }
}

impl Answers {
    fn new(ledger: Arc<Ledger>) -> Self {
        let ring = Writer::new(Arc::clone(&ledger));
        Self { ledger, ring, told: 0, shares: true, since: None, count: 0, done: None, prompt: false, passed: false }
    }

    /// Whether the parent shares our processor, now that we have nothing more to do. If it asks for that, we go to another one.
    fn shares_processor(&mut self) -> bool {
        self.shares = self.ledger.shares_processor();
        if self.shares && self.ledger.is_to_leave() && sys::leave_processor() {
            self.shares = self.ledger.shares_processor();
        }
        self.shares
    }

    /// Up to how many bytes an answer goes into the ring.
    fn most(&self) -> usize {
        if self.shares || self.count > 1 { SMALL } else { ALONE }
    }

    /// Begins a task after there was none.
    fn note_began(&mut self) -> u64 {
        let now = self.ledger.note_began();
        self.came_at(now);
        now
    }

    fn came_at(&mut self, now: u64) {
        self.prompt = self.done.take().is_some_and(|done| now.saturating_sub(done) <= GLANCE);
    }

    /// Whether somebody looks for what the parent has not been told of, and the last task came soon.
    fn is_looked_for(&self) -> bool {
        let is_new = self.told != self.ring.written() && !self.passed;
        self.prompt && is_new && self.ledger.is_looked_for()
    }
}

/// Tells the parent of answers in the ledger that it has not been told of and has not taken, or just that we have come so far.
#[inline(always)]
fn tell(answers: &mut Option<Answers>, outbox: &mut Outbox, socket: &Socket) {
    let Some(answers) = answers else { return };
    // What comes begins anew.
    let (since, count) = (answers.since.take(), mem::take(&mut answers.count));
    if answers.told != answers.ring.written() || answers.passed {
        answers.told = answers.ring.written();
        let done = *answers.done.get_or_insert_with(monotonic_nanos);
        if !mem::take(&mut answers.passed) && answers.ring.is_taken() {
            return;
        }
        let each = since.map_or(0, |since| done.saturating_sub(since) / u64::from(count.max(1)));
        outbox.push(Frame { kind: Kind::Bell as u8, id: each, ..Frame::default() });
        // If it does not fit now it will when the loop has nothing else to do.
        let _ = outbox.flush_into(socket, &mut Vec::new());
    }
}

fn flush(outbox: &mut Outbox, socket: &Socket) -> io::Result<()> {
    if outbox.is_empty() {
        return Ok(());
    }
    let mut spent = Vec::new();
    let flushed = socket.block_when(Ready::Write, || outbox.flush_into(socket, &mut spent));
    if !spent.is_empty() {
        // Bytes whose owner is the task's code, which may panic once more.
        unheeded(|| drop(spent));
    }
    flushed
}

/// With `panic = "abort"` the hook is the last thing that runs, so it tells the parent itself.
fn install_hook(socket: &Socket) {
    let socket = socket.as_fd().try_clone_to_owned().ok();
    panic::install(move |panic: &Panic| {
        let Some(socket) = &socket else { return };
        // It is not this process's word that the parent waits for.
        original::end_copy(start::EXIT_PANICKED);
        let failure = Failure::Panicked(panic.clone());
        let mut outbox = Outbox::default();
        outbox.push(message::frame(Kind::Failed, context::running(), &failure));
        while let Err(error) = outbox.flush(socket) {
            if error.kind() != io::ErrorKind::WouldBlock || socket::wait(socket, Ready::Write).is_err() {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests;
