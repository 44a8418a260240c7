//! Typed channels over Unix sockets, and the framed transport below them that everything here uses.

pub(crate) mod inbox;
pub(crate) mod outbox;
pub(crate) mod socket;
