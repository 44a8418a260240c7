//! One process that keeps something for many: each holder has a socket of its own to it, whose end is the news of its end.
//!
//! ```text
//!  Holder ── Client ── socket ──▶ attend: serve ── Desk ──┐
//!  Holder ── Client ── socket ──▶ attend: serve ── Desk ──┴── what they share
//! ```
//!
//! It runs on the background thread of the process that made it. A holder that travels is a new socket, whose other end goes
//! to the broker, from another process by way of the old holder; so no process needs to wait for another one to hand its own on.
//! What holders ask is done in the order of `order.rs`; what they only tell, and their end, at once. A holder is killed at any
//! moment: its desk is dropped, which gives back what it held, and nobody else was ever in the middle of anything.

mod order;

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::order::{Attendance, Order, Turn};
use super::service::{Bound, last_word, serve_within, turn_away};
use super::{Client, Duplex, background, duplex};
use crate::error::{CallError, RecvError};
use crate::sys::clock::monotonic_nanos;

/// The most holders of one broker that others have made than its own process. Each costs that process a socket, and it is
/// not asked. What it makes itself is bounded by the fds that it may have.
const MOST_FOREIGN: usize = if cfg!(test) { 8 } else { 4096 };

/// The most questions of one holder that are open at once, over all its clones in a process; one more is an error. They
/// must not wait for each other, for one may be what the others wait for. The asking side holds a future for each, so what
/// the broker holds for it is in proportion; and of the answers that one does not read, few are encoded.
const MOST_ASKED: usize = if cfg!(test) { 64 } else { 1 << 20 };

/// What the broker does for one holder. Dropping it is the holder's end, after which nobody asks any more.
pub(crate) trait Desk: Send + Sync + Sized + 'static {
    /// What kinds of holders there are.
    type Role: Serialize + DeserializeOwned + Send + 'static;
    /// What a holder asks, to be answered.
    type Request: Serialize + DeserializeOwned + Send + 'static;
    /// What a holder only tells.
    type Told: Serialize + DeserializeOwned + Send + 'static;
    type Answer: Serialize + DeserializeOwned + Send + 'static;
    /// What all desks share.
    type Shared: Send + Sync + 'static;

    fn open(shared: &Arc<Self::Shared>, role: Self::Role) -> Self;

    /// Does what the holder tells.
    fn hear(&self, told: Self::Told);

    /// A question has come, and is to be done in its turn.
    fn expect(&self, _request: &Self::Request) {}

    /// Does what the holder asks: what it does when it is polled first, in its turn. It must not block. It is dropped if the
    /// holder no longer wants it, and before the desk.
    fn handle(self: &Arc<Self>, request: Self::Request) -> impl Future<Output = Self::Answer> + Send;
}

/// What a holder says.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
enum Said<D: Desk> {
    /// By [`monotonic_nanos`], when.
    Ask(u64, D::Request),
    Tell(D::Told),
    /// Here is another holder.
    Share(D::Role, Box<End<D>>),
}

/// The broker's end of a holder's socket.
type End<D> = Duplex<<D as Desk>::Answer, Said<D>>;

/// One who has a desk at the broker; a value that can be sent any number of times.
pub(crate) struct Holder<D: Desk> {
    client: Client<Said<D>, D::Answer>,
    /// Where it is in this process, and this holder was made here.
    broker: Option<Arc<Broker<D>>>,
}

struct Broker<D: Desk> {
    shared: Arc<D::Shared>,
    /// For the holders that others make.
    places: Arc<Semaphore>,
    order: Arc<Order>,
}

impl<D: Desk> Holder<D> {
    /// Makes a broker in this process, and its first holder. The broker ends with the last one.
    pub(crate) fn found(shared: D::Shared, role: D::Role) -> io::Result<Self> {
        let (ours, theirs) = duplex()?;
        let places = Arc::new(Semaphore::new(MOST_FOREIGN));
        let broker = Arc::new(Broker { shared: Arc::new(shared), places, order: Arc::default() });
        background::runtime()?.spawn(attend::<D>(theirs, Arc::clone(&broker), role, None));
        Ok(Self::over(ours, Some(broker)))
    }

    fn over(end: Duplex<Said<D>, D::Answer>, broker: Option<Arc<Broker<D>>>) -> Self {
        Self { client: Client::bounded(end, Bound::Refuse(MOST_ASKED)), broker }
    }

    /// Makes another holder.
    pub(crate) fn share(&self, role: D::Role) -> io::Result<Self> {
        Ok(Self::over(self.another(role)?, self.broker.clone()))
    }

