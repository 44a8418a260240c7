//! [`Codec`]: one value a frame, for `tokio_util`'s `Framed` and for anybody's own loop. It moves no file descriptors.

use std::fmt;
use std::marker::PhantomData;

use bytes::{BufMut as _, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::codec;

use crate::error::{RecvError, SendError};
use crate::wire::body::{self, Appended};
use crate::wire::extra::Extra;
use crate::wire::fds;
use crate::wire::frame::{self, HEAD_LEN, Head, VALUE};

/// Values of one type as frames in a stream of bytes, as this library's channels send them.
///
/// An [`Encoder`](codec::Encoder) and a [`Decoder`](codec::Decoder) for [`tokio_util::codec::Framed`] and its relatives,
/// over any stream of bytes. A frame is a header of 16 bytes and one value in [postcard]'s format:
///
/// ```text
///  byte 0         4         5      6      7         8            16
///       ┌─────────┬─────────┬──────┬──────┬─────────┬─────────────┬──────────────┐
///       │ length  │ version │ kind │ fds  │ 0       │ id          │ value …      │
///       │ u32 LE  │ u8 = 1  │ = 1  │ = 0  │         │ u64 LE = 0  │ length bytes │
///       └─────────┴─────────┴──────┴──────┴─────────┴─────────────┴──────────────┘
/// ```
///
/// [postcard]: https://postcard.jamesmunns.com
///
/// # Limits
///
/// `max_frame` bounds the encoded value in bytes, without the header, in both directions. No value is over `u32::MAX`
/// bytes, however large `max_frame` is. The bytes may come from somebody who means harm: the limit is checked before
/// memory is taken, the buffer grows with bytes that came and not with bytes announced, and a value is refused if it
/// nests deeper than 128 levels or if it would take more than 16 MiB and 256 bytes for each of its encoded bytes, which
/// only lists do whose elements are far larger in memory than on the wire; elements that take no memory, `()` say, count as
/// a byte each.
///
/// # Errors
///
/// Encoding leaves the buffer as it was and the codec usable:
/// - [`SendError::Encode`]: the value's `Serialize` failed; or the format can't hold it, as with `#[serde(flatten)]` and
///   `skip_serializing_if`; or it holds a file descriptor or an end of a channel, which bytes alone can't carry.
/// - [`SendError::TooLarge`]: it takes more than `max_frame` bytes.
///
/// Decoding:
/// - [`RecvError::Decode`]: the bytes of this one frame are no `T`. The next call gives the next frame.
/// - [`RecvError::TooLarge`], [`RecvError::Protocol`]: a header is over the limit, or it is none. Nothing says where the
///   next frame would begin, so the codec gives the same error from then on, and drops what comes.
/// - [`RecvError::Truncated`]: the stream ended inside a frame.
///
/// `Framed` and `FramedRead` take every error for the end: after it they yield `None` once, and then look at what they
/// have already read only when more bytes arrive. To go on behind a `Decode` without waiting for those, call
/// [`decode`](codec::Decoder::decode) in a loop of your own.
///
/// # Examples
///
/// ```
/// use futures::{SinkExt, StreamExt};
/// use multiproc::wire::Codec;
/// use serde::{Deserialize, Serialize};
/// use tokio_util::codec::Framed;
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize)]
/// enum Request {
///     Resize { path: String, width: u32 },
///     Stop,
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (ours, theirs) = tokio::net::UnixStream::pair()?;
/// let mut ours = Framed::new(ours, Codec::<Request>::new(64 * 1024));
/// let mut theirs = Framed::new(theirs, Codec::<Request>::new(64 * 1024));
///
/// ours.send(Request::Resize { path: "cat.png".into(), width: 640 }).await?;
/// ours.send(Request::Stop).await?;
/// drop(ours);
///
/// assert_eq!(theirs.next().await.transpose()?, Some(Request::Resize { path: "cat.png".into(), width: 640 }));
/// assert_eq!(theirs.next().await.transpose()?, Some(Request::Stop));
/// assert_eq!(theirs.next().await.transpose()?, None);
/// # Ok(())
/// # }
/// ```
pub struct Codec<T> {
    frames: frame::Decoder,
    max_frame: usize,
    /// Values pass through both ways; none is kept.
    _value: PhantomData<fn(T) -> T>,
}

