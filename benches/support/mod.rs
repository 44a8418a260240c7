//! Taking turns, medians, and lines that both people and `benches/measure` can read.

#![allow(dead_code, reason = "not every program that measures needs all of it")]

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// One line: what was done, by whom, how much, of what. Two blanks part them, so none of them has two inside.
pub(crate) fn line(row: &str, who: &str, value: f64, unit: &str) {
    println!("{row:<44}  {who:<34}  {value:>14.3}  {unit}");
}

/// What one of many took.
#[derive(Clone, Copy, Default)]
pub(crate) struct Each {
    pub(crate) time: Duration,
    /// How often a core of this machine went to sleep meanwhile. In a virtual machine that is what waking it costs, above all.
    pub(crate) halts: f64,
}

impl From<Each> for Duration {
    fn from(each: Each) -> Self {
        each.time
    }
}

/// Where only the time is known.
impl From<Duration> for Each {
    fn from(time: Duration) -> Self {
        Self { time, halts: f64::NAN }
    }
}
/// What it took, each of `count`.
pub(crate) async fn each(count: u32, work: impl Future<Output = ()>) -> Each {
    let before = halts();
    let begun = Instant::now();
    work.await;
    let time = begun.elapsed() / count;
    Each { time, halts: (halts() - before) / f64::from(count) }
}

/// How often the cores have gone to sleep; 0 where the kernel does not say.
fn halts() -> f64 {
    let below = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    below(Path::new("/sys/devices/system/cpu"))
        .flat_map(|core| below(&core.join("cpuidle")))
        .filter_map(|state| std::fs::read_to_string(state.join("usage")).ok()?.trim().parse::<f64>().ok())
        .sum()
}

pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
/// The median of the times, and the mean of the others.
pub(crate) fn summary(rounds: &[Each]) -> Each {
    Each {
        time: median(rounds.iter().map(|each| each.time).collect()),
        halts: mean(rounds.iter().map(|each| each.halts)),
    }
}

pub(crate) fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0_u32), |(sum, count), value| (sum + value, count + 1));
    sum / f64::from(count)
}
/// In which order they take turns, another one each time: what one leaves behind, such as a core that is awake, meets each of the
/// others.
pub(crate) fn order(count: usize) -> impl Iterator<Item = usize> {
    static ROUND: AtomicUsize = AtomicUsize::new(0);
    let round = ROUND.fetch_add(1, Ordering::Relaxed);
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_cached_key(|&who| {
        let mut hasher = DefaultHasher::new();
        (round, who).hash(&mut hasher);
        hasher.finish()
    });
    order.into_iter()
}

/// Lets the contestants take turns, and sums up what each took: a slower second of the machine hits all of them.
#[macro_export]
macro_rules! in_turns {
    ($rounds:expr; $($contestant:expr),+ $(,)?) => {{
        let count = [$(stringify!($contestant)),+].len();
        let mut taken = vec![Vec::<$crate::support::Each>::new(); count];
        for _ in 0..$rounds {
            for who in $crate::support::order(count) {
                let mut at = 0..;
                $(
                    if at.next() == Some(who) {
                        let each = $contestant.await.into();
                        taken[who].push(each);
                    }
                )+
            }
        }
        taken.iter().map(|rounds| $crate::support::summary(rounds)).collect::<Vec<_>>()
    }};
}

pub(crate) fn micros(time: impl Into<Duration>) -> f64 {
    time.into().as_secs_f64() * 1e6
}
/// A field of a file of `/proc`, as a number.
pub(crate) fn proc_field(path: &str, name: &str) -> f64 {
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
/// How long all threads of a process have run; `schedstat` of each of them.
pub(crate) fn cpu_time(pid: &str) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let nanos = tasks.flatten().filter_map(|task| {
        let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        stat.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}
