//! What is fuzzed of pools: what a worker writes into its ledger, and into a chunk's answer; see `wire/fuzz.rs`.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use serde::de::DeserializeOwned;

use super::answers::{Ring, answer};
use super::chunk;
use super::job::Outcome;
use super::parts::{Part, Parts};
use crate::channel::Fd;
use crate::channel::fuzz::Lent;
use crate::error::TaskError;
use crate::sys::ledger::{Ledger, RING, Reader};
use crate::task::Answer;
use crate::wire::frame::{Decoder, Frame, Head};
use crate::wire::fuzz::piece;
use crate::wire::held::Held;
use crate::wire::message::Kind;
use crate::wire::passenger::Passenger;

/// Where in a ledger a worker says how many bytes it has written into the ring, and where that begins; see `sys/ledger.rs`.
const WRITTEN: u64 = 64;
const RING_START: u64 = 4096;

/// What a hostile worker may write into its ring: no panic, and the answers that the bytes are as a stream, up to the first lie.
///
/// Each look of the parent at the ring has a byte before it, which says what kind of frame is written (bits 0 to 2; 7 is none: the
/// bytes as they are), whether it is many times (3), and whether how much was written is a lie (7). Then come how often or the lie,
/// how long the body is, and its bytes.
pub fn ring_answers(mut data: &[u8]) {
    let kinds = [Kind::Done, Kind::Failed, Kind::Done, Kind::Failed, Kind::Bell, Kind::Ready, Kind::Refused];
    let (ledger, memory) = Ledger::create().expect("there is room for a ledger");
    let (memory, mut ring) = (File::from(memory), Ring::new(Reader::new(Arc::new(ledger))));
    let mut written = 0;
    while let Ok(control) = data.try_get_u8() {
        let times = if control & 8 == 0 { 1 } else { usize::from(data.try_get_u8().unwrap_or_default()) };
        let lie = (control & 0x80 != 0).then(|| data.try_get_u64_le().unwrap_or(u64::MAX));
        let len = usize::from(data.try_get_u16_le().unwrap_or_default());
        let (mut frame, body) = (Vec::new(), piece(&mut data, len));
        if let Some(&kind) = kinds.get(usize::from(control & 7)) {
            Head { len: body.len(), kind: kind as u8, fds: 0, id: 7 }.put(&mut frame);
        }
        frame.extend_from_slice(body);
        let stream = frame.repeat(times.min(RING / frame.len().max(1)));
        let place = written % RING as u64;
        let (first, behind) = stream.split_at(stream.len().min(RING - usize::try_from(place).unwrap_or_default()));
        for (bytes, place) in [(first, place), (behind, 0)] {
            memory.write_all_at(bytes, RING_START + place).expect("it is memory");
        }
        written = lie.unwrap_or(written.wrapping_add(stream.len() as u64));
        memory.write_all_at(&written.to_le_bytes(), WRITTEN).expect("it is memory");
        let (mut answers, mut expected) = (Vec::new(), Vec::new());
        let taken = ring.take(&mut answers).is_ok();
        let is_well = well(&stream, &mut expected);
        if stream.len() > RING - 8 {
            assert!(!taken || lie.is_some());
        } else if lie.is_none() {
            assert!(taken == is_well && are_alike(&answers, &expected), "{answers:?}, not {expected:?}");
        }
        if !taken {
            // Then the worker is ended.
            break;
        }
    }
}

/// The answers that come as this stream, as they would through a socket, and whether there is nothing else in it.
fn well(stream: &[u8], answers: &mut Vec<(u64, Outcome)>) -> bool {
    let (mut decoder, mut stream) = (Decoder::new(RING), BytesMut::from(stream));
    while let Ok(Some((head, body))) = decoder.decode(&mut stream) {
        if head.fds > 0 {
            return false;
        }
        match answer(Frame { kind: head.kind, id: head.id, body, ..Frame::default() }) {
            Ok(Some(answer)) => answers.push(answer),
            Ok(None) | Err(_) => return false,
        }
    }
    decoder.at_boundary(&stream)
}

