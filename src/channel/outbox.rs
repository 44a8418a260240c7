//! The sending end of a stream of frames: what is to leave, in order, gathered into few writes.
//!
//! A frame that was pushed leaves whole or the stream ends: no caller's cancellation can cut it. This file does not wait
//! and does not bound itself; whoever pushes looks at `len` first.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::AsFd;

use bytes::{Buf as _, Bytes, BytesMut};

use crate::sys::socket;
use crate::wire::extra::Extra;
use crate::wire::frame::{Frame, HEAD_LEN, Head, body_len};
use crate::wire::held::Held;
use crate::wire::passenger::Passenger;

/// Bodies up to this many bytes are copied behind their header; larger ones are sent from where they lie.
const COPY: usize = 8 * 1024;

/// How large a gathered piece grows before the next one is begun.
const GATHER: usize = 64 * 1024;

/// The largest buffer that is kept for the next frames once its own have left.
const KEEP: usize = 16 * 1024;

/// The most pieces of one write.
const PIECES: usize = 64;

/// Frames that are leaving.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// What was pushed before the last few small frames, if there is any of that.
    pieces: VecDeque<Piece>,
    /// The last few small frames: most often all that there is.
    gathered: BytesMut,
    /// Bytes pushed since the beginning.
    pushed: u64,
    /// Bytes sent since the beginning.
    sent: u64,
}

/// Bytes, and the fds that go with the first of them.
#[derive(Debug)]
struct Piece {
    bytes: Part,
    fds: Extra<Passenger>,
}

#[derive(Debug)]
enum Part {
    Gathered(BytesMut),
    Whole(Bytes),
}

impl Part {
    fn rest(&self) -> &[u8] {
        match self {
            Self::Gathered(bytes) => bytes,
            Self::Whole(bytes) => bytes,
        }
    }

    fn into_whole(self) -> Option<Bytes> {
        match self {
            Self::Gathered(_) => None,
            Self::Whole(bytes) => Some(bytes),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Gathered(bytes) => bytes.advance(count),
            Self::Whole(bytes) => bytes.advance(count),
        }
    }
}

impl Outbox {
    /// Appends a frame. Gives the position in the stream at which it will have left; see [`sent`](Self::sent).
    pub(crate) fn push(&mut self, frame: Frame) -> u64 {
        let Frame { kind, id, body, more, fds, .. } = frame;
        self.push_shared(kind, id, (&[], &body, &more), fds)
    }

    /// As [`push`](Self::push), for a body that somebody keeps: behind its first bytes, which are copied, a small piece is copied,
    /// too, and a larger one shared.
    pub(crate) fn push_shared(
        &mut self,
        kind: u8,
        id: u64,
        (first, body, more): (&[u8], &Held, &[Bytes]),
        fds: Extra<Passenger>,
    ) -> u64 {
        let len = first.len() + body_len(body, more);
        let head = Head { len, kind, fds: fds.len(), id };
        self.pushed += (HEAD_LEN + len) as u64;
        let copied = if body.len() <= COPY { body.len() } else { 0 };
        let room = HEAD_LEN + first.len() + copied;
        // Fds leave with the first byte of a piece, so a frame that has some begins one.
        if !fds.is_empty() || self.gathered.len() + room > GATHER {
            self.end_piece(Extra::default());
        }
        self.gathered.reserve(room);
        head.put(&mut self.gathered);
        if !first.is_empty() {
            self.gathered.extend_from_slice(first);
        }
        self.gathered.extend_from_slice(&body[..copied]);
        if !fds.is_empty() || first.len() + copied < len {
            self.end_piece(fds);
            let whole = (copied < body.len()).then(|| body.to_bytes());
            let whole = whole.into_iter().chain(more.iter().cloned());
            self.pieces.extend(whole.map(|bytes| Piece { bytes: Part::Whole(bytes), fds: Extra::default() }));
        }
        self.pushed
    }

