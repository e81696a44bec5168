//! The data folder: who may open it, and where the server that has it listens.
//!
//! A server holds `server.lock` exclusively, so that two can't share a folder by accident and a dead one
//! leaves nothing to clean up. A command that opens the folder itself holds it shared, so that no server
//! starts meanwhile with a memory that doesn't know what the command changed.

use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A folder that this process may use, as long as the value lives.
#[derive(Debug)]
pub(crate) struct DataFolder {
    path: PathBuf,
    /// Released by the operating system when it is closed, also after a kill.
    _lock: File,
    is_servers: bool,
}

/// What a server tells about itself to commands on the same host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Announcement {
    pub(crate) pid: u32,
    pub(crate) address: SocketAddr,
}

/// Who uses a folder.
#[derive(Debug)]
pub(crate) enum Occupied {
    /// A server that said where it listens, or has not yet.
    Server(Option<Announcement>),
    /// It can't be opened at all.
    Failed(io::Error),
}

/// How long a server that starts waits for a command to finish, and a command for a server to say where
/// it listens.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 3000 });
const LOCK_FILE: &str = "server.lock";
const ANNOUNCEMENT_FILE: &str = "server.json";
const CONFIG_FILE: &str = "tiers.json";

/// Where the tiers of a folder are listed.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    config: PathBuf,
}

impl DataFolder {
    /// Takes a folder for a server, making it if it is missing.
    pub(crate) fn for_server(path: &Path) -> Result<Self, Occupied> {
        make_private(path).map_err(Occupied::Failed)?;
        let lock = open_lock(path).map_err(Occupied::Failed)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(Occupied::Failed(error)),
                Err(TryLockError::WouldBlock) => {}
            }
            // Commands share the lock and leave soon; a server doesn't. While it is a command that is in
            // the way, an announcement is only what a killed server left.
            match lock.try_lock_shared() {
                Ok(()) => lock.unlock().map_err(Occupied::Failed)?,
                Err(_) => {
                    if let Some(announcement) = announcement(path) {
                        return Err(Occupied::Server(Some(announcement)));
                    }
                }
            }
            if Instant::now() > deadline {
                return Err(Occupied::Server(None));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // Left behind by a server that was killed.
        let _ = std::fs::remove_file(path.join(ANNOUNCEMENT_FILE));
        Ok(DataFolder { path: path.to_owned(), _lock: lock, is_servers: true })
    }

    /// Takes a folder for a command, unless a server has it.
    pub(crate) fn for_command(path: &Path) -> Result<Self, Occupied> {
        if !path.is_dir() {
            let message = format!("there is no folder {}", path.display());
            return Err(Occupied::Failed(io::Error::new(io::ErrorKind::NotFound, message)));
        }
        let lock = open_lock(path).map_err(Occupied::Failed)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match lock.try_lock_shared() {
                Ok(()) => return Ok(DataFolder { path: path.to_owned(), _lock: lock, is_servers: false }),
                Err(TryLockError::Error(error)) => return Err(Occupied::Failed(error)),
                Err(TryLockError::WouldBlock) => {}
            }
            let announcement = announcement(path);
            if announcement.is_some() || Instant::now() > deadline {
                return Err(Occupied::Server(announcement));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Remembers which configuration lists the tiers that the folder is used with, so that commands use the
    /// same; without one, that its database is in it.
    pub(crate) fn remember_config(&self, config: Option<&Path>) -> io::Result<()> {
        let file = self.path.join(CONFIG_FILE);
        let Some(config) = config else {
            return match std::fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        };
        let draft = self.path.join("tiers.json.new");
        std::fs::write(&draft, serde_json::to_string(&Remembered { config: std::path::absolute(config)? })?)?;
        std::fs::rename(draft, file)
    }

    /// Says where this server listens.
    pub(crate) fn announce(&self, address: SocketAddr) -> io::Result<()> {
        let text = serde_json::to_string(&Announcement { pid: std::process::id(), address })?;
        // Renamed into place, so that nobody reads half of it.
        let draft = self.path.join("server.json.new");
        std::fs::write(&draft, text)?;
        std::fs::rename(draft, self.path.join(ANNOUNCEMENT_FILE))
    }
}

impl Drop for DataFolder {
    fn drop(&mut self) {
        if self.is_servers {
            let _ = std::fs::remove_file(self.path.join(ANNOUNCEMENT_FILE));
        }
    }
}

/// The configuration with the tiers that a folder was used with last.
pub(crate) fn config_of(folder: &Path) -> io::Result<Option<PathBuf>> {
    match std::fs::read(folder.join(CONFIG_FILE)) {
        Ok(text) => Ok(Some(serde_json::from_slice::<Remembered>(&text)?.config)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where the database of a folder is, if it has no tiers of its own.
pub(crate) fn database_in(folder: &Path) -> PathBuf {
    folder.join("larder.sqlite")
}

fn open_lock(folder: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(folder.join(LOCK_FILE))
}

fn announcement(folder: &Path) -> Option<Announcement> {
    let text = std::fs::read(folder.join(ANNOUNCEMENT_FILE)).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Makes the folder, readable by its owner only: it holds cached values.
fn make_private(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_excludes_servers_and_commands_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made");
        let server = DataFolder::for_server(&path).unwrap();
        server.announce(SocketAddr::from(([127, 0, 0, 1], 9))).unwrap();
        for taken in [DataFolder::for_server(&path), DataFolder::for_command(&path)] {
            let Err(Occupied::Server(Some(announcement))) = taken else { panic!("{taken:?}") };
            assert_eq!((announcement.pid, announcement.address.port()), (std::process::id(), 9));
        }
        drop(server);
        assert!(!path.join("server.json").exists());
        let commands = [DataFolder::for_command(&path).unwrap(), DataFolder::for_command(&path).unwrap()];
        // Left by a server that was killed: it must not be taken for the one in the way.
        std::fs::write(path.join("server.json"), r#"{"pid":1,"address":"127.0.0.1:9"}"#).unwrap();
        let waited = DataFolder::for_server(&path);
        assert!(matches!(waited, Err(Occupied::Server(None))), "{waited:?}");
        drop(commands);
        DataFolder::for_server(&path).unwrap();
    }
}
