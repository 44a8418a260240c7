//! Hosts that get the children of those who have ended: a child subreaper, and the first process of a pid namespace, as in a
//! container. What is killed there with its group is reaped, and nobody else is.

mod support;

use std::os::unix::process::CommandExt as _;
use std::process::Command as Std;
use std::time::Duration;

use multiproc::{Command, ProcessPool, TaskError, spawn_process, task};
use rustix::process::{getpid, set_child_subreaper};
use support::kernel::has_group_signals;
use support::proc::{children, open_fds, processes_with};
use support::{Other, alone, alone_command, block_on, eventually, is_alone, running};

multiproc::test_support!();

/// By when what was killed is reaped.
const SOON: Duration = Duration::from_secs(10);

/// Far off: nothing here waits for it.
const LATER: Duration = Duration::from_mins(10);

/// Leaves some at each depth, who lose their parents one after the other.
const TREE: &str = "sh -c 'sh -c \"sleep 1000 & sleep 1000\" & sleep 1000 & sleep 1000' & sleep 1000 & echo up";

#[expect(clippy::zombie_processes, reason = "left behind on purpose")]
fn leave_some() {
    for _ in 0..2 {
        Std::new("sh").args(["-c", TREE]).spawn().unwrap();
    }
}

fn leave_some_and_exit() {
    leave_some();
    std::process::exit(3);
}

fn leave_some_and_stay() {
    leave_some();
    println!("up");
    loop {
        std::thread::park();
    }
}

/// Ends programs and workers in every way, with others in their groups.
async fn leaves_some_behind() {
    assert_eq!(&*Command::shell(TREE).output().await.unwrap().stdout, b"up\n");
    let up = async || {
        let mut child = Command::shell(format!("{TREE}; wait")).stdout(std::process::Stdio::piped()).spawn().unwrap();
        assert_eq!(futures::StreamExt::next(&mut child.lines()).await.unwrap().unwrap(), "up");
        child
    };
    drop(up().await);
    up().await.kill().unwrap();
    up().await.stop(Duration::ZERO).await.unwrap();
    up().await.stop(LATER).await.unwrap();
    let spared = Command::shell(format!("{TREE}; wait")).kill_on_drop(false).timeout(Duration::from_millis(50));
    spared.output().await.unwrap_err();
    Command::shell(format!("{TREE}; wait")).timeout(Duration::from_millis(50)).output().await.unwrap_err();

    let pool = ProcessPool::new(2);
    let dead = pool.submit(task!(leave_some_and_exit())).await;
    assert!(matches!(dead, Err(TaskError::Died { .. })), "{dead:?}");
    pool.submit(task!(leave_some())).await.unwrap();
    let late = pool.submit(task!(leave_some_and_stay())).timeout(Duration::from_millis(50)).await;
    assert!(matches!(late, Err(TaskError::TimedOut)), "{late:?}");
    pool.close().await;
    drop(running(multiproc::Process::builder(), task!(leave_some_and_stay())).await);
    spawn_process(task!(leave_some())).await.unwrap().join().await.unwrap();
}

fn is_left_with_no_child() {
    if !has_group_signals() {
        return;
    }
    let mut open = Vec::new();
    for _ in 0..2 {
        block_on(leaves_some_behind());
        assert!(eventually(SOON, || children().is_empty()), "{:?}", states());
        open.push(open_fds());
    }
    assert!(eventually(SOON, || open_fds() <= open[0]), "{open:?} {}", open_fds());
}

/// The children of this process, and what they are.
fn states() -> Vec<String> {
    children().into_iter().filter_map(Other::find).map(|child| format!("{} {}", child.pid, child.state())).collect()
}

/// A host was left with a zombie for each process that was killed with its group, for as long as it lived.
#[test]
fn a_child_subreaper_is_left_with_no_child() {
    alone("a_child_subreaper_is_left_with_no_child", || {
        set_child_subreaper(Some(getpid())).unwrap();
        is_left_with_no_child();
    });
}

#[test]
fn nor_is_the_first_process_of_a_pid_namespace() {
    const TEST: &str = "nor_is_the_first_process_of_a_pid_namespace";
    if is_alone() {
        assert_eq!(std::process::id(), 1);
        return is_left_with_no_child();
    }
    let unshare = || {
        let mut unshare = Std::new("unshare");
        unshare.args(["--pid", "--fork", "--mount-proc"]);
        unshare
    };
    let can = unshare().arg("true").output();
    if !can.as_ref().is_ok_and(|output| output.status.success()) {
        return eprintln!("skipped: no pid namespace can be made here: {can:?}");
    }
    let alone = alone_command(TEST);
    let mark = alone.get_envs().filter_map(|(name, value)| Some((name, value?)));
    let output = unshare().arg(alone.get_program()).args(alone.get_args()).envs(mark).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_child_subreaper_keeps_the_children_that_are_not_ours() {
    alone("a_child_subreaper_keeps_the_children_that_are_not_ours", || {
        if !has_group_signals() {
            return;
        }
        set_child_subreaper(Some(getpid())).unwrap();
        let mut own = Std::new("sh").args(["-c", "exit 5"]).spawn().unwrap();
        // With one that comes to this process, too.
        let long = format!("1000.{}", std::process::id());
        let script = format!("sleep {long} & exit 7");
        let mut leader = Std::new("sh").args(["-c", &script]).process_group(0).spawn().unwrap();
        let ended = |pid| Other::new(pid).ends_within(SOON);
        [own.id(), leader.id()].into_iter().for_each(ended);
        let sleeps = || processes_with(&format!("sleep\0{long}"));
        assert!(eventually(SOON, || !sleeps().is_empty()));
        let orphan = sleeps()[0];
        Other::new(orphan).signal(rustix::process::Signal::KILL);
        ended(orphan);

        // Left by a program with `kill_on_drop(false)` that was killed alone.
        let spared = format!("2000.{}", std::process::id());
        let script = format!("sleep {spared} & exec sleep 1000");
        let sleeps = || processes_with(&format!("sleep\0{spared}"));
        block_on(async {
            let mut child = Command::shell(script).kill_on_drop(false).spawn().unwrap();
            assert!(eventually(SOON, || !sleeps().is_empty()));
            child.signal(libc::SIGKILL).unwrap();
            child.wait().await.unwrap();
        });
        let spared = sleeps()[0];
        Other::new(spared).signal(rustix::process::Signal::KILL);
        ended(spared);

        let mut theirs = [own.id(), leader.id(), orphan, spared];
        theirs.sort_unstable();
        block_on(leaves_some_behind());
        let are_left = || {
            let mut left = children();
            left.sort_unstable();
            left == theirs
        };
        assert!(eventually(SOON, are_left), "{theirs:?} {:?}", states());
        assert_eq!(own.wait().unwrap().code(), Some(5));
        assert_eq!(leader.wait().unwrap().code(), Some(7));
    });
}
