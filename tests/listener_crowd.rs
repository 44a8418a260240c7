//! Listeners: more clients at a time than may shake hands, and who of them is dropped.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt as _};
use multiproc::{Listener, blocking_connect, connect};
use tempfile::TempDir;

multiproc::test_support!();

/// One after the other: each of them takes some hundred fds.
static CROWD: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// What a client says first.
const HELLO: [u8; 16] = [0, 0, 0, 0, 1, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A directory of our own with mode 0700.
fn private() -> (TempDir, PathBuf) {
    let dir = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o700)).tempdir().unwrap();
    let path = dir.path().join("socket");
    (dir, path)
}

#[tokio::test]
async fn a_client_that_says_nothing_or_nonsense_stalls_nobody() {
    let _alone = CROWD.lock().await;
    let (_dir, path) = private();
    let listener = Listener::<u8, u8>::bind(&path).unwrap();
    // More than may shake hands at a time.
    let silent: Vec<_> = (0..300).map(|_| UnixStream::connect(&path).unwrap()).collect();
    for mut begun in &silent[200..] {
        begun.write_all(&HELLO[..8]).unwrap();
    }
    for _ in 0..20 {
        let mut noise = UnixStream::connect(&path).unwrap();
        noise.write_all(&[0xff; 1000]).unwrap();
    }
    let begun = Instant::now();
    let (client, accepted) = tokio::join!(connect::<u8, u8>(&path), listener.accept());
    client.unwrap().send(5).await.unwrap();
    assert_eq!(accepted.unwrap().0.recv().await.unwrap(), Some(5));
    assert!(begun.elapsed() < Duration::from_secs(4), "the silent ones have 5 seconds");
    drop(silent);
}

/// More than may shake hands at a time came before the first of them was heard, and that one was dropped.
#[tokio::test]
async fn a_crowd_of_clients_gets_in_whenever_it_is_accepted() {
    let _alone = CROWD.lock().await;
    let (_dir, path) = private();
    let listener = Listener::<u8, u8>::bind(&path).unwrap();
    let mut clients: FuturesUnordered<_> = (0..200).map(|_| connect::<u8, u8>(&path)).collect();
    let waiting: Vec<_> = clients.by_ref().take(128).map(Result::unwrap).collect().await;
    let accept = async {
        for _ in 0..200 {
            listener.accept().await.unwrap();
        }
    };
    let rest = clients.map(Result::unwrap).collect::<Vec<_>>();
    assert_eq!(tokio::join!(accept, rest).1.len(), 200 - waiting.len());
}

#[test]
fn a_client_that_has_spoken_is_kept_while_the_predicate_is_asked_about_it() {
    let _alone = CROWD.blocking_lock();
    let (_dir, path) = private();
    let (ask, asked) = mpsc::channel();
    let (answer, answered) = mpsc::channel::<()>();
    let answered = Mutex::new(answered);
    let admit = move |_: &_| {
        ask.send(()).unwrap();
        // Until it is dropped.
        answered.lock().unwrap().recv().is_err()
    };
    let listener = Listener::<u8, u8>::bind_for(&path, admit).unwrap();
    let come = |_| {
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(&HELLO).unwrap();
        client
    };
    let first: Vec<_> = (0..128).map(come).collect();
    (0..128).for_each(|_| asked.recv().unwrap());
    let last = come(128);
    // The thread that greets has seen it when it has greeted another one.
    let (_dir, elsewhere) = private();
    let _other = Listener::<u8, u8>::bind(&elsewhere).unwrap();
    blocking_connect::<u8, u8>(&elsewhere).unwrap();
    drop(answer);
    for mut client in first.into_iter().chain([last]) {
        listener.blocking_accept().unwrap();
        client.read_exact(&mut [0; HELLO.len()]).unwrap();
    }
}
