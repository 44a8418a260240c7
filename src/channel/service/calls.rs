//! The open calls of a client, and the tasks that read their answers.
//!
//! A call waits in the table; a reader gives it its answer. Each runtime from which calls are made has a reader of its own,
//! and plain threads have one on the background thread; a call that is polled in another runtime than before is waited for there
//! from then on. So whoever can wait for an answer has a reader that runs, and no call is held up by another one that nobody
//! polls. Readers hold nothing: whichever comes first takes what has arrived.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker, ready};

use tokio::sync::Semaphore;

use super::serve::MAX_REASON;
use super::table::{End, Place, Slot, Table};
use super::{ALL, Bound};
use crate::channel::departure::Departure;
use crate::channel::duplex::Sides;
use crate::channel::sending::Sending;
use crate::channel::value;
use crate::error::{CallError, SendError};
use crate::sys::socket::has_ended;
use crate::task::unheeded;
use crate::wire::frame::{ANSWER, CANCEL, Frame, REFUSAL};

#[derive(Debug)]
pub(super) struct Calls {
    sending: Arc<Sending>,
    sides: Mutex<Sides>,
    table: Mutex<Table>,
    free: Semaphore,
    bound: Bound,
}

impl Calls {
    /// `last` is the number of the last call that was made through these sides before, or 0.
    pub(super) fn new(sides: Sides, bound: Bound, last: u64) -> Arc<Self> {
        Arc::new(Self {
            sending: Arc::clone(&sides.sending),
            sides: Mutex::new(sides),
            table: Mutex::new(Table { last, ..Table::default() }),
            free: Semaphore::new(bound.most()),
            bound,
        })
    }

    /// Sends a request, and gives the frame that answers it: an `ANSWER` or a `REFUSAL`. `place` says where the answer is to
    /// be waited for; `sent` is told whether the request was let in, so that the server gets it.
    ///
    /// # Cancel safety
    /// Dropping it cancels the call.
    pub(super) async fn call(
        self: &Arc<Self>,
        request: Frame,
        place: impl FnOnce() -> Place,
        sent: &mut bool,
    ) -> Result<Frame, CallError> {
        // The original has calls with the same numbers, and each of the two might read the other's answers.
        self.sending.socket().no_forked_copy()?;
        // Given back after the cancellation was posted: then the server never has more than it may.
        let _one_of_them = match self.bound {
            Bound::Wait(_) => self.free.acquire().await.map_err(|_| CallError::Closed)?,
            Bound::Refuse(most) => {
                self.free.try_acquire().map_err(|_| io::Error::other(format!("{most} others wait already")))?
            }
        };
        let mut call = self.open(place(), sent)?;
        let mut leaving = Some(self.sending.send(Frame { id: call.id, ..request }));
        poll_fn(|cx| call.poll(cx, &mut leaving)).await
    }

    /// Posts a request whose answer nobody waits for.
    pub(super) fn tell(&self, request: Frame) -> Result<(), SendError> {
        // What a copy gives back by dropping it the original still has.
        self.sending.socket().no_forked_copy()?;
        let id = self.table().next();
        self.sending.post(Frame { id, ..request })
    }

    #[cfg(test)]
    pub(super) fn under_way(&self) -> usize {
        self.sending.under_way()
    }

    /// Hands the client to another process, by way of `give`, with the number of its last call.
    pub(super) fn hand_over<R, E: serde::ser::Error>(
        &self,
        give: impl FnOnce(u64, &Sides) -> Result<R, E>,
    ) -> Result<R, E> {
        // No reader takes anything meanwhile, and no call begins.
        let sides = self.sides.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.table();
        if !table.open.is_empty() {
            return Err(E::custom("a call of this client is still open: await it before sending the client"));
        }
        give(table.last, &sides)
    }

    fn open<'a>(self: &'a Arc<Self>, place: Place, sent: &'a mut bool) -> Result<Call<'a>, CallError> {
        let mut table = self.table();
        if let Some(end) = &table.end {
            return Err(end.error(CallError::Closed));
        }
        let id = table.next();
        table.open.insert(id, Slot::Waiting { place, waker: None });
        let is_first = table.needs_reader(place);
        drop(table);
        let call = Call { calls: self, id, sent };
        if is_first {
            self.start_reader(place)?;
        }
        Ok(call)
    }

    /// Starts the reader for this place that is in the table. If it can't be, or has no runtime any more, it takes itself out.
    fn start_reader(self: &Arc<Self>, place: Place) -> io::Result<()> {
        let reading = Reading { calls: Arc::downgrade(self), place };
        let task = place.handle()?.spawn(reading.run()).abort_handle();
        if let Some(reader) = self.table().readers.iter_mut().find(|reader| reader.place == place) {
            reader.task = Some(task);
        }
        Ok(())
    }

