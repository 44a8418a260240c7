//! A typed service in a process of its own: many calls at once, and what becomes of them when it dies.

use std::collections::HashMap;
use std::sync::Mutex;

use multiproc::{CallError, Client, Duplex, duplex, serve, spawn_process, task};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Put(String, u64),
    Get(String),
    Crash,
}

async fn store(end: Duplex<Option<u64>, Request>) {
    let values = Mutex::new(HashMap::new());
    let handle = |request| {
        let values = &values;
        async move {
            let mut values = values.lock().expect("no handler panics");
            match request {
                Request::Put(key, value) => values.insert(key, value),
                Request::Get(key) => values.get(&key).copied(),
                Request::Crash => std::process::abort(),
            }
        }
    };
    serve(end, handle).await.expect("the client speaks our language");
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    multiproc::init();
    let (ours, theirs) = duplex()?;
    let mut service = spawn_process(task!(store(theirs).await)).await?;
    let client = Client::new(ours);
    let puts = (0..5).map(|n| client.call(Request::Put(format!("key {n}"), n * n)));
    futures::future::try_join_all(puts).await?;
    for key in ["key 3", "key 4", "no such key"] {
        println!("{key}: {:?}", client.call(Request::Get(key.to_owned())).await?);
    }
    match client.call(Request::Crash).await {
        Err(error @ CallError::Unanswered) => println!("{error}: {}", service.wait().await?),
        other => println!("{other:?}"),
    }
    println!("afterwards: {}", client.call(Request::Get("key 3".to_owned())).await.unwrap_err());
    Ok(())
}
