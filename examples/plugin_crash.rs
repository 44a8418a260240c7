//! Four plug-ins, of which one crashes, one never ends, one panics, and one does its work. The program goes on.
#![expect(unsafe_code, reason = "one of the plug-ins reads memory that isn't there")]

use std::time::Duration;

use multiproc::{ProcessPool, TaskError, task};

fn count_words(text: String) -> usize {
    text.split_whitespace().count()
}

fn crash(_: String) -> usize {
    let nothing = std::ptr::without_provenance::<usize>(8);
    // SAFETY: there is none. No memory is mapped there, and the kernel ends the process with SIGSEGV.
    unsafe { nothing.read_volatile() }
}

fn spin(_: String) -> usize {
    loop {
        std::hint::spin_loop();
    }
}

fn fail(text: String) -> usize {
    panic!("can't count the words of {text:?}")
}

#[tokio::main]
async fn main() {
    multiproc::init();
    let pool = ProcessPool::new(2);
    let text = || "five words in one text".to_string();

    let (crashed, endless, failed, counted) = tokio::join!(
        pool.submit(task!(crash(text()))),
        pool.submit(task!(spin(text()))).timeout(Duration::from_millis(500)),
        pool.submit(task!(fail(text()))),
        pool.submit(task!(count_words(text()))),
    );
    for (plugin, outcome) in [("crash", crashed), ("spin", endless), ("fail", failed), ("count_words", counted)] {
        match outcome {
            Ok(words) => println!("{plugin:12} gave {words}"),
            // A panic is an answer, and its process lives on. The other two have cost theirs.
            Err(TaskError::Panicked(panic)) => println!("{plugin:12} panicked: {panic}"),
            Err(TaskError::Died { status: Some(status), .. }) => println!("{plugin:12} died: {status}"),
            Err(error) => println!("{plugin:12} failed: {error}"),
        }
    }

    let counts = pool.status().counts;
    println!("so far       {} done, {} died, {} timed out", counts.done, counts.died, counts.timed_out);
    match pool.submit(task!(count_words("the pool goes on".to_string()))).await {
        Ok(words) => println!("count_words  gave {words} more"),
        Err(error) => println!("count_words  failed: {error}"),
    }
    pool.close().await;
}
