//! What the pool's tests share: a place where tasks report that they run, a ledger of executions, and bounded waiting.
#![allow(dead_code, reason = "no test file uses all of it")]

#[path = "../support/kernel.rs"]
pub(crate) mod kernel;
#[path = "../support/proc.rs"]
pub(crate) mod proc;
pub(crate) mod wakers;

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use multiproc::{ProcessPool, TaskHandle, TrySubmitError, call};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{JoinHandle, spawn_blocking};

/// Far longer than anything here takes, also on a machine that does ten other things. Only a hang meets it.
pub(crate) const FOREVER: Duration = Duration::from_mins(1);

/// The future's output; a panic if it hangs.
#[track_caller]
pub(crate) fn within<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let place = std::panic::Location::caller();
    async move { tokio::time::timeout(FOREVER, future).await.unwrap_or_else(|_| panic!("{place} hangs")) }
}

/// Waits until the condition holds; a panic if it never does.
#[track_caller]
pub(crate) fn until(mut condition: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        let begun = Instant::now();
        while !condition() {
            assert!(begun.elapsed() < FOREVER, "{place}: it never comes true");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Polls a future once, and says whether it has yet to wait.
pub(crate) async fn is_pending(future: impl Future) -> bool {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_pending())).await
}

/// Where tasks report that they run, and wait until they are told to go on.
pub(crate) struct Meeting {
    listener: UnixListener,
    folder: TempDir,
}

/// A task that has reported, and waits.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) id: u64,
    pub(crate) pid: u32,
    stream: tokio::net::UnixStream,
}

impl Meeting {
    pub(crate) fn new() -> Self {
        let folder = folder();
        let listener = UnixListener::bind(folder.path().join("meet")).unwrap();
        Self { listener, folder }
    }

    /// What a task needs to come here.
    pub(crate) fn place(&self) -> PathBuf {
        self.folder.path().join("meet")
    }

    /// The next task that reports.
    pub(crate) async fn guest(&self) -> Guest {
        loop {
            let (mut stream, _) = within(self.listener.accept()).await.unwrap();
            // One that was killed on its way in is no guest.
            let Ok(id) = within(stream.read_u64()).await else { continue };
            let Ok(pid) = within(stream.read_u32()).await else { continue };
            return Guest { id, pid, stream };
        }
    }
}

impl Guest {
    /// Lets it go on. Dropping the guest does so, too.
    pub(crate) async fn go_on(mut self) {
        let _ = self.stream.write_u8(1).await;
    }
}

/// In a task: reports, and waits to be told to go on.
pub(crate) fn meet(place: &Path, id: u64) {
    let mut stream = UnixStream::connect(place).unwrap();
    stream.write_all(&id.to_be_bytes()).unwrap();
    stream.write_all(&std::process::id().to_be_bytes()).unwrap();
    let _ = stream.read(&mut [0]);
}

/// In a task: reports, waits, and gives its process id.
pub(crate) fn meet_and_give_pid(place: PathBuf, id: u64) -> u32 {
    meet(&place, id);
    std::process::id()
}

/// Has a worker of the pool run a task that gives its process id, and goes on when its guest does.
pub(crate) async fn busy(pool: &ProcessPool) -> (TaskHandle<u32>, Guest) {
    let meeting = Meeting::new();
    let task = within(pool.spawn(call(|place| meet_and_give_pid(place, 0), meeting.place()))).await.unwrap();
    (task, meeting.guest().await)
}

/// An argument that is encoded for as long as somebody wants.
pub(crate) struct Slow {
    begun: UnboundedSender<()>,
    goes_on: Mutex<mpsc::Receiver<()>>,
}

/// Where it can be seen that a [`Slow`] one is being encoded.
pub(crate) struct Encoding {
    begins: UnboundedReceiver<()>,
    go_on: mpsc::Sender<()>,
}

impl Slow {
    pub(crate) fn new() -> (Self, Encoding) {
        let (begun, begins) = unbounded_channel();
        let (go_on, goes_on) = mpsc::channel();
        (Self { begun, goes_on: Mutex::new(goes_on) }, Encoding { begins, go_on })
    }
}

impl Encoding {
    pub(crate) async fn begins(&mut self) {
        within(self.begins.recv()).await.unwrap();
    }

    pub(crate) fn go_on(self) {
        self.go_on.send(()).unwrap();
    }

    pub(crate) fn fail(self) {
        drop(self.go_on);
    }
}

impl Serialize for Slow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.begun.send(()).unwrap();
        match self.goes_on.lock().unwrap().recv() {
            Ok(()) => serializer.serialize_unit(),
            Err(_) => Err(serde::ser::Error::custom("not this one")),
        }
    }
}

impl<'de> Deserialize<'de> for Slow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <()>::deserialize(deserializer)?;
        Ok(Self::new().0)
    }
}

/// Tries to submit a task with such an argument, on a thread where it may take its time.
pub(crate) fn try_submit(pool: &ProcessPool, slow: Slow) -> JoinHandle<Result<TaskHandle<u32>, TrySubmitError<()>>> {
    let pool = pool.clone();
    spawn_blocking(move || {
        pool.try_submit(call(|_: Slow| pid(), slow)).map_err(|error| match error {
            TrySubmitError::Full(_) => TrySubmitError::Full(()),
            TrySubmitError::Closed(_) => TrySubmitError::Closed(()),
            TrySubmitError::Refused(error) => TrySubmitError::Refused(error),
            other => panic!("{other}"),
        })
    })
}

/// A task that is never done.
pub(crate) fn endless() {
    loop {
        std::thread::park();
    }
}

pub(crate) fn pid() -> u32 {
    std::process::id()
}

/// A folder that any user can reach, for tests that run as another one.
pub(crate) fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A file to which every execution appends its number; one write of a few bytes is atomic with `O_APPEND`.
pub(crate) struct Ledger {
    folder: TempDir,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        let ledger = Self { folder: folder() };
        File::create(ledger.place()).unwrap();
        ledger
    }

    pub(crate) fn place(&self) -> PathBuf {
        self.folder.path().join("ledger")
    }

    /// The numbers, in the order in which they were noted.
    pub(crate) fn entries(&self) -> Vec<u64> {
        let bytes = std::fs::read(self.place()).unwrap();
        bytes.chunks(8).map(|chunk| u64::from_be_bytes(chunk.try_into().expect("whole entries"))).collect()
    }
}

/// In a task: notes that it runs, and says how many had before.
pub(crate) fn note(place: &Path, id: u64) -> u64 {
    let mut file = OpenOptions::new().append(true).open(place).unwrap();
    file.write_all(&id.to_be_bytes()).unwrap();
    file.stream_position().unwrap() / 8 - 1
}

/// Whether there is no process of that number, not even a zombie.
pub(crate) fn is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

/// Kills a process with that signal.
#[allow(unsafe_code, reason = "kill(2) has no safe form in std")]
pub(crate) fn kill(pid: u32, signal: i32) {
    // SAFETY: kill touches no memory; the caller knows that the process is a worker that has not been reaped.
    unsafe { libc::kill(pid.try_into().unwrap(), signal) };
}
