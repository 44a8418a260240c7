use std::collections::BTreeMap;
use std::fmt::{self, Debug};

use super::*;
use crate::Task as _;
use crate::wire::reader::read_shared;

fn bytes<T: Serialize>(value: &T) -> BytesMut {
    let mut out = BytesMut::new();
    let len = write(value, &mut out, None, u64::MAX).unwrap();
    assert_eq!(len, out.len() as u64);
    out
}

fn text<T: Serialize>(value: &T) -> String {
    write(value, &mut BytesMut::new(), None, u64::MAX).unwrap_err().to_string()
}

#[derive(Serialize)]
struct Holds<'a> {
    shared: Option<Bytes>,
    list: Vec<Bytes>,
    own: Vec<u8>,
    text: &'a str,
}

#[test]
fn large_fields_are_put_apart_and_the_bytes_are_the_same() {
    for len in [0, APART - 1, APART, LARGE] {
        let bytes = Bytes::from(vec![7; len]);
        let text = "x".repeat(len);
        let list = vec![bytes.clone(), Bytes::from_static(b"small")];
        let value = Holds { shared: Some(bytes.clone()), list, own: vec![9; len], text: &text };
        let (mut out, mut apart) = (BytesMut::new(), Vec::new());
        let total = write(&value, &mut out, Some(&mut apart), u64::MAX).unwrap();
        let shared = apart.iter().filter(|(_, part)| part.as_ptr() == bytes.as_ptr()).count();
        assert_eq!(shared, if len < APART { 0 } else { 2 });
        assert_eq!(apart.len() - shared, if len < LARGE { 0 } else { 2 });
        let mut whole = Vec::new();
        let mut from = 0;
        for (at, part) in &apart {
            whole.extend_from_slice(&out[from..*at]);
            whole.extend_from_slice(part);
            from = *at;
        }
        whole.extend_from_slice(&out[from..]);
        assert_eq!(whole.len() as u64, total);
        assert!(whole == postcard::to_allocvec(&value).unwrap());
        let mut apart = Vec::new();
        let counted = write(&value, &mut BytesMut::new(), Some(&mut apart), 10).unwrap();
        assert!(counted == total && apart.is_empty());
    }
}

/// What the task gives where it is run.
fn run_there<F: Fn(Bytes) -> Bytes + Copy + Send + 'static>(_: &crate::Call<F, Bytes>, body: &Bytes) -> Bytes {
    read_shared::<crate::Call<F, Bytes>>(body).unwrap().run()
}

#[test]
fn a_calls_only_argument_is_put_apart_as_any_other_field() {
    let parts_of = |task: &dyn Fn(&mut BytesMut, &mut Vec<Apart>) -> u64| {
        let (mut out, mut apart) = (BytesMut::new(), Vec::new());
        let total = task(&mut out, &mut apart);
        assert_eq!(total, (out.len() + LARGE) as u64);
        apart
    };
    let bytes = Bytes::from(vec![7; LARGE]);
    let call = crate::call(|bytes: Bytes| bytes, bytes.clone());
    let apart = parts_of(&|out, apart| write(&call, out, Some(apart), u64::MAX).unwrap());
    assert_eq!(apart[0].1.as_ptr(), bytes.as_ptr(), "copied");
    let body = Bytes::from(postcard::to_allocvec(&call).unwrap());
    assert!(body.as_ptr_range().contains(&run_there(&call, &body).as_ptr()), "copied where it is read");
    let call = crate::call(|bytes: Vec<u8>| bytes.len(), vec![7; LARGE]);
    let apart = parts_of(&|out, apart| write(&call, out, Some(apart), u64::MAX).unwrap());
    assert_eq!(apart.len(), 1, "byte by byte");
}

#[derive(Serialize)]
enum Shape {
    Unit,
    One(Option<u8>),
    Pair(i16, String),
    Fields { at: (f32, f64), name: char },
}

#[derive(Serialize)]
struct Empty;

#[test]
fn the_bytes_are_those_of_postcard() {
    #[track_caller]
    fn same<T: Serialize + Debug>(value: T) {
        assert_eq!(bytes(&value)[..], postcard::to_allocvec(&value).unwrap()[..], "{value:?}");
    }
    same((u128::MAX, i128::MIN, u64::MAX, i64::MIN, u32::MAX, i32::MIN, u16::MAX, i16::MIN, u8::MAX, i8::MIN));
    same(([true, false], 1.5f32, -0.0f64, '𝄞', "text", (), vec![1u8; 300]));
    same((bytes::Bytes::from_static(b"bytes"), BTreeMap::from([(1, "one"), (2, "two")]), Some(Some(1))));
    same(std::net::IpAddr::from([127, 0, 0, 1]));
    let shapes = [
        Shape::Unit,
        Shape::One(None),
        Shape::One(Some(3)),
        Shape::Pair(-1, "ä".into()),
        Shape::Fields { at: (1.5, 2.5), name: 'x' },
    ];
    assert_eq!(bytes(&(&shapes, Empty))[..], postcard::to_allocvec(&(&shapes, Empty)).unwrap()[..]);
}

#[test]
fn past_the_limit_nothing_is_stored_and_the_length_is_exact() {
    let mut out = BytesMut::new();
    let value = (vec![7u8; 10], vec![0u64; 1_000_000], "end");
    assert_eq!(write(&value, &mut out, None, 20).unwrap(), 11 + 3 + 1_000_000 + 4);
    assert!(out.len() <= 20 && out.capacity() < 256, "{}", out.capacity());
}

#[derive(Serialize)]
enum List {
    End,
    Cons(Box<List>),
}

#[derive(Serialize)]
struct Skips {
    #[serde(skip_serializing_if = "Option::is_none")]
    maybe: Option<u8>,
}

#[derive(Serialize)]
struct Flat {
    #[serde(flatten)]
    inner: BTreeMap<String, u8>,
}

struct Odd;

impl Serialize for Odd {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(ser::Error::custom("the tyre is flat"))
    }
}

impl fmt::Display for Odd {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Err(fmt::Error)
    }
}

struct Shown;

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Odd)
    }
}

#[test]
fn what_no_reader_could_take_back_is_refused_with_a_reason() {
    let nested = |nodes| (1..nodes).fold(List::End, |list, _| List::Cons(Box::new(list)));
    assert_eq!(bytes(&nested(MAX_DEPTH)).len(), MAX_DEPTH);
    assert!(text(&nested(MAX_DEPTH + 1)).contains("128 levels"));
    assert!(text(&Skips { maybe: None }).contains("`maybe`"));
    assert_eq!(bytes(&Skips { maybe: Some(1) })[..], [1, 1]);
    assert!(text(&Flat { inner: BTreeMap::new() }).contains("flatten"));
    assert_eq!(text(&(1, [Some(Odd)])), "the tyre is flat");
    assert!(text(&Shown).contains("Display failed"));
}
