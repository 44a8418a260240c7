//! Hostile bodies, each with a bound on what is made of it, and honest ones that must not be refused.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::marker::PhantomData;
use std::num::NonZeroU8;

use bytes::Bytes;
use serde::Serialize;

use super::*;
use crate::wire::budget::FREE;

fn text<T: for<'de> Deserialize<'de>>(body: &[u8]) -> String {
    read::<T>(body).err().expect("refused").to_string()
}

/// The bytes of an announced length and nothing else.
fn announce(count: u64) -> Vec<u8> {
    postcard::to_allocvec(&count).unwrap()
}

thread_local! {
    static MADE: Cell<usize> = const { Cell::new(0) };
}

/// Runs it and gives how many [`Made`] were made in it.
fn made(run: impl FnOnce()) -> usize {
    MADE.set(0);
    run();
    MADE.get()
}

/// Takes no byte on the wire and `N` in memory, and counts.
struct Made<const N: usize>([u8; N]);

impl<'de, const N: usize> Deserialize<'de> for Made<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Take<const N: usize>;
        impl<'de, const N: usize> Visitor<'de> for Take<N> {
            type Value = Made<N>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("nothing")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Made<N>, A::Error> {
                MADE.set(MADE.get() + 1);
                Ok(Made([0; N]))
            }
        }
        // As a struct whose fields are all `#[serde(skip)]` does.
        deserializer.deserialize_struct("Made", &[], Take)
    }
}

#[test]
fn announced_elements_that_take_no_bytes_are_refused_before_one_is_made() {
    for count in [1 << 32, u64::MAX, 17 << 20] {
        assert_eq!(made(|| drop(text::<Vec<Made<0>>>(&announce(count)))), 0, "{count}");
    }
    assert_eq!(made(|| drop(text::<Vec<Made<4096>>>(&announce(4096)))), 0);
    assert_eq!(made(|| drop(text::<HashMap<(), Made<4096>>>(&announce(4096)))), 0);
    // That they would become much memory is not so.
    assert!(text::<Vec<()>>(&announce(1 << 32)).contains("elements that take no memory"));
    assert!(text::<HashMap<(), Made<4096>>>(&announce(4096)).contains("more memory"));
}

#[test]
fn what_a_box_hides_is_paid_for() {
    // 16 MiB: in places of 8 bytes, 2 million boxes.
    for count in [1 << 16, 1 << 20, 1 << 24] {
        assert!(made(|| drop(read::<Vec<Box<Made<256>>>>(&announce(count)))) <= FREE / 256);
        assert!(made(|| drop(read::<Vec<Box<Made<4096>>>>(&announce(count)))) <= FREE / 4096);
        assert!(made(|| drop(read::<BTreeMap<(), Box<Made<256>>>>(&announce(count)))) <= FREE / 256);
    }
}

#[expect(dead_code, clippy::large_enum_variant, reason = "the variant is there for its size")]
#[derive(Debug, Deserialize)]
enum Tree {
    Leaf,
    Two(Box<Tree>, Box<Tree>),
    #[serde(skip)]
    Wide([[u64; 32]; 32]),
}

#[test]
fn a_tree_of_large_nodes_is_paid_for_by_the_node() {
    // Each node takes one byte on the wire and 8 KiB in memory; the body pays for a part of that.
    let tree = [[1, 0].repeat(10), vec![0]].concat();
    let trees = [announce(1000), tree.repeat(1000)].concat();
    assert!(text::<Vec<Tree>>(&trees).contains("more memory"));
    assert!(read::<Vec<Tree>>(&[announce(10), tree.repeat(10)].concat()).is_ok());
}

#[test]
fn large_nodes_end_before_the_stack_of_a_thread_does() {
    for nodes in [1000, 100_000] {
        let refused = text::<Tree>(&[1, 0].repeat(nodes));
        // Where code is optimised well, few levels of a large type may be so many on the stack.
        assert!(refused.contains("1 MiB of stack") || refused.contains("128 levels"), "{refused}");
        let refused = text::<Box<Chain>>(&vec![1; nodes]);
        assert!(refused.contains("1 MiB of stack"), "{refused}");
    }
}

/// 64 KiB a node.
#[derive(Debug, Deserialize)]
struct Chain {
    #[expect(dead_code, reason = "only nested")]
    next: Option<Box<Chain>>,
    #[expect(dead_code, reason = "there for its size")]
    #[serde(skip)]
    wide: Wide,
}

