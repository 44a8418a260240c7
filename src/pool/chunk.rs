//! Several calls of one function as one task: how a chunk of `map` travels, and how it is run.
//!
//! Inside a chunk every input and every result is encoded by itself and every call is guarded by itself, so what fails
//! fails alone. The worker keeps each result where its own death can't reach it before it makes the next call, so a chunk
//! can go on behind the call that ended its worker: see `parts.rs`. How large a chunk is, and when it is sent, is decided in
//! `map.rs`.

use std::any::type_name;
use std::marker::PhantomData;
use std::time::Instant;

use bytes::{Buf as _, BufMut as _, Bytes};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{BoxError, TaskError};
use crate::sys::image::{self, Entry};
use crate::sys::ledger::KEPT;
use crate::sys::original;
use crate::task::panic::catch;
use crate::task::{self, PackError, Parcel, Runner};
use crate::wire::body::{self, EncodeError, Parts};
use crate::wire::extra::Extra;
use crate::wire::fds::{self, Arrived};
use crate::wire::frame::MAX_FDS;
use crate::wire::message::{Arguments, Failure};
use crate::wire::passenger::Passenger;
use crate::worker::Progress;

/// Set in the length of what is a failure.
const FAILED: u32 = 1 << 31;

/// The largest body of one input, in bytes.
const MAX_ONE: usize = FAILED as usize - 1;

/// What an answer begins with: how many results follow (a `u32`), and how many nanoseconds their calls took (a `u64`).
pub(super) const HEAD_LEN: usize = 12;

/// The calls of `F` on inputs of type `A`: the type that says which code runs.
struct Calls<F, A, R>(PhantomData<(F, A, R)>);

impl<F, A, R> Calls<F, A, R>
where
    F: Fn(A) -> R + Copy + Send + 'static,
    A: Serialize + DeserializeOwned + Send + 'static,
    R: Serialize + DeserializeOwned + Send + 'static,
{
    const ENTRY: &'static Entry<Runner> = &Entry::new(run::<F, A, R>);
}

/// Encodes calls of a function on the first of these inputs: on as many as one message has room for, by its bytes (`max`) and
/// its fds. Says how many these are, at least one. An input with an end in it is alone: what it holds is given back with its own
/// worker's death, and must not wait for the calls behind it.
pub(super) fn pack<F, A, R>(inputs: &[A], max: usize) -> Result<(Parcel, usize), PackError>
where
    F: Fn(A) -> R + Copy + Send + 'static,
    A: Serialize + DeserializeOwned + Send + 'static,
    R: Serialize + DeserializeOwned + Send + 'static,
{
    let entry = (Calls::<F, A, R>::ENTRY, type_name::<Calls<F, A, R>>());
    let mut count = 0;
    let parcel = task::pack_for(entry, type_name::<F>(), |parts| {
        let start = parts.len();
        count = encode_each(inputs, parts, max);
        let len = parts.len() - start;
        if len > max { Err(EncodeError::TooLarge { len: len as u64, max: max as u64 }) } else { Ok(()) }
    })?;
    Ok((parcel, count))
}

