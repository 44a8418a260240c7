//! A bare socket to another process: the limit that a message or a task is held against.

#![allow(dead_code, reason = "not every program that measures needs all of it")]

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, recv};
use rustix::process::{Pid, PidfdFlags, getppid, pidfd_open};
use rustix::thread::sched_yield;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;

use crate::support::{Each, each};

/// What the other side of a bare socket does.
#[derive(Clone, Copy)]
pub(crate) enum Role {
    /// Gives back what it reads, so many bytes at a time, in plain blocking calls.
    GiveBack(usize),
    /// The same, and looks whether there is more, letting others run, for `POLLED` before it sleeps.
    GiveBackPolling(usize),
    /// Gives back what it reads, as much as there is.
    GiveBackAll,
    /// As many bytes at a time as `GiveBack`, with tokio.
    GiveBackAsync(usize),
    /// Sends a byte each time that it has read so many, with tokio.
    CountAsync(usize),
}

/// A bare socket to another process: the limit, of what the kernel asks for the same bytes.
pub(crate) struct Bare {
    pub(crate) socket: Option<UnixStream>,
    child: Child,
}

impl Bare {
    pub(crate) fn start(role: Role) -> Self {
        let (ours, theirs) = StdStream::pair().unwrap();
        let (name, size) = match role {
            Role::GiveBack(size) => ("give-back", size),
            Role::GiveBackPolling(size) => ("give-back-polling", size),
            Role::GiveBackAll => ("give-back-all", 64 << 10),
            Role::GiveBackAsync(size) => ("give-back-async", size),
            Role::CountAsync(size) => ("count-async", size),
        };
        let mut command = Command::new("/proc/self/exe");
        let child = command.args([name, &size.to_string()]).stdin(OwnedFd::from(theirs)).spawn().unwrap();
        ours.set_nonblocking(true).unwrap();
        Self { socket: Some(UnixStream::from_std(ours).unwrap()), child }
    }
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn socket(&mut self) -> &mut UnixStream {
        self.socket.as_mut().unwrap()
    }

    /// So many bytes there and back, again and again.
    pub(crate) async fn ping(&mut self, size: usize, rounds: u32) -> Each {
        let (mut bytes, socket) = (vec![7; size], self.socket());
        each(rounds, async {
            for _ in 0..rounds {
                socket.write_all(&bytes).await.unwrap();
                socket.read_exact(&mut bytes).await.unwrap();
            }
        })
        .await
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.socket = None;
        let _ = self.child.wait();
    }
}

/// Starts this executable with a socket, tells it as much as a small task is, and waits for its answer and its end. It watches this
/// process meanwhile, on a thread.
pub(crate) fn ask_once() {
    let (mut ours, theirs) = StdStream::pair().unwrap();
    ours.write_all(&[7; TOLD]).unwrap();
    let mut command = Command::new("/proc/self/exe");
    let mut child = command.args(["answer-once", "57"]).stdin(OwnedFd::from(theirs)).spawn().unwrap();
    // It holds the other end, too.
    drop(command);
    assert_eq!(ours.read_to_end(&mut Vec::new()).unwrap(), 57);
    assert!(child.wait().unwrap().success());
}

/// As [`ask_once`], awaited in this runtime: that it is ready, its answer, and its end.
pub(crate) async fn ask_once_async() {
    let (mut ours, theirs) = StdStream::pair().unwrap();
    ours.write_all(&[7; TOLD]).unwrap();
    let mut command = Command::new("/proc/self/exe");
    command.args(["ready-and-answer-once", "57"]).stdin(OwnedFd::from(theirs)).process_group(0);
    let mut child = command.spawn().unwrap();
    drop(command);
    ours.set_nonblocking(true).unwrap();
    let mut ours = UnixStream::from_std(ours).unwrap();
    ours.read_exact(&mut [0; READY]).await.unwrap();
    ours.read_exact(&mut [0; 57]).await.unwrap();
    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    #[expect(deprecated, reason = "what is not is unsafe, and an OwnedFd fulfils what that asks for")]
    let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE).unwrap();
    let _ = pidfd.readable().await.unwrap();
    assert!(child.wait().unwrap().success());
}

/// As many bytes as a worker says that it is ready with.
const READY: usize = 20;

/// As many bytes as a worker is greeted with, with a small task.
const TOLD: usize = 89;

/// How long a polling side looks before it sleeps.
pub(crate) const POLLED: Duration = Duration::from_micros(50);

/// Waits until there is something to read, at first without sleeping. `false`: nothing will come.
fn wait_polling(socket: &StdStream) -> bool {
    let begun = Instant::now();
    loop {
        match recv(socket, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((read, _)) => return read > 0,
            Err(_) if begun.elapsed() < POLLED => sched_yield(),
            Err(_) => return recv(socket, &mut [0], RecvFlags::PEEK).is_ok_and(|(read, _)| read > 0),
        }
    }
}

/// First in `main`: where this process is the other side of a [`Bare`], it does that and ends.
pub(crate) fn be_other_side() {
    let args: Vec<_> = std::env::args().collect();
    let [_, name, size] = &args[..] else { return };
    let Ok(size) = size.parse::<usize>() else { return };
    let mut socket = StdStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let mut bytes = vec![0; size];
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let with_tokio = |socket: StdStream| {
        socket.set_nonblocking(true).unwrap();
        UnixStream::from_std(socket).unwrap()
    };
    match name.as_str() {
        "give-back" => while socket.read_exact(&mut bytes).is_ok() && socket.write_all(&bytes).is_ok() {},
        "answer-once" | "ready-and-answer-once" => {
            let parent = pidfd_open(getppid().unwrap(), PidfdFlags::empty()).unwrap();
            thread::spawn(move || {
                poll(&mut [PollFd::new(&parent, PollFlags::IN)], None).unwrap();
                std::process::exit(1);
            });
            socket.read_exact(&mut [0; TOLD]).unwrap();
            if name != "answer-once" {
                socket.write_all(&[7; READY]).unwrap();
            }
            socket.write_all(&bytes).unwrap();
        }
        "give-back-polling" => {
            while wait_polling(&socket) && socket.read_exact(&mut bytes).is_ok() && socket.write_all(&bytes).is_ok() {}
        }
        "give-back-all" => {
            while let Ok(read @ 1..) = socket.read(&mut bytes)
                && socket.write_all(&bytes[..read]).is_ok()
            {}
        }
        "give-back-async" => runtime().block_on(async {
            let mut socket = with_tokio(socket);
            while socket.read_exact(&mut bytes).await.is_ok() && socket.write_all(&bytes).await.is_ok() {}
        }),
        "count-async" => runtime().block_on(async {
            let mut socket = with_tokio(socket);
            let (mut bytes, mut total) = (vec![0; 64 << 10], 0);
            while let Ok(read @ 1..) = socket.read(&mut bytes).await {
                total += read;
                if total >= size {
                    total -= size;
                    socket.write_all(&[1]).await.unwrap();
                }
            }
        }),
        _ => return,
    }
    std::process::exit(0);
}
