//! Several calls of one function as one task: how a chunk of `map` travels, and how it is run.
//!
//! Inside a chunk every input and every result is encoded by itself and every call is guarded by itself, so what fails
//! fails alone. How large a chunk is, and when it is sent, is decided in `map.rs`.

use std::any::type_name;
use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::time::Instant;

use bytes::{BufMut as _, BytesMut};
use serde::de::{DeserializeOwned, Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::sys::image;
use crate::task::Task;
use crate::wire::body::{self, EncodeError};
use crate::wire::message::Failure;
use crate::worker::catch;

/// One input or result, or why there is none.
pub(super) type One<T> = Result<T, Box<Failure>>;

/// Set in the length of what is a failure.
const FAILED: u32 = 1 << 31;

/// The largest body of one value, in bytes.
const MAX_ONE: usize = FAILED as usize - 1;

#[derive(Serialize, Deserialize)]
#[serde(bound = "A: Serialize + DeserializeOwned")]
pub(super) struct Chunk<F, A, R> {
    inputs: Each<A>,
    #[serde(skip)]
    function: PhantomData<fn() -> (F, R)>,
}

impl<F, A, R> Chunk<F, A, R> {
    pub(super) fn new(inputs: Vec<One<A>>) -> Self {
        Self { inputs: Each { values: inputs, bytes: 0 }, function: PhantomData }
    }
}

/// What comes back: one result of each input.
#[derive(Serialize, Deserialize)]
#[serde(bound = "R: Serialize + DeserializeOwned")]
pub(super) struct Results<R> {
    pub(super) of: Each<R>,
    /// How long the calls took together.
    pub(super) nanos: u64,
    /// How many bytes the inputs took.
    pub(super) bytes: usize,
}

impl<F, A, R> Task for Chunk<F, A, R>
where
    F: Fn(A) -> R + Copy + Send + 'static,
    A: Serialize + DeserializeOwned + Send + 'static,
    R: Serialize + DeserializeOwned + Send + 'static,
{
    type Output = Results<R>;

    fn run(self) -> Results<R> {
        let function = image::conjure::<F>();
        let Each { values: inputs, bytes } = self.inputs;
        let begun = Instant::now();
        let mut results = Vec::with_capacity(inputs.len());
        for_each(inputs.into_iter(), &mut results, |input| input.map(function));
        let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Results { of: Each { values: results, bytes: 0 }, nanos, bytes }
    }

    fn task_name(&self) -> &'static str {
        type_name::<F>()
    }
}

/// Makes one of each. A panic is the failure of that one; guarding all at once costs nothing for those that don't.
fn for_each<T, R>(mut from: impl Iterator<Item = T>, to: &mut Vec<One<R>>, make: impl Fn(T) -> One<R>) {
    while let Err(panic) = catch(|| from.by_ref().for_each(|one| to.push(make(one)))) {
        to.push(Err(Box::new(Failure::Panicked(panic))));
    }
}

/// Values that are encoded one by one, each behind its length.
pub(super) struct Each<T> {
    pub(super) values: Vec<One<T>>,
    /// How many bytes they took when they came.
    pub(super) bytes: usize,
}

impl<T: Serialize> Serialize for Each<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = BytesMut::with_capacity(self.values.len() * 12);
        // How many values are whole in `out`, and where the last of them ends.
        let (whole, end) = (Cell::new(0), Cell::new(0));
        while let Err(panic) = catch(|| {
            for value in &self.values[whole.get()..] {
                match value {
                    Ok(value) => encode_one(value, &mut out),
                    Err(failure) => put_failure(failure, &mut out),
                }
                whole.set(whole.get() + 1);
                end.set(out.len());
            }
        }) {
            out.truncate(end.get());
            put_failure(&Failure::Panicked(panic), &mut out);
            whole.set(whole.get() + 1);
            end.set(out.len());
        }
        serializer.serialize_bytes(&out)
    }
}

