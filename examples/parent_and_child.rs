//! A process and its child: who is who, by process id and by name.

use std::os::unix::process::parent_id;
use std::process::id;

use multiproc::{Process, task};

fn introduce(name: String) {
    println!("I am child process {name} ({}) and my parent is {}.", id(), parent_id());
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    multiproc::init();
    println!("Process ({}) start...", id());
    let name = "Ada";
    // The name is what `ps` and `top` show.
    let child = Process::builder().name(name).spawn(task!(introduce(name.to_string()))).await?;
    // Once somebody knows that it has ended it has no id any more.
    if let Some(child_id) = child.id() {
        println!("I ({}) just created a child process ({child_id}).", id());
    }
    child.join().await?;
    Ok(())
}
