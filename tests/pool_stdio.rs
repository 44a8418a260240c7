//! Tasks print and read as they like; what they print goes where the pool says.

mod pool_support;

use std::fs::File;
use std::io::{Read as _, Write as _};

use futures::future::join_all;
use multiproc::{ProcessPool, TaskError, call, task};
use pool_support::{folder, is_gone, is_pending, kill, pid, until, within};

multiproc::test_support!();

fn talk(id: u32) -> usize {
    println!("a line of {id}");
    print!("no newline of {id};");
    eprintln!("an error of {id}");
    let mut read = String::new();
    std::io::stdin().read_to_string(&mut read).unwrap() + std::io::stdin().read_line(&mut read).unwrap()
}

#[tokio::test]
async fn tasks_print_and_read_freely() {
    let folder = folder();
    let (out, err) = (folder.path().join("out"), folder.path().join("err"));
    let pool = ProcessPool::builder()
        .workers(1)
        .stdout(File::create(&out).unwrap())
        .stderr(File::create(&err).unwrap())
        .build()
        .unwrap();
    for id in 0..3 {
        assert_eq!(within(pool.submit(task!(talk(id)))).await.unwrap(), 0, "stdin is empty");
    }
    // What was printed is out when its task has ended, even if the worker is then killed.
    let last = within(pool.submit(call(|id| (print!("last of {id}"), pid()).1, 3_u32))).await.unwrap();
    kill(last, libc::SIGKILL);
    let printed = std::fs::read_to_string(&out).unwrap();
    let expected = [0, 1, 2].map(|id| format!("a line of {id}\nno newline of {id};")).concat();
    assert_eq!(printed, format!("{expected}last of 3"));
    within(pool.close()).await;
    assert_eq!(std::fs::read_to_string(&err).unwrap(), "an error of 0\nan error of 1\nan error of 2\n");
}

#[tokio::test]
async fn replacements_have_the_same_stdio() {
    let folder = folder();
    let out = folder.path().join("out");
    let file = std::fs::OpenOptions::new().append(true).create(true).open(&out).unwrap();
    let pool = ProcessPool::builder().workers(1).max_tasks_per_worker(1).stdout(file).build().unwrap();
    for id in 0..5_u32 {
        within(pool.submit(call(|id: u32| println!("{id}"), id))).await.unwrap();
    }
    within(pool.close()).await;
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "0\n1\n2\n3\n4\n");
}

/// Far more than any pipe or socket holds: printing must not get in the way of the answers.
#[tokio::test]
async fn a_task_may_print_a_great_deal() {
    let pool = ProcessPool::builder().workers(2).stdout(std::process::Stdio::null()).build().unwrap();
    let print = |lines: u32| {
        let mut out = std::io::stdout().lock();
        for line in 0..lines {
            writeln!(out, "{line} {}", "x".repeat(100)).unwrap();
        }
        lines
    };
    for _ in 0..5 {
        assert_eq!(within(pool.submit(call(print, 20_000))).await.unwrap(), 20_000);
    }
    within(pool.close()).await;
}

/// Nobody reads what it prints: the task sees the error that any program sees, and the worker lives on.
#[tokio::test]
async fn a_closed_stdout_is_the_tasks_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    let pool = ProcessPool::builder().workers(1).stdout(writer).build().unwrap();
    let worker = within(pool.submit(task!(pid()))).await.unwrap();
    drop(reader);
    // A process that another test is starting may have the reader, too, until its exec.
    let print = call(
        |()| {
            std::iter::repeat_with(|| writeln!(std::io::stdout(), "to nobody")).take(10_000).any(|result| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                result.is_err()
            })
        },
        (),
    );
    assert!(within(pool.submit(print)).await.unwrap());
    assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), worker);
    within(pool.close()).await;
}

/// What was said, by whom.
type Said = std::sync::Arc<std::sync::Mutex<Vec<(u32, String)>>>;

fn listener(said: &Said) -> impl Fn(u32, &str) + Send + Sync + 'static {
    let said = Said::clone(said);
    move |worker, line| said.lock().unwrap().push((worker, line.to_owned()))
}

fn print_and_die(lines: u32) -> u32 {
    use std::io::Write as _;
    for n in 0..lines {
        println!("out {n}");
        eprintln!("err {n}");
    }
    print!("no end");
    std::io::stdout().flush().unwrap();
    std::io::stderr().write_all(b"\xff\r\n").unwrap();
    if lines == 7 {
        std::process::abort();
    }
    std::process::id()
}

