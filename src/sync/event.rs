//! An event for many processes.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::sync::watch;

use crate::channel::broker::{Desk, Holder};
use crate::error::{CallError, SyncError};

/// Something that has happened or not, for which tasks, threads and processes wait.
///
/// It stays set until it is cleared. Clones, and what is sent to other processes, are the same event.
///
/// # Examples
///
/// ```
/// use multiproc::{spawn_process, sync::Event, task};
///
/// fn work(go: Event) -> u32 {
///     go.blocking_wait().unwrap();
///     42
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// multiproc::init();
/// let go = Event::new()?;
/// let child = spawn_process(task!(work(go.clone()))).await?;
/// go.set().await?;
/// assert_eq!(child.join().await?, 42);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Event {
    holder: Arc<Holder<Bell>>,
}

impl Event {
    /// Makes an event that is not set.
    ///
    /// # Errors
    ///
    /// If the system gives no sockets, or no thread.
    pub fn new() -> io::Result<Self> {
        Ok(Self { holder: Arc::new(Holder::found(watch::Sender::new(State::default()), ())?) })
    }

    /// Sets it. Whoever waits when this resolves, or begins to before it is cleared, is told.
    ///
    /// # Errors
    ///
    /// `Closed` if the process that made the event has ended, `Refused` if other processes have sent it on too often, `Io` if
    /// the system refuses.
    ///
    /// # Cancel safety
    ///
    /// If it is dropped before it resolves, the event may be set or not.
    pub async fn set(&self) -> Result<(), SyncError> {
        done(self.holder.ask(Request::Set(true)).await)
    }

    /// As [`set`](Self::set), on this thread, which it blocks; not for async code.
    ///
    /// # Errors
    ///
    /// As for [`set`](Self::set).
    pub fn blocking_set(&self) -> Result<(), SyncError> {
        done(self.holder.blocking_ask(Request::Set(true)))
    }

    /// Takes it back: from now on, whoever waits waits for the next time.
    ///
    /// # Errors
    ///
    /// As for [`set`](Self::set).
    ///
    /// # Cancel safety
    ///
    /// If it is dropped before it resolves, the event may be cleared or not.
    pub async fn clear(&self) -> Result<(), SyncError> {
        done(self.holder.ask(Request::Set(false)).await)
    }

    /// As [`clear`](Self::clear), on this thread, which it blocks; not for async code.
    ///
    /// # Errors
    ///
    /// As for [`set`](Self::set).
    pub fn blocking_clear(&self) -> Result<(), SyncError> {
        done(self.holder.blocking_ask(Request::Set(false)))
    }

    /// Waits until it is set; at once if it is.
    ///
    /// # Errors
    ///
    /// As for [`set`](Self::set).
    ///
    /// # Cancel safety
    ///
    /// Dropping it changes nothing.
    pub async fn wait(&self) -> Result<(), SyncError> {
        done(self.holder.ask(Request::Wait).await)
    }

    /// As [`wait`](Self::wait), on this thread, which it blocks; not for async code.
    ///
    /// # Errors
    ///
    /// As for [`set`](Self::set).
    pub fn blocking_wait(&self) -> Result<(), SyncError> {
        done(self.holder.blocking_ask(Request::Wait))
    }

    /// Whether it is set.
    ///
    /// # Errors
    ///
    /// As for [`set`](Self::set).
    ///
    /// # Cancel safety
    ///
    /// Dropping it changes nothing.
    pub async fn is_set(&self) -> Result<bool, SyncError> {
        Ok(self.holder.ask(Request::Look).await?)
    }
}

fn done(answer: Result<bool, CallError>) -> Result<(), SyncError> {
    answer?;
    Ok(())
}

#[derive(Serialize, Deserialize)]
enum Request {
    Set(bool),
    Wait,
    Look,
}

/// How the event stands. Who waits must be told also if it is cleared before they look.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    set: bool,
    /// How often it was set.
    times: u64,
}

struct Bell(Arc<watch::Sender<State>>);

impl Desk for Bell {
    type Role = ();
    type Request = Request;
    type Told = ();
    type Answer = bool;
    type Shared = watch::Sender<State>;

    fn open(shared: &Arc<Self::Shared>, (): ()) -> Self {
        Self(Arc::clone(shared))
    }

    fn hear(&self, (): ()) {}

    async fn handle(self: &Arc<Self>, request: Request) -> bool {
        match request {
            Request::Set(set) => {
                self.0.send_modify(|state| {
                    state.set = set;
                    state.times += u64::from(set);
                });
                set
            }
            Request::Wait => {
                let mut changes = self.0.subscribe();
                let before = changes.borrow().times;
                changes.wait_for(|state| state.set || state.times > before).await.is_ok()
            }
            Request::Look => self.0.borrow().set,
        }
    }
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.holder.serialize((), serializer)
    }
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { holder: Arc::new(Holder::deserialize(deserializer)?) })
    }
}
