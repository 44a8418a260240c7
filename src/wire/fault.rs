//! Why a value can't become a body, or a body no value, in words.
//!
//! postcard's own error drops the message of a user's `Serialize` or `Deserialize`, and that message is what tells them
//! what to change. Nothing here decides who gets to see it.

use std::error::Error;
use std::fmt;

/// A reason, ready to be the source of an `Encode` or a `Decode`.
#[derive(Debug)]
pub(crate) struct Fault(Box<str>);

impl Fault {
    #[cold]
    pub(crate) fn new(reason: impl Into<Box<str>>) -> Self {
        Self(reason.into())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Fault {}

impl serde::ser::Error for Fault {
    #[cold]
    fn custom<T: fmt::Display>(reason: T) -> Self {
        Self::new(reason.to_string())
    }
}

impl serde::de::Error for Fault {
    #[cold]
    fn custom<T: fmt::Display>(reason: T) -> Self {
        Self::new(reason.to_string())
    }
}

impl From<postcard::Error> for Fault {
    /// Says what is wrong with the bytes; postcard is asked for single primitives only, so few of its errors can occur.
    #[cold]
    fn from(error: postcard::Error) -> Self {
        match error {
            postcard::Error::DeserializeUnexpectedEnd => Self::new("it ends in the middle of the value"),
            postcard::Error::DeserializeBadVarint => Self::new("an integer is out of its type's range"),
            postcard::Error::DeserializeBadBool => Self::new("a bool is neither 0 nor 1"),
            postcard::Error::DeserializeBadChar => Self::new("a char is not a Unicode scalar value"),
            postcard::Error::DeserializeBadUtf8 => Self::new("a string is not UTF-8"),
            other => Self::new(other.to_string()),
        }
    }
}
