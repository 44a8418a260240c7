//! System calls, and the only place with `unsafe`: most are a wrapper with its man page, and each block says what makes it sound.
//! No policy, no protocol, and nothing async but what registers an fd with a runtime.

#![expect(unsafe_code, reason = "this is the one folder where it is allowed; each block says why it is sound")]

pub(crate) mod affinity;
pub(crate) mod buffer;
pub(crate) mod clock;
pub(crate) mod exit;
#[cfg(test)]
pub(crate) mod first;
pub(crate) mod group;
pub(crate) mod home;
pub(crate) mod identity;
pub(crate) mod image;
pub(crate) mod in_child;
pub(crate) mod ledger;
pub(crate) mod limits;
pub(crate) mod memory;
pub(crate) mod original;
pub(crate) mod proc;
pub(crate) mod process;
mod raw;
pub(crate) mod reactor;
pub(crate) mod rendezvous;
pub(crate) mod socket;
pub(crate) mod spawn;
pub(crate) mod stack;
pub(crate) mod stdio;
#[cfg(test)]
mod storm;
pub(crate) mod watch;
pub(crate) mod worker;
