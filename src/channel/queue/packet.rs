//! An item of a queue as one packet, which the kernel hands over whole or not at all.
//!
//! ```text
//!       ┌────────────────────┬──────────────────────────────┐
//!       │ header, 16 bytes   │ the body's first 64 KiB - 16 │  + the fds of the item, and a memfd with the rest of the
//!       └────────────────────┴──────────────────────────────┘    body if there is more
//! ```
//!
//! The header is a frame's; see `wire/frame.rs`. A larger item fills its packet, so that the socket's limit, which counts
//! the packets alone, lets only a few of them be under way.

use std::io::{self, IoSlice};
use std::iter;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use bytes::{Buf as _, BufMut, Bytes, BytesMut};
use serde::Serialize;

use crate::channel::value;
use crate::error::{RecvError, SendError};
use crate::sys::buffer::{Buffer, LARGE};
use crate::sys::socket::{Received, Wait};
use crate::sys::{memory, socket};
use crate::wire::extra::Extra;
use crate::wire::frame::{Frame, HEAD_LEN, Head, Limits, VALUE};
use crate::wire::held::Held;
use crate::wire::passenger::Passenger;

/// The longest packet, in bytes.
const PACKET: usize = 64 * 1024;

/// How much of a body goes into the packet.
const INLINE: usize = PACKET - HEAD_LEN;

/// The kind of a packet whose body goes on in a memfd.
const CONTINUED: u8 = 2;

/// An item that is ready to be sent.
#[derive(Debug)]
pub(super) struct Packet {
    head: [u8; HEAD_LEN],
    /// What goes into the packet of the body.
    body: Held,
    fds: Extra<Passenger>,
}

impl Packet {
    pub(super) fn new<T: Serialize>(item: &T, limits: Limits) -> Result<Self, SendError> {
        let mut frame = value::encode_within(item, limits)?;
        let long = frame.wire_len() > PACKET;
        if long {
            frame.kind = CONTINUED;
        }
        let mut head = [0; HEAD_LEN];
        frame.put_head(&mut &mut head[..]);
        let Frame { mut body, more, mut fds, .. } = frame;
        if long {
            let mut more = more.into_vec();
            // A beginning that is shorter than that fills up with what follows it.
            if body.len() < INLINE {
                let mut filled = BytesMut::from(&body[..]);
                for piece in &mut more {
                    filled.extend_from_slice(&piece.split_to(piece.len().min(INLINE - filled.len())));
                }
                body = filled.freeze().into();
            }
            let mut whole = body.into_bytes();
            let rest = whole.split_off(INLINE);
            body = whole.into();
            fds.push(memory::write(iter::once(&rest).chain(&more))?.into());
        }
        Ok(Self { head, body, fds })
    }

    /// Sends it whole, or not at all; once.
    pub(super) fn send(&mut self, socket: impl AsFd) -> io::Result<()> {
        let fds: Vec<_> = self.fds.iter().map(AsFd::as_fd).collect();
        socket::send(socket, &[IoSlice::new(&self.head), IoSlice::new(&self.body)], &fds)?;
        mem::take(&mut self.fds).leave();
        Ok(())
    }
}

/// Takes the next item out of the socket, as a frame: `WouldBlock` if there is none, `Ok(None)` if there will never be one.
///
/// A packet that is no item costs that packet alone.
pub(super) fn recv(
    socket: impl AsFd,
    buffer: &Mutex<BytesMut>,
    limits: Limits,
) -> io::Result<Option<Result<Frame, RecvError>>> {
    let (bytes, received) = {
        let mut buffer = buffer.lock().unwrap_or_else(PoisonError::into_inner);
        buffer.clear();
        buffer.reserve(PACKET);
        match socket::recv_into(&socket, &mut *buffer, PACKET, Wait::No) {
            // So reads the end, and so does an empty packet, which no sender of ours sends. Others may lie behind that.
            Ok(Received { len: 0, .. }) if socket::has_ended(&socket)? && socket::is_drained(&socket)? => {
                return Ok(None);
            }
            Ok(received) => (buffer.split(), received),
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                return Ok(Some(Err(refused("a packet that is longer than a queue's packets"))));
            }
            Err(error) => return Err(error),
        }
    };
    Ok(Some(parse(bytes, received, limits)))
}

fn parse(mut bytes: BytesMut, received: Received, limits: Limits) -> Result<Frame, RecvError> {
    let Received { mut fds, fds_lost, .. } = received;
    let head = bytes.first_chunk().ok_or_else(|| refused("a packet without a header"))?;
    let head = Head::parse(head, limits.body).map_err(|broken| RecvError::Decode(RecvError::from(broken).into()))?;
    bytes.advance(HEAD_LEN);
    if fds_lost {
        return Err(refused("file descriptors of the item could not be taken in: too many are open here"));
    }
    if head.fds > limits.fds {
        return Err(refused("more file descriptors in one item than may be"));
    }
    let body = match head.kind {
        VALUE if head.len == bytes.len() && head.fds == fds.len() => bytes.freeze(),
        CONTINUED if head.len > bytes.len() && head.fds + 1 == fds.len() => {
            let rest = fds.pop().ok_or_else(|| refused("no memory"))?;
            continued(&bytes, head.len, rest)?
        }
        _ => return Err(refused("a packet that is no item")),
    };
    let fds = fds.into_iter().map(Passenger::from).collect();
    Ok(Frame { kind: VALUE, body: body.into(), fds, ..Frame::default() })
}

/// A body of `len` bytes that begins in a packet and goes on in a memfd.
fn continued(begin: &[u8], len: usize, rest: OwnedFd) -> Result<Bytes, RecvError> {
    if len < LARGE {
        let mut out = Vec::with_capacity(len);
        fill(&mut out, begin, len, rest)?;
        return Ok(out.into());
    }
    // What is not there is an error, and not the end of this process.
    let mut out = Buffer::new(len)?;
    fill(&mut out, begin, len, rest)?;
    Ok(out.into_bytes())
}

fn fill(out: &mut impl BufMut, begin: &[u8], len: usize, rest: OwnedFd) -> Result<(), RecvError> {
    out.put_slice(begin);
    memory::read(rest, len - begin.len(), out).map_err(|error| RecvError::Decode(error.into()))
}

fn refused(reason: &'static str) -> RecvError {
    RecvError::Decode(reason.into())
}
