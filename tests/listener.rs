//! Listeners: typed duplexes between processes that are no relatives, whoever else comes by.

use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::join_all;
use multiproc::sync::Semaphore;
use multiproc::{Duplex, Listener, Sender, blocking_connect, channel, connect, connect_to, spawn_process, task};
use rustix::fs::FlockOperation;
use support::Owner;
use tempfile::TempDir;
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::timeout;

mod support;

multiproc::test_support!();

/// A directory of our own with mode 0700.
fn private() -> (TempDir, PathBuf) {
    let dir = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o700)).tempdir().unwrap();
    let path = dir.path().join("socket");
    (dir, path)
}

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn ask(path: PathBuf, n: u32) -> String {
    let mut server: Duplex<u32, String> = blocking_connect(path).unwrap();
    server.blocking_send(n).unwrap();
    server.blocking_recv().unwrap().unwrap()
}

async fn ask_async(path: PathBuf, n: u32) -> String {
    let mut server: Duplex<u32, String> = connect(path).await.unwrap();
    server.send(n).await.unwrap();
    server.recv().await.unwrap().unwrap()
}

async fn answer_all(listener: &Listener<String, u32>, clients: u32) {
    for _ in 0..clients {
        let (mut client, _) = listener.accept().await.unwrap();
        let n = client.recv().await.unwrap().unwrap();
        client.send(n.to_string()).await.unwrap();
    }
}

async fn both_sides() {
    let (_dir, path) = private();
    let listener = Listener::bind(&path).unwrap();
    let blocking = spawn_process(task!(ask(path.clone(), 1))).await.unwrap();
    let waiting = spawn_process(task!(ask_async(path.clone(), 2).await)).await.unwrap();
    answer_all(&listener, 2).await;
    assert_eq!(blocking.join().await.unwrap(), "1");
    assert_eq!(waiting.join().await.unwrap(), "2");
}

#[tokio::test]
async fn processes_that_know_a_path_exchange_typed_messages() {
    both_sides().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_know_a_path_exchange_typed_messages_on_many_threads() {
    both_sides().await;
}

#[test]
fn it_needs_no_runtime() {
    let (_dir, path) = private();
    let listener = Listener::<String, u32>::bind(&path).unwrap();
    let client = std::thread::spawn(move || ask(path, 7));
    let (mut server, peer) = listener.blocking_accept().unwrap();
    assert_eq!(peer.pid, Some(std::process::id()));
    assert_eq!(server.blocking_recv().unwrap(), Some(7));
    server.blocking_send("seven".into()).unwrap();
    assert_eq!(client.join().unwrap(), "seven");
}

#[tokio::test]
async fn a_dropped_accept_loses_no_client() {
    let (_dir, path) = private();
    let listener = Listener::bind(&path).unwrap();
    let clients = join_all((0..100).map(|n| ask_async(path.clone(), n)));
    let serving = async {
        for n in 0..100 {
            for _ in 0..n % 5 {
                tokio::select! {
                    biased;
                    accepted = listener.accept() => {
                        let (mut client, _): (Duplex<String, u32>, _) = accepted.unwrap();
                        let n = client.recv().await.unwrap().unwrap();
                        client.send(n.to_string()).await.unwrap();
                    }
                    () = tokio::task::yield_now() => {}
                }
            }
        }
        loop {
            answer_all(&listener, 1).await;
        }
    };
    tokio::select! {
        answers = clients => assert!((0..).zip(answers).all(|(n, answer): (u32, _)| answer == n.to_string())),
        () = serving => {}
    }
}

#[tokio::test]
async fn a_missing_directory_is_made_for_us_alone_and_the_file_goes_with_the_listener() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made/socket");
    let listener = Listener::<u8, u8>::bind(&path).unwrap();
    assert_eq!(listener.path(), path);
    assert_eq!(mode(dir.path().join("made")), 0o700);
    assert!(support::exists(&path));
    drop(listener);
    assert!(!support::exists(&path));
    assert_eq!(connect::<u8, u8>(&path).await.unwrap_err().kind(), ErrorKind::NotFound);
    drop(Listener::<u8, u8>::bind(&path).unwrap());
}