/// Makes the calls, in the worker: one after the other, until all are made or an answer is due: because a result
/// can't be kept, or because the call just made was to stop.
#[expect(clippy::unnecessary_wraps, reason = "it is a `Runner`")]
fn run<F, A, R>(
    inputs: Arguments<'_>,
    arrived: Extra<Passenger>,
    out: &mut Parts,
    max: usize,
) -> Result<Extra<Passenger>, Box<Failure>>
where
    F: Fn(A) -> R + Copy + Send + 'static,
    A: Serialize + DeserializeOwned + Send + 'static,
    R: Serialize + DeserializeOwned + Send + 'static,
{
    let function = image::conjure::<F>();
    let head = out.written.len();
    // Results are often about as large as their inputs.
    out.written.reserve(HEAD_LEN + inputs.len().min(KEPT) * 5 / 4);
    out.written.put_bytes(0, HEAD_LEN);
    // So that an answer is never too large for a frame: what comes before its last result has been kept.
    let max_one = max.min(MAX_ONE).saturating_sub(HEAD_LEN + KEPT);
    let (mut arrived, mut leaving) = (Arrived::new(arrived), Extra::default());
    let mut progress = Progress::begin();
    let (mut rest, shared) = (Bodies(&inputs), inputs.shared());
    let mut start = out.written.len();
    let begun = Instant::now();
    // A panic is the failure of that one call; guarding all at once costs nothing for those that don't.
    while let Err(panic) = catch(|| {
        for (is_failure, body) in rest.by_ref() {
            match arrived.decode(|| decode_one::<A>(is_failure, body, shared)) {
                Ok(input) => {
                    let result = function(input);
                    original::end_copy(0);
                    leaving = encode_result(&result, out, max_one);
                }
                Err(failure) => put_failure(&failure, out),
            }
            // What has fds can't be kept, and what is so large that it was put apart neither: the answer is due, and ends with it.
            let is_kept = leaving.is_empty() && out.is_written();
            let goes_on = progress.made_one(is_kept.then(|| &out.written[start..]));
            start = out.written.len();
            if !goes_on {
                return;
            }
        }
    }) {
        out.truncate(start);
        put_failure(&Failure::Panicked(panic), out);
        let goes_on = progress.made_one(Some(&out.written[start..]));
        start = out.written.len();
        if !goes_on {
            break;
        }
    }
    let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let mut place = &mut out.written[head..head + HEAD_LEN];
    place.put_u32_le(progress.made());
    place.put_u64_le(nanos);
    Ok(leaving)
}

/// Takes an answer's head off: how many results follow, and how many nanoseconds their calls took.
pub(super) fn take_head(answer: &mut Bytes) -> Option<(u32, u64)> {
    (answer.len() >= HEAD_LEN).then(|| (answer.get_u32_le(), answer.get_u64_le()))
}

/// Decodes `count` results, and no more than that, and appends them. Where there is another number of them, each is an error.
pub(super) fn unpack<R: DeserializeOwned>(
    count: usize,
    results: &Bytes,
    arrived: Extra<Passenger>,
    to: &mut Vec<Result<R, Box<TaskError>>>,
) {
    let (mut bodies, mut arrived, before) = (Bodies(results), Arrived::new(arrived), to.len());
    while let Err(panic) = catch(|| {
        let left = count - (to.len() - before);
        for (is_failure, body) in bodies.by_ref().take(left) {
            let one = arrived.decode(|| decode_one(is_failure, body, Some(results)));
            to.push(one.map_err(|failure| Box::new((*failure).into())));
        }
    }) {
        to.push(Err(Box::new(TaskError::Panicked(panic))));
    }
    if to.len() - before != count || !bodies.0.is_empty() {
        to.truncate(before);
        to.extend(
            (0..count)
                .map(|_| Err(Box::new(TaskError::Decode("a chunk came back with another number of results".into())))),
        );
    }
}

/// Encodes values one by one, each behind its length; one that can't be encoded is a failure in its place. Stops before one
/// that is too much for the message that others are in, has an end in it, or is so large that it is put apart, and behind one of
/// the latter two; and says how many are.
fn encode_each<T: Serialize>(values: &[T], out: &mut Parts, max: usize) -> usize {
    out.written.reserve(values.len().min(max) * 12);
    let begin = out.written.len();
    let (mut count, mut start) = (0, begin);
    // The fds in all so far, and the most in one: one that is too much is better not encoded in vain.
    let (mut held, mut most) = (0, 0);
    while let Err(panic) = catch(|| {
        for value in &values[count..] {
            if count > 0 && held + most > MAX_FDS {
                return;
            }
            let encoded = try_one(value, out, MAX_ONE);
            let is_too_much = out.written.len() - begin > max || encoded.is_err() && fds::held() == MAX_FDS;
            let has_end = encoded.is_ok() && fds::held() > held && fds::have_moved(held);
            let is_alone = has_end || !out.is_written();
            if count > 0 && (is_too_much || is_alone) {
                out.truncate(start);
                fds::keep(held);
                return;
            }
            if let Err(failure) = encoded {
                fds::keep(held);
                put_failure(&failure, out);
            }
            let now = fds::held();
            (held, most) = (now, most.max(now - held));
            (count, start) = (count + 1, out.written.len());
            if is_alone {
                return;
            }
        }
    }) {
        out.truncate(start);
        fds::keep(held);
        put_failure(&Failure::Panicked(panic), out);
        (count, start) = (count + 1, out.written.len());
    }
    count
}

