//! The folder on disk: the only place with system calls, and the reason why none leaves it.
//!
//! Every name is one component that larder made, opened relative to a folder that is open already and never
//! through a link (`openat` with `O_NOFOLLOW`): whatever is swapped for a link meanwhile is refused by the
//! kernel, and nothing is checked first and used later. What is opened must be a regular file of the same
//! owner. Entries are written in this process's folder under `tmp`, which it holds open and locked, and moved
//! into place whole.

use super::entry::{self, HEAD_BYTES_MAX, HEAD_BYTES_USUAL, Head, Place, Refused};
use super::fault::{Faults, Guard, NAME, damaged, to_error};
use crate::backend::Durability;
use crate::error::{Error, ErrorKind, Result};
use bytes::Bytes;
use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

const FILE_MODE: Mode = Mode::from_raw_mode(0o600);
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o700);
const TEMP: &str = "tmp";
const QUARANTINE: &str = "quarantine";
/// Files kept in quarantine; the oldest go first.
const QUARANTINED_MAX: usize = 16;
/// Largest wall clock second that every file system keeps: a time in 2106.
const SECONDS_MAX: u64 = u32::MAX as u64;
/// The block that a file's length is rounded up to when disk use is counted.
const BLOCK_BYTES: u64 = 4096;
/// How often a folder for unfinished files is made before giving up.
const SESSION_TRIES: usize = 16;
/// Longest pause between two tries for the lock: about what a commit takes.
const LOCK_PAUSE_MAX: Duration = Duration::from_millis(1);

/// The 256 folders of entries.
pub(super) const SHARDS: usize = 256;

#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    root: File,
    /// The folder of this process's unfinished files.
    session: RwLock<Option<Arc<Session>>>,
    /// Whether there were entries, or folders for them, when it was opened.
    pub(super) had_entries: bool,
    next_temp: AtomicU64,
    pub(super) durability: Durability,
    pub(super) faults: Faults,
    owner: u32,
}

/// A folder under `tmp`, locked as long as it is open.
#[derive(Debug)]
struct Session {
    folder: File,
    name: String,
}

/// A file that was found in place.
pub(super) struct Found {
    pub(super) file: File,
    pub(super) bytes: u64,
    /// When it was last used, as far as its time says.
    pub(super) used_ms: u64,
    pub(super) inode: u64,
}

/// What a file of this length takes on disk.
pub(super) fn disk_bytes(length: u64) -> u64 {
    length.div_ceil(BLOCK_BYTES).max(1).saturating_mul(BLOCK_BYTES)
}

/// A file that waits to be moved into its place; gone when it is dropped before.
pub(super) struct Staged<'f> {
    folder: &'f Folder,
    session: Arc<Session>,
    name: Option<String>,
    pub(super) bytes: u64,
}

/// The folder's lock, until it is dropped.
pub(super) struct FolderLock<'f>(&'f File);

