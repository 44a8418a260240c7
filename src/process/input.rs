//! What is fed to a child: bytes, or what a reader gives. Writing it into the pipe is in `exchange`.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};

pub(super) struct Input {
    /// What comes next.
    pub(super) chunk: Bytes,
    /// Where more comes from.
    reader: Option<Pin<Box<dyn AsyncRead + Send + Sync>>>,
}

/// How much is read ahead of the child: what a pipe holds.
const CHUNK: usize = 64 << 10;

impl Input {
    pub(super) fn bytes(chunk: Bytes) -> Self {
        Self { chunk, reader: None }
    }

    pub(super) fn reader(reader: impl AsyncRead + Send + Sync + 'static) -> Self {
        Self { chunk: Bytes::new(), reader: Some(Box::pin(reader)) }
    }

    /// Sees to it that `chunk` is not empty; `false` at the end.
    pub(super) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if !self.chunk.is_empty() {
            return Poll::Ready(Ok(true));
        }
        let Some(reader) = &mut self.reader else { return Poll::Ready(Ok(false)) };
        let mut buf = BytesMut::zeroed(CHUNK);
        let mut read = ReadBuf::new(&mut buf);
        ready!(reader.as_mut().poll_read(cx, &mut read))?;
        let len = read.filled().len();
        buf.truncate(len);
        self.chunk = buf.freeze();
        Poll::Ready(Ok(len > 0))
    }
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Input").field("bytes", &self.chunk.len()).field("reader", &self.reader.is_some()).finish()
    }
}
