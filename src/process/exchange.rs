//! The talk with a child: feeding its input and reading its output at once, so that neither can block the other.
//!
//! Its progress lives here and not in a future, so a dropped future loses nothing. When to stop, and what to send to
//! whom, is decided in `phase`.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::task::coop;
use tokio::time::Instant;

use super::input::Input;
use super::phase::{Event, Phase, Signal};
use super::pipes::{ChildStderr, ChildStdin, ChildStdout, Pipe};
use super::timer::Timer;
use crate::sys::buffer;

#[derive(Debug)]
pub(super) struct Exchange {
    /// What is still to be fed.
    pub(super) input: Option<Input>,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    /// Reads, so that nothing blocks, and keeps nothing.
    pub(super) discard: bool,
    pub(super) max_output: Option<usize>,
    /// How much was read of both.
    pub(super) total: usize,
    /// Whether stdout, and stderr, was a pipe and has been read to its end.
    pub(super) ended: [bool; 2],
    /// Whether what was read ends in the middle of something, as there was too much.
    pub(super) cut_off: bool,
    pub(super) phase: Phase,
    pub(super) deadline: Option<Instant>,
    pub(super) grace: Duration,
}

/// The child's pipes, where we have them.
pub(super) struct Pipes<'a> {
    pub(super) stdin: &'a mut Option<ChildStdin>,
    pub(super) stdout: &'a mut Option<ChildStdout>,
    pub(super) stderr: &'a mut Option<ChildStderr>,
}

/// What somebody waits for. Input is always fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// The exit; nothing is read.
    Exit,
    /// Everything, to the end.
    Output,
    /// The next bytes of stdout; stderr is collected, or it could block the child.
    Stdout,
    /// The next bytes of either.
    Either,
}

/// The least room for a read.
const CHUNK: usize = 16 << 10;

/// The most that is read in one go before the clock is looked at, but for what a pipe holds at the child's end: all of that is
/// read before the drain can be over.
const SITTING: usize = 2 << 20;

/// How often it is fed in one go, and read from each pipe: neither what always has more nor what takes it all may keep anybody
/// waiting. The room for a read grows, so that it is no less than a sitting for a pipe that is full; but not a packet.
const TURNS: usize = 32;

impl Exchange {
    pub(super) fn change(&mut self, event: Event) -> Signal {
        let (phase, send) = self.phase.on(event, Instant::now(), self.grace);
        self.phase = phase;
        send
    }

    /// Whether its timeout is over, and nothing has come of it yet.
    pub(super) fn is_overdue(&self) -> bool {
        self.phase == Phase::Running && self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Feeds and reads until something happens. All progress is in `self` and `pipes`. `exited` is told of the exit, sooner or
    /// later; `has_exited` looks.
    pub(super) async fn event(
        &mut self,
        want: Want,
        mut pipes: Pipes<'_>,
        exited: impl Future<Output = ()>,
        has_exited: impl Fn() -> bool,
    ) -> io::Result<Event> {
        let due = self.phase.due(self.deadline);
        let mut exited = pin!(exited);
        let mut timer: Pin<&mut Option<Timer>> = pin!(None);
        // Each poll does so much and no more. A share of the task's budget would be the others' to use up, and with none left
        // nothing is read, the clock is not looked at, and a timeout is none.
        coop::unconstrained(poll_fn(|cx| {
            if let Err(error) = self.feed(cx, pipes.stdin) {
                // It is told once, and hides neither the end nor the clock from who asks again. Stdin is closed only then: what
                // the program has got so far is not all of it, and whoever is told may kill it before it takes it for that.
                self.input = Some(Input::bytes(Bytes::new()));
                return Poll::Ready(Err(error));
            }
            // Where there is always more to read, that must not hide the rest.
            let read = self.read(cx, want, &mut pipes)?;
            if let Some(event) = read.filter(|event| *event != Event::Read) {
                return Poll::Ready(Ok(event));
            }
            if !self.phase.has_exited() && exited.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(Event::Exited));
            }
            if due.is_some_and(|due| due <= Instant::now()) {
                // In time, and where many things happen at once the news of it is late.
                if !self.phase.has_exited() && has_exited() {
                    return Poll::Ready(Ok(Event::Exited));
                }
                // Nothing is read after the drain, so then it is all that there is, of either.
                let is_last = matches!(want, Want::Stdout | Want::Either) && self.phase.has_exited();
                let last = if is_last { self.read(cx, Want::Output, &mut pipes)? } else { None };
                return Poll::Ready(Ok(last.unwrap_or(Event::Due)));
            }
            if let Some(event) = read {
                return Poll::Ready(Ok(event));
            }
            let Some(due) = due else { return Poll::Pending };
            if timer.is_none() {
                timer.set(Some(Timer::new(due)));
            }
            if timer.as_mut().as_pin_mut().is_some_and(|timer| timer.poll(cx).is_ready()) {
                // Then it is due.
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        }))
        .await
    }

