//! The file on disk: how it is made, opened, recognised, and set aside when it is damaged or not larder's.
//!
//! Every opening and every setting aside happens under `NAME.lock`, which all processes take in turn. A
//! file that was replaced is noticed by its identity (device and inode) before each use, so that nobody
//! goes on reading, or writing to, a file that was moved away.
//!
//! The database file itself is only ever opened by SQLite: closing any other descriptor of it would drop
//! the locks that this process holds (POSIX).

use super::fault::{NAME, io_error, is_corrupt, to_error};
use super::quarantine;
use super::schema::{self, Kind};
use super::store::Known;
use crate::backend::quarantine::Summary;
use crate::backend::{Durability, boot_id};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use rusqlite::{Connection, OpenFlags};
use std::cell::Cell;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Largest file that is checked in full after an unclean end. `quick_check` reads every page: a third of a
/// second at this size. Damage in larger files is found when the damaged page is read.
const CHECKED_BYTES_MAX: u64 = 64 << 20;
/// Damaged files kept for an inspection; older ones are deleted.
const CORRUPT_KEPT: usize = 3;
/// Most incidents remembered.
const INCIDENTS_MAX: usize = 16;
/// Page cache of a connection, in KiB.
const CACHE_KIB: i64 = 8 * 1024;
/// The WAL file is cut back to this size when it restarts, in bytes.
const WAL_BYTES_KEPT: i64 = 64 << 20;

/// Something that happened to the file which an operator should know of.
#[derive(Clone, Debug)]
pub struct Incident {
    /// When, in wall clock milliseconds since 1970.
    pub wall_ms: u64,
    /// What was wrong.
    pub reason: String,
    /// Where the old file went; `None` when it stayed.
    pub moved_to: Option<PathBuf>,
}

impl fmt::Display for Incident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.moved_to {
            Some(path) => write!(f, "{}; set aside as {}, begun anew", self.reason, path.display()),
            None => f.write_str(&self.reason),
        }
    }
}

/// Device and inode, where the system has them.
type Identity = Option<(u64, u64)>;

/// A connection, and the file it was opened on.
pub(super) struct Conn {
    pub(super) db: Connection,
    /// What its readers need not read again while the file stays the same.
    pub(super) known: Cell<Option<Known>>,
    identity: Identity,
}

/// One path, as long as the backend lives.
pub(super) struct DataFile {
    path: PathBuf,
    durability: Durability,
    busy_timeout: Duration,
    clock: Clock,
    incidents: Mutex<Vec<Incident>>,
    quarantine: Mutex<Summary>,
}

