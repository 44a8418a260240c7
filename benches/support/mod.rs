//! Taking turns, medians, and lines that both people and `benches/measure` can read.

use std::time::{Duration, Instant};

/// One line: what was done, by whom, how much, of what. Two blanks part them, so none of them has two inside.
pub(crate) fn line(row: &str, who: &str, value: f64, unit: &str) {
    println!("{row:<44}  {who:<34}  {value:>14.3}  {unit}");
}

#[allow(dead_code, reason = "not every program that measures needs it")]
/// How long it took, each of `count`.
pub(crate) async fn each(count: u32, work: impl Future<Output = ()>) -> Duration {
    let begun = Instant::now();
    work.await;
    begun.elapsed() / count
}

pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Lets the contestants take turns, and gives the median of each: a slower second of the machine hits all of them.
#[macro_export]
macro_rules! in_turns {
    ($rounds:expr; $($contestant:expr),+ $(,)?) => {{
        let mut rounds = Vec::new();
        for _ in 0..$rounds {
            rounds.push([$($contestant.await),+]);
        }
        let count = rounds[0].len();
        (0..count).map(|n| $crate::support::median(rounds.iter().map(|round| round[n]).collect())).collect::<Vec<_>>()
    }};
}

pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[allow(dead_code, reason = "not every program that measures needs it")]
/// A field of a file of `/proc`, as a number.
pub(crate) fn proc_field(path: &str, name: &str) -> f64 {
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[allow(dead_code, reason = "not every program that measures needs it")]
/// How long all threads of a process have run; `schedstat` of each of them.
pub(crate) fn cpu_time(pid: &str) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let nanos = tasks.flatten().filter_map(|task| {
        let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        stat.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}
