//! Calls over a duplex: a client asks, a server answers, many at once, matched by their number.
//!
//! ```text
//!  call ── REQUEST n ──▶ serve ── handler          n is the client's, from 1 upwards, also as it moves
//!       ◀── ANSWER n ──┘                           or REFUSAL n: why there is none
//!  dropped ─ CANCEL n ─▶ the handler is dropped
//! ```
//!
//! A client has at most [`MAX_CALLS`] calls open, so that is all that a server holds, and a cancellation never waits
//! behind more requests than that. Where a call may be what ends other calls, as with `broker.rs`, such a bound would have
//! it wait behind them: there the bound is far away and is an error. `table.rs` is what a client knows of them, `calls.rs` how that
//! changes.

mod calls;
mod client;
mod serve;
mod table;

pub use client::Client;
pub use serve::{blocking_serve, serve};
pub(in crate::channel) use serve::{last_word, serve_within, turn_away};

/// How many calls a client has open at once; more wait in it.
const MAX_CALLS: usize = 1024;

/// A refusal with this number is one of all the client's calls, and the last word.
const ALL: u64 = 0;

/// How many calls a client may have open, and what becomes of one more.
#[derive(Clone, Copy, Debug)]
pub(in crate::channel) enum Bound {
    /// It waits until one of them is over.
    Wait(usize),
    /// It fails.
    Refuse(usize),
}

impl Bound {
    pub(in crate::channel) fn most(self) -> usize {
        match self {
            Self::Wait(most) | Self::Refuse(most) => most,
        }
    }
}
