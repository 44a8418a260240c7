//! The frame: a fixed header with a length prefix, and a body.
//!
//! ```text
//!  byte 0         4         5      6      7         8            16
//!       ┌─────────┬─────────┬──────┬──────┬─────────┬─────────────┬──────────────┐
//!       │ length  │ version │ kind │ fds  │ 0       │ id          │ body …       │
//!       │ u32 LE  │ u8 = 1  │ u8   │ u8   │ u8      │ u64 LE      │ length bytes │
//!       └─────────┴─────────┴──────┴──────┴─────────┴─────────────┴──────────────┘
//! ```
//!
//! `length` counts the body alone. `fds` says how many file descriptors came with the frame's first byte. `id` matches a
//! reply with its request, and is 0 where there is nothing to match. This file knows neither what the kinds mean nor how
//! a body is made: see `message.rs` and `body.rs`.

use bytes::{Buf as _, BufMut, Bytes, BytesMut};

use crate::error::RecvError;
use crate::wire::extra::Extra;
use crate::wire::held::Held;
use crate::wire::passenger::Passenger;

/// The header's length in bytes.
pub(crate) const HEAD_LEN: usize = 16;

/// The most file descriptors that one frame carries.
pub(crate) const MAX_FDS: usize = 64;

/// The largest body, in bytes, that is sent or taken where nothing else was asked for: 2 GiB.
pub(crate) const DEFAULT_MAX_BODY: usize = 1 << 31;

/// What one message may hold at the most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of its body.
    pub(crate) body: usize,
    pub(crate) fds: usize,
}

impl Limits {
    /// Limits that are asked for, of those that are possible.
    pub(crate) fn new(body: usize, fds: usize) -> Self {
        Self { body: body.min(DEFAULT_MAX_BODY), fds: fds.min(MAX_FDS) }
    }

    pub(crate) fn with_body(self, body: usize) -> Self {
        Self::new(body, self.fds)
    }

    pub(crate) fn with_fds(self, fds: usize) -> Self {
        Self::new(self.body, fds)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { body: DEFAULT_MAX_BODY, fds: MAX_FDS }
    }
}

/// The kind of a frame whose body is one value, as in a channel. What parent and worker say to each other has kinds from
/// 16 upwards: see `message.rs`.
pub(crate) const VALUE: u8 = 1;

/// The kinds of what a client and a server say to each other. The id is the call's; see `channel/service`.
pub(crate) const REQUEST: u8 = 2;
pub(crate) const ANSWER: u8 = 3;
pub(crate) const REFUSAL: u8 = 4;
pub(crate) const CANCEL: u8 = 5;

/// The kind of the frame by which a program knows its stdin for a channel: see `channel/parent.rs`.
pub(crate) const GREETING: u8 = 6;

/// The kind of the first frame that each side of a new connection sends; see `channel/listener`.
pub(crate) const HELLO: u8 = 7;

/// The version that this library speaks. It is never 0 or 255, so runs of equal bytes are no frame.
pub(crate) const VERSION: u8 = 1;

/// A frame that has been checked and holds all its bytes and fds.
#[derive(Debug, Default)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) id: u64,
    pub(crate) body: Held,
    /// Of a frame that leaves, what follows the body's beginning; of one that has come, nothing.
    pub(crate) more: Extra<Bytes>,
    pub(crate) fds: Extra<Passenger>,
    /// Of one that has come: some of its fds could not be taken in, as this process had none free.
    pub(crate) fds_lost: bool,
}

impl Frame {
    /// Writes the header that this frame has on the wire.
    pub(crate) fn put_head(&self, out: &mut impl BufMut) {
        Head { len: body_len(&self.body, &self.more), kind: self.kind, fds: self.fds.len(), id: self.id }.put(out);
    }

    /// How many bytes the frame takes on the wire.
    pub(crate) fn wire_len(&self) -> usize {
        HEAD_LEN + body_len(&self.body, &self.more)
    }
}

/// How many bytes a body has: its beginning, and the pieces that follow that.
pub(crate) fn body_len(body: &[u8], more: &[Bytes]) -> usize {
    body.len() + more.iter().map(Bytes::len).sum::<usize>()
}

/// A header that has been checked against the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) len: usize,
    pub(crate) kind: u8,
    pub(crate) fds: usize,
    pub(crate) id: u64,
}

impl Head {
    /// Writes the header. Its `len` and `fds` were limited when they were made: by `body::encode` and by `fds::collect`.
    pub(crate) fn put(&self, out: &mut impl BufMut) {
        let len = u32::try_from(self.len).expect("a body is limited to u32::MAX when it is encoded");
        let fds = u8::try_from(self.fds).expect("fds are limited to 64 when they are collected");
        // In one piece, as a buffer that may have to grow looks at its room for each; and made as one number, as a processor waits
        // where bytes are read in larger pieces than they were just written in.
        let [version, kind] = [VERSION, self.kind].map(u128::from);
        let head = u128::from(self.id) << 64 | u128::from(fds) << 48 | kind << 40 | version << 32 | u128::from(len);
        out.put_slice(&head.to_le_bytes());
    }

