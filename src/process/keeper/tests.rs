use std::io::{Read as _, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

fn sh(script: &str) -> Box<dyn Launch> {
    Box::new(command(script))
}

fn command(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

fn is_gone(pid: u32) -> bool {
    !std::path::Path::new(&format!("/proc/{pid}")).exists()
}

fn to_file(fd: OwnedFd) -> std::fs::File {
    std::fs::File::from(fd)
}

/// Waits on a plain thread: neither I/O nor time of a runtime is needed.
fn wait(kept: &Kept) -> crate::process::kept::Exit {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(kept.exited())
}

/// Reads to the end, which comes when nobody has the other end any more.
fn rest(pipe: &Arc<OwnedFd>) -> String {
    let mut text = String::new();
    to_file(pipe.try_clone().unwrap()).read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
async fn a_child_is_reaped_by_the_time_its_end_is_known() {
    for _ in 0..20 {
        // A child of another test may hold its pipe for a moment.
        let terms = Terms { drain: Duration::ZERO, ..Terms::default() };
        let started = spawn_async(sh("exit 47"), terms).await.unwrap();
        let kept = started.child.kept();
        let exit = kept.exited().await;
        assert_eq!(exit.status.unwrap().code(), Some(47));
        assert!(exit.usage.max_rss > 0);
        assert!(is_gone(kept.pid()));
        assert_eq!(kept.id(), None);
    }
}

#[test]
fn plain_threads_can_wait_and_no_runtime_is_needed() {
    let started = spawn(sh("read line; exit 3"), Terms::default()).unwrap();
    let kept = started.child.kept().clone();
    assert_eq!(kept.id(), Some(kept.pid()));
    assert!(kept.try_exit().is_none());
    let waiters = [(); 3].map(|()| {
        let kept = kept.clone();
        thread::spawn(move || wait(&kept).status.unwrap().code())
    });
    drop(started.stdin);
    for waiter in waiters {
        assert_eq!(waiter.join().unwrap(), Some(3));
    }
}

#[tokio::test]
async fn signals_after_the_end_are_fine_and_bad_numbers_are_not() {
    let started = spawn_async(sh("exit 0"), Terms::default()).await.unwrap();
    let kept = started.child.kept();
    kept.exited().await;
    kept.signal(libc::SIGTERM).unwrap();
    kept.signal_group(libc::SIGKILL).unwrap();
    assert!(!kept.kill_sent());
    assert_eq!(kept.signal(1000).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    assert_eq!(kept.signal_group(-1).unwrap_err().raw_os_error(), Some(libc::EINVAL));
}

#[tokio::test]
async fn dropping_kills_the_whole_group() {
    let started = spawn_async(sh("sleep 1000 & echo up; exec sleep 1000"), Terms::default()).await.unwrap();
    let kept = started.child.kept().clone();
    let stdout = started.stdout.unwrap();
    assert_eq!(rustix::io::read(&stdout, &mut [0; 16]).unwrap(), 3);
    drop(started.child);
    assert_eq!(kept.exited().await.status.unwrap().signal(), Some(libc::SIGKILL));
    assert!(kept.kill_sent());
    assert_eq!(rest(&stdout), "");
}

#[tokio::test]
async fn a_disarmed_child_with_a_spared_group_lives_on() {
    let terms = Terms { spare_group: true, ..Terms::default() };
    let started = spawn_async(sh("exec 3<&0; (read line <&3; echo $line) & exit 0"), terms).await.unwrap();
    let kept = started.child.disarm();
    kept.exited().await;
    to_file(started.stdin.unwrap()).write_all(b"still here\n").unwrap();
    assert_eq!(rest(&started.stdout.unwrap()), "still here\n");
}

#[tokio::test]
async fn dropping_a_start_half_way_leaves_no_child() {
    // The read end ends when every copy of the write end is gone: the command's, and the child's if there ever was one.
    let (mut read, write) = std::io::pipe().unwrap();
    for polls in 0..20 {
        let mut command = command("exec sleep 1000");
        command.stdout(write.try_clone().unwrap());
        let start = spawn_async(Box::new(command), Terms::default());
        let mut start = std::pin::pin!(start);
        for _ in 0..polls {
            let done = std::future::poll_fn(|cx| std::task::Poll::Ready(start.as_mut().poll(cx).is_ready())).await;
            if done {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    drop(write);
    let nothing = tokio::task::spawn_blocking(move || read.read_to_end(&mut Vec::new()).unwrap()).await.unwrap();
    assert_eq!(nothing, 0);
}

#[tokio::test]
async fn what_a_child_leaves_behind_may_finish_writing_within_the_drain_grace() {
    let terms = || Terms { drain: Duration::from_secs(1000), ..Terms::default() };
    let script = "exec 3<&0; (read line <&3; echo $line) & exit 5";
    let started = spawn_async(sh(script), terms()).await.unwrap();
    let kept = started.child.kept().clone();
    // Its end is known while it lingers.
    assert_eq!(kept.exited().await.status.unwrap().code(), Some(5));
    assert!(!is_gone(kept.pid()));
    to_file(started.stdin.unwrap()).write_all(b"late\n").unwrap();
    let stdout = started.stdout.unwrap();
    assert_eq!(rest(&stdout), "late\n");
    // The pipe's end ends the grace, if the pipe is still there to say so.
    while !is_gone(kept.pid()) {
        tokio::task::yield_now().await;
    }
    drop(stdout);

    // Who has read enough cuts it short.
    let started = spawn_async(sh(script), terms()).await.unwrap();
    let kept = started.child.kept();
    kept.exited().await;
    kept.reaped().await;
    assert!(is_gone(kept.pid()));
    assert_eq!(rest(&started.stdout.unwrap()), "");

    // And so does the end of the grace.
    let terms = Terms { drain: Duration::from_millis(20), ..Terms::default() };
    let started = spawn_async(sh(script), terms).await.unwrap();
    started.child.kept().exited().await;
    assert_eq!(rest(&started.stdout.unwrap()), "");
}

#[tokio::test]
async fn a_program_that_is_not_there_is_an_error_and_leaves_nothing() {
    for _ in 0..10 {
        let error = spawn_async(Box::new(Command::new("/no/such/program")), Terms::default()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}

#[test]
fn somebody_else_who_reaps_hangs_nothing() {
    for _ in 0..20 {
        let started = spawn(sh("read line; exit 3"), Terms::default()).unwrap();
        let kept = started.child.kept().clone();
        let thief = thread::spawn({
            let pid = rustix::process::Pid::from_raw(kept.pid().try_into().unwrap());
            move || rustix::process::waitpid(pid, rustix::process::WaitOptions::empty())
        });
        drop(started.stdin);
        let stolen = thief.join().unwrap();
        let exit = wait(&kept);
        // One of both has it; both may, as the keeper looks before it reaps.
        assert!(stolen.is_ok() || exit.status.is_some());
        assert!(exit.status.is_none_or(|status| status.code() == Some(3)));
    }
}

#[test]
fn who_asks_after_the_end_learns_of_it() {
    // The keeper has not heard of it by then.
    let started = spawn(sh("exit 3"), Terms { drain: Duration::ZERO, ..Terms::default() }).unwrap();
    let kept = started.child.kept();
    if let Some(pidfd) = kept.pidfd() {
        rustix::event::poll(&mut [rustix::event::PollFd::new(&*pidfd, rustix::event::PollFlags::IN)], None).unwrap();
    }
    assert_eq!(kept.try_exit().unwrap().status.unwrap().code(), Some(3));
    assert!(is_gone(kept.pid()));
}

#[tokio::test]
async fn an_end_that_a_watcher_sees_has_its_drain_grace_too() {
    let terms = Terms { drain: Duration::from_secs(1000), ..Terms::default() };
    let script = "exec 3<&0; (read line <&3; echo $line) & exit 5";
    let started = spawn_async(sh(script), terms).await.unwrap();
    let kept = started.child.kept();
    assert_eq!(kept.exited_watched().await.status.unwrap().code(), Some(5));
    to_file(started.stdin.unwrap()).write_all(b"late\n").unwrap();
    assert_eq!(rest(started.stdout.as_ref().unwrap()), "late\n");
    while !is_gone(kept.pid()) {
        tokio::task::yield_now().await;
    }
}

/// A program was said to have run into its timeout that had ended before, and left something with its pipes.
#[test]
fn who_asks_for_an_end_need_not_wait_until_it_is_told() {
    let terms = Terms { drain: Duration::from_secs(1000), ..Terms::default() };
    let started = spawn(sh("exec 3<&0; (read line <&3) & exit 5"), terms).unwrap();
    let kept = started.child.kept();
    let pidfd = open_pidfd(kept.pid()).unwrap();
    rustix::event::poll(&mut [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)], None).unwrap();
    assert!(kept.learn_end());
    assert_eq!(kept.try_exit().unwrap().status.unwrap().code(), Some(5));
}

#[test]
fn a_call_is_made_when_it_is_due_and_again_until_it_says_so() {
    // There is a keeper from the first start on.
    drop(spawn(sh("exit 0"), Terms::default()).unwrap());
    let (called, calls) = std::sync::mpsc::channel();
    let begin = Instant::now();
    let count = AtomicU32::new(0);
    let call = move || {
        called.send(begin.elapsed()).unwrap();
        count.fetch_add(1, Ordering::Relaxed) < 2
    };
    assert!(call_in(Duration::from_millis(20), Arc::new(call)));
    // What is later must not hold up what is sooner, nor the other way round.
    assert!(call_in(Duration::from_hours(1), Arc::new(|| false)));
    let times: Vec<_> = calls.iter().collect();
    assert_eq!(times.len(), 3, "and then it is gone, with what it held");
    for (time, least) in times.iter().zip([20, 40, 60]) {
        assert!(*time >= Duration::from_millis(least), "{times:?}");
    }
}

/// A keeper whose turns the test takes, and whose children are nobody else's.
fn by_hand() -> Keeper {
    let keeper = Keeper::new().unwrap();
    keeper.desk().last_key = 1 << 32;
    keeper
}

#[test]
fn a_waker_that_panics_costs_no_other_child_its_end() {
    struct Panics;
    impl std::task::Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("a waker that panics");
        }
    }
    let keeper = by_hand();
    let children = [(); 3].map(|()| {
        let terms = Terms { drain: Duration::ZERO, ..Terms::default() };
        let started = keeper.start(Request { command: sh("exit 3"), terms });
        started.map_err(|refused| refused.error).unwrap().child
    });
    let waker = std::task::Waker::from(Arc::new(Panics));
    let waiting = children.each_ref().map(|child| {
        let mut waiting = Box::pin(child.kept().exited());
        assert!(waiting.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending());
        waiting
    });
    keeper.listen_to_young(&mut keeper.desk());
    for pidfd in children.iter().filter_map(|child| child.kept().pidfd()) {
        rustix::event::poll(&mut [rustix::event::PollFd::new(&*pidfd, rustix::event::PollFlags::IN)], None).unwrap();
    }
    let turn = catch_unwind(AssertUnwindSafe(|| keeper.turn(&mut Agenda::default())));
    assert!(children.iter().all(|child| is_gone(child.kept().pid())), "all were heard of in that turn");
    assert!(turn.is_ok() && keeper.desk().kept.is_empty());
    drop(waiting);
}

#[test]
fn a_deadline_however_far_off_is_a_short_wait() {
    // Past 24 days the wait is one that kernels before 5.11 and some sandboxes refuse.
    let keeper = by_hand();
    keeper.desk().to_kill.push((1, Instant::now() + Duration::from_hours(24 * 365)));
    let wait = keeper.timeout(&Agenda::default()).unwrap();
    assert!(wait.tv_sec <= 60 * 60, "{wait:?}");
}

#[test]
fn a_call_past_the_end_of_time_is_never_made_and_no_panic() {
    let started = spawn(sh("exit 0"), Terms::default()).unwrap();
    assert!(call_in(Duration::MAX, Arc::new(|| unreachable!("time has no end"))));
    assert!(wait(started.child.kept()).status.unwrap().success());
}
