//! Runs a function in a child process and waits for its end.

use multiproc::{spawn_process, task};

fn run_child(name: String) {
    println!("Run child process {name} ({})...", std::process::id());
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    multiproc::init();
    println!("Parent process {}.", std::process::id());
    println!("Child process will start.");
    let child = spawn_process(task!(run_child("test".to_string()))).await?;
    child.join().await?;
    println!("Child process end.");
    Ok(())
}
