//! The ring of answers, from its two ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::BytesMut;

use super::{CAPACITY, Corrupt, Ledger, READ, WRITTEN, store};

/// The worker's end of the ring.
#[derive(Debug)]
pub(crate) struct Writer {
    ledger: Arc<Ledger>,
    written: u64,
    /// What the word at `written` holds so far: words are stored whole.
    partial: u64,
}

impl Writer {
    pub(crate) fn new(ledger: Arc<Ledger>) -> Self {
        Self { ledger, written: 0, partial: 0 }
    }

    /// Appends an answer, whole or not at all. `false`: there is no room for it.
    pub(crate) fn append(&mut self, answer: &[u8]) -> bool {
        let taken = self.ledger.word(READ).load(Ordering::Acquire);
        let held = usize::try_from(self.written.wrapping_sub(taken)).unwrap_or(usize::MAX);
        if held > CAPACITY || answer.len() > CAPACITY - held {
            return false;
        }
        let Self { ledger, written, partial } = self;
        store(answer, written, partial, |position| ledger.ring(position));
        // The bytes before the number that says they are there.
        self.ledger.word(WRITTEN).store(self.written, Ordering::Release);
        true
    }

    /// Whether the parent has taken all of it.
    pub(crate) fn is_taken(&self) -> bool {
        self.ledger.word(READ).load(Ordering::Acquire) == self.written
    }

    /// How many bytes have been written, ever.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }
}

/// The parent's end of the ring.
#[derive(Debug)]
pub(crate) struct Reader {
    ledger: Arc<Ledger>,
    read: u64,
}

impl Reader {
    pub(crate) fn new(ledger: Arc<Ledger>) -> Self {
        Self { ledger, read: 0 }
    }

    /// Whether there may be something to take.
    pub(crate) fn has_answers(&self) -> bool {
        self.ledger.word(WRITTEN).load(Ordering::Acquire) != self.read
    }

    /// Moves what the worker has written to the end of `out`. Gives how many bytes that were.
    pub(crate) fn take(&mut self, out: &mut BytesMut) -> Result<usize, Corrupt> {
        let written = self.ledger.word(WRITTEN).load(Ordering::Acquire);
        let count = usize::try_from(written.wrapping_sub(self.read)).map_err(|_| Corrupt)?;
        if count > CAPACITY {
            return Err(Corrupt);
        }
        if count == 0 {
            return Ok(0);
        }
        let begin = out.len();
        out.resize(begin + count, 0);
        // The rest of a word, whole ones, and the beginning of one.
        let skip = (self.read % 8) as usize;
        let (first, rest) = out[begin..].split_at_mut(count.min((8 - skip) % 8));
        let (words, last) = rest.as_chunks_mut();
        first.copy_from_slice(&self.next_word()[skip..][..first.len()]);
        self.read += first.len() as u64;
        for word in words {
            *word = self.next_word();
            self.read += 8;
        }
        last.copy_from_slice(&self.next_word()[..last.len()]);
        self.read += last.len() as u64;
        self.ledger.word(READ).store(self.read, Ordering::Release);
        Ok(count)
    }

    /// The word that has the next byte.
    fn next_word(&self) -> [u8; 8] {
        self.ledger.ring(self.read).load(Ordering::Relaxed).to_le_bytes()
    }
}