impl DataFile {
    pub(super) fn new(path: PathBuf, durability: Durability, busy_timeout: Duration, clock: Clock) -> Self {
        let (incidents, quarantine) = Default::default();
        DataFile { path, durability, busy_timeout, clock, incidents, quarantine }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn incidents(&self) -> Vec<Incident> {
        self.incidents.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What there is to say of entries that failed authentication.
    pub(super) fn quarantine(&self) -> Option<String> {
        self.quarantine.lock().unwrap_or_else(PoisonError::into_inner).note()
    }

    pub(super) fn note_quarantine(&self, summary: Summary) {
        *self.quarantine.lock().unwrap_or_else(PoisonError::into_inner) = summary;
    }

    /// Opens the file for writing: makes it, checks it, brings it up to date; sets aside what is damaged
    /// or foreign and begins anew.
    pub(super) fn open_writer(&self) -> Result<Conn> {
        let _lock = self.lock()?;
        self.create()?;
        match self.open_checked() {
            Ok(Checked::Ready(conn)) => Ok(*conn),
            Ok(Checked::Foreign) => {
                self.set_aside("foreign", "it is a database of another program")?;
                self.reopen_after_set_aside()
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                self.set_aside("corrupt", &error.to_string())?;
                self.reopen_after_set_aside()
            }
            Err(error) => Err(error),
        }
    }

    /// Opens a connection that only reads, on a file that a writer has made or checked.
    pub(super) fn open_reader(&self) -> Result<Conn> {
        let is_there = fs::metadata(&self.path).is_ok_and(|file| file.len() > 0);
        if is_there && let Ok(conn) = self.connect_reader() {
            return Ok(conn);
        }
        drop(self.open_writer()?);
        self.connect_reader()
    }

    /// Opens a connection that never waits for a lock, and has read once: its files are open, and what it
    /// shares with others is mapped.
    pub(super) fn open_inline(&self) -> Result<Conn> {
        let conn = self.open_reader()?;
        conn.db
            .busy_timeout(Duration::ZERO)
            .and_then(|()| conn.db.query_row("SELECT pos FROM store", [], |_| Ok(())))
            .map_err(|error| to_error("open", error))?;
        Ok(conn)
    }

    fn connect_reader(&self) -> Result<Conn> {
        // Whoever makes or replaces the file holds the lock until its tables are there.
        let _lock = self.lock()?;
        let identity = identity(&self.path).map_err(|error| io_error("open", &self.path, error))?;
        // Not opened read-only: a WAL reader shares the index in memory, which it has to be able to make.
        let db = self.connect()?;
        db.pragma_update(None, "query_only", true).map_err(|error| to_error("open", error))?;
        Ok(Conn { db, known: Cell::new(None), identity })
    }

    /// Whether the path still names the file that `conn` has open.
    pub(super) fn is_current(&self, conn: &Conn) -> bool {
        identity(&self.path).is_ok_and(|now| now == conn.identity)
    }

    /// Moves the file of `conn` away because SQLite found it damaged, unless somebody did so before.
    pub(super) fn abandon(&self, conn: Conn, reason: &rusqlite::Error) -> Result<()> {
        let _lock = self.lock()?;
        let result =
            if self.is_current(&conn) { self.set_aside("corrupt", &reason.to_string()) } else { Ok(()) };
        // After the move: SQLite sees that its file has moved, and leaves the new WAL alone.
        drop(conn);
        result
    }

    /// Closes a connection under the lock: the last one deletes the WAL by name, which must not meet a
    /// file that is being replaced.
    pub(super) fn release(&self, conn: Conn) {
        let _lock = self.lock();
        drop(conn);
    }

    pub(super) fn incident(&self, reason: &str, moved_to: Option<PathBuf>) {
        let mut incidents = self.incidents.lock().unwrap_or_else(PoisonError::into_inner);
        if incidents.len() == INCIDENTS_MAX {
            incidents.remove(0);
        }
        incidents.push(Incident { wall_ms: self.clock.wall_ms(), reason: reason.to_owned(), moved_to });
    }

    fn reopen_after_set_aside(&self) -> Result<Conn> {
        self.create()?;
        match self.open_checked()? {
            Checked::Ready(conn) => Ok(*conn),
            Checked::Foreign => Err(unavailable("another program writes its database to this path")),
        }
    }

    /// Makes folder and file, readable by the owner only: values are private.
    fn create(&self) -> Result<()> {
        let failed = |error| io_error("open", &self.path, error);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        match fs::metadata(&self.path) {
            Ok(found) if found.is_dir() => {
                return Err(Error::new(ErrorKind::Config, "open")
                    .backend(NAME)
                    .message(format!("{} is a folder; give the path of a file in it", self.path.display())));
            }
            Ok(found) if found.len() > 0 => return Ok(()),
            // A WAL without its database belongs to a file that was set aside or deleted; SQLite would
            // replay it into the new one.
            Ok(_) => self.remove_orphans(),
            Err(_) => {
                self.remove_orphans();
                options.open(&self.path).map_err(failed)?;
            }
        }
        #[cfg(unix)]
        if let Some(folder) = folder_of(&self.path) {
            // The new name must survive a power loss, too.
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        }
        Ok(())
    }

    fn remove_orphans(&self) {
        for suffix in ["-wal", "-shm"] {
            // Missing is what it should be; anything else shows when SQLite opens it.
            drop(fs::remove_file(sibling(&self.path, suffix)));
        }
    }

    /// Under the lock.
    fn open_checked(&self) -> Result<Checked> {
        let failed = |error| to_error("open", error);
        let mut db = self.connect()?;
        if schema::inspect(&db, schema::STEPS)? == Kind::Foreign {
            return Ok(Checked::Foreign);
        }
        // From here on it is larder's, and may be changed. Without effect on a file that has tables.
        db.pragma_update(None, "auto_vacuum", "INCREMENTAL").map_err(failed)?;
        let mode: String = db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).map_err(failed)?;
        if mode != "wal" {
            return Err(Error::new(ErrorKind::ReadOnly, "open").backend(NAME).message(format!(
                "{} can't be switched to a write-ahead log: its folder is read-only, or its file system has \
                 no shared memory",
                self.path.display()
            )));
        }
        db.pragma_update(None, "synchronous", synchronous(self.durability)).map_err(failed)?;
        if self.durability == Durability::Power {
            // Only Apple's fsync leaves data in the drive's cache; elsewhere both are ignored.
            db.pragma_update(None, "fullfsync", true).map_err(failed)?;
            db.pragma_update(None, "checkpoint_fullfsync", true).map_err(failed)?;
        }
        let size = fs::metadata(&self.path).map_or(0, |file| file.len());
        if size <= CHECKED_BYTES_MAX && schema::was_closed(&db).map_err(failed)? == Some(false) {
            schema::check(&db).map_err(failed)?;
        }
        schema::migrate(&mut db, schema::STEPS).map_err(failed)?;
        if let Some(why) = schema::incarnate(&mut db, boot_id().as_deref()).map_err(failed)? {
            tracing::warn!(path = %self.path.display(), "{why}: the cache file starts empty");
            self.incident(why, None);
        }
        self.note_quarantine(quarantine::summary(&db).map_err(failed)?);
        let identity = identity(&self.path).map_err(|error| io_error("open", &self.path, error))?;
        Ok(Checked::Ready(Box::new(Conn { db, known: Cell::new(None), identity })))
    }

    fn connect(&self) -> Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let prepare = || {
            let db = Connection::open_with_flags(&self.path, flags)?;
            db.busy_timeout(self.busy_timeout)?;
            db.pragma_update(None, "trusted_schema", false)?;
            db.pragma_update(None, "foreign_keys", true)?;
            db.pragma_update(None, "cell_size_check", true)?;
            db.pragma_update(None, "cache_size", -CACHE_KIB)?;
            // SQLite answers with the new limit, so this one is a query.
            db.query_row(&format!("PRAGMA journal_size_limit = {WAL_BYTES_KEPT}"), [], |_| Ok(()))?;
            db.set_prepared_statement_cache_capacity(64);
            Ok(db)
        };
        prepare().map_err(|error: rusqlite::Error| {
            if is_corrupt(&error) {
                return to_error("open", error);
            }
            // SQLite says "unable to open"; the system says why.
            match fs::metadata(&self.path) {
                Err(cause) => io_error("open", &self.path, cause),
                Ok(_) => to_error("open", error),
            }
        })
    }