    /// What the first bytes announce, whatever the body's length; `None` if they are no header.
    pub(crate) fn peek(bytes: &[u8]) -> Option<Self> {
        Self::parse(bytes.first_chunk()?, usize::MAX).ok()
    }

    /// What they announce in another version, of which only the header is known to be alike.
    pub(crate) fn peek_other_version(bytes: &[u8]) -> Option<(u8, Self)> {
        let mut bytes: [u8; HEAD_LEN] = *bytes.first_chunk()?;
        let version = std::mem::replace(&mut bytes[4], VERSION);
        Some((version, Self::peek(&bytes)?)).filter(|(version, _)| *version != VERSION)
    }

    /// Reads a header, and checks it against the limits.
    pub(crate) fn parse(bytes: &[u8; HEAD_LEN], max_body: usize) -> Result<Self, Broken> {
        let mut bytes = bytes.as_slice();
        let len = bytes.get_u32_le();
        let version = bytes.get_u8();
        let kind = bytes.get_u8();
        let fds = usize::from(bytes.get_u8());
        let reserved = bytes.get_u8();
        let id = bytes.get_u64_le();
        if version != VERSION || reserved != 0 {
            return Err(Broken::Protocol("unknown version"));
        }
        if fds > MAX_FDS {
            return Err(Broken::Protocol("more than 64 file descriptors announced"));
        }
        match usize::try_from(len) {
            Ok(len) if len <= max_body => Ok(Self { len, kind, fds, id }),
            _ => Err(Broken::TooLarge { len: u64::from(len), max: max_body as u64 }),
        }
    }
}

/// Where the decoder stands in the stream.
#[derive(Clone, Copy, Debug)]
enum State {
    /// Before or inside a header.
    Head,
    /// Behind this header, before or inside its body.
    Body(Head),
    /// Behind bytes that are no frame: nothing says where the next one would begin.
    Broken(Broken),
}

/// Why a stream has no frames any more: what the peer did, so that it can be said again at each call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    TooLarge { len: u64, max: u64 },
    Protocol(&'static str),
}

impl From<Broken> for RecvError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::TooLarge { len, max } => Self::TooLarge { len, max },
            Broken::Protocol(reason) => Self::Protocol { reason },
        }
    }
}

/// Cuts frames out of a stream of bytes. After an error the stream has no frames any more, and the error stays.
#[derive(Debug)]
pub(crate) struct Decoder {
    state: State,
    max_body: usize,
}

impl Decoder {
    pub(crate) fn new(max_body: usize) -> Self {
        Self { state: State::Head, max_body }
    }

    pub(crate) fn set_max_body(&mut self, max_body: usize) {
        self.max_body = max_body;
    }

    /// Takes the next frame from the front of `bytes`, if it is there whole. Its fds are the caller's to add.
    pub(crate) fn decode(&mut self, bytes: &mut BytesMut) -> Result<Option<(Head, Held)>, Broken> {
        let mut body = Held::default();
        Ok(self.decode_into(bytes, &mut body)?.map(|head| (head, body)))
    }

    /// As [`decode`](Self::decode), for who has a place for the body.
    ///
    /// Reserves nothing: the buffer grows only with bytes that came.
    #[inline(always)]
    pub(crate) fn decode_into(&mut self, bytes: &mut BytesMut, body: &mut Held) -> Result<Option<Head>, Broken> {
        let head = match self.state {
            State::Body(head) => head,
            State::Head => {
                let Some(head) = bytes.first_chunk() else { return Ok(None) };
                let head = Head::parse(head, self.max_body).map_err(|broken| self.fail(broken, bytes))?;
                bytes.advance(HEAD_LEN);
                head
            }
            State::Broken(broken) => return Err(self.fail(broken, bytes)),
        };
        if bytes.len() < head.len {
            self.state = State::Body(head);
            return Ok(None);
        }
        self.state = State::Head;
        body.take_from(bytes, head.len);
        Ok(Some(head))
    }

    /// The frame whose header has come and whose body hasn't: to refuse it before its body is awaited.
    pub(crate) fn begun(&self) -> Option<&Head> {
        match &self.state {
            State::Body(head) => Some(head),
            State::Head | State::Broken(_) => None,
        }
    }

    /// Ends the stream because the frame, good in itself, has no place in it.
    pub(crate) fn refuse(&mut self, reason: &'static str, bytes: &mut BytesMut) -> Broken {
        self.fail(Broken::Protocol(reason), bytes)
    }

    /// What came is dropped, and what comes later too: whoever goes on reading must not gather it.
    fn fail(&mut self, broken: Broken, bytes: &mut BytesMut) -> Broken {
        self.state = State::Broken(broken);
        bytes.clear();
        broken
    }

