use super::*;
use crate::SpawnError;

/// It was a text, and so another error, also where there was but one input.
#[test]
fn what_a_chunk_can_not_be_sent_for_is_the_same_error_for_each_input() {
    let error = || TaskError::Spawn(SpawnError::ForeignCode { task: "elsewhere" });
    for count in 1..=3 {
        let mut ready = Ready::<()>::Failed(error(), count);
        for left in (0..count).rev() {
            let given = ready.next().unwrap().unwrap_err();
            assert!(matches!(given, TaskError::Spawn(SpawnError::ForeignCode { task: "elsewhere" })), "{given:?}");
            assert_eq!(ready.len(), left);
        }
        assert!(ready.next().is_none());
    }
}

#[test]
fn what_cannot_be_told_twice_is_told_to_the_last() {
    let source = std::io::Error::other("cause");
    let mut ready = Ready::<()>::Failed(TaskError::Encode(source.into()), 2);
    let is_whole = |error| matches!(error, TaskError::Encode(source) if source.is::<std::io::Error>());
    assert_eq!([(); 2].map(|()| is_whole(ready.next().unwrap().unwrap_err())), [false, true]);
}