    /// Renames the database and its companions, database first: a crash in between leaves an orphaned WAL,
    /// which the next opening removes.
    fn set_aside(&self, suffix: &str, reason: &str) -> Result<()> {
        let seconds = self.clock.wall_ms() / 1000;
        let target = (0..)
            .map(|n| sibling(&self.path, &format!(".{suffix}-{seconds}-{n}")))
            .find(|target| !target.exists())
            .expect("an unused number exists");
        fs::rename(&self.path, &target).map_err(|error| io_error("open", &self.path, error))?;
        for companion in ["-wal", "-shm"] {
            drop(fs::rename(sibling(&self.path, companion), sibling(&target, companion)));
        }
        tracing::warn!(
            path = %self.path.display(), moved_to = %target.display(), reason,
            "the cache file was set aside; a new one starts empty"
        );
        self.incident(reason, Some(target));
        if suffix == "corrupt" {
            self.prune_corrupt();
        }
        Ok(())
    }

    /// Deletes the oldest damaged files. Never a foreign one: that is somebody's data.
    fn prune_corrupt(&self) {
        let Some(name) = self.path.file_name() else { return };
        let prefix = format!("{}.corrupt-", name.to_string_lossy());
        let Some(files) = folder_of(&self.path).and_then(|folder| fs::read_dir(folder).ok()) else { return };
        let mut found: Vec<((u64, u64), PathBuf)> = files
            .filter_map(|file| {
                let file = file.ok()?;
                let name = file.file_name().to_string_lossy().into_owned();
                let (seconds, n) = name.strip_prefix(&prefix)?.split_once('-')?;
                Some(((seconds.parse().ok()?, n.parse().ok()?), file.path()))
            })
            .collect();
        found.sort();
        let excess = found.len().saturating_sub(CORRUPT_KEPT);
        for (_, path) in found.into_iter().take(excess) {
            for suffix in ["", "-wal", "-shm"] {
                drop(fs::remove_file(sibling(&path, suffix)));
            }
        }
    }

    /// Waits its turn among all processes, at most the busy timeout.
    fn lock(&self) -> Result<File> {
        let path = sibling(&self.path, ".lock");
        if let Some(folder) = folder_of(&path) {
            create_folder(folder).map_err(|error| io_error("open", folder, error))?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(&path).map_err(|error| io_error("open", &path, error))?;
        let deadline = Instant::now() + self.busy_timeout;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(unavailable("another process holds the lock file for too long"));
                }
                // Some network file systems have no such locks; SQLite's own still hold.
                Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {
                    return Ok(file);
                }
                Err(TryLockError::Error(error)) => return Err(io_error("open", &path, error)),
            }
        }
    }
}

enum Checked {
    Ready(Box<Conn>),
    Foreign,
}

fn unavailable(message: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, "open").backend(NAME).message(message)
}

fn synchronous(durability: Durability) -> &'static str {
    match durability {
        Durability::Power => "FULL",
        Durability::Process => "NORMAL",
    }
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

fn folder_of(path: &Path) -> Option<&Path> {
    let folder = path.parent()?;
    Some(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
}

fn create_folder(folder: &Path) -> std::io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

#[cfg(unix)]
fn identity(path: &Path) -> std::io::Result<Identity> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).map(|file| Some((file.dev(), file.ino())))
}

/// Elsewhere an open file can't be replaced.
#[cfg(not(unix))]
fn identity(path: &Path) -> std::io::Result<Identity> {
    fs::metadata(path).map(|_| None)
}