#[tokio::test]
async fn lines_come_with_their_worker_in_order_and_all_of_them() {
    let (out, err) = (Said::default(), Said::default());
    let pool = multiproc::ProcessPool::builder()
        .workers(2)
        .on_stdout_line(listener(&out))
        .on_stderr_line(listener(&err))
        .build()
        .unwrap();
    let tasks = (0..20).map(|n| pool.submit(task!(print_and_die(if n == 3 { 7 } else { 5 }))));
    let results = within(futures::future::join_all(tasks)).await;
    assert_eq!(results.iter().filter(|result| result.is_err()).count(), 1, "{results:?}");
    within(pool.close()).await;
    let (out, err) = (out.lock().unwrap(), err.lock().unwrap());
    // A task that leaves a line open has the next one's first line on it.
    assert_eq!(out.iter().filter(|(_, line)| line.ends_with("out 0")).count(), 20);
    assert_eq!(out.iter().filter(|(_, line)| line == "out 4").count(), 20);
    assert_eq!(out.iter().filter(|(_, line)| line == "out 6").count(), 1, "what was said before a death");
    assert_eq!(err.iter().filter(|(_, line)| line == "\u{fffd}").count(), 20);
    let workers: std::collections::HashSet<u32> = out.iter().map(|(worker, _)| *worker).collect();
    for result in results.into_iter().flatten() {
        assert!(workers.contains(&result));
    }
    for worker in workers {
        let numbers = err.iter().filter(|(by, _)| *by == worker).filter_map(|(_, line)| line.strip_prefix("err "));
        let numbers: Vec<u32> = numbers.map(|number| number.parse().unwrap()).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1 || pair[1] == 0), "{numbers:?}");
    }
}

#[tokio::test]
async fn a_listener_that_panics_and_a_line_without_an_end_hurt_no_task() {
    let said = Said::default();
    let listen = listener(&said);
    let pool = multiproc::ProcessPool::builder()
        .workers(1)
        .on_stdout_line(move |worker, line| {
            listen(worker, line);
            assert!(line.len() < 1000, "a listener's own fault");
        })
        .build()
        .unwrap();
    let long = call(|()| print!("{}", "x".repeat(1 << 20)), ());
    within(pool.submit(long)).await.unwrap();
    within(pool.submit(call(|()| println!("\nafter"), ()))).await.unwrap();
    within(pool.close()).await;
    let said = said.lock().unwrap();
    assert_eq!(said.iter().map(|(_, line)| line.len()).sum::<usize>(), (1 << 20) + 5);
    assert!(said.iter().all(|(_, line)| line.len() <= 64 << 10));
    assert_eq!(said.last().unwrap().1, "after");
}

/// It was once given up a moment after the worker's end, or told lines when the pool was closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_is_closed_when_a_slow_listener_has_heard_all_its_lines() {
    let said = Said::default();
    let listen = listener(&said);
    let pool = multiproc::ProcessPool::builder()
        .workers(1)
        .on_stdout_line(move |worker, line| {
            std::thread::sleep(std::time::Duration::from_micros(100));
            listen(worker, line);
        })
        .build()
        .unwrap();
    within(pool.submit(call(|()| (0..5000).for_each(|line| println!("{line}")), ()))).await.unwrap();
    within(pool.close()).await;
    let said = said.lock().unwrap();
    assert!(said.iter().map(|(_, line)| line.parse::<u32>().unwrap()).eq(0..5000), "{} lines came", said.len());
}

/// Something that left the worker's group and holds its stdout must not hold up the pool.
#[tokio::test]
async fn a_stdout_that_somebody_else_holds_holds_nobody_up() {
    let said = Said::default();
    let pool = multiproc::ProcessPool::builder().workers(1).on_stdout_line(listener(&said)).build().unwrap();
    let start = call(|()| std::process::Command::new("setsid").args(["sleep", "20"]).spawn().unwrap().id(), ());
    let other = within(pool.submit(start)).await.unwrap();
    let begun = std::time::Instant::now();
    within(pool.close()).await;
    assert!(begun.elapsed() < std::time::Duration::from_secs(15));
    pool_support::kill(other, libc::SIGKILL);
}

