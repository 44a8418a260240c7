//! The public signatures: what other people's code compiles against, and which handles may be shared.

#![expect(
    clippy::items_after_statements,
    clippy::match_same_arms,
    reason = "nothing here runs: what counts is that it compiles"
)]

use std::ffi::OsString;
use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Sink, Stream};
use multiproc::sync::{Barrier, BarrierWait, Event, Semaphore, SemaphorePermit, WatchReceiver, WatchSender, watch};
use multiproc::{
    AckedQueue, AckedReceiver, Call, CallError, Child, Client, Command, CommandError, Delivery, Duplex, ExitStatus, Fd,
    Listener, Map, Output, Panic, ParentError, Peer, PoolBuilder, PoolStatus, Process, ProcessBuilder, ProcessPool,
    QueueReceiver, QueueSender, Receiver, RecvError, SendError, Sender, SharedBytes, SharedBytesMut, SharedSlice,
    SharedSliceMut, SpawnError, Stdio, Submit, SyncError, Task, TaskError, TaskHandle, TrySubmitError,
    blocking_connect, blocking_serve, call, channel, connect, connect_to, duplex, from_parent, queue, serve,
    spawn_process, task,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::codec::{Decoder, Encoder};

multiproc::test_support!();

fn handle<T: Send + Sync + Debug>() {}
fn error<T: std::error::Error + Send + Sync + 'static>() {}
fn future<T>(_: impl Future<Output = T> + Send) {}
fn stream<T>(_: impl Stream<Item = T> + Send + Unpin) {}
fn sink<T>(_: impl Sink<T, Error = SendError> + Send + Unpin) {}

fn add(a: u32, b: u32) -> u32 {
    a + b
}

mod deep {
    pub(crate) fn wide<T: Into<u64>>(n: T) -> u64 {
        n.into()
    }

    pub(crate) async fn later(n: u64) -> u64 {
        std::future::ready(n).await
    }
}

fn is_task<T: Task<Output = O>, O>(_: &T) {}

#[test]
fn tasks_are_made_of_functions_closures_and_calls() {
    is_task::<_, u32>(&task!(add(1, 2)));
    is_task::<_, u32>(&task!(self::add(1, 2,)));
    is_task::<_, u64>(&task!(crate::deep::wide::<u32>(7)));
    is_task::<_, u64>(&task!(deep::later(7).await));
    is_task::<_, u64>(&task!(<u64 as From<u32>>::from(7)));
    is_task::<_, u32>(&call(|(a, b): (u32, u32)| a + b, (1, 2)));
    is_task::<_, u8>(&task!(nothing()));
    let made: Call<_, u8> = call(|n: u8| n, 3);
    assert_eq!(made.run(), 3);
}

fn nothing() -> u8 {
    0
}

#[test]
fn handles_may_be_shared_and_shown_and_errors_go_anywhere() {
    handle::<Process<u32>>();
    handle::<ProcessBuilder>();
    handle::<ProcessPool>();
    handle::<PoolBuilder>();
    handle::<PoolStatus>();
    handle::<TaskHandle<u32>>();
    handle::<multiproc::Worker>();
    handle::<Child>();
    handle::<Command>();
    handle::<Sender<u32>>();
    handle::<Receiver<u32>>();
    handle::<Duplex<u32, u8>>();
    handle::<QueueSender<u32>>();
    handle::<QueueReceiver<u32>>();
    handle::<Client<u32, u8>>();
    handle::<Listener<u32, u8>>();
    handle::<Semaphore>();
    handle::<SemaphorePermit>();
    handle::<Event>();
    handle::<Barrier>();
    handle::<WatchSender<u32>>();
    handle::<WatchReceiver<u32>>();
    handle::<SharedBytes>();
    handle::<SharedBytesMut>();
    handle::<Fd<std::fs::File>>();
    handle::<AckedQueue<String>>();
    handle::<AckedReceiver<String>>();
    handle::<Delivery<String>>();
    handle::<SharedSlice<u64>>();
    handle::<SharedSliceMut<u64>>();
    error::<TaskError>();
    error::<SpawnError>();
    error::<TrySubmitError<u32>>();
    error::<SendError>();
    error::<RecvError>();
    error::<CommandError>();
    error::<CallError>();
    error::<SyncError>();
    error::<ParentError>();
}

/// Never called: the types of every call are the test.
#[expect(dead_code, reason = "what counts is that it compiles")]
async fn processes() -> Result<(), Box<dyn std::error::Error>> {
    future::<Result<Process<u32>, SpawnError>>(spawn_process(task!(add(1, 2))));
    let builder: ProcessBuilder = Process::builder()
        .name("n")
        .env("K", OsString::from("V"))
        .env_remove("K")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::inherit())
        .memory_limit(1 << 30)
        .cpu_time_limit(Duration::MAX)
        .open_files_limit(100)
        .nice(1);
    let mut process: Process<u32> = builder.spawn(task!(add(1, 2))).await?;
    let _: Option<u32> = process.id();
    let _: io::Result<ExitStatus> = process.wait().await;
    process.terminate()?;
    process.kill()?;
    process.signal(15)?;
    let _: io::Result<ExitStatus> = process.stop(Duration::ZERO).await;
    let _: Result<u32, TaskError> = process.join().await;
    spawn_process(task!(add(1, 2))).await?.detach();
    Ok(())
}