/// Encodes a result. Gives the fds in it.
fn encode_result<T: Serialize>(result: &T, out: &mut Parts, max: usize) -> Extra<Passenger> {
    // Outside a message an fd is an error, and nearly nothing has one: where it is that, it is encoded once more.
    match try_one(result, out, max) {
        Ok(()) => Extra::default(),
        Err(_) => match fds::collect(|| try_one(result, out, max)) {
            Ok(((), fds)) => fds,
            Err(failure) => {
                put_failure(&failure, out);
                Extra::default()
            }
        },
    }
}

/// Encodes a value behind its length, or leaves everything as it was. Nothing may be apart yet.
#[inline]
fn try_one<T: Serialize>(value: &T, out: &mut Parts, max: usize) -> Result<(), Failure> {
    let start = out.written.len();
    out.written.put_u32_le(0);
    let failure = match out.encode(value, max) {
        Ok(()) => {
            put_len(out, start, 0);
            return Ok(());
        }
        Err(EncodeError::Failed(error)) => Failure::Encode(error.to_string()),
        Err(EncodeError::TooLarge { len, max }) => Failure::TooLarge { len, max },
    };
    out.truncate(start);
    Err(failure)
}

fn put_failure(failure: &Failure, out: &mut Parts) {
    let start = out.written.len();
    out.written.put_u32_le(0);
    // Strings and numbers can always be encoded; if they are too large, an empty body is refused by the reader.
    let _ = body::encode(failure, &mut out.written, MAX_ONE);
    put_len(out, start, FAILED);
}

#[inline]
fn put_len(out: &mut Parts, start: usize, mark: u32) {
    let len = u32::try_from(out.len() - start - 4).expect("a body is limited when it is encoded");
    out.written[start..start + 4].copy_from_slice(&(len | mark).to_le_bytes());
}

/// How many bytes the first `count` of encoded values take.
pub(super) fn len_of(values: &[u8], count: usize) -> usize {
    let mut bodies = Bodies(values);
    bodies.by_ref().take(count).for_each(drop);
    values.len() - bodies.0.len()
}

/// Encoded values, one by one, and whether each is a failure; what is left when it ends is none.
struct Bodies<'a>(&'a [u8]);

impl<'a> Iterator for Bodies<'a> {
    type Item = (bool, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (len, rest) = self.0.split_first_chunk()?;
        let len = u32::from_le_bytes(*len);
        let (body, rest) = rest.split_at_checked((len & !FAILED) as usize)?;
        self.0 = rest;
        Some((len & FAILED != 0, body))
    }
}

