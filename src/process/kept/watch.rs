//! Seeing a child's end in the runtime of who waits for it, a thread sooner than by the keeper. What follows from it is the
//! same, and in `kept`.

use tokio::io::Interest;
use tokio::runtime::Handle;

use super::{Exit, Kept, Life, Seen, keeper};
use crate::sys::reactor::Registered;

impl Kept {
    /// As [`exited`](Self::exited), and this runtime watches, too: that spares the way over the keeper's thread, which leaves a
    /// child alone at first.
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

    /// Whether it has ended. For who can't wait until that is told: by this it is, and [`try_exit`](Self::try_exit) says how.
    pub(crate) fn learn_end(&self) -> bool {
        if self.try_exit().is_some() {
            return true;
        }
        if let Life::Lingering { told, .. } = &mut *self.life() {
            *told = true;
        }
        self.try_exit().is_some()
    }

    /// Looks at it now, and when its pidfd says that it has ended. Gives up where it can't be watched.
    async fn watch(&self) {
        // By the time that its pipes have ended, it mostly has, too.
        if self.look_now() != Seen::Running || Handle::try_current().is_err() {
            return;
        }
        let Some(pidfd) = self.pidfd() else { return };
        // Refused where somebody watches it in this runtime already, who will look.
        let Ok(pidfd) = Registered::new(pidfd, Interest::READABLE) else { return };
        if pidfd.readable().await.is_ok() {
            self.look_now();
        }
    }

    /// Takes the keeper's steps, as far as they are due. In a forked copy of this process it is nobody's child.
    pub(super) fn look_now(&self) -> Seen {
        if keeper::no_forked_copy().is_err() {
            return Seen::Running;
        }
        let seen = self.look();
        match seen {
            Seen::Running => {}
            Seen::Reaped => keeper::forget(self.0.key),
            // It alone waits for what becomes of that.
            Seen::Lingering | Seen::Outlived => keeper::look_at(self.0.key),
        }
        seen
    }
}
