//! The most frequent words of a text, through a pipeline with no shell: `cargo run --example pipeline < text`.

use multiproc::Command;
use std::process::Stdio;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), multiproc::CommandError> {
    let words = Command::new("tr").args(["-cs", "[:alpha:]", "\n"]).stdin(Stdio::inherit());
    let top = words
        .pipe(Command::new("tr").args(["A-Z", "a-z"]))
        .pipe(Command::new("sort"))
        .pipe(Command::new("uniq").arg("-c"))
        .pipe(Command::new("sort").arg("-rn"))
        .pipe(Command::new("head").args(["-n", "5"]));
    println!("{}", top.read().await?);

    // Every member's status is kept, and the first failure is the one that is named.
    let broken = Command::new("echo").arg("x").pipe(Command::new("grep").arg("y")).pipe(Command::new("cat"));
    println!("{}", broken.run().await.unwrap_err());
    Ok(())
}
