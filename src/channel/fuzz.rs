//! What is fuzzed of channels: what another process writes into their sockets, with fds beside it; see `wire/fuzz.rs`.

use std::io::{self, IoSlice, PipeReader, PipeWriter};
use std::iter;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use bytes::{Buf as _, BytesMut};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::inbox::Inbox;
use super::socket::Socket;
use super::{Duplex, Fd, QueueReceiver, Receiver, queue, value};
use crate::error::{RecvError, TryRecvError};
use crate::sys::{memory, socket};
use crate::wire::frame::{Decoder, Frame, Head, Limits, MAX_FDS, VALUE};
use crate::wire::fuzz::{Value, piece};
use crate::wire::held::Held;
use crate::wire::passenger::Passenger;

/// The most fds that are sent for one input: they are open here, or under way, all at once.
const MOST_FDS: usize = 300;

/// An fd to be sent any number of times, of which it can be seen whether somebody still has it.
pub(crate) struct Lent {
    fd: PipeWriter,
    seen: PipeReader,
}

impl Lent {
    pub(crate) fn new() -> Self {
        let (seen, fd) = io::pipe().expect("there is room for a pipe");
        Self { fd, seen }
    }

    pub(crate) fn times(&self, count: usize) -> Vec<BorrowedFd<'_>> {
        vec![self.fd.as_fd(); count]
    }

    pub(crate) fn copy(&self) -> OwnedFd {
        socket::duplicate(&self.fd).expect("there is room for an fd")
    }

    /// Panics if one of them is open. It waits a moment, as a process that is just being started may have it.
    pub(crate) fn assert_closed(self) {
        drop(self.fd);
        let mut end = [PollFd::new(&self.seen, PollFlags::IN)];
        let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
        rustix::io::retry_on_intr(|| poll(&mut end, Some(&limit))).expect("it can be waited for");
        assert!(end[0].revents().contains(PollFlags::HUP), "a file descriptor is left open");
    }
}

/// What a hostile peer may send through a stream, with fds wherever it likes: no panic, the frames that the bytes alone make,
/// each with the fds that it announces or with none, and all of them closed in the end.
///
/// The first byte is the limit's exponent. Then come sends: a byte that says how many fds (bits 0 to 2), whether it is to be
/// read at once (3) and whether a header is to be put before it that fits (7), one with its length, and its bytes.
pub fn stream_fds(mut data: &[u8]) {
    let max = 1 << (data.try_get_u8().unwrap_or_default() % 16);
    let (theirs, ours) = socket::stream_pair().expect("there is room for a pair");
    let (socket, mut inbox, lent) = (Socket::new(ours), Inbox::new(Limits::default().with_body(max)), Lent::new());
    let (mut stream, mut frames, mut given, mut broken) = (BytesMut::new(), Vec::new(), 0, None);
    while let Ok(control) = data.try_get_u8() {
        let fds = [0, 0, 1, 1, 2, 64, 65, 253][usize::from(control % 8)];
        let len = data.try_get_u8().unwrap_or_default().into();
        let (mut head, body) = (Vec::new(), piece(&mut data, len));
        if control & 0x80 != 0 {
            Head { len: body.len(), kind: VALUE, fds, id: 7 }.put(&mut head);
        }
        if given + fds > MOST_FDS {
            break;
        }
        let bytes = [IoSlice::new(&head), IoSlice::new(body)];
        let Ok(count) = socket::send(&theirs, &bytes, &lent.times(fds)) else { break };
        given += if count > 0 { fds } else { 0 };
        stream.extend_from_slice(&[&head, body].concat()[..count]);
        if control & 8 != 0 && broken.is_none() {
            loop {
                match inbox.try_frame(&socket) {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(error) => {
                        broken = Some(error);
                        break;
                    }
                }
            }
            let kept: usize =
                inbox.unread().map_or(0, |(_, batches)| batches.iter().map(|batch| batch.fds.len()).sum());
            assert!(kept <= MAX_FDS, "{kept} fds are held");
        }
    }
    drop(theirs);
    let broken = broken.or_else(|| {
        loop {
            match inbox.blocking_frame(&socket) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return None,
                Err(error) => return Some(error),
            }
        }
    });
    agree(max, stream, &frames, broken.as_ref());
    let came: usize = frames.iter().map(|frame| frame.fds.len()).sum();
    assert!(came <= given, "{came} fds came of {given}");
    drop((frames, inbox, socket));
    lent.assert_closed();
}

