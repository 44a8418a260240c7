//! A build's output, live, with each line's stream in front: `cargo run --example build_log [program args…]`.

use std::process::Stdio;

use futures::StreamExt as _;
use multiproc::{Command, Source};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1);
    let build = match args.next() {
        Some(program) => Command::new(program).args(args),
        None => Command::shell("echo compiling; echo 'warning: unused' >&2; echo linking; exit 3"),
    };
    let mut child = build.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;

    let mut lines = child.tagged_lines();
    while let Some(line) = lines.next().await {
        match line? {
            (Source::Stdout, text) => println!("  out | {text}"),
            (Source::Stderr, text) => println!("! err | {text}"),
        }
    }
    drop(lines);

    println!("{}", child.wait().await?);
    if let Some(usage) = child.usage() {
        println!("{:?} of processor time, {} KiB", usage.user_time + usage.system_time, usage.max_rss >> 10);
    }
    Ok(())
}