    /// Feeds what it takes, for so many `TURNS`.
    fn feed(&mut self, cx: &mut Context<'_>, stdin: &mut Option<ChildStdin>) -> io::Result<()> {
        if self.phase.has_exited() {
            self.input = None;
            *stdin = None;
        }
        let (Some(input), Some(pipe)) = (&mut self.input, &mut *stdin) else { return Ok(()) };
        let mut turns = 0;
        loop {
            if turns == TURNS {
                // There may be room for more, after the others had their turn.
                cx.waker().wake_by_ref();
                return Ok(());
            }
            turns += 1;
            match input.poll_chunk(cx)? {
                Poll::Pending => return Ok(()),
                Poll::Ready(false) => break,
                Poll::Ready(true) => {}
            }
            match pipe.pipe().poll_write(cx, &input.chunk) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(count)) => input.chunk.advance(count),
                // It has read all that it wants.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => break,
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
        self.input = None;
        *stdin = None;
        Ok(())
    }

    fn read(&mut self, cx: &mut Context<'_>, want: Want, pipes: &mut Pipes<'_>) -> io::Result<Option<Event>> {
        if want == Want::Exit {
            return Ok(None);
        }
        // Who wants lines gets the next bytes at once, and no more than that is read ahead of them.
        let (once, mut starved) = (want != Want::Output, false);
        let mut read = |this: &mut Self, pipe: Option<&mut Pipe>, stream| match pipe {
            Some(pipe) => this.read_one(cx, pipe, stream, once, &mut starved),
            None => Ok(Got::End),
        };
        let err = read(self, pipes.stderr.as_mut().map(ChildStderr::pipe), Stream::Stderr)?;
        let out = read(self, pipes.stdout.as_mut().map(ChildStdout::pipe), Stream::Stdout)?;
        if err == Got::End {
            self.ended[1] |= pipes.stderr.take().is_some();
        }
        if out == Got::End {
            self.ended[0] |= pipes.stdout.take().is_some();
        }
        if err == Got::TooMuch || out == Got::TooMuch {
            return Ok(Some(Event::Overflow));
        }
        if (once && out == Got::Some) || (want == Want::Either && err == Got::Some) {
            return Ok(Some(Event::Read));
        }
        if starved {
            // There may be more, after the clock was looked at and other tasks had their turn.
            cx.waker().wake_by_ref();
        }
        let ended = out == Got::End && (want == Want::Stdout || err == Got::End);
        Ok(if ended { Some(Event::PipesEnded) } else { None })
    }

    /// Reads what is there: once, or up to `SITTING` and `TURNS`, and after the end no less than the pipe can hold. Sets
    /// `starved` if it stopped although there may be more.
    fn read_one(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
        stream: Stream,
        once: bool,
        starved: &mut bool,
    ) -> io::Result<Got> {
        let buf = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let (bytes, packets) = if self.phase.has_exited() && !once { pipe.holds() } else { (0, 0) };
        let (mut sitting, mut turns) = (0, 0);
        loop {
            if self.discard {
                buf.clear();
            }
            buffer::reserve(buf, CHUNK);
            let mut read = pipe.poll_read_buf(cx, buf)?;
            if read.is_pending() && self.phase.has_exited() {
                // There may be no time left for who would have to wake us.
                read = pipe.read_now(buf)?;
            }
            let count = match read {
                Poll::Pending => return Ok(if sitting > 0 { Got::Some } else { Got::Nothing }),
                Poll::Ready(0) => return Ok(Got::End),
                Poll::Ready(count) => count,
            };
            sitting += count;
            turns += 1;
            self.total += count;
            let over = self.total.saturating_sub(self.max_output.unwrap_or(usize::MAX));
            if over > 0 {
                self.total -= over;
                self.cut_off = true;
                buf.truncate(buf.len() - over);
                return Ok(Got::TooMuch);
            }
            if once || sitting >= SITTING.max(bytes) || turns == TURNS.max(packets) {
                *starved = true;
                return Ok(Got::Some);
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Stream {
    Stdout,
    Stderr,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Got {
    Nothing,
    Some,
    /// More than is allowed, which was cut off.
    TooMuch,
    End,
}
