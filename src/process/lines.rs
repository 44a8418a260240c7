//! A child's output as lines, of any length unless there is a limit. Where the bytes come from is in `exchange`.

use std::io;

use futures::stream::unfold;
use futures::{Stream, StreamExt as _};
use tokio::task::coop::consume_budget;

use super::child::Child;
use super::exchange::Want;
use super::phase::{Event, Why};

/// Which stream a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// Its stdout.
    Stdout,
    /// Its stderr.
    Stderr,
}

impl Child {
    /// Its stdout, line by line, as it comes, without the line ends (`\n` or `\r\n`); lines are of any length, up to
    /// [`Command::max_line`](crate::Command::max_line).
    ///
    /// While lines are waited for, the [`input`](crate::Command::input) is fed, and stderr is collected if it is piped:
    /// [`communicate`](Self::communicate) then returns it, together with what of stdout was not read as lines. It reads no
    /// more than a pipe ahead, so a slow reader slows the program down.
    ///
    /// The stream ends with stdout, or 100 ms after the program if something that it left running still holds stdout.
    ///
    /// An item is an error if the line is not UTF-8 (`InvalidData`); the stream goes on with the next line. It is an error
    /// and the end if a line is too long (`InvalidData`), the program runs into its timeout or limit (it wraps the
    /// [`CommandError`](crate::CommandError), whose output then has what is left of a line that was cut off), stdout is not
    /// piped (`InvalidInput`), the input's [`reader`](crate::Command::input_from) fails, or the system refuses. What fails the
    /// input does so once: call it again, and the lines go on, with stdin closed.
    ///
    /// # Cancel safety
    ///
    /// What was read is kept in the `Child`: drop the stream and call it again, and no line is lost or torn.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures::StreamExt as _;
    /// use std::process::Stdio;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut child = multiproc::Command::new("seq").arg("3").stdout(Stdio::piped()).spawn()?;
    /// let mut sum = 0;
    /// let mut lines = child.lines();
    /// while let Some(line) = lines.next().await {
    ///     sum += line?.parse::<u32>()?;
    /// }
    /// assert_eq!(sum, 6);
    /// # Ok(())
    /// # }
    /// ```
    pub fn lines(&mut self) -> impl Stream<Item = io::Result<String>> + Send + Unpin {
        Reader::new(self, false).into_stream().map(|item| item.map(|(_, line)| line))
    }

    /// As [`lines`](Self::lines), of stdout and stderr, each with where it came from, in the order in which they came.
    ///
    /// They are two pipes: of what was written to both before we looked, the order is not known. With
    /// [`stderr_to_stdout`](crate::Command::stderr_to_stdout) it is.
    ///
    /// # Cancel safety
    ///
    /// As `lines`.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures::StreamExt as _;
    /// use std::process::Stdio;
    /// use multiproc::{Command, Source};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let script = Command::shell("echo out; echo err >&2");
    /// let mut child = script.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    /// let mut lines = child.tagged_lines();
    /// while let Some(line) = lines.next().await {
    ///     match line? {
    ///         (Source::Stdout, line) => assert_eq!(line, "out"),
    ///         (Source::Stderr, line) => assert_eq!(line, "err"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn tagged_lines(&mut self) -> impl Stream<Item = io::Result<(Source, String)>> + Send + Unpin {
        Reader::new(self, true).into_stream()
    }
}

struct Reader<'a> {
    child: &'a mut Child,
    both: bool,
    state: State,
    /// How much of each buffer has no line end, which need not be looked at again.
    searched: [usize; 2],
    /// How much of each buffer was handed out.
    taken: [usize; 2],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Unpiped,
    Reading,
    /// What is left has no line end.
    Ending,
    Ended,
}

impl<'a> Reader<'a> {
    fn new(child: &'a mut Child, both: bool) -> Self {
        let exchange = &child.exchange;
        let buffered = !exchange.stdout.is_empty() || (both && !exchange.stderr.is_empty());
        let [stdout, stderr] = exchange.ended;
        let piped = child.stdout.is_some() || stdout || (both && (child.stderr.is_some() || stderr));
        let piped = piped || buffered || exchange.total > 0;
        let state = if !piped {
            State::Unpiped
        } else if exchange.phase.is_finished() {
            // Nothing would wake us, and what something that it left running has written since came after the end.
            State::Ending
        } else {
            State::Reading
        };
        Self { child, both, state, searched: [0; 2], taken: [0; 2] }
    }

