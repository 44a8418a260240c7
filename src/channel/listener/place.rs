//! A socket's place in the file system: made so that nobody else can put something there, and given back.

use std::ffi::{OsStr, OsString};
use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::home::Home;
use crate::sys::rendezvous::{self, Directory, Entry, Lock};

/// How long to wait for somebody else who is binding to the same name, which takes well under a millisecond.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long to wait for that before a name is left there, which the next one replaces that binds to it.
const LITTLE_PATIENCE: Duration = Duration::from_millis(10);

/// A name that a socket of ours has. Dropping it removes the name, unless it is somebody else's by now.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    dir: Directory,
    name: OsString,
    entry: Entry,
    /// Who made it: in a forked copy of that process it is not to be removed.
    home: Home,
}

/// A path's directory and the name in it.
pub(super) fn split(path: &Path) -> io::Result<(&Path, &OsStr)> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, format!("{} is no path of a socket", path.display()));
    let name = path.file_name().ok_or_else(invalid)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((dir, name))
}

impl Place {
    /// Binds a socket to a path and listens. `shared` lets other users reach it.
    pub(super) fn take(path: &Path, shared: bool) -> io::Result<(Self, OwnedFd)> {
        let (dir_path, name) = split(path)?;
        let dir = open_or_make(dir_path)?;
        check(&dir, dir_path, shared)?;
        // Between a look at a stale socket and its replacement nobody else may do the same, nor before it is listened to.
        let lock = lock(&dir, name, PATIENCE).map_err(|error| {
            io::Error::new(error.kind(), format!("lock in directory {}: {error}", dir_path.display()))
        })?;
        let bound =
            bind(&dir, name, path).and_then(|socket| Ok((dir.entry(name)?, listen(&dir, name, shared, socket)?)));
        drop(lock);
        let (entry, socket) = bound?;
        Ok((Self { path: path.to_owned(), dir, name: name.to_owned(), entry, home: Home::here() }, socket))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Between the look and the removal nobody else may put theirs in its place.
        if !self.home.is_elsewhere()
            && let Ok(_lock) = lock(&self.dir, &self.name, LITTLE_PATIENCE)
            && self.dir.entry(&self.name).is_ok_and(|entry| entry == self.entry)
        {
            let _ = self.dir.remove(&self.name);
        }
    }
}

fn open_or_make(path: &Path) -> io::Result<Directory> {
    let opened = match Directory::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match DirBuilder::new().mode(0o700).create(path) {
                // Somebody was faster.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                made => made,
            }
            .and_then(|()| Directory::open(path))
        }
        opened => opened,
    };
    opened.map_err(|error| io::Error::new(error.kind(), format!("directory {}: {error}", path.display())))
}

/// Whoever can write to the directory can put a socket of their own in our place.
fn check(dir: &Directory, path: &Path, shared: bool) -> io::Result<()> {
    let (owner, mode) = dir.owner_and_mode()?;
    let (closed, wanted) = if shared { (0o022, "write to it") } else { (0o077, "use it, as with mode 0700") };
    let why = if owner != rendezvous::own_user() {
        format!("directory {} belongs to another user", path.display())
    } else if mode & closed != 0 {
        format!("directory {} has mode {mode:04o}: others must not be able to {wanted}", path.display())
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

/// Binds, in the place of a socket to which nobody listens any more if there is one.
fn bind(dir: &Directory, name: &OsStr, path: &Path) -> io::Result<OwnedFd> {
    let taken = |kind, what| Err(io::Error::new(kind, format!("{}: {what}", path.display())));
    match dir.bind(name) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
        bound => return bound,
    }
    if !dir.entry(name)?.is_socket {
        return taken(io::ErrorKind::AlreadyExists, "there is something else than a socket");
    }
    match dir.connect(name) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        // Somebody takes connections, or has too many of them.
        Ok(_) => return taken(io::ErrorKind::AddrInUse, "somebody listens there"),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            return taken(io::ErrorKind::AddrInUse, "somebody listens there");
        }
        Err(error) => return Err(error),
    }
    dir.remove(name)?;
    dir.bind(name)
}

fn listen(dir: &Directory, name: &OsStr, shared: bool, socket: OwnedFd) -> io::Result<OwnedFd> {
    let listening = if shared { dir.open_to_all(name) } else { Ok(()) }.and_then(|()| rendezvous::listen(&socket));
    if listening.is_err() {
        let _ = dir.remove(name);
    }
    listening.map(|()| socket)
}

fn lock<'a>(dir: &'a Directory, name: &OsStr, patience: Duration) -> io::Result<Lock<'a>> {
    let until = Instant::now() + patience;
    loop {
        match dir.try_lock(name) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                thread::sleep(Duration::from_millis(1));
            }
            locked => return locked,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::first;

    /// It was taken for the original, as it has the number of that one, and removed the name.
    #[test]
    fn a_copy_with_the_number_of_its_original_leaves_the_name() {
        if !first::is_first_process() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (place, _socket) = Place::take(&dir.path().join("mine/socket"), false).unwrap();
        let path = place.path().to_owned();
        let mut place = Some(place);
        assert!(first::holds_in_a_namesake(|| {
            drop(place.take());
            path.exists()
        }));
        drop(place);
        assert!(!path.exists());
    }
}
