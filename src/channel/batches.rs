//! The fds that have come for frames which are not taken yet. It reads nothing: see `inbox.rs`.
//!
//! A send with fds is one frame's, and the kernel never joins two such sends in one receive. So what one receive gives is
//! a batch, which belongs to a frame that began in the bytes of that receive and announces fds. If there is none, or one that
//! may not have them, the stream ends with an error: as soon as that is known, for a peer may never send the rest of a frame.
//! So no more are held than one frame may have. Fds that this process could not take in (it had none free) are missed by that
//! frame alone: its value can't be decoded, the stream goes on.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use crate::wire::extra::Extra;
use crate::wire::frame::{HEAD_LEN, Head};
use crate::wire::passenger::Passenger;

/// The most batches that stay here: that of the frame which is under way, or of one that came behind the last one taken. There
/// is another one only from the read that ends a frame with fds until that frame is taken.
pub(super) const MAX_BATCHES: usize = 1;

/// Why fds are refused.
const TOO_MANY: &str = "more file descriptors in one message than this end takes";
const UNANNOUNCED: &str = "file descriptors that no frame announced";
const OTHER_NUMBER: &str = "another number of file descriptors than announced";

/// The fds of one frame. If there is none and none is lost, they were more than a frame may have, and are closed.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) fds: Vec<OwnedFd>,
    /// Some of them could not be taken in.
    pub(super) lost: bool,
    /// The frame that they belong to begins less than so many bytes behind the first one that is not taken.
    pub(super) within: usize,
}

impl Batch {
    /// Refuses it for the frame with this header.
    fn check(&self, head: &Head) -> Result<(), &'static str> {
        match self.fds.len() {
            _ if head.fds == 0 => Err(UNANNOUNCED),
            count if count > head.fds || (count < head.fds && !self.lost) => Err(OTHER_NUMBER),
            _ => Ok(()),
        }
    }
}

/// Batches in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Batches(pub(super) VecDeque<Batch>);

impl Batches {
    /// Notes what came with a read. More than `most`, which one frame may have, are closed at once; they are refused when the
    /// frames before them, which may have come in the same read, are taken.
    pub(super) fn push(&mut self, batch: Batch, most: usize) {
        let is_too_many = batch.fds.len() > most;
        self.0.push_back(if is_too_many { Batch { fds: Vec::new(), lost: false, ..batch } } else { batch });
    }

    /// Refuses the frame that is under way, as far as is known: its header may have yet to come. All that is here is its own,
    /// as those in front of it have been taken.
    pub(super) fn check(&self, head: Option<&Head>, most: usize) -> Result<(), &'static str> {
        if head.is_some_and(|head| head.fds > most) {
            return Err(TOO_MANY);
        }
        match (self.0.front(), head) {
            (None, _) => Ok(()),
            (Some(batch), _) if batch.fds.is_empty() && !batch.lost => Err(TOO_MANY),
            _ if self.0.len() > MAX_BATCHES => Err(UNANNOUNCED),
            (Some(batch), Some(head)) => batch.check(head),
            (Some(_), None) => Ok(()),
        }
    }

    /// The fds of a frame that is being taken, and whether some are lost. They come with its first byte, so they are here before
    /// its last one.
    pub(super) fn claim(&mut self, head: &Head, most: usize) -> Result<(Extra<Passenger>, bool), &'static str> {
        if head.fds > most {
            return Err(TOO_MANY);
        }
        if head.fds == 0 && self.0.is_empty() {
            return Ok((Extra::default(), false));
        }
        let batch = if head.fds == 0 { None } else { self.0.pop_front() };
        for batch in &mut self.0 {
            batch.within = batch.within.saturating_sub(HEAD_LEN + head.len);
        }
        if self.0.front().is_some_and(|batch| batch.within == 0) {
            return Err(UNANNOUNCED);
        }
        let Some(batch) = batch else { return Ok((Extra::default(), false)) };
        batch.check(head)?;
        Ok((batch.fds.into_iter().map(Passenger::from).collect(), batch.lost))
    }
}