    /// What comes next is gathered in another piece than what came last.
    fn end_piece(&mut self, fds: Extra<Passenger>) {
        if !self.gathered.is_empty() {
            let bytes = Part::Gathered(mem::take(&mut self.gathered));
            self.pieces.push_back(Piece { bytes, fds });
        }
    }

    /// Sends what leaves without waiting. `Ok` says that all has left; `WouldBlock` that some is still here.
    pub(crate) fn flush(&mut self, socket: impl AsFd) -> io::Result<()> {
        self.flush_into(socket, &mut Vec::new())
    }

    /// As [`flush`](Self::flush), under a lock: what has left may be bytes whose owner is other people's code, which is to run
    /// when the lock is gone.
    #[inline(always)]
    pub(crate) fn flush_into(&mut self, socket: impl AsFd, spent: &mut Vec<Bytes>) -> io::Result<()> {
        while !self.pieces.is_empty() {
            let count = self.send_pieces(&socket)?;
            self.advance(count, spent);
        }
        while !self.gathered.is_empty() {
            let count = socket::send(&socket, &[IoSlice::new(&self.gathered)], &[])?;
            self.advance(count, spent);
        }
        Ok(())
    }

    /// Sends once, of as much as may leave in one write.
    fn send_pieces(&self, socket: impl AsFd) -> io::Result<usize> {
        let fds: Vec<_> = self.pieces.iter().take(1).flat_map(|first| &*first.fds).map(AsFd::as_fd).collect();
        let mut slices = [IoSlice::new(&[]); PIECES];
        let fdless = self.pieces.iter().skip(1).take_while(|piece| piece.fds.is_empty());
        let together = 1 + fdless.count();
        let rests = self.pieces.iter().take(together).map(|piece| piece.bytes.rest());
        let last = (together == self.pieces.len()).then_some(&self.gathered[..]);
        let mut count = 0;
        for (slice, rest) in slices.iter_mut().zip(rests.chain(last)) {
            *slice = IoSlice::new(rest);
            count += 1;
        }
        socket::send(socket, &slices[..count], &fds)
    }

    /// Appends another's frames, of which none has left.
    pub(crate) fn append(&mut self, other: Self) {
        debug_assert_eq!(other.sent, 0);
        if !other.is_empty() {
            self.end_piece(Extra::default());
            self.pieces.extend(other.pieces);
            self.gathered = other.gathered;
            self.pushed += other.pushed;
        }
    }

    /// Throws away what has not left: nobody will read it. Gives others' bytes back, as [`flush_into`](Self::flush_into) does.
    pub(crate) fn abandon(&mut self, spent: &mut Vec<Bytes>) {
        spent.extend(mem::take(&mut self.pieces).into_iter().filter_map(|piece| piece.bytes.into_whole()));
        self.gathered = BytesMut::new();
        self.pushed = self.sent;
    }

    /// How many bytes wait.
    pub(crate) fn len(&self) -> usize {
        usize::try_from(self.pushed - self.sent).unwrap_or(usize::MAX)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pushed == self.sent
    }

    /// How many bytes were pushed since the beginning.
    pub(crate) fn pushed(&self) -> u64 {
        self.pushed
    }

    /// How many bytes have left since the beginning.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    fn advance(&mut self, mut count: usize, spent: &mut Vec<Bytes>) {
        self.sent += count as u64;
        while count > 0
            && let Some(first) = self.pieces.front_mut()
        {
            // They left with the first byte.
            mem::take(&mut first.fds).leave();
            let len = first.bytes.rest().len();
            if count < len {
                first.bytes.advance(count);
                return;
            }
            count -= len;
            match self.pieces.pop_front().map(|piece| piece.bytes) {
                Some(Part::Gathered(mut bytes)) if self.gathered.capacity() == 0 => {
                    bytes.clear();
                    self.gathered = bytes;
                }
                Some(Part::Whole(bytes)) => spent.push(bytes),
                _ => {}
            }
        }
        if count < self.gathered.len() {
            self.gathered.advance(count);
        } else if self.gathered.capacity() > KEEP {
            self.gathered = BytesMut::new();
        } else {
            self.gathered.clear();
        }
    }
}