impl<T> Codec<T> {
    /// A codec for values of at most `max_frame` bytes each, as encoded and without the header.
    pub fn new(max_frame: usize) -> Self {
        Self { frames: frame::Decoder::new(max_frame), max_frame, _value: PhantomData }
    }
}

impl<T> fmt::Debug for Codec<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Codec").field("max_frame", &self.max_frame).finish_non_exhaustive()
    }
}

impl<T: Serialize> codec::Encoder<T> for Codec<T> {
    type Error = SendError;

    fn encode(&mut self, value: T, dst: &mut BytesMut) -> Result<(), SendError> {
        let start = dst.len();
        let appended = Appended::to(dst);
        appended.out.put_bytes(0, HEAD_LEN);
        // The scope is also there to keep the value's fds out of a message that is being encoded around this one.
        fds::collect(|| {
            body::encode(&value, &mut *appended.out, self.max_frame)?;
            match fds::held() {
                0 => Ok(()),
                _ => Err(SendError::Encode("a file descriptor cannot travel through a bare Codec".into())),
            }
        })?;
        let (_, mut frame) = appended.out.split_at_mut(start);
        Head { len: frame.len() - HEAD_LEN, kind: VALUE, fds: 0, id: 0 }.put(&mut frame);
        appended.keep();
        Ok(())
    }
}

impl<T: DeserializeOwned> codec::Decoder for Codec<T> {
    type Item = T;
    type Error = RecvError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<T>, RecvError> {
        let frame = self.frames.decode(src)?;
        // A frame that has no place here is refused as soon as its header is there, and not when its body is.
        if let Some(head) = frame.as_ref().map(|(head, _)| head).or(self.frames.begun())
            && let Some(reason) = misplaced(head)
        {
            return Err(self.frames.refuse(reason, src).into());
        }
        frame.map(|(_, body)| value(&body)).transpose()
    }

    fn decode_eof(&mut self, src: &mut BytesMut) -> Result<Option<T>, RecvError> {
        match self.decode(src)? {
            None if !self.frames.at_boundary(src) => Err(RecvError::Truncated),
            value => Ok(value),
        }
    }
}

/// Why a frame, good in itself, can't be one of a codec.
fn misplaced(head: &Head) -> Option<&'static str> {
    match head {
        Head { kind: VALUE, fds: 0, id: 0, .. } => None,
        Head { kind: VALUE, fds: 0, .. } => Some("a value with an id"),
        Head { kind: VALUE, .. } => Some("file descriptors announced where none can come"),
        _ => Some("a frame of a kind that has no place here"),
    }
}

fn value<T: DeserializeOwned>(body: &[u8]) -> Result<T, RecvError> {
    // With no fds: none can be taken from a message that is being decoded around this one.
    fds::provide(Extra::default(), || body::decode(body)).map_err(RecvError::Decode)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::OwnedFd;

    use serde::Deserialize;
    use tokio_util::codec::{Decoder as _, Encoder as _};

    use super::*;
    use crate::sys::socket;

    #[derive(Serialize, Deserialize)]
    struct Handle(#[serde(with = "crate::wire::fds")] OwnedFd);

    #[test]
    fn a_file_descriptor_is_refused_and_its_duplicate_closed() {
        let (ours, theirs) = socket::stream_pair().unwrap();
        let mut dst = BytesMut::from("before");
        let (refused, collected) =
            fds::collect(|| Ok::<_, ()>(Codec::new(9).encode(Handle(theirs), &mut dst))).unwrap();
        assert!(matches!(refused, Err(SendError::Encode(_))));
        assert_eq!(dst, "before");
        assert!(collected.is_empty(), "a message around it gets none of them");
        // Only when the last duplicate is closed does the other end see the end.
        let mut ours = std::os::unix::net::UnixStream::from(ours);
        ours.set_nonblocking(true).unwrap();
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_file_descriptor_is_not_taken_from_a_message_around_it() {
        let mut frame = BytesMut::new();
        Codec::new(9).encode(0u32, &mut frame).unwrap();
        let outer = vec![socket::stream_pair().unwrap().0];
        assert!(matches!(
            fds::provide(outer.into_iter().map(Into::into).collect(), || Codec::<Handle>::new(9).decode(&mut frame)),
            Err(RecvError::Decode(_))
        ));
    }
}