    /// It stays at its end, where a `select!` in a loop polls it again; `unfold` alone would panic.
    fn into_stream(self) -> impl Stream<Item = io::Result<(Source, String)>> + Send + Unpin + 'a {
        Box::pin(unfold(self, async |mut reader| Some((reader.next().await?, reader))).fuse())
    }

    async fn next(&mut self) -> Option<io::Result<(Source, String)>> {
        loop {
            // A program that writes without end must not keep the other tasks of this thread from running.
            consume_budget().await;
            match self.state {
                State::Ended => return None,
                State::Unpiped => {
                    self.state = State::Ended;
                    let reason = if self.both {
                        "neither stdout nor stderr is piped: the command needs `.stdout(Stdio::piped())`"
                    } else {
                        "stdout is not piped: the command needs `.stdout(Stdio::piped())`"
                    };
                    return Some(Err(io::Error::new(io::ErrorKind::InvalidInput, reason)));
                }
                State::Reading | State::Ending => {}
            }
            for source in self.sources() {
                if let Some(item) = self.take_line(source) {
                    return Some(item.map(|line| (source, line)));
                }
            }
            if self.state == State::Ending {
                self.state = State::Ended;
                if let Some(why @ (Why::TimedOut | Why::TooLarge)) = self.child.exchange.phase.why() {
                    let kind = if why == Why::TimedOut { io::ErrorKind::TimedOut } else { io::ErrorKind::FileTooLarge };
                    return Some(Err(io::Error::new(kind, self.child.cut_short(why))));
                }
                return None;
            }
            let want = if self.both { Want::Either } else { Want::Stdout };
            match self.child.step(want).await {
                Ok(Event::PipesEnded) => self.state = State::Ending,
                Ok(_) if self.child.exchange.phase.is_finished() => self.state = State::Ending,
                Ok(_) => {}
                Err(error) => {
                    self.state = State::Ended;
                    return Some(Err(io::Error::other(error)));
                }
            }
        }
    }

    fn sources(&self) -> impl Iterator<Item = Source> + use<> {
        [Source::Stdout, Source::Stderr].into_iter().take(1 + usize::from(self.both))
    }

    /// Takes the next line out of a buffer, or at the end the rest.
    fn take_line(&mut self, source: Source) -> Option<io::Result<String>> {
        let index = source as usize;
        let exchange = &mut self.child.exchange;
        let buf = match source {
            Source::Stdout => &mut exchange.stdout,
            Source::Stderr => &mut exchange.stderr,
        };
        let (taken, searched) = (&mut self.taken[index], &mut self.searched[index]);
        let found = buf[*searched..].iter().position(|byte| *byte == b'\n').map(|at| *searched + at);
        let end = found.unwrap_or(buf.len());
        // What has no line end is a line only at the true end.
        let is_torn = self.state == State::Reading || exchange.cut_off;
        let line = &buf[*taken..end];
        // Without a line end yet, the `\r` is most likely half of one.
        let line = if found.is_some() || is_torn { line.strip_suffix(b"\r").unwrap_or(line) } else { line };
        if line.len() > self.child.max_line {
            self.state = State::Ended;
            return Some(Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long")));
        }
        if found.is_none() && (is_torn || *taken == buf.len()) {
            // All handed-out bytes go in one move, once a buffer and not once a line.
            buf.drain(..*taken);
            (*taken, *searched) = (0, buf.len());
            return None;
        }
        let line = std::str::from_utf8(line)
            .map(str::to_owned)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
        *taken = end + usize::from(found.is_some());
        *searched = *taken;
        Some(line)
    }
}

impl Drop for Reader<'_> {
    /// Leaves in the child's buffers exactly what was not handed out.
    fn drop(&mut self) {
        let exchange = &mut self.child.exchange;
        exchange.stdout.drain(..self.taken[Source::Stdout as usize]);
        exchange.stderr.drain(..self.taken[Source::Stderr as usize]);
    }
}
