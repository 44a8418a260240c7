//! How many inputs of a `map` go into a chunk: as many as make a task that is long beside the way there and back, and short
//! beside the whole. That there may be fewer inputs left, or less room, is `map`'s business.

use std::time::Duration;

use crate::sys::ledger::KEPT;

/// So many inputs are sent one by one before chunks may be larger: where there are few, a death costs no neighbour.
const ONE_BY_ONE: usize = 256;

/// How long the calls of a chunk should take together.
const CHUNK_TIME: Duration = Duration::from_micros(500);

/// The most inputs in a chunk, and the most bytes that its inputs and results should take, where nothing else is asked for: of
/// more results than a worker can keep an answer is due before the chunk is through.
const MOST_INPUTS: usize = 8192;
const MOST_BYTES: usize = KEPT;

/// A chunk is at most so many times as large as the one before it.
const GROWTH: usize = 8;

/// How many inputs go into a chunk.
#[derive(Debug)]
pub(super) enum Chunking {
    Fixed(usize),
    /// As many as the last ones suggest.
    Measured {
        next: usize,
        /// How many inputs have been done.
        seen: usize,
        /// How long one of them takes.
        each: Duration,
    },
}

impl Chunking {
    /// One by one at first.
    pub(super) fn measured() -> Self {
        Self::Measured { next: 1, seen: 0, each: Duration::ZERO }
    }

    pub(super) fn size(&self) -> usize {
        match self {
            Self::Fixed(size) | Self::Measured { next: size, .. } => *size,
        }
    }

    /// Learns from a chunk of `count` inputs that came back.
    pub(super) fn learn(&mut self, count: usize, nanos: u64, bytes: usize) {
        let Self::Measured { next, seen, each } = self else { return };
        *seen = seen.saturating_add(count);
        let now = Duration::from_nanos(nanos / (count as u64).max(1));
        // What takes longer than before counts at once, what takes less in time.
        *each = now.max((now + *each) / 2);
        if *seen < ONE_BY_ONE {
            return;
        }
        let bytes = (bytes / count.max(1)).max(1);
        let in_time = usize::try_from(CHUNK_TIME.as_nanos() / each.as_nanos().max(1)).unwrap_or(usize::MAX);
        *next = in_time.min(MOST_BYTES / bytes).min(MOST_INPUTS).min(next.saturating_mul(GROWTH)).max(1);
    }
}
