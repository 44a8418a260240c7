//! Clients between the kernel's queue and `accept`: who they are, and whether they speak our language.
//!
//! It runs on the background thread, so that clients are greeted whatever the program's own runtime is doing.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use super::Peer;
use crate::channel::background;
use crate::channel::duplex::Sides;
use crate::channel::socket::Socket;
use crate::sys::rendezvous;
use crate::sys::socket::{self, Ready};
use crate::wire::frame::{Frame, HEAD_LEN, HELLO, Limits, REFUSAL};

/// How long each side waits for the other's word.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How many clients are shaking hands or wait for `accept`.
const MOST: usize = 128;

/// How long to wait before accepting is tried again when the system refused, most often for want of fds.
const PAUSE: Duration = Duration::from_millis(50);

/// Says who is let in. It is somebody else's code.
#[derive(Clone)]
pub(super) struct Admit(Arc<Code>);

type Predicate = dyn Fn(&Peer) -> bool + Send + Sync;

/// Its end is other people's code, too, which may wait for what the background thread does; and most often that thread is the
/// last to have it.
struct Code(Option<Box<Predicate>>);

impl Admit {
    pub(super) fn new(admit: impl Fn(&Peer) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(Code(Some(Box::new(admit)))))
    }

    fn admits(&self, peer: &Peer) -> bool {
        self.0.0.as_ref().is_some_and(|admit| admit(peer))
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        background::let_go(self.0.take());
    }
}

/// The task that accepts, and those who are ready.
#[derive(Debug)]
pub(super) struct Greeting {
    hall: Arc<Hall>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Hall {
    ready: Mutex<VecDeque<Guest>>,
    news: Notify,
}

#[derive(Debug)]
struct Guest {
    sides: Sides,
    peer: Peer,
    _place: OwnedSemaphorePermit,
}

impl Greeting {
    pub(super) fn start(runtime: &Handle, socket: OwnedFd, admit: Option<Admit>) -> Self {
        let hall = Arc::new(Hall { ready: Mutex::default(), news: Notify::new() });
        let task = runtime.spawn(accept_all(Socket::new(socket), admit, Arc::clone(&hall))).abort_handle();
        Self { hall, task }
    }

