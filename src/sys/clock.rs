//! A clock that all processes of the system read alike, for what they tell each other.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since some moment, the same in all processes; clock_gettime(2). In another time namespace it is another one
/// (time_namespaces(7)).
pub(crate) fn monotonic_nanos() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
