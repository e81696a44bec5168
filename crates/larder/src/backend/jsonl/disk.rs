//! The one place where files are touched, so that a test can fail any step of it.

use crate::error::{Error, ErrorKind};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// The backend's name in errors and metrics.
pub(super) const NAME: &str = "jsonl";

/// A file as its name shows it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    /// Device and inode: another pair is another file.
    pub(super) id: (u64, u64),
    pub(super) bytes: u64,
}

impl From<fs::Metadata> for Stat {
    fn from(found: fs::Metadata) -> Self {
        Stat { id: (found.dev(), found.ino()), bytes: found.len() }
    }
}

/// A write that ended early.
pub(super) struct Torn {
    /// What arrived before the error.
    pub(super) written: usize,
    pub(super) error: io::Error,
}

/// What a test may switch off, to see that the promise depends on it. Always on in other builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guard {
    /// A line whose sum is wrong is none.
    Sum,
    /// A line that doesn't follow the last one says that something is missing.
    Chain,
    /// What could not be synced is not acknowledged.
    Sync,
    /// One writer of a shard at a time.
    Lock,
}

/// The system's files; in tests, with faults.
#[derive(Default)]
pub(super) struct Disk {
    #[cfg(test)]
    pub(super) faults: super::tests::Faults,
}

impl Disk {
    fn step(&self) -> io::Result<()> {
        #[cfg(test)]
        self.faults.step()?;
        Ok(())
    }

    #[inline(always)]
    #[allow(clippy::unused_self, reason = "the tests' version needs it")]
    pub(super) fn holds(&self, guard: Guard) -> bool {
        #[cfg(test)]
        return self.faults.holds(guard);
        #[cfg(not(test))]
        {
            let _ = guard;
            true
        }
    }

    pub(super) fn stat(&self, path: &Path) -> io::Result<Option<Stat>> {
        self.step()?;
        match fs::metadata(path) {
            Ok(found) => Ok(Some(found.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn open(&self, path: &Path) -> io::Result<(File, Stat)> {
        self.step()?;
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let stat = file.metadata()?.into();
        Ok((file, stat))
    }

    /// An empty file, readable by the owner only.
    pub(super) fn create(&self, path: &Path) -> io::Result<(File, Stat)> {
        self.step()?;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let stat = file.metadata()?.into();
        Ok((file, stat))
    }

    pub(super) fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        if path.is_dir() {
            return Ok(());
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    /// As many bytes as there are, at most the buffer's length.
    pub(super) fn read_at(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.step()?;
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    pub(super) fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> Result<(), Torn> {
        #[cfg(test)]
        self.faults.write(file, bytes, offset)?;
        let mut written = 0;
        while written < bytes.len() {
            match file.write_at(&bytes[written..], offset + written as u64) {
                Ok(0) => return Err(Torn { written, error: io::ErrorKind::WriteZero.into() }),
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Torn { written, error }),
            }
        }
        Ok(())
    }

    pub(super) fn truncate(&self, file: &File, bytes: u64) -> io::Result<()> {
        self.step()?;
        file.set_len(bytes)
    }

    pub(super) fn sync(&self, file: &File) -> io::Result<()> {
        #[cfg(test)]
        self.faults.sync()?;
        #[cfg(not(test))]
        self.step()?;
        file.sync_data()
    }

    /// Puts a file in the place of another, for good.
    pub(super) fn replace(&self, from: &Path, to: &Path, folder: &Path) -> io::Result<()> {
        self.step()?;
        fs::rename(from, to)?;
        self.step()?;
        File::open(folder)?.sync_all()
    }

    /// Waits its turn among all processes and backends, at most `wait_max`.
    pub(super) fn lock(&self, path: &Path, wait_max: Duration, op: &'static str) -> Result<File, Error> {
        let failed = |error| io_error(op, error);
        self.step().map_err(failed)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path).map_err(failed)?;
        let deadline = Instant::now() + wait_max;
        let mut pause = Duration::from_micros(50);
        loop {
            match file.try_lock() {
                _ if !self.holds(Guard::Lock) => return Ok(file),
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(io_error(op, error)),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    // Of different lengths, so that two that wait don't stay in step.
                    std::thread::sleep(pause.mul_f64(0.5 + fastrand::f64()));
                    pause = (pause * 2).min(Duration::from_millis(4));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::new(ErrorKind::Unavailable, op)
                        .backend(NAME)
                        .message("another process holds the lock of a shard for longer than busy_timeout"));
                }
            }
        }
    }
}

/// Larder's error for a file operation.
pub(super) fn io_error(operation: &'static str, error: io::Error) -> Error {
    use io::ErrorKind as Io;
    let kind = match error.kind() {
        Io::PermissionDenied => ErrorKind::Authentication,
        Io::ReadOnlyFilesystem => ErrorKind::ReadOnly,
        Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => ErrorKind::Full,
        Io::NotADirectory | Io::IsADirectory | Io::InvalidFilename => ErrorKind::Config,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, operation).backend(NAME).source(error)
}
