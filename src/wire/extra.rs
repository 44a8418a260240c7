//! A list that is most often empty: it takes one word, where a `Vec` takes three.
//!
//! Frames have two of them, and a task's frame is moved from hand to hand some ten times.

use std::io;
use std::ops::Deref;
use std::os::fd::OwnedFd;

use super::passenger::Passenger;
use crate::sys::socket;

#[derive(Clone, Debug)]
#[expect(clippy::box_collection, reason = "an allocation more for the few that have something in it")]
pub(crate) struct Extra<T>(Option<Box<Vec<T>>>);

impl<T> Extra<T> {
    /// Takes what is in it out.
    pub(crate) fn into_vec(self) -> Vec<T> {
        self.0.map_or(Vec::new(), |list| *list)
    }

    pub(crate) fn push(&mut self, item: T) {
        self.0.get_or_insert_default().push(item);
    }
}

impl Extra<OwnedFd> {
    /// Duplicates of them all for a message, or none.
    pub(crate) fn duplicate(&self) -> io::Result<Extra<Passenger>> {
        if self.is_empty() {
            return Ok(Extra::default());
        }
        self.iter().map(|fd| Ok(socket::duplicate(fd)?.into())).collect()
    }
}

impl<T> Default for Extra<T> {
    #[inline]
    fn default() -> Self {
        Self(None)
    }
}

impl<T> From<Vec<T>> for Extra<T> {
    #[inline]
    fn from(list: Vec<T>) -> Self {
        Self(if list.is_empty() { None } else { Some(Box::new(list)) })
    }
}

impl<T> FromIterator<T> for Extra<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        Vec::from_iter(items).into()
    }
}

impl<T> Deref for Extra<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_one_word_and_something_a_list() {
        assert_eq!(size_of::<Extra<u64>>(), size_of::<usize>());
        let mut extra = Extra::from(Vec::new());
        assert!(extra.is_empty());
        extra.push(1);
        extra.push(2);
        assert_eq!(*extra, [1, 2]);
        assert_eq!(extra.clone().into_vec(), [1, 2]);
        assert_eq!(Extra::<u8>::default().into_vec(), []);
    }
}
