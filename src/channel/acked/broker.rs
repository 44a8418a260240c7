//! Who has which item: the one place that knows, in the process that made the queue. It knows nothing of what items are.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::task::coop;
use tokio::time::sleep;

use super::{ACK, AGAIN, ASK, BACK, END, LEAVE, word};
use crate::channel::background;
use crate::channel::inbox::Inbox;
use crate::channel::sending::Sending;
use crate::channel::service::last_word;
use crate::error::RecvError;
use crate::task::unheeded;
use crate::wire::extra::Extra;
use crate::wire::frame::{Frame, Limits, VALUE, body_len};
use crate::wire::held::Held;

/// How many items may wait for a receiver.
const MOST_ITEMS: usize = 1024;

/// How many bytes of items may wait for a receiver, besides one item.
const MOST_BYTES: usize = 16 << 20;

#[derive(Debug, Default)]
pub(super) struct Broker {
    state: Mutex<State>,
    /// An item has left `waiting` or is done.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Item>,
    /// Of those that wait.
    bytes: usize,
    /// The items that are with a receiver, by their ids.
    given: BTreeMap<u64, (u64, Item)>,
    receivers: BTreeMap<u64, Receiver>,
    /// Who waits for an item, in the order in which they asked.
    asking: VecDeque<u64>,
    last_item: u64,
    last_receiver: u64,
    /// No more items will be put in.
    closed: bool,
    /// Somebody comes back soon to give what there was no fd for.
    retrying: bool,
}

#[derive(Debug)]
struct Receiver {
    sending: Arc<Sending>,
    /// What it was given for its last `Ask`.
    last: Option<u64>,
}

#[derive(Debug)]
struct Item {
    id: u64,
    body: Held,
    more: Extra<Bytes>,
    fds: Extra<OwnedFd>,
    again: bool,
}

impl Item {
    fn len(&self) -> usize {
        body_len(&self.body, &self.more)
    }

    fn frame(&self) -> io::Result<Frame> {
        let fds = self.fds.duplicate()?;
        let kind = if self.again { AGAIN } else { VALUE };
        let (body, more) = (self.body.clone(), self.more.clone());
        Ok(Frame { kind, id: self.id, body, more, fds, ..Frame::default() })
    }
}

/// Frames that are to be sent when the lock is free.
type Leaving = Vec<(Arc<Sending>, Frame)>;

impl Broker {
    /// Takes an item in when there is room for it.
    pub(super) async fn put(self: &Arc<Self>, frame: Frame) {
        let mut frame = Some(frame);
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // From here on a change is noticed.
            changed.as_mut().enable();
            if self.try_put(&mut frame) {
                return;
            }
            changed.await;
        }
    }

    fn try_put(self: &Arc<Self>, frame: &mut Option<Frame>) -> bool {
        let mut state = self.state();
        if !state.has_room() {
            return false;
        }
        if let Some(Frame { body, more, fds, .. }) = frame.take() {
            state.last_item += 1;
            let id = state.last_item;
            // It counts as sent, and the ends in it have gone, though no receiver may ever get it.
            state.wait(Item { id, body, more, fds: fds.into_fds(), again: false });
            self.release(state);
        }
        true
    }

    pub(super) async fn finished(&self) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.state().is_done() {
                return;
            }
            changed.await;
        }
    }

    /// Says that no more items will come.
    pub(super) fn close(self: &Arc<Self>) {
        let mut state = self.state();
        state.closed = true;
        self.release(state);
    }

    /// Serves a receiver until it is gone, and takes back what it has then.
    pub(super) async fn serve(self: Arc<Self>, sending: Arc<Sending>) {
        let who = self.enter(&sending);
        // All that it says fits into headers.
        let mut inbox = Inbox::new(Limits::new(0, 0));
        // However it ends, by a close, a death, or words that make no sense: what it has goes to others.
        let ended = loop {
            let frame = match inbox.frame(sending.socket()).await {
                Ok(Some(frame)) => frame,
                ended => break ended,
            };
            // One that has not read its last item, and asks for another one, would have us keep any number for it.
            if (frame.kind == ASK && !sending.has_left()) || !self.hear(who, &frame) {
                break Ok(None);
            }
            // One that always has something to say must not keep the others of this thread from running.
            coop::consume_budget().await;
        };
        self.gone(who);
        if let Some(last) = Arc::into_inner(self)
            && !last.state().is_done()
        {
            // Nobody will get what is left.
            background::let_go(last);
        }
        if let Err(RecvError::Io(error)) = ended {
            // It would take the end of its socket for that of this process.
            last_word(&sending, &error.to_string());
        }
    }

    fn enter(self: &Arc<Self>, sending: &Arc<Sending>) -> u64 {
        let mut state = self.state();
        state.last_receiver += 1;
        let who = state.last_receiver;
        state.receivers.insert(who, Receiver { sending: Arc::clone(sending), last: None });
        self.release(state);
        who
    }

    /// Takes a receiver's word. `false`: it makes no sense.
    fn hear(self: &Arc<Self>, who: u64, frame: &Frame) -> bool {
        let mut state = self.state();
        let mut done = None;
        match frame.kind {
            ASK if !state.asking.contains(&who) => state.asking.push_back(who),
            ACK if state.has(who, frame.id) => done = state.given.remove(&frame.id),
            BACK if state.has(who, frame.id) => state.take_back(|id, _| id == frame.id),
            LEAVE => state.leave(who),
            _ => return false,
        }
        self.release(state);
        // The owners of its bytes may use the queue, and wait for what this very thread is to do.
        if let Some(done) = done.filter(|(_, item)| !item.more.is_empty()) {
            background::let_go(done);
        }
        true
    }

    fn gone(self: &Arc<Self>, who: u64) {
        let mut state = self.state();
        state.receivers.remove(&who);
        state.asking.retain(|asking| *asking != who);
        state.take_back(|_, holder| holder == who);
        self.release(state);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends an access: gives what can be given, and tells those who wait.
    fn release(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let mut leaving = Leaving::new();
        let retry = state.give(&mut leaving).is_err() && !mem::replace(&mut state.retrying, true);
        drop(state);
        if retry {
            self.retry();
        }
        for (sending, frame) in leaving {
            // A receiver that can't be sent to is going, and its reader sees that. What has left may have an owner.
            unheeded(|| drop(sending.post(frame)));
        }
        self.changed.notify_waiters();
    }

    /// Gives again in a while: nothing tells when there are fds again.
    fn retry(self: &Arc<Self>) {
        let broker = Arc::downgrade(self);
        let again = async move {
            sleep(background::PAUSE).await;
            // With nobody left to give to, it is gone.
            let Some(broker) = broker.upgrade() else { return };
            let mut state = broker.state();
            state.retrying = false;
            broker.release(state);
        };
        match background::runtime() {
            Ok(runtime) => drop(runtime.spawn(again)),
            // There is none only where there is no receiver either.
            Err(_) => self.state().retrying = false,
        }
    }
}