#[expect(dead_code, reason = "what counts is that it compiles")]
fn inside_a_task() {
    let me: multiproc::Worker = multiproc::worker();
    let _: Option<&str> = me.pool();
    let _: Option<usize> = me.index();
    let _: (u32, u32, bool) = (me.pid(), me.attempt(), me.is_cancelled());
    future::<()>(me.cancelled());
}

#[expect(dead_code, reason = "what counts is that it compiles")]
async fn pools() -> Result<(), Box<dyn std::error::Error>> {
    let pool: ProcessPool = ProcessPool::builder()
        .workers(2)
        .name("n")
        .on_worker_start(task!(add(1, 2)))
        .on_worker_exit(task!(add(1, 2)))
        .max_tasks_per_worker(3)
        .max_worker_memory(1 << 30)
        .memory_limit(1 << 30)
        .task_timeout(Duration::MAX)
        .idle_timeout(Duration::MAX)
        .min_workers(1)
        .restart_limit(3, Duration::MAX)
        .cancel_grace(Duration::ZERO)
        .nice(5)
        .env("K", "V")
        .current_dir(Path::new("/"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .build()?;
    let submit: Submit<_> = pool.clone().submit(task!(add(1, 2))).timeout(Duration::MAX).retries(2).name("n");
    future::<Result<u32, TaskError>>(submit);
    future::<Result<TaskHandle<u32>, TaskError>>(pool.spawn(task!(add(1, 2))));
    let mut handle: TaskHandle<u32> = match pool.try_submit(task!(add(1, 2))) {
        Ok(handle) => handle,
        Err(TrySubmitError::Full(_task) | TrySubmitError::Closed(_task)) => return Ok(()),
        Err(TrySubmitError::Refused(error)) => return Err(error.into()),
        Err(_) => return Ok(()),
    };
    handle.abort();
    let _: (Option<u32>, bool) = (handle.worker_id(), handle.is_finished());
    let _: Result<u32, TaskError> = (&mut handle).await;
    handle.detach();
    let results: Map<_, _, u32> = pool.map(0..3_u32, |n| n + 1).unordered().chunk(2).read_ahead(4);
    stream::<Result<u32, TaskError>>(results);
    let _: Result<(), SpawnError> = pool.start().await;
    let status = pool.status();
    let _: (usize, usize, usize) = (status.workers, status.busy, status.queued);
    pool.resize(3);
    pool.cancel().await;
    pool.close().await;
    drop(ProcessPool::default());
    Ok(())
}

#[expect(dead_code, reason = "what counts is that it compiles")]
async fn channels() -> Result<(), Box<dyn std::error::Error>> {
    let (sender, mut receiver) = channel::<String>()?;
    future::<Result<(), SendError>>(sender.send(String::new()));
    let _: Result<(), SendError> = sender.blocking_send(String::new());
    let _: Result<Option<String>, RecvError> = receiver.recv().await;
    let _: Result<Option<String>, RecvError> = receiver.blocking_recv();
    sink::<String>(sender);
    stream::<Result<String, RecvError>>(receiver);
    let (mut one, other): (Duplex<u8, String>, Duplex<String, u8>) = duplex()?;
    one.send(1).await?;
    let _: Option<String> = one.recv().await?;
    sink::<u8>(one);
    stream::<Result<u8, RecvError>>(other);
    let (ours, theirs): (Duplex<u8, String>, Duplex<String, u8>) = duplex()?;
    future::<Result<(), RecvError>>(serve(theirs, |n: u8| async move { n.to_string() }));
    let client: Client<u8, String> = Client::new(ours);
    future::<Result<String, CallError>>(client.clone().call(1));
    let _: Result<String, CallError> = client.blocking_call(1);
    let (_, theirs): (Duplex<u8, String>, Duplex<String, u8>) = duplex()?;
    let _: Result<(), RecvError> = blocking_serve(theirs, |n: u8| n.to_string());
    let semaphore: Semaphore = Semaphore::new(3)?;
    future::<Result<SemaphorePermit, SyncError>>(semaphore.acquire());
    let _: Option<SemaphorePermit> = semaphore.clone().try_acquire().await?;
    let _: bool = semaphore.blocking_acquire()?.after_death();
    let event: Event = Event::new()?;
    future::<Result<(), SyncError>>(event.wait());
    let _: bool = event.is_set().await?;
    let _: ((), ()) = (event.set().await?, event.clear().await?);
    let _: ((), (), ()) = (event.blocking_set()?, event.blocking_clear()?, event.blocking_wait()?);
    let barrier: Barrier = Barrier::new(3)?;
    future::<Result<BarrierWait, SyncError>>(barrier.wait());
    let met: BarrierWait = barrier.blocking_wait()?;
    let _: (bool, bool) = (met.is_leader(), met.after_death());
    let (sender, mut receiver): (WatchSender<u8>, WatchReceiver<u8>) = watch(1)?;
    future::<Result<(), SendError>>(sender.send(1));
    let _: Result<(), SendError> = sender.blocking_send(1);
    let _: (Option<u8>, Option<u8>) = (receiver.recv().await?, receiver.blocking_recv()?);
    let _: (u8, u8) = (receiver.latest().await?, receiver.blocking_latest()?);
    let listener: Listener<u8, String> = Listener::bind("/tmp/a/b")?;
    let _: Listener<u8, String> = Listener::bind_for("/tmp/a/b", |peer| peer.uid == 1)?;
    future::<io::Result<(Duplex<u8, String>, Peer)>>(listener.accept());
    let _: (Duplex<u8, String>, Peer) = listener.blocking_accept()?;
    let _: &Path = listener.path();
    future::<io::Result<Duplex<u8, String>>>(connect("/tmp/a/b"));
    future::<io::Result<Duplex<u8, String>>>(connect_to("/tmp/a/b", |peer| peer.gid == 1));
    let _: io::Result<Duplex<u8, String>> = blocking_connect("/tmp/a/b");
    let (sender, receiver): (QueueSender<u8>, QueueReceiver<u8>) = queue()?;
    future(sender.clone().send(1));
    let _: (Option<u8>, Option<u8>) = (receiver.clone().recv().await?, receiver.blocking_recv()?);
    sender.blocking_send(1)?;
    sink::<u8>(sender);
    stream::<Result<u8, RecvError>>(receiver);
    Ok(())
}

#[expect(dead_code, reason = "what counts is that it compiles")]
async fn commands() -> Result<(), CommandError> {
    let command = Command::new("a")
        .arg("b")
        .args(["c"])
        .env("K", "V")
        .env_remove("K")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .input("text")
        .timeout(Duration::MAX)
        .grace(Duration::ZERO)
        .max_output(3)
        .max_line(3)
        .kill_on_drop(true)
        .arg0("b")
        .new_session()
        .inherit_fd(std::io::stdin().as_fd().try_clone_to_owned()?, 3)
        .uid(0)
        .gid(0)
        .umask(0o77)
        .nice(1)
        .memory_limit(1 << 30)
        .cpu_time_limit(Duration::MAX)
        .open_files_limit(100)
        .pipe(Command::shell("cat").stderr_to_stdout());
    future::<Result<Output, CommandError>>(command.output());
    let _: ExitStatus = Command::new("a").input(vec![1]).status().await?;
    let _: Output = Command::new("a").input(Bytes::new()).run().await?;
    let _: String = Command::new("a").read().await?;
    let (command, _): (Command, Duplex<u32, String>) = Command::new("a").duplex()?;
    let _: Result<Duplex<String, u32>, ParentError> = from_parent();
    drop(command);
    let mut child: Child = Command::new("a").spawn()?;
    let _: Option<u32> = child.id();
    let _: Result<ExitStatus, CommandError> = child.wait().await;
    let _: Option<ExitStatus> = child.try_wait()?;
    let _: Output = child.communicate().await?;
    stream::<io::Result<String>>(child.lines());
    let _ = (child.terminate(), child.kill(), child.signal(15));
    let _: ExitStatus = child.stop(Duration::ZERO).await?;
    fn pipes(_: Option<impl AsyncWrite>, _: Option<impl AsyncRead>, _: Option<impl AsyncRead>) {}
    pipes(child.stdin, child.stdout, child.stderr);
    Ok(())
}

/// The place was one in this library.
#[test]
fn a_panic_for_a_wrong_argument_names_the_caller() {
    use std::sync::{Arc, Mutex};

    let pool = ProcessPool::new(1);
    let wrong: [&dyn Fn(); 3] =
        [&|| drop(ProcessPool::new(0)), &|| pool.resize(0), &|| drop(Semaphore::new(usize::MAX))];
    let here = std::thread::current().id();
    let places = Arc::new(Mutex::new(Vec::new()));
    let (seen, before) = (Arc::clone(&places), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().id() == here {
            seen.lock().unwrap().push(info.location().unwrap().file().to_owned());
        } else {
            before(info);
        }
    }));
    for call in wrong {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).unwrap_err();
    }
    drop(std::panic::take_hook());
    assert_eq!(*places.lock().unwrap(), [file!(); 3]);
}

