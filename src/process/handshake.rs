//! The first conversation with a worker, seen from its parent: it says Ready, and has all that is sent to it first.
//!
//! What that is, and how a worker is started, is in `start.rs`.

use std::io;

use super::start::{Plan, READY_WITHIN, Worker};
use super::within::within;
use crate::channel::outbox::Outbox;
use crate::error::{RecvError, SpawnError};
use crate::sys::socket::Ready;
use crate::wire::message::FromWorker;

impl Worker {
    /// Waits for Ready, while what is left of the first words is written.
    pub(crate) async fn shake_hands(&mut self, plan: &Plan) -> Result<(), SpawnError> {
        let pid = self.child.kept().pid();
        let ready = async {
            let (socket, outbox) = (&self.socket, &mut self.outbox);
            // A worker that can't be written to is about to end, which the read will see.
            let mut writing = std::pin::pin!(socket.when(Ready::Write, || outbox.flush(socket)));
            let mut written = false;
            loop {
                tokio::select! {
                    biased;
                    _ = &mut writing, if !written => written = true,
                    frame = self.inbox.frame(socket) => return frame,
                }
            }
        };
        let exited = self.child.kept().exited();
        let first = async {
            tokio::select! {
                biased;
                frame = ready => Some(frame),
                _ = exited => None,
            }
        };
        let frame = match within(READY_WITHIN, first).await {
            Some(Some(frame)) => frame,
            // It may have said Ready, done its task and ended, all since that looked.
            Some(None) => self.inbox.try_frame(&self.socket),
            None => return Err(SpawnError::NotReady { pid, after: READY_WITHIN }),
        };
        let refused = |reason: String| SpawnError::Handshake { pid, reason };
        let frame = match frame {
            Ok(Some(frame)) => frame,
            // The socket ends before the process does.
            Ok(None) | Err(RecvError::Truncated) => {
                let exit = self.child.kept().exited_watched();
                let Some(exit) = within(READY_WITHIN, exit).await else {
                    return Err(SpawnError::NotReady { pid, after: READY_WITHIN });
                };
                return Err(match self.child.kept().start_error() {
                    Some(error) => plan.explain(error),
                    None => SpawnError::Exited { status: exit.status, pid },
                });
            }
            // Not `Io`: a pool takes that for a start without a process, which it would try again and again.
            Err(RecvError::Io(error)) => return Err(refused(format!("cannot receive: {error}"))),
            Err(error) => return Err(refused(error.to_string())),
        };
        match FromWorker::parse(frame) {
            Ok(FromWorker::Ready) => Ok(()),
            Ok(FromWorker::Refused(reason)) => Err(refused(reason)),
            Ok(_) => Err(refused("it did not answer Hello".into())),
            Err(error) => Err(refused(error.to_string())),
        }
    }

    /// Waits until all has left that is still here, or the worker has ended, which is no failed start. A worker reads on as
    /// soon as it has said Ready.
    pub(super) async fn send_rest(&mut self) -> Result<(), SpawnError> {
        let Self { child, socket, outbox, .. } = self;
        let (kept, socket) = (child.kept(), &*socket);
        let is_gone =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
        loop {
            let before = outbox.sent();
            let sending = async {
                tokio::select! {
                    biased;
                    sent = socket.when(Ready::Write, || outbox.flush(socket)) => sent,
                    // A process that it forked may hold the socket open after its end.
                    _ = kept.exited() => Ok(()),
                }
            };
            match within(READY_WITHIN, sending).await {
                Some(Err(error)) if !is_gone(&error) => return Err(error.into()),
                Some(_) => {
                    // What is left of it nobody will read.
                    *outbox = Outbox::default();
                    return Ok(());
                }
                // What is large takes its time.
                None if outbox.sent() > before => {}
                None => {
                    let reason = "it does not read its task".into();
                    return Err(SpawnError::Handshake { pid: kept.pid(), reason });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::channel::inbox::Inbox;
    use crate::channel::socket::Socket;
    use crate::process::keeper::{self, Terms};
    use crate::process::program::{Plain, Program};
    use crate::sys::in_child::InChild;
    use crate::wire::frame::Limits;
    use crate::wire::message::Life;

    /// It failed with "cannot receive", and nothing else.
    #[tokio::test]
    async fn a_worker_that_cannot_be_listened_to_is_a_failed_handshake_that_says_why() {
        let program = Program { args: vec!["1000".into()], ..Program::new("sleep") };
        let launch = Plain::new(Arc::new(program), [None, None, None], InChild::default()).unwrap();
        let child = keeper::spawn_async(Box::new(launch), Terms::default()).await.unwrap().child;
        // From which nothing can be received.
        let socket = Socket::new(std::fs::File::open("/dev/null").unwrap().into());
        let (inbox, outbox) = (Inbox::new(Limits::default()), Outbox::default());
        let mut worker = Worker { child, socket, inbox, outbox, stdin: None, stdout: None, stderr: None, ledger: None };
        // In the C library's words.
        let why = std::io::Error::from_raw_os_error(libc::ENOTSOCK).to_string();
        match worker.shake_hands(&Plan::new(Life::OneTask)).await {
            Err(SpawnError::Handshake { reason, .. }) => assert!(reason.contains(&why), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
}