impl State {
    fn has_room(&self) -> bool {
        self.waiting.len() < MOST_ITEMS && self.bytes < MOST_BYTES
    }

    fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.given.is_empty()
    }

    fn wait(&mut self, item: Item) {
        self.bytes += item.len();
        self.waiting.push_back(item);
    }

    /// Whether an item is with this receiver, which says once what becomes of it.
    fn has(&self, who: u64, id: u64) -> bool {
        self.given.get(&id).is_some_and(|(holder, _)| *holder == who)
    }

    /// Puts items that somebody has in front of those that wait, in the order in which they were sent.
    fn take_back(&mut self, which: impl Fn(u64, u64) -> bool) {
        let back: Vec<_> = self.given.extract_if(.., |id, (holder, _)| which(*id, *holder)).collect();
        for (_, (_, mut item)) in back.into_iter().rev() {
            item.again = true;
            self.bytes += item.len();
            self.waiting.push_front(item);
        }
    }

    /// A receiver takes nothing more. What it asked for it either gets no more, or was given and has not looked at.
    fn leave(&mut self, who: u64) {
        let asking = self.asking.len();
        self.asking.retain(|asking| *asking != who);
        if asking == self.asking.len()
            && let Some(last) = self.receivers.get_mut(&who).and_then(|receiver| receiver.last.take())
        {
            self.take_back(|id, holder| holder == who && id == last);
        }
    }

    /// Gives items to those who ask; or the end, to all. An error is that an item has no fds for its duplicates, and waits.
    fn give(&mut self, leaving: &mut Leaving) -> io::Result<()> {
        while let (Some(item), Some(&who)) = (self.waiting.front(), self.asking.front()) {
            let frame = item.frame()?;
            self.asking.pop_front();
            let Some(receiver) = self.receivers.get_mut(&who) else { continue };
            let Some(item) = self.waiting.pop_front() else { break };
            self.bytes -= item.len();
            receiver.last = Some(item.id);
            leaving.push((Arc::clone(&receiver.sending), frame));
            self.given.insert(item.id, (who, item));
        }
        if self.closed && self.is_done() {
            self.asking.clear();
            for receiver in mem::take(&mut self.receivers).into_values() {
                leaving.push((receiver.sending, word(END, 0)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;
    use crate::channel::socket::Socket;
    use crate::sys::socket;

    fn pair() -> (Arc<Sending>, Arc<Sending>) {
        let (ours, theirs) = socket::stream_pair().unwrap();
        let side = |fd| Arc::new(Sending::new(Arc::new(Socket::new(fd))));
        (side(ours), side(theirs))
    }

    /// It kept the one thread for itself.
    #[tokio::test]
    async fn a_receiver_that_always_says_something_lets_others_run() {
        let (ours, theirs) = pair();
        for _ in 0..1000 {
            theirs.post(word(LEAVE, 0)).unwrap();
        }
        drop(theirs);
        let serving = tokio::spawn(Arc::<Broker>::default().serve(ours));
        // Its turn comes when the first one's is over.
        let other = tokio::spawn(async move { serving.is_finished() });
        assert!(!other.await.unwrap());
    }

    /// It was copied for it each time, and stayed here.
    #[tokio::test]
    async fn a_receiver_that_asks_again_and_reads_nothing_is_cut_off() {
        for (give_up, id) in [(LEAVE, 0), (BACK, 1)] {
            let (ours, theirs) = pair();
            let broker = Arc::<Broker>::default();
            broker.put(Frame { kind: VALUE, body: Bytes::from(vec![7; 8 << 10]).into(), ..Frame::default() }).await;
            for _ in 0..1000 {
                theirs.post(word(ASK, 0)).unwrap();
                theirs.post(word(give_up, id)).unwrap();
            }
            let serving = tokio::spawn(Arc::clone(&broker).serve(Arc::clone(&ours)));
            tokio::time::timeout(std::time::Duration::from_secs(20), serving).await.expect("it is heard").unwrap();
            assert!(ours.line().outbox.len() < 16 << 10);
            assert_eq!(broker.state().waiting.len(), 1);
        }
    }

    #[tokio::test]
    async fn a_receiver_that_speaks_of_an_item_that_it_has_not_is_cut_off() {
        for kind in [ACK, BACK] {
            let (ours, theirs) = pair();
            theirs.post(word(kind, u64::MAX)).unwrap();
            assert!(Arc::<Broker>::default().serve(ours).now_or_never().is_some());
        }
    }
}