#[derive(Debug)]
struct Wide(#[expect(dead_code, reason = "there for its size")] [u64; 8192]);

impl Default for Wide {
    #[expect(clippy::large_stack_arrays, reason = "that is what it is for")]
    fn default() -> Self {
        Self([0; 8192])
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum List {
    End,
    Cons(Box<List>),
}

#[derive(Debug, Deserialize)]
struct Newtype(#[expect(dead_code, reason = "only nested")] Vec<Newtype>);

#[derive(Debug, Deserialize)]
struct Endless {
    #[expect(dead_code, reason = "only nested")]
    next: Box<Endless>,
}

#[test]
fn a_recursive_type_ends_at_128_levels() {
    let body = |nodes: usize| [vec![1; nodes - 1], vec![0]].concat();
    assert!(read::<List>(&body(MAX_DEPTH)).is_ok());
    assert!(text::<List>(&body(MAX_DEPTH + 1)).contains("128 levels"));
    assert!(text::<List>(&vec![1; 1 << 20]).contains("128 levels"));
    assert!(text::<Newtype>(&vec![1; 1 << 20]).contains("128 levels"));
    assert!(text::<Endless>(&[]).contains("128 levels"));
    assert!(text::<Nested>(&vec![1; 1 << 20]).contains("128 levels"));
}

#[derive(Debug, Deserialize)]
struct Nested(#[expect(dead_code, reason = "only nested")] Option<Box<Nested>>);

#[test]
fn memory_is_not_set_aside_for_elements_that_the_body_cannot_hold() {
    struct Hints(Vec<Option<usize>>);
    impl<'de> Deserialize<'de> for Hints {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_seq(Hints(Vec::new()))
        }
    }
    impl<'de> Visitor<'de> for Hints {
        type Value = Hints;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a list of lists")
        }
        fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Hints, A::Error> {
            self.0.push(seq.size_hint());
            while let Some(mut inner) = seq.next_element::<Hints>()? {
                self.0.append(&mut inner.0);
            }
            Ok(self)
        }
    }
    // Honest: 2 lists of 1 and 0 lists. Lying: lists that each announce all the bytes that follow.
    assert_eq!(read::<Hints>(&[2, 1, 0, 0]).unwrap().0, [Some(2), Some(1), Some(0), Some(0)]);
    assert!(read::<Hints>(&[100, 99, 98, 97]).is_err());
    let mut reader = Reader::new(&[3, 3, 3, 3]);
    let mut outer = Level { reader: &mut reader, depth: 9 }.list().unwrap();
    assert_eq!(SeqAccess::size_hint(&outer), Some(3));
    assert!(outer.next_element::<u8>().unwrap().is_some());
    let inner = outer.level.place().list().unwrap();
    assert_eq!(SeqAccess::size_hint(&inner), None, "one byte is not claimed, and it announces three");
}

#[track_caller]
fn round<T: Serialize + for<'de> Deserialize<'de> + PartialEq + Debug>(value: &T) {
    let body = postcard::to_allocvec(value).unwrap();
    assert_eq!(&read::<T>(&body).unwrap(), value);
    // Cut short or too long, it is an error and not another value.
    if let Some(end) = body.len().checked_sub(1) {
        assert!(read::<T>(&body[..end]).is_err());
    }
    assert_eq!(text::<T>(&[&body[..], &[0]].concat()), "bytes are left after the value");
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Unit,
    One(Option<u8>),
    Pair(i16, String),
    Fields { at: (f32, f64), name: char },
}

#[test]
fn honest_values_come_out_as_they_went_in() {
    round(&vec![(); 1_000_000]);
    round(&(0..100_000u64).map(|n| (n, n.to_string())).collect::<HashMap<_, _>>());
    round(&vec![Vec::<u8>::new(); 100_000]);
    round(&vec![None::<String>; 100_000]);
    round(&vec![
        Shape::Unit,
        Shape::One(None),
        Shape::One(Some(3)),
        Shape::Pair(i16::MIN, "ä".into()),
        Shape::Fields { at: (1.5, -0.0), name: '𝄞' },
    ]);
    round(&(u128::MAX, i128::MIN, i64::MIN, u16::MAX, true, [1u8; 32]));
    round(&(Bytes::from(vec![7; 100_000]), NonZeroU8::MIN, PhantomData::<u8>, Some(Some(String::new()))));
    round(&(0..MAX_DEPTH - 1).fold(List::End, |list, _| List::Cons(Box::new(list))));
    round(&(vec![(); 1_000_000], vec![1u64; 3_000_000], "after a list that claims nothing".to_owned()));
}

#[test]
fn a_list_of_a_hundred_million_bytes_is_within_the_budget() {
    let mut body = announce(100 << 20);
    body.resize(body.len() + (100 << 20), 7);
    assert_eq!(read::<Vec<u8>>(&body).unwrap().len(), 100 << 20);
}

#[test]
fn it_says_what_is_wrong() {
    assert_eq!(text::<NonZeroU8>(&[0]), "invalid value: integer `0`, expected a nonzero u8");
    assert!(text::<Shape>(&[9]).starts_with("invalid value: integer `9`, expected variant index"));
    assert_eq!(text::<String>(&[1, 0xff]), "a string is not UTF-8");
    assert_eq!(text::<u16>(&[0xff, 0xff, 0xff]), "an integer is out of its type's range");
    assert_eq!(text::<Option<u8>>(&[2]), "an option is neither 0 nor 1");
    assert_eq!(text::<(u8, u8)>(&[1]), "it ends in the middle of the value");
}

#[test]
fn types_learn_that_the_format_is_not_human_readable() {
    assert!(read::<std::net::Ipv4Addr>(&[127, 0, 0, 1]).is_ok());
}