/// Panics unless an inbox made these frames and this end of what the bytes alone are.
fn agree(max: usize, mut stream: BytesMut, frames: &[Frame], broken: Option<&RecvError>) {
    let mut decoder = Decoder::new(max);
    for frame in frames {
        let (head, body) = decoder.decode(&mut stream).expect("so far it is well").expect("and a frame");
        assert_eq!((frame.kind, frame.id, &frame.body[..]), (head.kind, head.id, &body[..]));
        assert!(frame.fds.is_empty() || frame.fds.len() == head.fds, "{} fds, not {}", frame.fds.len(), head.fds);
        assert!(!frame.fds_lost, "there was room for all");
    }
    match (broken, decoder.decode(&mut stream)) {
        (Some(RecvError::Protocol { reason }), _) if reason.contains("file descriptors") => {}
        (Some(error), Err(expected)) => assert_eq!(error.to_string(), RecvError::from(expected).to_string()),
        (Some(RecvError::Truncated), Ok(None)) => assert!(!decoder.at_boundary(&stream)),
        (None, Ok(None)) => assert!(decoder.at_boundary(&stream)),
        other => panic!("{other:?}"),
    }
}

/// An item or a message with fds in it.
type Laden = (Vec<Fd>, Value);

/// What a hostile peer may put into a queue: no panic, a packet costs that packet alone, one that is an item is that item, and
/// all fds are closed in the end.
///
/// The first byte is the limit's exponent, and that of the fds. Then come packets: a byte that says how many fds (bits 0 and 1),
/// whether there is a memfd behind them (2), whether that is 32 times as long (3) and whether a header is to be put before it
/// that fits (7), one with the memfd's length, one with the packet's, and its bytes.
pub fn queue_packets(mut data: &[u8]) {
    let limits = data.try_get_u8().unwrap_or_default();
    let (max, most) = (1_usize << (limits % 16), usize::from(limits >> 4) % 4);
    let (sender, receiver) = queue::<Laden>().expect("there is room for a queue");
    // A sender's socket, as any holder has it.
    let mut theirs = value::encode(&sender, usize::MAX).expect("it can be sent").fds.into_vec();
    let theirs = theirs.pop().expect("it is one fd").into_fd();
    drop(sender);
    let (receiver, lent) = (receiver.max_message(max).max_fds(most), Lent::new());
    while let Ok(control) = data.try_get_u8() {
        let fds = usize::from(control % 4);
        let apart = (control & 4 != 0).then(|| {
            let len = usize::from(data.try_get_u8().unwrap_or_default());
            vec![control; if control & 8 == 0 { len } else { 32 * len }]
        });
        let len = data.try_get_u8().unwrap_or_default().into();
        let (mut head, body) = (Vec::new(), piece(&mut data, len));
        let whole = [body, apart.as_deref().unwrap_or_default()].concat();
        let is_item = control & 0x80 != 0 && apart.as_ref().is_none_or(|apart| !apart.is_empty());
        if control & 0x80 != 0 {
            let kind = if apart.is_some() { 2 } else { VALUE };
            Head { len: whole.len(), kind, fds, id: 0 }.put(&mut head);
        }
        let memory = apart.map(|apart| memory::write([apart].iter()).expect("there is room for it"));
        let all: Vec<_> = lent.times(fds).into_iter().chain(memory.as_ref().map(|fd| fd.as_fd())).collect();
        socket::send(&theirs, &[IoSlice::new(&head), IoSlice::new(body)], &all).expect("the queue is empty");
        let taken = match receiver.try_recv() {
            Ok(laden) => Ok(laden),
            Err(TryRecvError::Failed(error @ RecvError::Decode(_))) => Err(error),
            Err(error) => panic!("{error:?}"),
        };
        if !is_item || whole.len() > max || fds > most {
            assert!(taken.is_err() || !is_item);
        } else {
            assert_eq!(in_words(&taken), in_words(&decoded(&whole, &lent, fds)));
        }
        assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
    }
    drop(theirs);
    // A child that another test starts just then has a copy until it is its program.
    let last = iter::repeat_with(|| receiver.try_recv()).find(|last| !matches!(last, Err(TryRecvError::Empty)));
    assert!(matches!(last, Some(Err(TryRecvError::Closed))));
    drop(receiver);
    lent.assert_closed();
}