/// Decodes one of the values in `all`.
#[inline]
fn decode_one<T: DeserializeOwned>(is_failure: bool, body: &[u8], all: Option<&Bytes>) -> Result<T, Box<Failure>> {
    let unreadable = |error: BoxError| Box::new(Failure::Decode(error.to_string()));
    if is_failure {
        return Err(Box::new(body::decode(body).map_err(unreadable)?));
    }
    body::decode_part(body, all).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde::{Deserialize, Deserializer};

    use super::*;
    use crate::error::Panic;
    use crate::wire::held::Held;
    use crate::wire::writer::APART;

    fn read(count: usize, bytes: &[u8]) -> Vec<Result<String, Box<TaskError>>> {
        let mut back = Vec::new();
        unpack(count, &Bytes::copy_from_slice(bytes), Extra::default(), &mut back);
        back
    }

    #[test]
    fn values_and_failures_arrive_in_their_places() {
        let mut out = Parts::default();
        encode_each(&["one"], &mut out, MAX_ONE);
        put_failure(&Failure::Panicked(Panic::new("no")), &mut out);
        encode_each(&[""], &mut out, MAX_ONE);
        let back = read(3, &out.written);
        assert!(matches!(&back[..], [Ok(one), Err(no), Ok(empty)]
            if one == "one" && empty.is_empty() && matches!(&**no, TaskError::Panicked(panic) if panic.message == "no")));
        let (mut nothing, mut back) = (Parts::default(), Vec::new());
        encode_each(&[(), (), ()], &mut nothing, MAX_ONE);
        unpack::<()>(3, &nothing.written.freeze(), Extra::default(), &mut back);
        assert!(back.len() == 3 && back.iter().all(Result::is_ok), "also what takes no bytes");
    }

    #[test]
    fn a_message_takes_as_many_values_as_it_has_room_for_and_at_least_one() {
        for (max, expected) in [(0, 1), (7, 1), (15, 1), (16, 2), (23, 2), (24, 3), (1000, 3)] {
            let mut out = Parts::default();
            assert_eq!(encode_each(&["one", "two", "six"], &mut out, max), expected, "{max}");
            assert_eq!(read(expected, &out.written).into_iter().flatten().count(), expected);
        }
    }

    #[test]
    fn a_large_value_is_alone_in_its_message_and_not_copied() {
        let [small, large] = [1, APART].map(|len| Bytes::from(vec![7; len]));
        let mut values =
            &[small.clone(), small.clone(), large.clone(), small.clone(), large.clone(), large.clone()][..];
        for expected in [2, 1, 1, 1, 1] {
            let mut out = Box::<Parts>::default();
            assert_eq!(encode_each(values, &mut out, MAX_ONE), expected);
            let is_large = values[0] == large;
            values = &values[expected..];
            assert_eq!(out.is_written(), !is_large);
            let mut first = Held::default();
            let more = out.finish(&mut first);
            assert!(!is_large || more[0].as_ptr() == large.as_ptr());
            let (whole, mut back) = (Bytes::from([&first[..], &more.concat()].concat()), Vec::new());
            unpack::<Bytes>(expected, &whole, Extra::default(), &mut back);
            for value in back {
                let value = value.unwrap();
                assert_eq!(value, if is_large { &large } else { &small });
                assert!(!is_large || whole.as_ptr_range().contains(&value.as_ptr()));
            }
        }
    }

    #[test]
    fn no_more_results_are_decoded_than_there_were_calls() {
        /// It takes no bytes, and is counted.
        struct Counted;
        static DECODED: AtomicUsize = AtomicUsize::new(0);
        impl<'de> Deserialize<'de> for Counted {
            fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
                DECODED.fetch_add(1, Ordering::Relaxed);
                Ok(Self)
            }
        }
        let mut back = Vec::new();
        unpack::<Counted>(2, &Bytes::from_static(&[0; 4000]), Extra::default(), &mut back);
        assert!(back.len() == 2 && back.iter().all(Result::is_err));
        assert_eq!(DECODED.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn lengths_and_counts_that_lie_are_errors_in_the_right_number() {
        for lie in [&[1, 0, 0, 0][..], &[0, 0, 0], &[255; 4], &[1, 0, 0, 0, 0, 2, 0, 0, 0, 7], &[1, 0, 0, 0, 0]] {
            let back = read(2, lie);
            assert!(back.len() == 2 && back.iter().all(Result::is_err), "{lie:?}");
        }
    }
}