    fn another(&self, role: D::Role) -> io::Result<Duplex<Said<D>, D::Answer>> {
        let (ours, theirs) = duplex()?;
        match &self.broker {
            Some(broker) => drop(background::runtime()?.spawn(attend(theirs, Arc::clone(broker), role, None))),
            None => self.client.tell(Said::Share(role, Box::new(theirs))).map_err(io::Error::other)?,
        }
        Ok(ours)
    }

    /// Asks, and waits for the answer.
    ///
    /// # Cancel safety
    /// Dropping it withdraws the question.
    pub(crate) async fn ask(&self, request: D::Request) -> Result<D::Answer, CallError> {
        self.ask_noting(request, &mut false).await
    }

    /// As [`ask`](Self::ask), and says whether the broker gets the question, also where this is dropped.
    pub(crate) async fn ask_noting(&self, request: D::Request, asked: &mut bool) -> Result<D::Answer, CallError> {
        self.client.call_noting(Said::Ask(monotonic_nanos(), request), asked).await
    }

    /// As [`ask`](Self::ask), on this thread.
    pub(crate) fn blocking_ask(&self, request: D::Request) -> Result<D::Answer, CallError> {
        self.blocking_ask_noting(request, &mut false)
    }

    /// As [`ask_noting`](Self::ask_noting), on this thread.
    pub(crate) fn blocking_ask_noting(&self, request: D::Request, asked: &mut bool) -> Result<D::Answer, CallError> {
        self.client.blocking_call_noting(Said::Ask(monotonic_nanos(), request), asked)
    }

    /// Says something that needs no answer, without waiting, and however much is under way: so only of what was asked, which
    /// waits for room.
    pub(crate) fn tell(&self, told: D::Told) {
        // A broker that has gone keeps nothing that could be given back.
        let _ = self.client.tell(Said::Tell(told));
    }

    /// A new holder in a message.
    pub(crate) fn serialize<S: Serializer>(&self, role: D::Role, serializer: S) -> Result<S::Ok, S::Error> {
        self.another(role).map_err(serde::ser::Error::custom)?.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, De: Deserializer<'de>>(deserializer: De) -> Result<Self, De::Error> {
        Ok(Self::over(Duplex::deserialize(deserializer)?, None))
    }
}

impl<D: Desk> fmt::Debug for Holder<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holder").finish_non_exhaustive()
    }
}

/// Serves one holder to its end, in its place if it needs one.
fn attend<D: Desk>(
    end: End<D>,
    broker: Arc<Broker<D>>,
    role: D::Role,
    place: Option<OwnedSemaphorePermit>,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    let desk = Arc::new(D::open(&broker.shared, role));
    // It counts from here on: its holder may be in use before this runs.
    let attendance = Attendance::new(&broker.order);
    Box::pin(async move {
        let handle = |said| match said {
            Said::Ask(asked, request) => {
                desk.expect(&request);
                Some(answer(attendance.enter(asked), Arc::clone(&desk), request))
            }
            Said::Tell(told) => {
                desk.hear(told);
                None
            }
            Said::Share(role, end) => {
                match Arc::clone(&broker.places).try_acquire_owned() {
                    Ok(place) => drop(tokio::spawn(attend(*end, Arc::clone(&broker), role, Some(place)))),
                    Err(_) => turn_away(*end, &format!("other processes have made {MOST_FOREIGN} more of it")),
                }
                None
            }
        };
        let sending = Arc::clone(end.sending());
        let mut serving = pin!(serve_within(MOST_ASKED, end, handle));
        let served = poll_fn(|cx| {
            let polled = serving.as_mut().poll(cx);
            attendance.polled();
            polled
        });
        // However else it ended: the holder is no more.
        if let Err(RecvError::Io(error)) = served.await {
            // It would take the end of its socket for that of this process.
            last_word(&sending, &format!("it cannot listen to this one any more: {error}"));
        }
        drop(place);
    })
}

/// Begins with a question in its turn, and gives the answer.
async fn answer<D: Desk>(turn: Turn, desk: Arc<D>, request: D::Request) -> D::Answer {
    turn.comes().await;
    let mut handling = pin!(desk.handle(request));
    let begun = poll_fn(|cx| Poll::Ready(handling.as_mut().poll(cx))).await;
    // What it waits for now is not a matter of the order.
    drop(turn);
    match begun {
        Poll::Ready(answer) => answer,
        Poll::Pending => handling.await,
    }
}

#[cfg(test)]
impl<D: Desk> Holder<D> {
    /// One of a broker that takes nothing, and that broker's end.
    pub(crate) fn unattended() -> (Self, impl Sized) {
        let (ours, theirs) = duplex().unwrap();
        let theirs: End<D> = theirs;
        (Self::over(ours, None), theirs)
    }

    /// How many bytes it has said that have not left.
    pub(crate) fn under_way(&self) -> usize {
        self.client.under_way()
    }
}

#[cfg(test)]
mod tests;
