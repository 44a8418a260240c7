use super::*;
use crate::pool::ProcessPool;

#[test]
fn a_pool_is_crowded_with_more_than_four_busy_workers_for_each_processor() {
    let shared = Shared::new(Settings::new(1));
    let mut state = shared.state();
    let most = 4 * allowed().unwrap();
    for index in 0..=most {
        assert!(!state.is_crowded());
        state.seats.push(Seat::new(index, None));
    }
    assert!(state.is_crowded());
    let idle = Arc::clone(&state.seats[0]);
    state.idle.push(idle);
    assert!(!state.is_crowded());
}

/// Each task was once looked at as if it came from a new one, which took two sockets, under the lock.
#[test]
fn runtimes_that_take_turns_are_looked_at_once_each() {
    let pool = ProcessPool::new(1);
    let shared = pool.shared();
    let runtimes = [(); 3].map(|()| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
    for _ in 0..5 {
        for runtime in &runtimes {
            let _entered = runtime.enter();
            shared.admit(&mut shared.state()).unwrap();
        }
    }
    let state = shared.state();
    assert_eq!(state.known.len(), runtimes.len());
    assert!(runtimes.iter().all(|runtime| state.known.contains(&runtime.handle().id())));
}
