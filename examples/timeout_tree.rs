//! A timeout takes the whole tree along and returns what was printed until then: `cargo run --example timeout_tree`.

use std::time::Duration;

use multiproc::{Command, CommandError};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // Not for longer: a program that is not this one does not notice when its host is killed.
    let tree = "sleep 1.5 & echo $!; (sleep 1.5 & echo $!; exec sleep 1.5) & echo $!; exec sleep 1.5";
    match Command::shell(tree).timeout(Duration::from_millis(500)).output().await {
        Err(error @ CommandError::TimedOut { .. }) => {
            println!("{error}");
            let output = error.output().expect("a timeout has the output until then");
            for pid in String::from_utf8_lossy(&output.stdout).lines() {
                println!("{pid} is {}", if lives(pid) { "still there" } else { "gone" });
            }
        }
        other => println!("unexpected: {other:?}"),
    }
}

/// Init reaps what lost its parent, in its own time: a zombie is gone.
fn lives(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
