//! Tasks print and read as they like; what they print goes where the pool says.

mod pool_support;

use std::fs::File;
use std::io::{Read as _, Write as _};

use multiproc::{ProcessPool, call, task};
use pool_support::{folder, kill, pid, within};

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
