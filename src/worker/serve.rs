//! The worker's loop: one task after the other, replies gathered while more tasks are at hand.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::BytesMut;

use super::panic;
use crate::channel::inbox::Inbox;
use crate::channel::outbox::Outbox;
use crate::channel::socket::Socket;
use crate::error::Panic;
use crate::process::start;
use crate::sys::socket::{self, Ready};
use crate::task;
use crate::wire::frame::Frame;
use crate::wire::message::{self, Failure, Hello, Kind, Life, Run};

pub(super) struct Server<'a> {
    socket: &'a Socket,
    inbox: Inbox,
    outbox: Outbox,
    max_body: usize,
    life: Life,
    /// The task that is running, for the report of a panic that ends the process.
    running: Arc<AtomicU64>,
}

impl<'a> Server<'a> {
    pub(super) fn new(socket: &'a Socket, inbox: Inbox, hello: &Hello) -> Self {
        let running = Arc::new(AtomicU64::new(0));
        install_hook(socket, Arc::clone(&running));
        let max_body = usize::try_from(hello.max_body).unwrap_or(usize::MAX);
        Self { socket, inbox, outbox: Outbox::default(), max_body, life: hello.life, running }
    }

    /// Serves until the parent ends the stream, and gives the process's exit code.
    pub(super) fn run(mut self) -> i32 {
        loop {
            // Replies leave when nothing more is at hand: a parent that sent many tasks gets many replies in one write.
            let frame = match self.inbox.try_frame(self.socket) {
                Ok(None) => {
                    if self.flush().is_err() {
                        return start::EXIT_NO_PARENT;
                    }
                    self.inbox.blocking_frame(self.socket)
                }
                other => other,
            };
            match frame {
                Ok(Some(frame)) if frame.kind == Kind::Run as u8 => {
                    let done = self.perform(frame);
                    if self.life == Life::OneTask {
                        let _ = self.flush();
                        return if done { 0 } else { start::EXIT_PANICKED };
                    }
                }
                Ok(None) => return 0,
                // Not our parent's language; there is nobody to tell.
                Ok(Some(_)) | Err(_) => return start::EXIT_NO_PARENT,
            }
        }
    }

    /// Runs one task and puts its reply into the outbox. Says whether it has a result.
    fn perform(&mut self, frame: Frame) -> bool {
        let Frame { id, body, fds, .. } = frame;
        self.running.store(id, Ordering::Relaxed);
        let mut result = BytesMut::new();
        let outcome = match Run::parse(body).and_then(|run| Some((task::resolve(&run)?, run.arguments))) {
            None => Err(Failure::Decode("the parent named a function that is not in this executable".into())),
            Some((entry, arguments)) => panic::catch(|| (entry.run)(arguments, fds, &mut result, self.max_body))
                .unwrap_or_else(|panic| Err(Failure::Panicked(panic))),
        };
        // What a task prints without a newline must not wait for the worker's end, which may be a kill.
        let _ = std::io::stdout().flush();
        let done = outcome.is_ok();
        self.outbox.push(match outcome {
            Ok(fds) => Frame { kind: Kind::Done as u8, id, body: result.freeze(), fds },
            Err(failure) => message::frame(Kind::Failed, id, &failure),
        });
        done
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.outbox.is_empty() {
            return Ok(());
        }
        self.socket.block_when(Ready::Write, || self.outbox.flush(self.socket))
    }
}

/// With `panic = "abort"` the hook is the last thing that runs, so it tells the parent itself.
fn install_hook(socket: &Socket, running: Arc<AtomicU64>) {
    let socket = socket.as_fd().try_clone_to_owned().ok();
    panic::install(move |panic: &Panic| {
        let Some(socket) = &socket else { return };
        let failure = Failure::Panicked(panic.clone());
        let mut outbox = Outbox::default();
        outbox.push(message::frame(Kind::Failed, running.load(Ordering::Relaxed), &failure));
        while let Err(error) = outbox.flush(socket) {
            if error.kind() != std::io::ErrorKind::WouldBlock || socket::wait(socket, Ready::Write).is_err() {
                return;
            }
        }
    });
}
