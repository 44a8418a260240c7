//! Seeing a child's end in the runtime of who waits for it, a thread sooner than by the keeper. What follows from it is the
//! same, and in `kept`.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::Interest;
use tokio::runtime::Handle;

use super::{Exit, Kept, Seen, keeper};
use crate::sys::process;

/// How many watch a child.
#[derive(Default)]
pub(in crate::process) struct Count(AtomicUsize);

impl Kept {
    /// As [`exited`](Self::exited), for who waits for nothing else: this runtime watches, too, which spares the way over the
    /// keeper's thread.
    ///
    /// # Panics
    ///
    /// In a tokio runtime without I/O.
    ///
    /// # Cancel safety
    ///
    /// As `exited`: the keeper sees the end in any case.
    pub(crate) async fn exited_watched(&self) -> Exit {
        let mut exited = std::pin::pin!(self.exited());
        tokio::select! {
            biased;
            exit = &mut exited => exit,
            () = self.watch() => exited.await,
        }
    }

    /// Looks at it now, and when its pidfd says that it has ended. Gives up where it can't be watched.
    async fn watch(&self) {
        // By the time that its pipes have ended, it mostly has, too.
        if self.look_for_keeper() != Seen::Running || Handle::try_current().is_err() {
            return;
        }
        let Some(pidfd) = self.pidfd() else { return };
        // Refused where somebody watches it in this runtime already, who will look.
        let Ok(pidfd) = process::register(pidfd, Interest::READABLE) else { return };
        let _watcher = self.watcher();
        if pidfd.readable().await.is_ok() {
            self.look_for_keeper();
        }
    }

    fn look_for_keeper(&self) -> Seen {
        let seen = self.look();
        if seen == Seen::Reaped {
            keeper::forget(self.0.key);
        }
        seen
    }

    /// For who is about to look, but has more to wait for: until it is dropped the keeper leaves the end to him, as above.
    pub(in crate::process) fn watcher(&self) -> Watcher<'_> {
        Watcher::new(&self.0.watchers)
    }

    /// Whether somebody beside the keeper watches it, and most probably looks when it ends.
    pub(in crate::process) fn is_watched(&self) -> bool {
        self.0.watchers.0.load(Ordering::Relaxed) > 0
    }
}

/// One who watches, until it is dropped.
#[must_use]
pub(in crate::process) struct Watcher<'a>(&'a Count);

impl<'a> Watcher<'a> {
    fn new(watchers: &'a Count) -> Self {
        watchers.0.fetch_add(1, Ordering::Relaxed);
        Self(watchers)
    }
}

impl Drop for Watcher<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