    /// The next one that is ready.
    ///
    /// # Cancel safety
    /// Dropping it loses nobody.
    pub(super) async fn next(&self) -> io::Result<(Sides, Peer)> {
        loop {
            let mut news = pin!(self.hall.news.notified());
            // Before the look, or a guest who comes in between is not heard of. All hear of each, as one may not be polled.
            news.as_mut().enable();
            let guest = self.hall.ready.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            if let Some(Guest { sides, peer, .. }) = guest {
                return Ok((sides, peer));
            }
            if self.task.is_finished() {
                return Err(io::Error::other("nobody listens any more"));
            }
            news.await;
        }
    }
}

impl Drop for Greeting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A client that is being greeted.
#[derive(Debug)]
struct Stranger {
    task: AbortHandle,
    /// Its socket, which goes with it.
    socket: Weak<Socket>,
}

impl Stranger {
    /// Whether it has not said its hello, or not the whole of it. What its task has yet to read lies in the socket, and once it
    /// has read a hello it has come to its end.
    fn is_silent(&self) -> bool {
        let unread = |socket: Arc<Socket>| socket::unread(&*socket).unwrap_or(0);
        self.socket.upgrade().map_or(0, unread) < HEAD_LEN as u64
    }
}

async fn accept_all(socket: Socket, admit: Option<Admit>, hall: Arc<Hall>) {
    let places = Arc::new(Semaphore::new(MOST));
    // Those who are being greeted go with this task.
    let mut greeted = JoinSet::new();
    // The same, the one that came first in front.
    let mut strangers = VecDeque::new();
    loop {
        let accepted = socket.when(Ready::Read, || rendezvous::accept(&socket)).await;
        while greeted.try_join_next().is_some() {}
        strangers.retain(|stranger: &Stranger| !stranger.task.is_finished());
        match accepted {
            Ok(client) => {
                // Who has spoken is through as soon as its task runs, or is being asked about, and does not fall silent again.
                if places.available_permits() == 0
                    && let Some(silent) = strangers.iter().position(Stranger::is_silent)
                    && let Some(silent) = strangers.remove(silent)
                {
                    silent.task.abort();
                }
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                let (admit, hall, sides) = (admit.clone(), Arc::clone(&hall), Sides::new(client));
                let socket = Arc::downgrade(sides.receiving.socket());
                let task = greeted.spawn(async move {
                    if let Ok(Some((sides, peer))) = timeout(PATIENCE, greet(sides, admit)).await {
                        let guest = Guest { sides, peer, _place: place };
                        hall.ready.lock().unwrap_or_else(PoisonError::into_inner).push_back(guest);
                        hall.news.notify_waiters();
                    }
                });
                strangers.push_back(Stranger { task, socket });
            }
            // They stay in the kernel's queue meanwhile.
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// Gives the client if it is admitted and shakes hands.
async fn greet(mut sides: Sides, admit: Option<Admit>) -> Option<(Sides, Peer)> {
    let peer = Peer::of(&**sides.receiving.socket()).ok()?;
    if !is_admitted(peer, admit).await {
        let _ = sides.sending.post(Frame { kind: REFUSAL, ..Frame::default() });
        return None;
    }
    // It sends nothing else before it has our hello.
    expect_hello(&mut sides, 0).await.ok()?;
    sides.sending.post(hello()).ok()?;
    Some((sides, peer))
}

/// Asks on a thread of its own.
pub(super) async fn is_admitted(peer: Peer, admit: Option<Admit>) -> bool {
    match admit {
        None => peer.is_our_user(),
        Some(admit) => spawn_blocking(move || admit.admits(&peer)).await.unwrap_or(false),
    }
}

pub(super) fn hello() -> Frame {
    Frame { kind: HELLO, ..Frame::default() }
}

/// Waits for the other side's word, and takes no more from it than that. What comes in the same read may have so many fds.
pub(super) async fn expect_hello(sides: &mut Sides, fds_behind: usize) -> io::Result<()> {
    sides.receiving.set_limits(Limits::new(0, fds_behind));
    let frame = poll_fn(|cx| sides.receiving.poll_frame(cx)).await.map_err(io::Error::other)?;
    sides.receiving.set_limits(Limits::default());
    match frame.map(|frame| frame.kind) {
        Some(HELLO) => Ok(()),
        Some(REFUSAL) => Err(io::Error::new(io::ErrorKind::PermissionDenied, "the listener refused this process")),
        Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "no end of a channel is there")),
        None => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the other side has gone")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use futures::FutureExt as _;

    use super::*;
    use crate::channel::fuzz::Lent;
    use crate::channel::{Duplex, Fd, value};
    use crate::wire::frame::MAX_FDS;

    fn wire(frame: &Frame) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame.put_head(&mut bytes);
        bytes.extend_from_slice(&frame.body);
        bytes
    }

    #[tokio::test]
    async fn a_stranger_has_no_fds_held_before_its_hello() {
        for (bytes, fds) in [(&[0][..], 1), (&[0], 253), (&wire(&hello()), 1)] {
            let ((theirs, ours), lent) = (socket::stream_pair().unwrap(), Lent::new());
            let sides = Sides::new(ours);
            socket::send(&theirs, &[IoSlice::new(bytes)], &lent.times(fds)).unwrap();
            let greeted = greet(sides, None).now_or_never();
            assert!(matches!(greeted, Some(None)), "{fds}");
            lent.assert_closed();
        }
    }

    /// The kernel gives both in one read.
    #[tokio::test]
    async fn a_message_with_fds_right_behind_a_listeners_hello_is_whole() {
        let ((theirs, ours), lent) = (socket::stream_pair().unwrap(), Lent::new());
        let mut sides = Sides::new(ours);
        socket::send(&theirs, &[IoSlice::new(&wire(&hello()))], &[]).unwrap();
        let message = value::encode(&Fd::from(lent.copy()), 100).unwrap();
        socket::send(&theirs, &[IoSlice::new(&wire(&message))], &lent.times(1)).unwrap();
        expect_hello(&mut sides, MAX_FDS).await.unwrap();
        assert!(Duplex::<(), Fd>::over(sides).recv().await.unwrap().is_some());
    }
}