    /// Ends the frame that has begun, whose body went elsewhere. Gives its header.
    pub(crate) fn skip_body(&mut self) -> Option<Head> {
        let head = self.begun().copied();
        if head.is_some() {
            self.state = State::Head;
        }
        head
    }

    /// How many more bytes the frame that has begun needs, or 0 between frames.
    pub(crate) fn missing(&self, bytes: &BytesMut) -> usize {
        match self.state {
            State::Head if bytes.is_empty() => 0,
            State::Head => HEAD_LEN.saturating_sub(bytes.len()),
            State::Body(head) => head.len.saturating_sub(bytes.len()),
            State::Broken(_) => 0,
        }
    }

    /// How many bytes are here from the beginning of the frame that has begun.
    pub(crate) fn held(&self, bytes: &[u8]) -> usize {
        if matches!(self.state, State::Body(_)) { HEAD_LEN + bytes.len() } else { bytes.len() }
    }

    /// The stream's bytes from the beginning of the frame that has begun, so that another decoder can go on.
    pub(crate) fn unread(&self, bytes: &[u8]) -> BytesMut {
        let mut all = BytesMut::with_capacity(HEAD_LEN + bytes.len());
        if let State::Body(head) = self.state {
            head.put(&mut all);
        }
        all.extend_from_slice(bytes);
        all
    }

    /// Whether the stream may end here without cutting a frame in two.
    pub(crate) fn at_boundary(&self, bytes: &BytesMut) -> bool {
        matches!(self.state, State::Head) && bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(kind: u8, id: u64, body: &'static [u8]) -> BytesMut {
        let frame = Frame { kind, id, body: Held::copy(body), ..Frame::default() };
        let mut bytes = BytesMut::new();
        frame.put_head(&mut bytes);
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn a_frame_comes_out_whole_however_it_is_cut() {
        let stream = [&wire(3, 9, b"one")[..], &wire(4, 0, b"")[..], &wire(5, u64::MAX, b"three")[..]].concat();
        for step in 1..=stream.len() {
            let (mut decoder, mut bytes, mut seen) = (Decoder::new(5), BytesMut::new(), Vec::new());
            for piece in stream.chunks(step) {
                bytes.extend_from_slice(piece);
                while let Some((head, body)) = decoder.decode(&mut bytes).unwrap() {
                    seen.push((head.kind, head.id, body));
                }
            }
            assert!(decoder.at_boundary(&bytes));
            assert_eq!(
                seen,
                [(3, 9, Held::copy(b"one")), (4, 0, Held::default()), (5, u64::MAX, Held::copy(b"three"))]
            );
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_its_body_is_awaited() {
        let mut bytes = wire(1, 0, b"123456");
        let error = Decoder::new(5).decode(&mut bytes).unwrap_err();
        assert_eq!(error, Broken::TooLarge { len: 6, max: 5 });
    }

    #[test]
    fn after_an_error_it_is_the_same_error_for_ever() {
        let good = wire(1, 0, b"abc");
        let mut decoder = Decoder::new(5);
        let mut bytes = BytesMut::from(&[&wire(1, 0, b"123456")[..], &good[..]].concat()[..]);
        for _ in 0..3 {
            assert_eq!(decoder.decode(&mut bytes), Err(Broken::TooLarge { len: 6, max: 5 }));
            assert!(bytes.is_empty() && !decoder.at_boundary(&bytes) && decoder.missing(&bytes) == 0);
            bytes.extend_from_slice(&good);
        }
        let mut decoder = Decoder::new(5);
        assert!(decoder.decode(&mut BytesMut::from(&good[..HEAD_LEN])).unwrap().is_none());
        assert_eq!(decoder.begun().unwrap().len, 3);
        decoder.refuse("not here", &mut bytes);
        assert_eq!(decoder.decode(&mut bytes), Err(Broken::Protocol("not here")));
    }

    #[test]
    fn runs_of_equal_bytes_are_no_frame() {
        for byte in [0x00, 0xff] {
            let mut bytes = BytesMut::from(&[byte; 64][..]);
            assert!(Decoder::new(usize::MAX).decode(&mut bytes).is_err());
        }
    }

    #[test]
    fn a_cut_frame_is_not_at_a_boundary_and_says_what_it_misses() {
        let whole = wire(1, 0, b"abc");
        for cut in 1..whole.len() {
            let (mut decoder, mut bytes) = (Decoder::new(5), BytesMut::from(&whole[..cut]));
            assert!(decoder.decode(&mut bytes).unwrap().is_none());
            assert!(!decoder.at_boundary(&bytes));
            let expected = if cut < HEAD_LEN { HEAD_LEN - cut } else { whole.len() - cut };
            assert_eq!(decoder.missing(&bytes), expected);
        }
    }
}