impl Folder {
    /// Opens the folder, or makes it.
    pub(super) fn open(path: &Path, durability: Durability) -> Result<Folder> {
        let refuse = |kind, message: String| Err(Error::new(kind, "open").backend(NAME).message(message));
        let opened = |error: io::Error| match error.kind() {
            io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
                Error::new(ErrorKind::Config, "open")
                    .backend(NAME)
                    .message(format!("{} is not a folder", path.display()))
            }
            _ => to_error("open", error).message(path.display().to_string()),
        };
        make_private(path).map_err(opened)?;
        // The path is the operator's, who may have put a link there; from here on nothing is followed.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| opened(error.into()))?;
        let root = File::from(root);
        let owner = rustix::process::geteuid().as_raw();
        let state = rustix::fs::fstat(&root).map_err(|error| opened(error.into()))?;
        if state.st_uid != owner {
            return refuse(
                ErrorKind::Authentication,
                format!("{} belongs to user {}; larder runs as {owner}", path.display(), state.st_uid),
            );
        }
        let mut folder = Folder {
            session: RwLock::new(None),
            had_entries: false,
            next_temp: AtomicU64::new(0),
            path: path.to_owned(),
            root,
            durability,
            faults: Default::default(),
            owner,
        };
        let names = folder.names_in(&folder.root).map_err(opened)?;
        let is_ours = |name: &String| {
            name == TEMP
                || name == QUARANTINE
                || name == "fences"
                || name.starts_with("marks-")
                || u8::from_str_radix(name, 16).is_ok_and(|shard| *name == shard_name(shard))
        };
        if let Some(strange) = names.iter().find(|name| !is_ours(name)) {
            return refuse(
                ErrorKind::Config,
                format!("{} holds \"{strange}\"; give larder a folder of its own", path.display()),
            );
        }
        folder.had_entries = names.iter().any(|name| name.len() == 2);
        if state.st_mode & 0o077 != 0 {
            folder.io(|| rustix::fs::fchmod(&folder.root, FOLDER_MODE)).map_err(opened)?;
        }
        for name in [TEMP, QUARANTINE] {
            folder.make(&folder.root, name).map_err(opened)?;
        }
        folder.begin_session().map_err(opened)?;
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the folder for this open file description alone, waiting its turn among all processes until
    /// `deadline`. By asking again and again, because a wait in the kernel can't be ended.
    pub(super) fn lock(&self, deadline: Instant) -> io::Result<FolderLock<'_>> {
        let mut pause = Duration::from_micros(20);
        loop {
            match self.io(|| rustix::fs::flock(&self.root, FlockOperation::NonBlockingLockExclusive)) {
                Ok(()) => return Ok(FolderLock(&self.root)),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Err(_) if Instant::now() >= deadline => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "another process holds the folder's lock",
                    ));
                }
                Err(_) => std::thread::sleep(pause),
            }
            pause = (pause * 2).min(LOCK_PAUSE_MAX);
        }
    }

    /// Opens a file of the root, to be read and written in place.
    pub(super) fn open_state(&self, name: &str) -> io::Result<Option<File>> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match self.io(|| rustix::fs::openat(&self.root, name, flags, Mode::empty())) {
            Ok(file) => File::from(file),
            Err(error) if is_no_file(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let state = self.io(|| rustix::fs::fstat(&file))?;
        // A second name might be outside of the root: it would be written to, too.
        let is_ours = FileType::from_raw_mode(state.st_mode) == FileType::RegularFile
            && state.st_uid == self.owner
            && state.st_nlink == 1;
        Ok(is_ours.then_some(file))
    }

    /// The identity of a name in the root.
    pub(super) fn inode(&self, name: &str) -> io::Result<Option<u64>> {
        match self.io(|| rustix::fs::statat(&self.root, name, AtFlags::SYMLINK_NOFOLLOW)) {
            Ok(state) => Ok(Some(state.st_ino)),
            Err(error) if is_no_file(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a file whole and moves it to a name in the root; `fill` is told its inode.
    pub(super) fn replace_state(&self, name: &str, fill: impl FnOnce(u64) -> Vec<u8>) -> io::Result<File> {
        let (file, mut staged) = self.create_temp()?;
        let state = self.io(|| rustix::fs::fstat(&file))?;
        self.write_at(&file, &fill(state.st_ino), 0)?;
        self.sync(&file)?;
        self.clear_way(&self.root, name)?;
        staged.move_to(&self.root, name)?;
        self.sync(&self.root)?;
        Ok(file)
    }

    pub(super) fn remove_state(&self, name: &str) {
        // Left behind it is dead weight; the next opening finds it again.
        drop(self.io(|| rustix::fs::unlinkat(&self.root, name, AtFlags::empty())));
    }

    pub(super) fn state_names(&self) -> io::Result<Vec<String>> {
        self.names_in(&self.root)
    }

    pub(super) fn read_at(&self, file: &File, into: &mut [u8], at: u64) -> io::Result<()> {
        self.faults.step()?;
        file.read_exact_at(into, at)
    }

    pub(super) fn write_at(&self, file: &File, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            let part = &bytes[..self.faults.cap(bytes.len())];
            self.faults.step()?;
            match file.write_at(part, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => (bytes, at) = (&bytes[written..], at + written as u64),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes what was written to a file or folder survive a power loss, where that was asked for.
    pub(super) fn sync(&self, file: &File) -> io::Result<()> {
        if self.durability == Durability::Process {
            return Ok(());
        }
        self.sync_always(file)
    }

    pub(super) fn sync_always(&self, file: &File) -> io::Result<()> {
        self.faults.step()?;
        file.sync_all()
    }

    /// Syncs a folder of entries.
    pub(super) fn sync_shard(&self, shard: u8) -> io::Result<()> {
        if self.durability == Durability::Process {
            return Ok(());
        }
        self.shard(shard)?.map_or(Ok(()), |folder| self.sync_always(&folder))
    }

    /// Writes all that this file system holds to the disk.
    pub(super) fn sync_everything(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        return self.io(|| rustix::fs::syncfs(&self.root));
        #[cfg(not(target_os = "linux"))]
        {
            self.faults.step()?;
            rustix::fs::sync();
            Ok(())
        }
    }

    /// Writes an entry's file next to its place, synced where that was asked for.
    pub(super) fn stage(&self, head: &[u8], body: &[u8], wall_ms: u64) -> io::Result<Staged<'_>> {
        let (file, mut staged) = self.create_temp()?;
        self.write_at(&file, head, 0)?;
        self.write_at(&file, body, head.len() as u64)?;
        self.set_used(&file, wall_ms)?;
        self.sync(&file)?;
        staged.bytes = (head.len() + body.len()) as u64;
        Ok(staged)
    }

    /// Moves a staged file into its place, over what is there.
    pub(super) fn publish(&self, staged: &mut Staged<'_>, place: &Place) -> io::Result<()> {
        let shard = match self.shard(place.shard)? {
            Some(shard) => shard,
            None => {
                let name = shard_name(place.shard);
                self.clear_way(&self.root, &name)?;
                let shard = self.make(&self.root, &name)?;
                self.sync(&self.root)?;
                shard
            }
        };
        match staged.move_to(&shard, &place.name) {
            // A folder is in the way, which larder never made: an empty one is removed.
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                self.io(|| rustix::fs::unlinkat(&shard, &*place.name, AtFlags::REMOVEDIR))?;
                staged.move_to(&shard, &place.name)
            }
            moved => moved,
        }
    }

    /// Opens the file at a place. `None` when there is none, or none that larder would have written.
    pub(super) fn find(&self, place: &Place) -> io::Result<Option<Found>> {
        let Some(shard) = self.shard(place.shard)? else { return Ok(None) };
        self.find_in(&shard, &place.name)
    }

    pub(super) fn find_in(&self, shard: &File, name: &str) -> io::Result<Option<Found>> {
        // Not blocking: a pipe in the place of a file would be waited for.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match self.io(|| rustix::fs::openat(shard, name, flags, Mode::empty())) {
            Ok(file) => File::from(file),
            Err(error) if is_no_file(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let state = self.io(|| rustix::fs::fstat(&file))?;
        if FileType::from_raw_mode(state.st_mode) != FileType::RegularFile || state.st_uid != self.owner {
            return Ok(None);
        }
        #[allow(clippy::unnecessary_cast, reason = "the types differ between systems")]
        let (seconds, nanos) = (state.st_mtime as u64, state.st_mtime_nsec as u64);
        let used_ms = seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000);
        Ok(Some(Found { file, bytes: state.st_size as u64, used_ms, inode: state.st_ino }))
    }

    /// Reads the head of a file; `None` when it is damaged or its length is not what it says.
    pub(super) fn head(&self, found: &Found) -> io::Result<Option<Head>> {
        let mut length = HEAD_BYTES_USUAL;
        loop {
            let mut bytes = Vec::with_capacity(length.min(HEAD_BYTES_MAX));
            self.faults.step()?;
            let mut from_start = &found.file;
            io::Seek::rewind(&mut from_start)?;
            from_start.take(length as u64).read_to_end(&mut bytes)?;
            match Head::decode(&bytes) {
                Ok(head) => return Ok((head.file_bytes() == found.bytes).then_some(head)),
                Err(Refused::TooShort(needed)) if needed > length && bytes.len() == length => length = needed,
                Err(_) => return Ok(None),
            }
        }
    }

    /// Reads a whole file; `None` when it is damaged, or longer than allowed.
    pub(super) fn read(&self, found: &Found, bytes_max: u64) -> io::Result<Option<(Head, Bytes)>> {
        if found.bytes > bytes_max.saturating_add(HEAD_BYTES_MAX as u64) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        // The length is the disk's word, and memory may be short.
        if bytes.try_reserve_exact(found.bytes as usize).is_err() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.faults.step()?;
        (&found.file).take(found.bytes).read_to_end(&mut bytes)?;
        Ok(entry::decode(if self.faults.holds(Guard::Sum) { bytes } else { entry::reseal(bytes) }))
    }

    /// Notes a use. Best effort: an order of eviction that lags is no failure.
    pub(super) fn touch(&self, found: &Found, wall_ms: u64) {
        drop(self.set_used(&found.file, wall_ms));
    }

    /// Deletes the file at a place; whether there was one.
    pub(super) fn remove(&self, place: &Place) -> io::Result<bool> {
        let Some(shard) = self.shard(place.shard)? else { return Ok(false) };
        match self.io(|| rustix::fs::unlinkat(&shard, &*place.name, AtFlags::empty())) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            // Linux says EISDIR, POSIX EPERM: a folder is no entry.
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Moves the file at a place into quarantine.
    pub(super) fn set_aside(&self, place: &Place, wall_ms: u64, why: &str) -> io::Result<()> {
        let Some(shard) = self.shard(place.shard)? else { return Ok(()) };
        let quarantine = self.make(&self.root, QUARANTINE)?;
        let mut names = self.names_in(&quarantine)?;
        names.sort();
        let excess = (names.len() + 1).saturating_sub(QUARANTINED_MAX);
        for name in &names[..excess] {
            self.io(|| rustix::fs::unlinkat(&quarantine, &**name, AtFlags::empty()))?;
        }
        let why: String = why.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(40).collect();
        let target = format!("{wall_ms:020}-{why}-{}", place.name);
        self.io(|| rustix::fs::renameat(&shard, &*place.name, &quarantine, &*target))
    }

    /// The places of a folder of entries, in order.
    pub(super) fn places(&self, shard: u8) -> io::Result<Vec<Place>> {
        let Some(folder) = self.shard(shard)? else { return Ok(Vec::new()) };
        let names = self.names_in(&folder)?;
        let mut places: Vec<Place> = names.iter().filter_map(|name| Place::parse(shard, name)).collect();
        places.sort_unstable();
        Ok(places)
    }

    /// Opens a folder of entries; `None` when there is none, whatever has its name.
    pub(super) fn shard(&self, shard: u8) -> io::Result<Option<File>> {
        match self.open_folder(&self.root, &shard_name(shard)) {
            Ok(folder) => Ok(Some(folder)),
            Err(error) if is_no_file(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes what processes that are gone have left under `tmp`.
    pub(super) fn remove_orphans(&self) -> io::Result<()> {
        let temps = self.open_folder(&self.root, TEMP)?;
        for name in self.names_in(&temps)? {
            let Ok(orphan) = self.open_folder(&temps, &name) else {
                drop(self.io(|| rustix::fs::unlinkat(&temps, &*name, AtFlags::empty())));
                continue;
            };
            if self.io(|| rustix::fs::flock(&orphan, FlockOperation::NonBlockingLockExclusive)).is_err() {
                continue;
            }
            for file in self.names_in(&orphan)? {
                drop(self.io(|| rustix::fs::unlinkat(&orphan, &*file, AtFlags::empty())));
            }
            drop(self.io(|| rustix::fs::unlinkat(&temps, &*name, AtFlags::REMOVEDIR)));
        }
        Ok(())
    }

    /// Whether this process alone evicts: held until the file is dropped.
    pub(super) fn try_evictor(&self) -> Option<File> {
        let folder = self.open_folder(&self.root, QUARANTINE).ok()?;
        self.io(|| rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive)).ok()?;
        Some(folder)
    }

    /// Makes a folder for unfinished files and locks it. Somebody who removes orphans may have come in between:
    /// then it makes another.
    fn begin_session(&self) -> io::Result<Arc<Session>> {
        let temps = self.make(&self.root, TEMP)?;
        for _ in 0..SESSION_TRIES {
            let name = format!("{:016x}", fastrand::u64(..));
            let folder = self.make(&temps, &name)?;
            if self.io(|| rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive)).is_err() {
                continue;
            }
            if self.io(|| rustix::fs::fstat(&folder))?.st_nlink > 0 {
                let session = Arc::new(Session { folder, name });
                *self.session.write().unwrap_or_else(PoisonError::into_inner) = Some(session.clone());
                return Ok(session);
            }
        }
        Err(io::Error::other("somebody deletes the folder of unfinished files again and again"))
    }

    fn create_temp(&self) -> io::Result<(File, Staged<'_>)> {
        let name = self.next_temp.fetch_add(1, Relaxed).to_string();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let known = self.session.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut session = known.map_or_else(|| self.begin_session(), Ok)?;
        let create = |session: &Session| {
            self.io(|| rustix::fs::openat(&session.folder, &*name, flags, FILE_MODE)).map(File::from)
        };
        let file = match create(&session) {
            // The folder was deleted under us.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                session = self.begin_session()?;
                create(&session)?
            }
            created => created?,
        };
        Ok((file, Staged { folder: self, session, name: Some(name), bytes: 0 }))
    }

    fn set_used(&self, file: &File, wall_ms: u64) -> io::Result<()> {
        let at = Timespec {
            tv_sec: (wall_ms / 1000).min(SECONDS_MAX) as i64,
            tv_nsec: (wall_ms % 1000 * 1_000_000) as _,
        };
        self.io(|| rustix::fs::futimens(file, &Timestamps { last_access: at, last_modification: at }))
    }

    /// Opens a folder, or makes it.
    fn make(&self, within: &File, name: &str) -> io::Result<File> {
        match self.open_folder(within, name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        match self.io(|| rustix::fs::mkdirat(within, name, FOLDER_MODE)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        self.open_folder(within, name)
    }

    fn open_folder(&self, within: &File, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = self.io(|| rustix::fs::openat(within, name, flags, Mode::empty()))?;
        Ok(File::from(folder))
    }

    /// Removes a link or file that has the name of what larder is about to make.
    fn clear_way(&self, within: &File, name: &str) -> io::Result<()> {
        let Ok(state) = self.io(|| rustix::fs::statat(within, name, AtFlags::SYMLINK_NOFOLLOW)) else {
            return Ok(());
        };
        let kind = FileType::from_raw_mode(state.st_mode);
        if kind == FileType::Symlink || (kind == FileType::RegularFile && name.len() == 2) {
            self.io(|| rustix::fs::unlinkat(within, name, AtFlags::empty()))?;
        }
        Ok(())
    }

    fn names_in(&self, folder: &File) -> io::Result<Vec<String>> {
        self.faults.step()?;
        let mut names = Vec::new();
        for found in Dir::read_from(folder)? {
            // A name that is no text is not one of larder's.
            if let Ok(name) = found?.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn io<T>(&self, call: impl Fn() -> rustix::io::Result<T>) -> io::Result<T> {
        self.faults.step()?;
        loop {
            match call() {
                Err(Errno::INTR) => {}
                done => return done.map_err(io::Error::from),
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let session = self.session.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(session), Ok(temps)) = (session, self.open_folder(&self.root, TEMP)) {
            let _ = rustix::fs::unlinkat(&temps, &*session.name, AtFlags::REMOVEDIR);
        }
    }
}

impl Staged<'_> {
    fn move_to(&mut self, folder: &File, name: &str) -> io::Result<()> {
        let Some(staged) = self.name.as_deref() else { return Err(damaged("moved twice")) };
        self.folder.io(|| rustix::fs::renameat(&self.session.folder, staged, folder, name))?;
        self.name = None;
        Ok(())
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = rustix::fs::unlinkat(&self.session.folder, &**name, AtFlags::empty());
        }
    }
}

impl Drop for FolderLock<'_> {
    fn drop(&mut self) {
        // Can't fail on an open folder; if it did, closing it would do the same.
        let _ = rustix::fs::flock(self.0, FlockOperation::Unlock);
    }
}

fn shard_name(shard: u8) -> String {
    format!("{shard:02x}")
}

/// Nothing is there, or a link, a socket, or a file in the place of a folder: nothing of larder's.
fn is_no_file(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || [Errno::LOOP, Errno::NOTDIR, Errno::NXIO, Errno::ISDIR]
            .iter()
            .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn make_private(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}