    /// Takes what has arrived, for the reader at this place. Ready when nothing more will.
    fn poll_read(&self, cx: &mut Context<'_>, place: Place) -> Poll<Over> {
        loop {
            let mut sides = self.sides.lock().unwrap_or_else(PoisonError::into_inner);
            if sides.receiving.is_moved() {
                drop(sides);
                return self.poll_step_down(cx, place);
            }
            // What comes next is read by whoever comes first, so what this says is entered before the sides are free: an end
            // that was known before an answer would be that answer's.
            let end = match ready!(sides.receiving.poll_frame(cx)) {
                Ok(Some(frame)) if frame.kind == REFUSAL && frame.id == ALL => {
                    // Each call is told, so no more of it is kept than a server says.
                    let kept = |reason: String| reason[..reason.floor_char_boundary(MAX_REASON)].to_owned();
                    value::decode(frame).map_or_else(End::from, |reason| End::Refused(kept(reason)))
                }
                Ok(Some(frame)) if matches!(frame.kind, ANSWER | REFUSAL) => {
                    let told = self.answered(frame);
                    drop(sides);
                    wake(told);
                    continue;
                }
                Ok(Some(_)) => sides.receiving.refuse("a frame that is no answer").into(),
                Ok(None) => End::Gone,
                Err(error) => error.into(),
            };
            let told = self.ended(end);
            drop(sides);
            wake(told);
            return Poll::Ready(Over::Ended);
        }
    }