/// A listener that stands still at its first lines until the sender is dropped, and where it can be seen that it does.
fn halting(
    said: &Said,
) -> (impl Fn(u32, &str) + Send + Sync + 'static, tokio::sync::mpsc::UnboundedReceiver<()>, std::sync::mpsc::Sender<()>)
{
    let (begin, begins) = tokio::sync::mpsc::unbounded_channel();
    let (let_go, goes_on) = std::sync::mpsc::channel();
    let (listen, goes_on) = (listener(said), std::sync::Mutex::new(goes_on));
    let halt = move |worker, line: &str| {
        let _ = begin.send(());
        // Nothing else that is due on this thread is to wait, too.
        let _ = tokio::task::block_in_place(|| goes_on.lock().unwrap().recv());
        listen(worker, line);
    };
    (halt, begins, let_go)
}

fn print_and_give_pid() -> u32 {
    println!("a line");
    pid()
}

/// What it needs to go on may be held by whoever waits for the end of the pool.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_waits_for_no_listener_that_stands_still() {
    for closes in [false, true] {
        let (listen, mut halts, let_go) = halting(&Said::default());
        let pool = ProcessPool::builder().workers(1).on_stdout_line(listen).build().unwrap();
        let worker = within(pool.submit(task!(print_and_give_pid()))).await.unwrap();
        within(halts.recv()).await.unwrap();
        let mut close = std::pin::pin!(pool.close());
        if closes {
            assert!(is_pending(&mut close).await);
            until(|| pool.status().details.is_empty()).await;
            assert!(is_pending(&mut close).await, "not all that was printed was told");
        }
        within(pool.cancel()).await;
        within(close).await;
        assert!(is_gone(worker));
        drop(let_go);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_stands_still_holds_up_no_task_of_the_next_worker() {
    let said = Said::default();
    let (listen, mut halts, let_go) = halting(&said);
    let pool = ProcessPool::builder().workers(1).on_stdout_line(listen).build().unwrap();
    let die = call(
        |()| {
            println!("last words");
            std::process::exit(3);
        },
        (),
    );
    assert!(matches!(within(pool.submit(die)).await, Err::<(), _>(TaskError::Died { .. })));
    within(halts.recv()).await.unwrap();
    within(pool.submit(task!(pid()))).await.unwrap();
    assert!(said.lock().unwrap().is_empty());
    drop(let_go);
    within(pool.close()).await;
    assert!(said.lock().unwrap().iter().map(|(_, line)| &**line).eq(["last words"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_stands_still_keeps_no_place_in_the_pool() {
    let said = Said::default();
    let (listen, mut halts, let_go) = halting(&said);
    let pool = ProcessPool::builder()
        .workers(1)
        .idle_timeout(std::time::Duration::from_millis(1))
        .on_stdout_line(listen)
        .build()
        .unwrap();
    let first = within(pool.submit(task!(print_and_give_pid()))).await.unwrap();
    within(halts.recv()).await.unwrap();
    until(|| is_gone(first) && pool.status().details.is_empty()).await;
    within(pool.submit(task!(pid()))).await.unwrap();
    let mut close = std::pin::pin!(pool.close());
    assert!(is_pending(&mut close).await);
    until(|| pool.status().details.is_empty()).await;
    assert!(is_pending(&mut close).await, "not all that was printed was told");
    drop(let_go);
    within(close).await;
    assert_eq!(*said.lock().unwrap(), [(first, "a line".into())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_workers_that_a_listener_is_behind_with_no_line_is_lost_and_each_can_be_cancelled() {
    for cancels in [false, true] {
        let said = Said::default();
        let (listen, _halts, let_go) = halting(&said);
        let pool = ProcessPool::builder().workers(1).max_tasks_per_worker(1).on_stdout_line(listen).build().unwrap();
        let tasks = tokio::spawn(join_all((0..40).map(|_| pool.submit(task!(print_and_give_pid())))));
        until(|| pool.status().counts.restarts == 9).await;
        if cancels {
            within(pool.cancel()).await;
            assert!(within(tasks).await.unwrap().into_iter().any(|task| matches!(task, Err(TaskError::Cancelled))));
        } else {
            drop(let_go);
            let pids: Vec<_> = within(tasks).await.unwrap().into_iter().map(Result::unwrap).collect();
            within(pool.close()).await;
            let mut heard: Vec<_> = said.lock().unwrap().iter().map(|(worker, _)| *worker).collect();
            heard.sort_unstable_by_key(|worker| pids.iter().position(|pid| pid == worker));
            assert_eq!(heard, pids);
        }
    }
}