/// What a body is, by itself.
fn decoded(body: &[u8], lent: &Lent, fds: usize) -> Result<Laden, RecvError> {
    let fds = (0..fds).map(|_| Passenger::from(lent.copy())).collect();
    value::decode(Frame { kind: VALUE, body: Held::copy(body), fds, ..Frame::default() })
}

/// What a receiver gave; an fd has another number each time.
fn in_words(received: &Result<Laden, RecvError>) -> String {
    match received {
        Ok((fds, value)) => format!("{} fds and {value:?}", fds.len()),
        Err(error) => format!("{error:?}"),
    }
}

/// What a hostile peer may send for an end: no panic, an end that has moved once more is as good as before, and all fds are closed
/// in the end.
///
/// The first byte says what the first fd is (bits 0 and 1: a stream, a queue's, or no socket), what is decoded (2 and 3), how many
/// fds come behind it (4 to 6), and whether one is in its socket (7). Then come how much is in that, those bytes, and the end.
pub fn moved_ends(mut data: &[u8]) {
    let control = data.try_get_u8().unwrap_or_default();
    let len = data.try_get_u8().unwrap_or_default().into();
    let (inside, encoded) = (piece(&mut data, len), data);
    match control >> 2 & 3 {
        0 | 1 => moved(control, inside, encoded, Receiver::<Laden>::blocking_recv),
        2 => moved(control, inside, encoded, Duplex::<(), Laden>::blocking_recv),
        _ => moved(control, inside, encoded, |queue: &mut QueueReceiver<Laden>| queue.blocking_recv()),
    }
}

fn moved<T: Serialize + DeserializeOwned>(
    control: u8,
    inside: &[u8],
    encoded: &[u8],
    receive: impl Fn(&mut T) -> Result<Option<Laden>, RecvError>,
) {
    let (lent, mut seen) = (Lent::new(), Vec::new());
    for again in [false, true] {
        let pair = if control & 1 == 0 { socket::stream_pair() } else { socket::packet_pair() };
        let (theirs, ours) = pair.expect("there is room for a pair");
        // It can't be written at all if it is nothing.
        let _ = socket::send(&theirs, &[IoSlice::new(inside)], &lent.times(usize::from(control >> 7)));
        drop(theirs);
        let first = if control & 2 == 0 { ours } else { lent.copy() };
        let others = (0..control >> 4 & 7).map(|_| lent.copy());
        let fds = iter::once(first).chain(others).map(Passenger::from).collect();
        let body = Held::copy(encoded);
        let Ok(mut end) = value::decode::<T>(Frame { kind: VALUE, body, fds, ..Frame::default() }) else { break };
        if again {
            let Frame { body, more, fds, .. } = value::encode(&end, usize::MAX).expect("an end that came can be sent");
            let body = Held::copy(&[&body[..], &more.concat()].concat());
            end = value::decode(Frame { kind: VALUE, body, fds, ..Frame::default() }).expect("and comes again");
        }
        let mut words = Vec::new();
        loop {
            let is_last = match receive(&mut end).transpose() {
                Some(received) => {
                    words.push(in_words(&received));
                    !matches!(received, Ok(_) | Err(RecvError::Decode(_)))
                }
                None => true,
            };
            if is_last {
                break;
            }
        }
        seen.push(words);
    }
    if let [once, twice] = &seen[..] {
        assert_eq!(once, twice);
    } else {
        assert!(seen.is_empty(), "it can be decoded a second time");
    }
    lent.assert_closed();
}

#[cfg(test)]
mod tests {
    use crate::wire::fuzz::replay;

    #[test]
    fn the_corpus_of_stream_fds() {
        replay("stream_fds", super::stream_fds);
    }

    #[test]
    fn the_corpus_of_queue_packets() {
        replay("queue_packets", super::queue_packets);
    }

    #[test]
    fn the_corpus_of_moved_ends() {
        replay("moved_ends", super::moved_ends);
    }
}