#[test]
fn shared_bytes_are_slices() {
    let mut bytes: SharedBytesMut = SharedBytesMut::new(3).unwrap();
    bytes[1] = 7;
    let frozen: SharedBytes = bytes.freeze().unwrap();
    let slice: &[u8] = &frozen.clone();
    assert_eq!(slice, [0, 7, 0]);
}

#[test]
fn the_codec_is_tokio_utils() {
    let mut codec = multiproc::wire::Codec::<u32>::new(16);
    let mut bytes = BytesMut::new();
    Encoder::encode(&mut codec, 7, &mut bytes).unwrap();
    assert_eq!(Decoder::decode(&mut codec, &mut bytes).unwrap(), Some(7));
}

#[test]
fn errors_have_the_promised_shapes() {
    fn shapes(task: &TaskError, spawn: &SpawnError, send: &SendError, recv: &RecvError, command: &CommandError) {
        match task {
            TaskError::Panicked(Panic { message: _, location: _, backtrace: _, .. })
            | TaskError::Died { status: _, pid: _, .. }
            | TaskError::TimedOut
            | TaskError::Cancelled
            | TaskError::Encode(_)
            | TaskError::Decode(_)
            | TaskError::TooLarge { len: _, max: _ }
            | TaskError::Spawn(_)
            | TaskError::Closed
            | TaskError::Broken(_) => {}
            _ => {}
        }
        match spawn {
            SpawnError::Encode(_) | SpawnError::TooDeep { depth: _ } | SpawnError::InitMissing | SpawnError::Io(_) => {}
            _ => {}
        }
        match send {
            SendError::Closed | SendError::Encode(_) | SendError::TooLarge { len: _, max: _ } | SendError::Io(_) => {}
            _ => {}
        }
        match recv {
            RecvError::Truncated | RecvError::Decode(_) | RecvError::TooLarge { len: _, max: _ } | RecvError::Io(_) => {
            }
            _ => {}
        }
        match command {
            CommandError::Invalid { .. }
            | CommandError::Spawn { program: _, source: _ }
            | CommandError::Failed { output: _, .. }
            | CommandError::TimedOut { output: _, .. }
            | CommandError::TooLarge { output: _, max: _, .. }
            | CommandError::StatusUnknown
            | CommandError::Io(_) => {}
            _ => {}
        }
        let _: Option<&Output> = command.output();
    }
    shapes(
        &TaskError::TimedOut,
        &SpawnError::InitMissing,
        &SendError::Closed,
        &RecvError::Truncated,
        &CommandError::StatusUnknown,
    );
}
