//! Other people's programs: an exit code, then a program that gets all its input at once, then one to talk to.

use std::process::Stdio;

use futures::StreamExt;
use multiproc::Command;
use tokio::io::AsyncWriteExt;

/// Answers each line with its value.
const CALCULATOR: &str = r#"while read -r sum; do echo "$sum = $(( $sum ))"; done"#;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    multiproc::init();

    println!("$ uname -s");
    let status = Command::new("uname").arg("-s").status().await?;
    println!("Exit code: {}", status.code().ok_or("ended by a signal")?);

    println!("$ tr a-z A-Z");
    let output = Command::new("tr").args(["a-z", "A-Z"]).input("set q=mx\npython.org\nexit\n").output().await?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    println!("Exit code: {}", output.status.code().ok_or("ended by a signal")?);

    println!("$ sh -c '{CALCULATOR}'");
    let mut child = Command::shell(CALCULATOR).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().ok_or("stdin is piped")?;
    let mut answers = child.lines();
    for sum in ["6 * 7", "2 + 3 * 4", "1 << 20"] {
        stdin.write_all(format!("{sum}\n").as_bytes()).await?;
        let answer = answers.next().await.ok_or("the program ended early")??;
        println!("{answer}");
    }
    // It reads until the end of its input.
    drop((stdin, answers));
    let status = child.wait().await?;
    println!("Exit code: {}", status.code().ok_or("ended by a signal")?);
    Ok(())
}
