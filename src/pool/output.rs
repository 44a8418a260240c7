//! Workers' stdout and stderr, line by line, to a function of the caller's.
//!
//! Each is read by a task of its own. When a worker has ended all that it has printed is in the pipe, but so may be what others
//! print that have left its group: so the end is not the pipe's, but as many bytes as fit into it.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::retry_on_intr;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, coop};

use crate::process::ChildStdout;
use crate::task::unheeded;

/// A longer line, in bytes, comes in pieces.
const LONGEST_LINE: usize = 64 * 1024;

/// So much is read at once, in bytes.
const AT_ONCE: usize = 64 * 1024;

/// Who is told of each line, with the id of the process that wrote it.
#[derive(Clone)]
pub(super) struct Listener(Arc<Listen>);

type Listen = dyn Fn(u32, &str) + Send + Sync;

impl Listener {
    pub(super) fn new(listen: impl Fn(u32, &str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(listen))
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener(..)")
    }
}

/// Reads what one process prints, until it has ended.
#[derive(Debug)]
pub(super) struct Listening {
    reads: JoinHandle<()>,
    ended: Arc<Notify>,
}

impl Listening {
    /// Begins to tell a listener what process `worker` writes into a pipe.
    pub(super) fn begin(listener: Listener, worker: u32, pipe: Arc<OwnedFd>) -> io::Result<Self> {
        let ended = Arc::new(Notify::new());
        let lines = Lines::new(listener, worker);
        // Its stderr is a pipe as any other.
        let reads = read(lines, Arc::clone(&pipe), ChildStdout::new(pipe)?, Arc::clone(&ended));
        Ok(Self { reads: tokio::spawn(reads), ended })
    }
}

/// Nobody waits for it any more.
impl Drop for Listening {
    fn drop(&mut self) {
        self.reads.abort();
    }
}

/// Waits until all that processes which have ended have printed was told, but for `left` of their pipes.
///
/// # Cancel safety
///
/// It may be called again, to wait for what is left.
pub(super) async fn heard_out(listening: &mut Vec<Listening>, left: usize) {
    for each in &*listening {
        each.ended.notify_one();
    }
    listening.retain(|each| !each.reads.is_finished());
    while listening.len() > left {
        // It can't panic. If its runtime has ended, so have we.
        let _ = (&mut listening[0].reads).await;
        listening.remove(0);
    }
}

async fn read(mut lines: Lines, fd: Arc<OwnedFd>, mut pipe: ChildStdout, ended: Arc<Notify>) {
    let mut buffer = vec![0; AT_ONCE];
    loop {
        tokio::select! {
            biased;
            () = ended.notified() => break,
            read = pipe.read(&mut buffer) => match read {
                // An error is an end, too.
                Ok(0) | Err(_) => return lines.end(),
                Ok(count) => lines.take(&buffer[..count]).await,
            },
        }
    }
    // Not by way of the runtime, which may not have come to know what is there.
    let mut left = rustix::pipe::fcntl_getpipe_size(&fd).unwrap_or(AT_ONCE);
    while left > 0 {
        let most = left.min(buffer.len());
        let Ok(count @ 1..) = retry_on_intr(|| rustix::io::read(&fd, &mut buffer[..most])) else { break };
        lines.take(&buffer[..count]).await;
        left -= count;
    }
    lines.end();
}

/// Makes lines of what comes.
struct Lines {
    listener: Listener,
    worker: u32,
    /// What has come of the next one.
    line: Vec<u8>,
    /// Whether that is the rest of one that was too long.
    is_rest: bool,
}

impl Lines {
    fn new(listener: Listener, worker: u32) -> Self {
        Self { listener, worker, line: Vec::new(), is_rest: false }
    }

    async fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = LONGEST_LINE - self.line.len();
            let end = bytes.iter().take(room).position(|&byte| byte == b'\n');
            let used = end.unwrap_or(bytes.len().min(room));
            self.line.extend_from_slice(&bytes[..used]);
            bytes = &bytes[used + usize::from(end.is_some())..];
            if end.is_some() || self.line.len() == LONGEST_LINE {
                self.tell();
                self.is_rest = end.is_none();
                // There may be thousands of them, of which each is somebody else's code.
                coop::consume_budget().await;
            }
        }
    }

    fn end(mut self) {
        if !self.line.is_empty() {
            self.tell();
        }
    }

    fn tell(&mut self) {
        let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        // Of a line of just that length all has been said.
        if !self.is_rest || !line.is_empty() {
            let line = String::from_utf8_lossy(line);
            // The worker would find its stdout closed if this ended here. The panic hook has said what there is to say.
            unheeded(|| (self.listener.0)(self.worker, &line));
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::Mutex;

    use super::*;

    type Told = Arc<Mutex<Vec<String>>>;

    fn listener() -> (Told, Listener) {
        let told = Told::default();
        let into = Arc::clone(&told);
        (told, Listener::new(move |_, line| into.lock().unwrap().push(line.to_owned())))
    }

    #[tokio::test]
    async fn a_line_that_just_fits_into_its_pieces_has_no_empty_one() {
        for (behind, more) in [("", &[][..]), ("\n", &[]), ("\r\n", &[]), ("\n\ny", &[0, 1]), ("y\n", &[1])] {
            for pieces in 1..=3 {
                let (told, listener) = listener();
                let mut lines = Lines::new(listener, 1);
                lines.take(&[vec![b'x'; pieces * LONGEST_LINE], behind.into()].concat()).await;
                lines.end();
                let lengths: Vec<_> = told.lock().unwrap().iter().map(String::len).collect();
                assert_eq!(lengths, [&vec![LONGEST_LINE; pieces], more].concat(), "{pieces} {behind:?}");
            }
        }
    }

    /// Where the runtime had no time for it meanwhile, say.
    #[tokio::test]
    async fn what_an_ended_process_has_printed_is_told_though_nothing_was_read_before() {
        let (told, listener) = listener();
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"the last\nwords").unwrap();
        let mut listening = vec![Listening::begin(listener, 1, Arc::new(reader.into())).unwrap()];
        // The writer, who is somebody else, is not waited for.
        heard_out(&mut listening, 0).await;
        assert_eq!(*told.lock().unwrap(), ["the last", "words"]);
        drop(writer);
    }

    #[tokio::test]
    async fn somebody_else_who_goes_on_printing_is_not_listened_to_for_ever() {
        let (told, listener) = listener();
        let (reader, mut writer) = io::pipe().unwrap();
        let mut listening = vec![Listening::begin(listener, 1, Arc::new(reader.into())).unwrap()];
        let other = std::thread::spawn(move || while writer.write_all(b"and on\n").is_ok() {});
        heard_out(&mut listening, 0).await;
        other.join().unwrap();
        assert!(told.lock().unwrap().iter().all(|line| "and on".starts_with(&**line)));
    }

    #[tokio::test]
    async fn who_tells_many_lines_lets_others_run_meanwhile() {
        let (told, listener) = listener();
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(&[b'\n'; 4000]).unwrap();
        let mut listening = vec![Listening::begin(listener, 1, Arc::new(reader.into())).unwrap()];
        let other = async {
            loop {
                match told.lock().unwrap().len() {
                    0 => {}
                    count => break count,
                }
                tokio::task::yield_now().await;
            }
        };
        let (count, ()) = tokio::join!(other, heard_out(&mut listening, 0));
        assert!(count < 4000);
        assert_eq!(told.lock().unwrap().len(), 4000);
    }
}