/// Whether they are the same. Their bytes need not be held in the same way.
fn are_alike(some: &[(u64, Outcome)], others: &[(u64, Outcome)]) -> bool {
    let are_alike = |((id, one), (other_id, other)): (&(u64, Outcome), &(u64, Outcome))| {
        id == other_id
            && match (one, other) {
                (Ok(one), Ok(other)) => one.body[..] == other.body[..],
                (Err(one), Err(other)) => one.to_string() == other.to_string(),
                _ => false,
            }
    };
    some.len() == others.len() && some.iter().zip(others).all(are_alike)
}

/// What a hostile worker may answer to a chunk, and keep of it before its end: no panic, as many results as calls and never more, and
/// all fds closed in the end.
///
/// The first byte says how many calls it is (bits 0 to 4), and what they give (5 to 7). Then comes what is said: a byte that says
/// what it is (bits 0 and 1), whether the last call was asked to stop (2) and how many fds it has (4 to 6), one with the number of
/// calls, one with the length, and the bytes.
pub fn chunk_answers(mut data: &[u8]) {
    let control = data.try_get_u8().unwrap_or_default();
    let calls = u32::from(control % 32) + 1;
    match control >> 5 {
        0..=2 => chunk_of::<Vec<String>>(calls, data),
        3 => chunk_of::<()>(calls, data),
        4 => chunk_of::<Fd>(calls, data),
        5 => chunk_of::<Vec<Fd>>(calls, data),
        _ => chunk_of::<Option<(Fd, String)>>(calls, data),
    }
}

fn chunk_of<R: DeserializeOwned>(calls: u32, mut data: &[u8]) {
    let (mut parts, mut known, lent) = (Parts::new(calls), 0, Lent::new());
    while let Ok(control) = data.try_get_u8() {
        let count = u32::from(data.try_get_u8().unwrap_or_default());
        let len = data.try_get_u8().unwrap_or_default().into();
        let body = piece(&mut data, len);
        let fits = (1..=calls - known).contains(&count);
        let mut answered = |body: &[u8]| {
            let fds = (0..control >> 4 & 7).map(|_| Passenger::from(lent.copy())).collect();
            let stopped = (control & 4 != 0).then_some(TaskError::TimedOut);
            parts.answer(Answer { body: Held::copy(body), fds, ..Answer::default() }, stopped).is_some()
        };
        match control % 4 {
            0 => {
                let mut answer = Vec::new();
                answer.put_u32_le(count);
                answer.put_u64_le(u64::MAX);
                answer.put_slice(body);
                assert_eq!(answered(&answer), fits);
                known += if fits { count } else { 0 };
            }
            1 => {
                let count = body.first_chunk().map_or(0, |count| u32::from_le_bytes(*count));
                let fits = body.len() >= chunk::HEAD_LEN && (1..=calls - known).contains(&count);
                assert_eq!(answered(body), fits);
                known += if fits { count } else { 0 };
            }
            2 => {
                parts.keep(count, Bytes::copy_from_slice(body));
                known += if fits { count } else { 0 };
            }
            _ => {
                parts.fail(TaskError::TimedOut);
                known = calls.min(known + 1);
            }
        }
        assert_eq!(parts.is_whole(), known == calls);
    }
    assert_eq!(parts.take_progress(), known as usize);
    // As `map` puts them together.
    let mut results = Vec::<Result<R, Box<TaskError>>>::new();
    for part in parts.take() {
        match part {
            Part::Results { count, bytes, fds, .. } => chunk::unpack(count as usize, &bytes, fds, &mut results),
            Part::Failed(error) => results.push(Err(Box::new(error))),
            Part::Instead(error) => {
                let last = results.last_mut().expect("it is in place of a call that was made");
                *last = Err(Box::new(error));
            }
        }
    }
    assert_eq!(results.len(), known as usize);
    drop(results);
    lent.assert_closed();
}

#[cfg(test)]
mod tests {
    use crate::wire::fuzz::replay;

    #[test]
    fn the_corpus_of_ring_answers() {
        replay("ring_answers", super::ring_answers);
    }

    #[test]
    fn the_corpus_of_chunk_answers() {
        replay("chunk_answers", super::chunk_answers);
    }
}
