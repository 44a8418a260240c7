//! Workers' stdout and stderr, line by line, to a function of the caller's.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};

/// A longer line, in bytes, comes in pieces.
const LONGEST_LINE: usize = 64 * 1024;

/// Who is told of each line, with the id of the process that wrote it.
#[derive(Clone)]
pub(super) struct Listener(Arc<Listen>);

type Listen = dyn Fn(u32, &str) + Send + Sync;

impl Listener {
    pub(super) fn new(listen: impl Fn(u32, &str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(listen))
    }

    /// Reads to the end of what process `worker` writes.
    pub(super) async fn listen(self, worker: u32, pipe: impl AsyncRead + Unpin) {
        let mut pipe = BufReader::with_capacity(LONGEST_LINE, pipe);
        let mut line = Vec::new();
        // Whether it is the rest of one that was too long.
        let mut is_rest = false;
        // An error is an end, too.
        while let Ok(read) = pipe.fill_buf().await
            && !read.is_empty()
        {
            let room = LONGEST_LINE - line.len();
            let end = read.iter().take(room).position(|&byte| byte == b'\n');
            let used = end.unwrap_or(read.len().min(room));
            line.extend_from_slice(&read[..used]);
            pipe.consume(used + usize::from(end.is_some()));
            if end.is_some() || line.len() == LONGEST_LINE {
                self.tell(worker, &line, is_rest);
                line.clear();
                is_rest = end.is_none();
            }
        }
        if !line.is_empty() {
            self.tell(worker, &line, is_rest);
        }
    }

    fn tell(&self, worker: u32, line: &[u8], is_rest: bool) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // Of a line of just that length all has been said.
        if is_rest && line.is_empty() {
            return;
        }
        let line = String::from_utf8_lossy(line);
        // The worker would find its stdout closed if this ended here. The panic hook has said what there is to say.
        let _ = catch_unwind(AssertUnwindSafe(|| (self.0)(worker, &line)));
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// How long the lines are that come of this.
    async fn told(printed: &[u8]) -> Vec<usize> {
        let told = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&told);
        Listener::new(move |_, line| into.lock().unwrap().push(line.len())).listen(1, printed).await;
        std::mem::take(&mut told.lock().unwrap())
    }

    #[tokio::test]
    async fn a_line_that_just_fits_into_its_pieces_has_no_empty_one() {
        for (behind, more) in [("", &[][..]), ("\n", &[]), ("\r\n", &[]), ("\n\ny", &[0, 1]), ("y\n", &[1])] {
            for pieces in 1..=3 {
                let line = [vec![b'x'; pieces * LONGEST_LINE], behind.into()].concat();
                assert_eq!(told(&line).await, [&vec![LONGEST_LINE; pieces], more].concat(), "{pieces} {behind:?}");
            }
        }
    }
}
