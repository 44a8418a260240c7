//! Calls over a duplex: a client asks, a server answers, many at once, matched by their number.
//!
//! ```text
//!  call ── REQUEST n ──▶ serve ── handler          n is the client's, from 1 upwards
//!       ◀── ANSWER n ──┘                           or REFUSAL n: why there is none
//!  dropped ─ CANCEL n ─▶ the handler is dropped
//! ```
//!
//! A client has at most [`MAX_CALLS`] calls open, so that is all that a server holds, and a cancellation never waits
//! behind more requests than that. `calls.rs` is the client's table of them.

mod calls;
mod client;
mod serve;

pub use client::Client;
pub use serve::{blocking_serve, serve};

/// How many calls a client has open at once; more wait in it.
const MAX_CALLS: usize = 1024;
