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
                self.tell(worker, &line);
                line.clear();
            }
        }
        if !line.is_empty() {
            self.tell(worker, &line);
        }
    }

    fn tell(&self, worker: u32, line: &[u8]) {
        let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line));
        // The worker would find its stdout closed if this ended here. The panic hook has said what there is to say.
        let _ = catch_unwind(AssertUnwindSafe(|| (self.0)(worker, &line)));
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener(..)")
    }
}
