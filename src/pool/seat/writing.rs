//! How what is in a worker's outbox leaves: whoever gave it something writes, or its supervisor, and has the outbox lent meanwhile.
//!
//! Nobody else writes then, and the desk is not locked: a worker on this core can be quicker with its answer than we with the
//! call. What is put on the desk meanwhile waits there for the writer to come back.

use std::io;
use std::mem;
use std::sync::Arc;

use bytes::Bytes;

use super::{Desk, Pen, Seat};
use crate::channel::flusher::is_fd_congestion;
use crate::channel::outbox::Outbox;
use crate::channel::socket::Socket;
use crate::sys::socket::is_read;
use crate::task::unheeded;
use crate::wire::frame::Frame;

/// How often in a row one caller writes what others have given meanwhile. He has something else to do, too.
const MOST_ROUNDS: u32 = 8;

impl Seat {
    /// Writes what was put into the outbox, here and now, and leaves to the supervisor what does not fit, and the end of
    /// its worker.
    #[inline(always)]
    pub(in crate::pool) fn write(&self) {
        // Others' bytes, whose end is their code.
        let mut spent = Vec::new();
        self.write_into(&mut spent);
        if !spent.is_empty() {
            unheeded(|| drop(spent));
        }
    }

    /// Leaves it to the supervisor to write what was put into the outbox.
    pub(in crate::pool) fn leave(&self) {
        let mut desk = self.desk();
        if desk.pen == Pen::Supervisor {
            desk.pen = Pen::Left;
            drop(desk);
            self.bell.notify_one();
        }
    }

    /// Writes what was left to the supervisor.
    pub(in crate::pool) fn write_left(&self) {
        let is_left = self.desk().pen == Pen::Left;
        if is_left {
            self.write();
        }
    }

    /// As [`write`](Self::write), and gives what has left.
    #[inline(always)]
    pub(in crate::pool) fn write_into(&self, spent: &mut Vec<Bytes>) {
        let mut lent = self.desk().lend_outbox();
        let mut rounds = 0;
        while let Some((socket, mut outbox)) = lent {
            rounds += 1;
            let goes_on = outbox.flush_into(&*socket, spent).is_ok() && rounds < MOST_ROUNDS;
            lent = self.desk().take_outbox(socket, outbox, goes_on, spent);
            if !goes_on {
                self.bell.notify_one();
            }
        }
    }

    /// Writes what fits of what is left, unless somebody else does.
    pub(in crate::pool) fn write_rest(&self, socket: &Socket) -> io::Result<()> {
        let mut spent = Vec::new();
        self.desk().write(socket, &mut spent)
    }

    /// Throws away what can't be written any more.
    pub(in crate::pool) fn abandon(&self) {
        let mut spent = Vec::new();
        self.desk().outbox.abandon(&mut spent);
    }
}

/// Whether a write fails because the process is ending, which a read sees, too. Otherwise it is for what was to be sent: the
/// kernel has no memory for it, or there is an fd in it that no message may have, and it could not be seen in time that it
/// is one; sendmsg(2).
pub(in crate::pool) fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

impl Desk {
    /// Gives what is to be written to whoever writes it, unless somebody else does already.
    pub(super) fn lend_outbox(&mut self) -> Option<(Arc<Socket>, Box<Outbox>)> {
        if self.pen == Pen::Lent {
            return None;
        }
        let socket = self.socket.clone()?;
        self.pen = Pen::Lent;
        let interim = self.interim.take().unwrap_or_default();
        Some((socket, mem::replace(&mut self.outbox, interim)))
    }

    /// Takes it back, and gives it out once more if its writer goes on and there is more by now.
    pub(super) fn take_outbox(
        &mut self,
        socket: Arc<Socket>,
        mut outbox: Box<Outbox>,
        goes_on: bool,
        spent: &mut Vec<Bytes>,
    ) -> Option<(Arc<Socket>, Box<Outbox>)> {
        if self.pen != Pen::Lent || !self.socket.as_ref().is_some_and(|own| Arc::ptr_eq(own, &socket)) {
            // That process is gone.
            outbox.abandon(spent);
            return None;
        }
        if !self.outbox.is_empty() {
            outbox.append(mem::take(&mut *self.outbox));
        }
        if goes_on && !outbox.is_empty() {
            return Some((socket, outbox));
        }
        self.interim = Some(mem::replace(&mut self.outbox, outbox));
        self.pen = Pen::Supervisor;
        None
    }

    /// Writes what fits, unless somebody else does.
    pub(super) fn write(&mut self, socket: &Socket, spent: &mut Vec<Bytes>) -> io::Result<()> {
        if self.pen == Pen::Lent {
            return Ok(());
        }
        let result = self.outbox.flush_into(socket, spent);
        self.congested = result.as_ref().is_err_and(is_fd_congestion);
        result
    }

    /// Puts a frame into the outbox that is no task from outside.
    pub(in crate::pool) fn push(&mut self, frame: Frame) {
        self.outbox.push(frame);
    }

    /// Whether there is something that the supervisor has to write.
    pub(in crate::pool) fn is_unwritten(&self) -> bool {
        self.pen != Pen::Lent && !self.outbox.is_empty()
    }

    /// Whether it waits for others to take in fds, which says nothing of its worker: that has read all it was sent.
    pub(super) fn is_congested(&self) -> bool {
        self.congested && self.is_unwritten() && self.socket.as_ref().is_some_and(|socket| is_read(&**socket))
    }

    /// Whether there is nothing to write, for anybody.
    pub(in crate::pool) fn is_written(&self) -> bool {
        self.pen != Pen::Lent && self.outbox.is_empty()
    }
}