    /// Takes a reader out of the table that has nothing to read: another process has the client. That may yet be called off,
    /// and then the next call has a reader of its own.
    fn poll_step_down(&self, cx: &mut Context<'_>, place: Place) -> Poll<Over> {
        let mut table = self.table();
        if table.open.values().any(|slot| slot.waits_at(place)) {
            // It was called off in this moment, or this call is about to fail.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        table.readers.retain(|reader| reader.place != place);
        Poll::Ready(Over::SteppedDown)
    }

    /// Enters an answer. Gives who is to be woken.
    fn answered(&self, frame: Frame) -> Option<Waker> {
        let mut table = self.table();
        let slot = table.open.get_mut(&frame.id)?;
        // Nobody waits any more for what was cancelled.
        let Slot::Waiting { waker, .. } = slot else { return None };
        let told = waker.take();
        *slot = Slot::Answered(frame);
        told
    }

    /// Enters the end. Gives who is to be woken.
    fn ended(&self, end: End) -> Vec<Waker> {
        let mut table = self.table();
        table.end.get_or_insert(end);
        table.open.values_mut().filter_map(Slot::take_waker).collect()
    }

    /// A reader ends.
    fn left(&self, place: Place) {
        let mut table = self.table();
        table.readers.retain(|reader| reader.place != place);
        if let Place::Runtime(runtime) = place {
            self.sending.socket().forget(runtime);
        }
        if table.end.is_some() {
            return;
        }
        let abandoned = table.open.values_mut().filter(|slot| slot.waits_at(place));
        let abandoned: Vec<_> = abandoned.map(|slot| std::mem::replace(slot, Slot::Abandoned)).collect();
        drop(table);
        wake(abandoned.into_iter().filter_map(|mut slot| slot.take_waker()));
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes them all, with nothing locked: a waker is somebody else's code, and a panic of it is not the others' concern.
fn wake(told: impl IntoIterator<Item = Waker>) {
    for waker in told {
        unheeded(|| waker.wake());
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        for reader in &self.table().readers {
            if let Some(task) = &reader.task {
                task.abort();
            }
        }
    }
}

/// A reader's task. It keeps the client alive only while it reads.
struct Reading {
    /// Empty once it is out of the table.
    calls: Weak<Calls>,
    place: Place,
}

/// Why a reader ends.
enum Over {
    Ended,
    /// It is out of the table already.
    SteppedDown,
}

impl Reading {
    async fn run(mut self) {
        let over = poll_fn(|cx| match self.calls.upgrade() {
            Some(calls) => calls.poll_read(cx, self.place),
            None => Poll::Ready(Over::Ended),
        })
        .await;
        if matches!(over, Over::SteppedDown) {
            self.calls = Weak::new();
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        if let Some(calls) = self.calls.upgrade() {
            calls.left(self.place);
        }
    }
}

/// A place in the table, for as long as somebody waits for the answer.
struct Call<'a> {
    calls: &'a Arc<Calls>,
    id: u64,
    /// The request was let in, so the server gets it.
    sent: &'a mut bool,
}

impl Call<'_> {
    fn poll(&mut self, cx: &mut Context<'_>, leaving: &mut Option<Departure<'_>>) -> Poll<Result<Frame, CallError>> {
        // It may have been begun by the original.
        self.calls.sending.socket().no_forked_copy()?;
        if let Some(departure) = leaving {
            let polled = Pin::new(&mut *departure).poll(cx);
            *self.sent = departure.is_in();
            match polled {
                Poll::Ready(Err(SendError::Closed)) if has_ended(&**self.calls.sending.socket()).unwrap_or(false) => {
                    // Its last word may say why, which is read before the end.
                    *self.sent = departure.has_begun();
                    *leaving = None;
                }
                Poll::Ready(Err(SendError::Closed)) if departure.has_begun() => {
                    return Poll::Ready(Err(CallError::Unanswered));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Ready(Ok(())) => *leaving = None,
                Poll::Pending => {}
            }
        }
        let unanswered = if *self.sent { CallError::Unanswered } else { CallError::Closed };
        // To clone a waker, and to drop one, is somebody else's code, which may use this client: not under the lock.
        let mut kept = Some(cx.waker().clone());
        let mut table = self.calls.table();
        let Table { open, end, .. } = &mut *table;
        match (open.get_mut(&self.id), end) {
            (Some(Slot::Waiting { place, waker }), None) => {
                std::mem::swap(waker, &mut kept);
                // The runtime where it was begun may be idle for ever.
                *place = place.or_here();
                let place = *place;
                if table.needs_reader(place) {
                    drop(table);
                    self.calls.start_reader(place)?;
                }
                Poll::Pending
            }
            (Some(Slot::Waiting { .. }), Some(end)) => Poll::Ready(Err(end.error(unanswered))),
            (Some(slot @ Slot::Answered(_)), _) => match std::mem::replace(slot, Slot::Over) {
                Slot::Answered(frame) => Poll::Ready(Ok(frame)),
                Slot::Waiting { .. } | Slot::Over | Slot::Abandoned => Poll::Ready(Err(unanswered)),
            },
            (Some(Slot::Abandoned), _) => {
                Poll::Ready(Err(io::Error::other("the runtime that waited for the answer has ended").into()))
            }
            (Some(Slot::Over) | None, _) => Poll::Ready(Err(unanswered)),
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let mut table = self.calls.table();
        let is_unanswered = matches!(table.open.get(&self.id), Some(Slot::Waiting { .. } | Slot::Abandoned));
        // In a forked copy the original waits on.
        if is_unanswered && *self.sent && table.end.is_none() && !self.calls.sending.socket().is_forked_copy() {
            drop(table);
            // While it is in the table: else the client may be another process's by now, which knows nothing of this call.
            // If it can't be told, it is going to see the end.
            let _ = self.calls.sending.post(Frame { kind: CANCEL, id: self.id, ..Frame::default() });
            table = self.calls.table();
        }
        let slot = table.open.remove(&self.id);
        drop(table);
        // With its waker, which is somebody else's code.
        drop(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket;

    /// Another reader that saw the end meanwhile had told the caller that there is no answer.
    #[tokio::test]
    async fn an_answer_is_known_before_anybody_reads_what_comes_behind_it() {
        let (theirs, ours) = socket::stream_pair().unwrap();
        let calls = Calls::new(Sides::new(ours), Bound::Wait(1), 0);
        let mut bytes = Vec::new();
        Frame { kind: ANSWER, id: 1, ..Frame::default() }.put_head(&mut bytes);
        socket::send(&theirs, &[std::io::IoSlice::new(&bytes)], &[]).unwrap();
        drop(theirs);
        let table = calls.table();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut cx = Context::from_waker(Waker::noop());
                calls.poll_read(&mut cx, Place::Background).is_ready()
            });
            while !socket::is_drained(&**calls.sending.socket()).unwrap() {
                std::thread::yield_now();
            }
            for _ in 0..10_000 {
                assert!(calls.sides.try_lock().is_err(), "it is taken, and not entered");
                std::thread::yield_now();
            }
            drop(table);
            assert!(reader.join().unwrap());
        });
    }

    #[test]
    fn no_call_begins_while_its_client_is_handed_over() {
        let sides = Sides::new(socket::stream_pair().unwrap().0);
        let calls = Calls::new(sides, Bound::Wait(1), 7);
        let given = calls.hand_over(|last, _| {
            assert!(calls.table.try_lock().is_err(), "it would have this number, too");
            Ok::<_, serde::de::value::Error>(last)
        });
        assert_eq!(given.ok(), Some(7));
    }
}