/// Between the look at the name and its removal somebody else had bound there.
#[test]
fn a_name_is_not_removed_while_somebody_puts_another_in_its_place() {
    let (dir, path) = private();
    let listener = Listener::<u32, u32>::bind(&path).unwrap();
    let lock = dir.path().join(".socket.lock");
    let binding = File::create(&lock).unwrap();
    rustix::fs::flock(&binding, FlockOperation::LockExclusive).unwrap();
    drop(listener);
    assert!(support::exists(&path));
    let error = Listener::<u32, u32>::bind(&path).unwrap_err();
    assert!(error.to_string().contains(dir.path().to_str().unwrap()), "it names the directory: {error}");
    drop(binding);
    // It is replaced, as one is whose process was killed, and removed with this one. So is the lock.
    drop(Listener::<u32, u32>::bind(&path).unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// For flock(2) it is enough that a directory can be read.
#[test]
fn nobody_who_can_only_read_the_directory_keeps_a_name_from_us_or_with_us() {
    let (dir, path) = private();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let reading = File::open(dir.path()).unwrap();
    rustix::fs::flock(&reading, FlockOperation::LockShared).unwrap();
    for leaves_one in [false, true] {
        if leaves_one {
            drop(UnixListener::bind(&path).unwrap());
        }
        let listener = Listener::<u8, u8>::bind_for(&path, |_| true).unwrap();
        // What others could open, they could lock.
        for entry in fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()) {
            assert_eq!(entry, path);
        }
        drop(listener);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_directory_is_kept_open_as_none_of_stdio() {
    support::alone("a_directory_is_kept_open_as_none_of_stdio", || {
        let (dir, path) = private();
        #[expect(unsafe_code, reason = "it is a host that closes its stdin")]
        // SAFETY: nobody uses it.
        drop(unsafe { OwnedFd::from_raw_fd(0) });
        let _listener = Listener::<u8, u8>::bind(&path).unwrap();
        for fd in 0..3 {
            let target = fs::read_link(format!("/proc/self/fd/{fd}"));
            assert!(target.is_err() || target.unwrap() != dir.path(), "{fd}");
        }
    });
}

#[test]
fn what_somebody_else_put_in_its_place_is_not_removed() {
    let (_dir, path) = private();
    let listener = Listener::<u8, u8>::bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(listener);
    assert!(support::exists(&path));
}

#[test]
fn a_directory_that_others_can_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = dir.path().join("open");
    DirBuilder::new().create(&open).unwrap();
    let bind = |mode, shared| {
        fs::set_permissions(&open, fs::Permissions::from_mode(mode)).unwrap();
        let path = open.join("socket");
        if shared { Listener::<u8, u8>::bind_for(path, |_| true) } else { Listener::bind(path) }
    };
    for (mode, shared) in [(0o755, false), (0o710, false), (0o770, true), (0o702, true)] {
        let error = bind(mode, shared).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{mode:o}");
        assert!(error.to_string().contains("open"), "it names the directory: {error}");
    }
    drop(bind(0o700, false).unwrap());
    drop(bind(0o755, true).unwrap());
    assert_eq!(Listener::<u8, u8>::bind("/").unwrap_err().kind(), ErrorKind::InvalidInput);
}

fn listen_for_ever(path: PathBuf, running: Sender<()>) {
    let listener = Listener::<u8, u8>::bind(path).unwrap();
    running.blocking_send(()).unwrap();
    loop {
        listener.blocking_accept().unwrap();
    }
}

#[tokio::test]
async fn the_file_of_a_killed_listener_is_replaced_and_that_of_a_living_one_is_not() {
    let (_dir, path) = private();
    let (running, mut started) = channel().unwrap();
    let mut child = spawn_process(task!(listen_for_ever(path.clone(), running))).await.unwrap();
    started.recv().await.unwrap().unwrap();
    assert_eq!(Listener::<u8, u8>::bind(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
    connect::<u8, u8>(&path).await.unwrap();
    child.kill().unwrap();
    child.wait().await.unwrap();
    assert!(support::exists(&path));
    assert_eq!(connect::<u8, u8>(&path).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let listener = Listener::bind(&path).unwrap();
    let (answer, ()) = tokio::join!(ask_async(path, 5), answer_all(&listener, 1));
    assert_eq!(answer, "5");
}

#[test]
fn of_many_who_replace_a_dead_listener_one_gets_the_place() {
    let (_dir, path) = private();
    for _ in 0..20 {
        drop(UnixListener::bind(&path).unwrap());
        let bound: Vec<_> = std::thread::scope(|scope| {
            let binders: Vec<_> = (0..4).map(|_| scope.spawn(|| Listener::<u8, u8>::bind(&path))).collect();
            binders.into_iter().map(|binder| binder.join().unwrap()).collect()
        });
        assert_eq!(bound.iter().filter(|bound| bound.is_ok()).count(), 1);
        drop(blocking_connect::<u8, u8>(&path).unwrap());
        drop(bound);
        assert!(!support::exists(&path));
    }
}

/// The socket was closed while its name was there: the next one replaced it, by a file that had the same inode number on most
/// file systems, and so that was removed.
#[test]
fn a_listener_that_is_dropped_leaves_its_successor_the_place() {
    let (_dir, path) = private();
    for _ in 0..100 {
        let old = Listener::<u8, u8>::bind(&path).unwrap();
        let (waits, waiting) = mpsc::channel();
        let theirs = path.clone();
        let successor = thread::spawn(move || {
            loop {
                match Listener::<u8, u8>::bind(&theirs) {
                    Err(error) if error.kind() == ErrorKind::AddrInUse => drop(waits.send(())),
                    bound => return bound.unwrap(),
                }
            }
        });
        waiting.recv().unwrap();
        drop(old);
        let new = successor.join().unwrap();
        blocking_connect::<u8, u8>(&path).unwrap();
        new.blocking_accept().unwrap();
    }
}

#[test]
fn something_else_than_a_socket_is_left_alone() {
    let (_dir, path) = private();
    File::create(&path).unwrap().write_all(b"precious").unwrap();
    assert_eq!(Listener::<u8, u8>::bind(&path).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[tokio::test]
async fn a_path_longer_than_an_address_works() {
    let (dir, _) = private();
    let deep = dir.path().join("d".repeat(200));
    let path = deep.join("s".repeat(60));
    let listener = Listener::bind(&path).unwrap();
    let (answer, ()) = tokio::join!(ask_async(path, 5), answer_all(&listener, 1));
    assert_eq!(answer, "5");
}

#[tokio::test]
async fn a_predicate_decides_on_either_side_and_its_panic_refuses() {
    let (_dir, path) = private();
    let us = std::process::id();
    let listener = Listener::<u8, u8>::bind_for(&path, |peer| peer.pid == Some(0)).unwrap();
    assert_eq!(mode(&path), 0o666);
    assert_eq!(connect::<u8, u8>(&path).await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    drop(listener);
    let listener = Listener::<u8, u8>::bind_for(&path, |_| panic!("on purpose")).unwrap();
    assert_eq!(connect::<u8, u8>(&path).await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    drop(listener);
    let _listener = Listener::<u8, u8>::bind_for(&path, move |peer| peer.pid == Some(us)).unwrap();
    connect::<u8, u8>(&path).await.unwrap();
    connect_to::<u8, u8>(&path, move |peer| peer.pid == Some(us)).await.unwrap();
    let refused = connect_to::<u8, u8>(&path, |peer| peer.pid == Some(0)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
}

/// The thread that greets and connects waited there for itself.
#[tokio::test]
async fn what_a_predicate_holds_may_wait_for_this_library_when_it_is_dropped() {
    let (_dir, path) = private();
    let lock = Semaphore::new(1).unwrap();
    let (said, mut gone) = unbounded_channel();
    let held = || {
        let (lock, said) = (lock.clone(), said.clone());
        Owner(Vec::new(), move || {
            drop(lock.blocking_acquire().unwrap());
            said.send(()).unwrap();
        })
    };
    let owner = held();
    drop(Listener::<u8, u8>::bind_for(&path, move |_| owner.0.is_empty()).unwrap());
    timeout(Duration::from_secs(20), gone.recv()).await.expect("it waits for itself").unwrap();
    let owner = held();
    let nobody = timeout(Duration::from_secs(20), connect_to::<u8, u8>(&path, move |_| owner.0.is_empty())).await;
    assert_eq!(nobody.expect("it waits for itself").unwrap_err().kind(), ErrorKind::NotFound);
    timeout(Duration::from_secs(20), gone.recv()).await.expect("it waits for itself").unwrap();
}

/// Even if it has gone by then.
#[tokio::test]
async fn a_client_reads_a_refusal_that_came_before_it_has_said_anything() {
    let (_dir, path) = private();
    let mut refusal = Vec::new();
    {
        let _listener = Listener::<u8, u8>::bind_for(&path, |_| false).unwrap();
        UnixStream::connect(&path).unwrap().read_to_end(&mut refusal).unwrap();
    }
    let listener = UnixListener::bind(&path).unwrap();
    let refuse_first = move |_: &_| {
        listener.accept().unwrap().0.write_all(&refusal).unwrap();
        true
    };
    let refused = connect_to::<u8, u8>(&path, refuse_first).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{refused}");
}

const PATH: &str = "MULTIPROC_TEST_SOCKET";
const NOBODY: u32 = 65534;

/// What the other user's process does, which the test below starts.
#[test]
fn another_user_connects() {
    let Some(path) = std::env::var_os(PATH) else { return };
    assert_eq!(blocking_connect::<u8, u8>(&path).unwrap_err().kind(), ErrorKind::PermissionDenied, "root's");
    let end = support::block_on(connect_to::<u8, u8>(&path, |peer| peer.uid == 0)).unwrap();
    end.blocking_send(7).unwrap();
}

#[tokio::test]
async fn another_user_is_let_in_where_the_predicate_says_so() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // The tests' program may lie where nobody else can go.
    let program = dir.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = dir.path().join("socket");
    let listener = Listener::<u8, u8>::bind_for(&path, |peer| peer.uid == NOBODY).unwrap();
    let mut child = std::process::Command::new(program)
        .args(["another_user_connects", "--exact"])
        .env(PATH, &path)
        .uid(NOBODY)
        .gid(NOBODY)
        .spawn()
        .unwrap();
    let (mut end, peer) = listener.accept().await.unwrap();
    assert_eq!((peer.uid, peer.pid), (NOBODY, Some(child.id())));
    assert_eq!(end.recv().await.unwrap(), Some(7));
    assert!(child.wait().unwrap().success());
}

async fn in_time<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("it hangs")
}

#[tokio::test]
async fn an_accept_that_nobody_polls_holds_up_no_other() {
    let (_dir, path) = private();
    let listener = Listener::<u32, String>::bind(&path).unwrap();
    let mut kept = Box::pin(listener.accept());
    assert!(kept.as_mut().now_or_never().is_none());
    let (accepted, connected) = in_time(async { tokio::join!(listener.accept(), connect::<u32, String>(&path)) }).await;
    assert!(accepted.is_ok() && connected.is_ok());
    // It goes on with the next one.
    let (accepted, connected) = in_time(async { tokio::join!(kept, connect::<u32, String>(&path)) }).await;
    assert!(accepted.is_ok() && connected.is_ok());
}
