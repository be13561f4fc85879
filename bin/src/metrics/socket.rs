//! The socket's file.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use thiserror::Error;

/// A listening socket. Its file is removed when this is dropped, if it is still this one.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file.
    file: (u64, u64),
}

/// Why there is no socket.
#[derive(Debug, Error)]
pub(crate) enum SocketError {
    #[error("cannot listen on {} for --metrics", path.display())]
    Bind { path: PathBuf, source: io::Error },
    #[error("{} is there already, and is no socket: remove it, or use another path for --metrics", .0.display())]
    NoSocket(PathBuf),
    #[error("{} is in use by another process: use another path for --metrics", .0.display())]
    InUse(PathBuf),
}

impl Socket {
    /// Listens at `path`. A file that a process has left there that is no more is replaced; nothing else is.
    pub(crate) fn bind(path: &Path) -> Result<Self, SocketError> {
        let error = |source| SocketError::Bind { path: path.to_owned(), source };
        let listener = match UnixListener::bind(path) {
            Err(problem) if problem.kind() == io::ErrorKind::AddrInUse => replace(path)?,
            result => result.map_err(error)?,
        };
        listener.set_nonblocking(true).map_err(error)?;
        let file = identity(path).map_err(error)?;
        Ok(Self { listener, path: path.to_owned(), file })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|file| file == self.file) {
            // If it cannot be removed, the next one replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Puts a socket where one is that nobody listens on. Both change places at once, so whoever comes at the
/// same time is not lost: what was there is looked at once more.
fn replace(path: &Path) -> Result<UnixListener, SocketError> {
    let error = |source| SocketError::Bind { path: path.to_owned(), source };
    check_stale(path, path)?;
    let mut beside = OsString::from(path);
    beside.push(format!(".{}", process::id()));
    let beside = PathBuf::from(beside);
    let listener = UnixListener::bind(&beside).map_err(error)?;
    let exchange =
        || renameat_with(CWD, &beside, CWD, path, RenameFlags::EXCHANGE).map_err(io::Error::from);
    let exchanged = exchange()
        .map_err(error)
        .and_then(|()| check_stale(&beside, path).inspect_err(|_| drop(exchange())));
    let removed = fs::remove_file(&beside);
    exchanged?;
    removed.map_err(error)?;
    Ok(listener)
}

/// That nobody listens on the socket at `at`, which is, or was, at `path`.
fn check_stale(at: &Path, path: &Path) -> Result<(), SocketError> {
    let error = |source| SocketError::Bind { path: path.to_owned(), source };
    let metadata = fs::symlink_metadata(at).map_err(error)?;
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NoSocket(path.to_owned()));
    }
    let address = SocketAddrUnix::new(at).map_err(|errno| error(errno.into()))?;
    // Not to wait for a process that takes no connection.
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    match connect(&socket.map_err(|errno| error(errno.into()))?, &address) {
        Err(Errno::CONNREFUSED) => Ok(()),
        _ => Err(SocketError::InUse(path.to_owned())),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_is_left_over_is_replaced_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics");
        let files = || fs::read_dir(folder.path()).unwrap().count();

        let first = Socket::bind(&path).unwrap();
        assert!(matches!(Socket::bind(&path), Err(SocketError::InUse(_))));
        // A full backlog is no reason to wait, or to take it for dead.
        let address = SocketAddrUnix::new(&path).unwrap();
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let clients: Vec<_> = (0..)
            .map(|_| socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap())
            .take_while(|client| connect(client, &address).is_ok())
            .collect();
        assert!(matches!(Socket::bind(&path), Err(SocketError::InUse(_))));
        drop(clients);
        drop(first);
        assert_eq!(files(), 0);

        drop(UnixListener::bind(&path).unwrap());
        assert_eq!(files(), 1, "left over");
        let second = Socket::bind(&path).unwrap();
        assert_eq!(files(), 1);
        assert!(matches!(Socket::bind(&path), Err(SocketError::InUse(_))));

        // Somebody else's by now: it stays.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        drop(second);
        assert!(matches!(Socket::bind(&path), Err(SocketError::NoSocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert!(matches!(
            Socket::bind(Path::new("/no/such/folder/x")),
            Err(SocketError::Bind { .. })
        ));
        assert_eq!(files(), 1);
    }
}