fn encode_one<T: Serialize>(value: &T, out: &mut BytesMut) {
    let start = out.len();
    out.put_u32_le(0);
    let failure = match body::encode(value, out, MAX_ONE) {
        Ok(()) => return put_len(out, start, 0),
        Err(EncodeError::Failed(error)) => Failure::Encode(error.to_string()),
        Err(EncodeError::TooLarge { len, max }) => Failure::TooLarge { len, max },
    };
    out.truncate(start);
    put_failure(&failure, out);
}

fn put_failure(failure: &Failure, out: &mut BytesMut) {
    let start = out.len();
    out.put_u32_le(0);
    // Strings and numbers can always be encoded; if they are too large, an empty body is refused by the reader.
    let _ = body::encode(failure, out, MAX_ONE);
    put_len(out, start, FAILED);
}

fn put_len(out: &mut BytesMut, start: usize, mark: u32) {
    let len = u32::try_from(out.len() - start - 4).expect("a body is limited when it is encoded");
    out[start..start + 4].copy_from_slice(&(len | mark).to_le_bytes());
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Each<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Decode<T>(PhantomData<T>);

        impl<T: DeserializeOwned> Visitor<'_> for Decode<T> {
            type Value = Each<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the values of a chunk")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Each<T>, E> {
                let (mut values, mut parts) = (Vec::new(), Parts(bytes));
                for_each(parts.by_ref(), &mut values, |(is_failure, body)| decode_one(is_failure, body));
                if parts.0.is_empty() { Ok(Each { values, bytes: bytes.len() }) } else { Err(E::custom("cut off")) }
            }
        }

        deserializer.deserialize_bytes(Decode(PhantomData)).map_err(D::Error::custom)
    }
}

/// The encoded values, one by one; what is left when it ends is none.
struct Parts<'a>(&'a [u8]);

impl<'a> Iterator for Parts<'a> {
    type Item = (bool, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (len, rest) = self.0.split_first_chunk()?;
        let len = u32::from_le_bytes(*len);
        let (body, rest) = rest.split_at_checked((len & !FAILED) as usize)?;
        self.0 = rest;
        Some((len & FAILED != 0, body))
    }
}

fn decode_one<T: DeserializeOwned>(is_failure: bool, body: &[u8]) -> One<T> {
    let unreadable = |error: crate::error::BoxError| Box::new(Failure::Decode(error.to_string()));
    if is_failure {
        return Err(Box::new(body::decode(body).map_err(unreadable)?));
    }
    body::decode(body).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Panic;

    fn sent<T: Serialize + DeserializeOwned>(values: Vec<One<T>>) -> Vec<One<T>> {
        let mut out = BytesMut::new();
        body::encode(&Each { values, bytes: 0 }, &mut out, usize::MAX).unwrap();
        body::decode::<Each<T>>(&out).unwrap().values
    }

    #[test]
    fn values_and_failures_arrive_in_their_places() {
        let failure = || Box::new(Failure::Panicked(Panic::new("no")));
        let back = sent(vec![Ok("one".to_owned()), Err(failure()), Ok(String::new())]);
        assert!(matches!(&back[..], [Ok(one), Err(no), Ok(empty)]
            if one == "one" && empty.is_empty() && matches!(&**no, Failure::Panicked(panic) if panic.message == "no")));
        assert!(sent(vec![Ok(()), Ok(()), Ok(())]).iter().all(Result::is_ok), "also what takes no bytes");
    }

    #[test]
    fn lengths_that_lie_are_an_error() {
        for lie in [&[1, 0, 0, 0][..], &[0, 0, 0], &[255; 4], &[0, 0, 0, 0, 2, 0, 0, 0, 7]] {
            let mut out = BytesMut::new();
            body::encode(&serde_bytes_like(lie), &mut out, usize::MAX).unwrap();
            assert!(body::decode::<Each<u8>>(&out).is_err(), "{lie:?}");
        }
    }

    fn serde_bytes_like(bytes: &[u8]) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(bytes)
    }
}
