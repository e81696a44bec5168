//! The state that all processes on a folder share: its file ([`layout`]), its lock, and what is done when it
//! was lost.
//!
//! Only the holder of the folder's lock writes. It counts in this order: `next` (positions that may be in use
//! from now on), then fences, files and markers, then `pos`. A reader who has a ticket of `pos` therefore finds
//! nothing that a removal up to it deleted; and a holder who finds `next` beyond `pos` knows that the last one
//! was killed, and goes on from `next`. No position is handed out at or beyond `reserved`, which is synced
//! before: after a power loss, counting goes on from there, and never reuses a position.
//!
//! The header names the inode that it was written to. A file that was copied back from a backup has another
//! one: it may have forgotten removals, so a new incarnation begins, as it does for a damaged or missing file.

mod layout;

pub(super) use layout::{Amount, Header};

use super::fault::{Guard, NAME, damaged, to_error};
use super::folder::{Folder, FolderLock, SHARDS};
use super::marks::Replica;
use crate::backend::{Durability, boot_id};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::key::EntryKey;
use crate::l1::fence::Markers;
use layout::{Decoded, FILE_BYTES, HEADER_BYTES, RECORD_BYTES, STRIPES, STRIPES_AT, VERSION, encode_record};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64;

pub(super) const FENCES: &str = "fences";
/// Positions reserved at once: one sync for a million removals.
const RESERVED_AHEAD: u64 = 1 << 20;
/// How often a reader looks again at a header that is being written.
const TRIES: u32 = 20;
/// Most incidents remembered.
const INCIDENTS_MAX: usize = 16;

/// The file as this process has it open.
#[derive(Debug)]
struct Opened {
    file: File,
    inode: u64,
}

/// The shared state, as this process sees it.
#[derive(Debug)]
pub(super) struct Fence {
    pub(super) folder: Folder,
    pub(super) clock: Clock,
    busy_timeout: Duration,
    opened: RwLock<Option<Arc<Opened>>>,
    /// The folder's lock excludes processes; this one, the threads of this process.
    turn: Mutex<()>,
    /// The latest (inc, pos) that was read: a file that goes back was restored.
    latest: Mutex<(u64, u64)>,
    markers: RwLock<Replica>,
    /// A sync has failed: what the file holds may not be on the disk.
    must_rewrite: AtomicBool,
    boot: u64,
    incidents: Mutex<Vec<String>>,
}

impl Fence {
    /// Opens the shared state of a folder, or begins it.
    pub(super) fn open(folder: Folder, clock: Clock, busy_timeout: Duration) -> Result<Fence> {
        let boot = boot_id().map_or(0, |id| xxh3_64(id.as_bytes()) | 1);
        let fence = Fence {
            folder,
            clock,
            busy_timeout,
            opened: RwLock::new(None),
            turn: Mutex::new(()),
            latest: Mutex::new((0, 0)),
            markers: RwLock::default(),
            must_rewrite: AtomicBool::new(false),
            boot,
            incidents: Mutex::default(),
        };
        let mut locked = fence.lock("open")?;
        let opened = (|| {
            locked.after_boot()?;
            fence.folder.remove_orphans()?;
            let current = super::marks::name(locked.header.inc, locked.header.marks_gen);
            for name in fence.folder.state_names()? {
                if name.starts_with("marks-") && name != current {
                    fence.folder.remove_state(&name);
                }
            }
            Ok(())
        })();
        drop(locked);
        opened.map_err(|error| to_error("open", error))?;
        Ok(fence)
    }

    /// The header of now, without the lock.
    pub(super) fn snapshot(&self) -> Result<Header> {
        for attempt in 0..TRIES {
            if attempt > 3 {
                std::thread::sleep(Duration::from_micros(50));
            }
            match self.peek() {
                Ok(Some(Decoded::Sound(header))) => return Ok(header),
                Ok(Some(Decoded::Newer(_))) | Ok(None) => break,
                Ok(Some(Decoded::Damaged)) => {}
                Err(error) => return Err(to_error("get", error)),
            }
        }
        // Missing, replaced by hand, or damaged: whoever has the lock may decide.
        Ok(self.lock("get")?.header)
    }

    /// Judges by a header not older than `header`, and by its markers or later ones.
    pub(super) fn with_markers<T>(
        &self,
        mut header: Header,
        judge: impl Fn(&Header, &Markers) -> T,
    ) -> Result<T> {
        for _ in 0..TRIES {
            let replica = self.markers.read().unwrap_or_else(PoisonError::into_inner);
            if replica.covers(&header) {
                return Ok(judge(&header, replica.markers()));
            }
            drop(replica);
            let refreshed = {
                let mut replica = self.markers.write().unwrap_or_else(PoisonError::into_inner);
                if replica.covers(&header) { Ok(()) } else { replica.refresh(&self.folder, &header) }
            };
            match refreshed {
                Ok(()) => continue,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
                Err(error) => return Err(to_error("get", error)),
            }
            // The log was rewritten meanwhile, or it is damaged, which is for the lock's holder to find out.
            let mut locked = self.lock("get")?;
            match locked.check_markers() {
                Err(error) if error.kind() != io::ErrorKind::InvalidData => {
                    return Err(to_error("get", error));
                }
                _ => header = locked.header,
            }
        }
        Err(unavailable("get", "the markers can't be read"))
    }

    /// Waits its turn among all threads and processes, at most the busy timeout; then makes sure that the file
    /// is sound, or begins a new incarnation.
    pub(super) fn lock(&self, operation: &'static str) -> Result<Locked<'_>> {
        let deadline = Instant::now() + self.busy_timeout;
        let turn = loop {
            match self.turn.try_lock() {
                Ok(turn) => break turn,
                Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner(),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_micros(50));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(unavailable(operation, "this process holds the folder's lock for too long"));
                }
            }
        };
        let failed = |error| to_error(operation, error);
        let lock = self.folder.lock(deadline).map_err(failed)?;
        let (header, opened) = match self.peek().map_err(failed)? {
            Some(Decoded::Newer(version)) => {
                return Err(Error::new(ErrorKind::Config, operation).backend(NAME).message(format!(
                    "{} was written by a newer larder (layout {version}; this one knows {VERSION}). Upgrade, or \
                     give it another folder",
                    self.folder.path().display()
                )));
            }
            Some(Decoded::Sound(header)) => (header, self.opened().map_err(failed)?),
            Some(Decoded::Damaged) => self.begin_anew("the file of fences was damaged").map_err(failed)?,
            None => {
                let is_new = self.latest.lock().unwrap_or_else(PoisonError::into_inner).0 == 0
                    && !self.folder.had_entries
                    && self.folder.inode(FENCES).map_err(failed)?.is_none();
                let why = if is_new { "" } else { "the file of fences was removed, replaced or restored" };
                self.begin_anew(why).map_err(failed)?
            }
        };
        let mut locked = Locked {
            fence: self,
            written: header,
            header,
            opened,
            shards: BTreeMap::new(),
            _lock: lock,
            _turn: turn,
        };
        if locked.header.next > locked.header.pos {
            // The last holder was killed, or its disk failed.
            locked.header.pos = locked.header.next;
            locked.header.drifted = true;
        }
        Ok(locked)
    }

    pub(super) fn incidents(&self) -> Vec<String> {
        self.incidents.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes what was written survive a power loss, after the lock is given back.
    pub(super) fn sync(&self, opened: &SyncLater) -> io::Result<()> {
        self.folder.sync(&opened.0.file).inspect_err(|_| self.must_rewrite.store(true, Relaxed))
    }

    /// Reads the header. `None`: the file is missing, not the one that was open, or went back in time.
    fn peek(&self) -> io::Result<Option<Decoded>> {
        let latest = *self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(inode) = self.folder.inode(FENCES)? else { return Ok(None) };
        let known = self.opened.read().unwrap_or_else(PoisonError::into_inner).clone();
        let opened = match known {
            Some(opened) if opened.inode == inode => opened,
            _ => {
                let Some(file) = self.folder.open_state(FENCES)? else { return Ok(None) };
                let opened = Arc::new(Opened { file, inode });
                *self.opened.write().unwrap_or_else(PoisonError::into_inner) = Some(opened.clone());
                opened
            }
        };
        let mut bytes = [0; HEADER_BYTES];
        match self.folder.read_at(&opened.file, &mut bytes, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Some(Decoded::Damaged)),
            read => read?,
        }
        let decoded = Header::decode(&bytes);
        let Decoded::Sound(header) = decoded else { return Ok(Some(decoded)) };
        let is_its_own = header.inode == inode || !self.folder.faults.holds(Guard::Identity);
        if !is_its_own || (header.inc == latest.0 && header.pos < latest.1) {
            return Ok(None);
        }
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if header.inc != latest.0 || header.pos > latest.1 {
            *latest = (header.inc, header.pos);
        }
        Ok(Some(Decoded::Sound(header)))
    }

    fn opened(&self) -> io::Result<Arc<Opened>> {
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        opened.clone().ok_or_else(|| damaged("the file of fences is not open"))
    }

    /// With the lock held: a new, empty state takes the place of the old one, in one rename. Entries of the old
    /// incarnation are misses from then on, and their files are deleted in steps.
    fn begin_anew(&self, why: &str) -> io::Result<(Header, Arc<Opened>)> {
        let mut header = Header {
            inc: fastrand::u64(1..),
            pos: 1,
            next: 1,
            reserved: 1,
            boot: self.boot,
            inode: 0,
            marks_gen: 1,
            marks_base: 0,
            marks_end: 0,
            total: Amount::default(),
            last_stamp: None,
            unsynced: false,
            drifted: !why.is_empty(),
        };
        let file = self.folder.replace_state(FENCES, |inode| {
            header.inode = inode;
            let mut bytes = vec![0; FILE_BYTES as usize];
            bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
            for number in 0..STRIPES + SHARDS as u64 {
                let record = encode_record(header.inc, number, [0; 3]);
                bytes[(STRIPES_AT + number * RECORD_BYTES) as usize..][..record.len()]
                    .copy_from_slice(&record);
            }
            bytes
        })?;
        if !why.is_empty() {
            tracing::warn!(path = %self.folder.path().display(), "{why}: the cache folder starts empty");
            let mut incidents = self.incidents.lock().unwrap_or_else(PoisonError::into_inner);
            if incidents.len() == INCIDENTS_MAX {
                incidents.remove(0);
            }
            incidents.push(format!("{why}; begun anew"));
        }
        let opened = Arc::new(Opened { file, inode: header.inode });
        *self.opened.write().unwrap_or_else(PoisonError::into_inner) = Some(opened.clone());
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = (header.inc, header.pos);
        self.must_rewrite.store(false, Relaxed);
        Ok((header, opened))
    }
}

/// What has to be synced when the lock was given back.
pub(super) struct SyncLater(Arc<Opened>);

/// The shared state, for its one writer of the moment. What is not published when it is dropped is counted by
/// the next holder.
pub(super) struct Locked<'f> {
    pub(super) fence: &'f Fence,
    pub(super) header: Header,
    /// What the file says.
    written: Header,
    opened: Arc<Opened>,
    /// Amounts of the folders that changed.
    shards: BTreeMap<u8, Amount>,
    _lock: FolderLock<'f>,
    _turn: MutexGuard<'f, ()>,
}

/// The fence of a key: positions of the last removal and the last accepted set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Stripe {
    pub(super) removed: u64,
    pub(super) set: u64,
}

impl Locked<'_> {
    /// To be called before anything is changed: announces that up to `positions` will be used.
    pub(super) fn begin(&mut self, positions: u64) -> io::Result<()> {
        let folder = &self.fence.folder;
        if self.fence.must_rewrite.load(Relaxed) {
            let mut bytes = vec![0; FILE_BYTES as usize];
            folder.read_at(&self.opened.file, &mut bytes, 0)?;
            folder.write_at(&self.opened.file, &bytes, 0)?;
            folder.sync(&self.opened.file)?;
            self.fence.must_rewrite.store(false, Relaxed);
        }
        // At least one: whoever is killed before `publish` is noticed.
        self.header.next = self.header.pos.saturating_add(positions.max(1));
        let announces = folder.durability == Durability::Process && !self.header.unsynced;
        let reserves = self.header.next >= self.header.reserved;
        if reserves {
            self.header.reserved = self.header.next.saturating_add(RESERVED_AHEAD);
        }
        if announces {
            (self.header.unsynced, self.header.boot) = (true, self.fence.boot);
        }
        self.write()?;
        if announces || (reserves && folder.durability == Durability::Power) {
            folder.sync_always(&self.opened.file)?;
        }
        Ok(())
    }

    /// The next position. At most as many as were announced.
    pub(super) fn advance(&mut self) -> u64 {
        self.header.pos += 1;
        debug_assert!(self.header.pos <= self.header.next, "more positions than were announced");
        self.header.pos
    }

    pub(super) fn stripe(&mut self, key: &EntryKey) -> io::Result<Stripe> {
        let number = key.hash64() % STRIPES;
        match self.record(number) {
            Ok([removed, set, 0]) if removed.max(set) <= self.header.next => Ok(Stripe { removed, set }),
            Err(error) if error.kind() != io::ErrorKind::InvalidData => Err(error),
            _ => self.abandon(),
        }
    }

    pub(super) fn set_stripe(&self, key: &EntryKey, stripe: Stripe) -> io::Result<()> {
        self.set_record(key.hash64() % STRIPES, [stripe.removed, stripe.set, 0])
    }

    /// Counts a file that came (`is_new`) or went.
    pub(super) fn count(&mut self, shard: u8, came: Option<Amount>, went: Option<Amount>) -> io::Result<()> {
        let of_shard = self.amount(shard)?;
        let change = |amount: Amount| amount.plus(came.unwrap_or_default()).minus(went.unwrap_or_default());
        self.shards.insert(shard, change(of_shard));
        self.header.total = change(self.header.total);
        Ok(())
    }

    /// Corrects what is known of one folder of entries.
    pub(super) fn recount(&mut self, shard: u8, is: Amount) -> io::Result<()> {
        let was = self.amount(shard)?;
        self.header.total = self.header.total.plus(is).minus(was);
        self.shards.insert(shard, is);
        Ok(())
    }

    fn amount(&mut self, shard: u8) -> io::Result<Amount> {
        if let Some(known) = self.shards.get(&shard) {
            return Ok(*known);
        }
        match self.record(STRIPES + u64::from(shard)) {
            Ok([entries, bytes, disk]) => Ok(Amount { entries, bytes, disk }),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.header.drifted = true;
                Ok(Amount::default())
            }
            Err(error) => Err(error),
        }
    }

    /// Lets readers see what was done. Durable only after [`Fence::sync`].
    pub(super) fn publish(&mut self) -> io::Result<SyncLater> {
        for (shard, amount) in std::mem::take(&mut self.shards) {
            let number = STRIPES + u64::from(shard);
            self.set_record(number, [amount.entries, amount.bytes, amount.disk])?;
        }
        self.header.next = self.header.pos;
        self.write()?;
        let mut latest = self.fence.latest.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = (self.header.inc, self.header.pos);
        Ok(SyncLater(self.opened.clone()))
    }

    /// Moves a marker: into the log first, then into the header.
    pub(super) fn mark(&mut self, change: &super::marks::Change<'_>) -> io::Result<()> {
        self.check_markers()?;
        let pos = self.advance();
        let appended = {
            let mut replica = self.fence.markers.write().unwrap_or_else(PoisonError::into_inner);
            replica.append(&self.fence.folder, &mut self.header, change, pos)
        };
        match appended {
            // The log is gone: no marker could ever be added to it.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => self.abandon(),
            appended => appended,
        }
    }

    pub(super) fn with_markers<T>(&mut self, judge: impl FnOnce(&Header, &Markers) -> T) -> io::Result<T> {
        let fence = self.fence;
        let replica = fence.markers.read().unwrap_or_else(PoisonError::into_inner);
        if replica.matches(&self.header) {
            return Ok(judge(&self.header, replica.markers()));
        }
        drop(replica);
        self.check_markers()?;
        let replica = fence.markers.read().unwrap_or_else(PoisonError::into_inner);
        Ok(judge(&self.header, replica.markers()))
    }

    /// Reads what is new in the log of markers; a damaged one ends the incarnation.
    pub(super) fn check_markers(&mut self) -> io::Result<()> {
        let fence = self.fence;
        let refreshed = {
            let mut replica = fence.markers.write().unwrap_or_else(PoisonError::into_inner);
            if replica.matches(&self.header) { Ok(()) } else { replica.refresh(&fence.folder, &self.header) }
        };
        match refreshed {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => self.abandon(),
            refreshed => refreshed,
        }
    }

    /// Everything is on the disk, and this process writes no more: a power loss from here on loses nothing.
    pub(super) fn close(&mut self) -> io::Result<()> {
        let folder = &self.fence.folder;
        if folder.durability == Durability::Process {
            folder.sync_everything()?;
            self.header.unsynced = false;
            self.write()?;
        }
        folder.sync_always(&self.opened.file)
    }

    /// What a new boot of the machine means for what is not surely on the disk.
    fn after_boot(&mut self) -> io::Result<()> {
        let boot = self.fence.boot;
        // A system that doesn't name its boots gets no trust for what was not synced.
        if self.header.boot == boot && boot != 0 {
            let folder = &self.fence.folder;
            if self.header.unsynced && folder.durability == Durability::Power {
                // Somebody with less durability was killed here. What is acknowledged from now on has to survive a
                // power loss, so the folder has to be trusted after one.
                folder.sync_everything()?;
                self.header.unsynced = false;
                self.write()?;
                return folder.sync_always(&self.opened.file);
            }
            return if self.header == self.written { Ok(()) } else { self.write() };
        }
        if self.header.unsynced {
            (self.header, self.opened) = self
                .fence
                .begin_anew("writes that were not synced may have been lost with the machine's power")?;
            self.written = self.header;
            return Ok(());
        }
        // Positions that were in use but did not reach the disk are not used again.
        self.header.pos = self.header.pos.max(self.header.reserved);
        self.header.next = self.header.pos;
        self.header.boot = boot;
        self.header.drifted = true;
        self.write()
    }

    fn abandon<T>(&mut self) -> io::Result<T> {
        (self.header, self.opened) = self.fence.begin_anew("the file of fences or of markers was damaged")?;
        self.written = self.header;
        self.shards.clear();
        Err(damaged("the folder begins a new incarnation"))
    }

    fn write(&mut self) -> io::Result<()> {
        let folder = &self.fence.folder;
        if let Err(error) = folder.write_at(&self.opened.file, &self.header.encode(), 0) {
            // Half of a header is a lost folder: what was there is put back as well as it goes.
            drop(folder.write_at(&self.opened.file, &self.written.encode(), 0));
            return Err(error);
        }
        self.written = self.header;
        Ok(())
    }

    fn record(&self, number: u64) -> io::Result<[u64; 3]> {
        let mut bytes = [0; RECORD_BYTES as usize];
        let at = STRIPES_AT + number * RECORD_BYTES;
        match self.fence.folder.read_at(&self.opened.file, &mut bytes, at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(damaged("the file of fences is too short"));
            }
            read => read?,
        }
        let values = [0, 8, 16].map(|at| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes")));
        if bytes != encode_record(self.header.inc, number, values) {
            return Err(damaged("a record of the file of fences is damaged"));
        }
        Ok(values)
    }

    fn set_record(&self, number: u64, values: [u64; 3]) -> io::Result<()> {
        let record = encode_record(self.header.inc, number, values);
        self.fence.folder.write_at(&self.opened.file, &record, STRIPES_AT + number * RECORD_BYTES)
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let (ours, published) = (&self.header, &self.written);
        if (ours.marks_gen, ours.marks_end) != (published.marks_gen, published.marks_end) {
            // Markers that could not be published never happened: this process, too, reads them anew.
            *self.fence.markers.write().unwrap_or_else(PoisonError::into_inner) = Replica::default();
        }
    }
}

fn unavailable(operation: &'static str, message: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, operation).backend(NAME).message(message)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::path::Path;

    fn open(path: &Path, durability: Durability) -> Fence {
        let folder = Folder::open(path, durability).unwrap();
        Fence::open(folder, Clock::system(), Duration::from_secs(1)).unwrap()
    }

    /// As if the machine had been started anew since.
    fn reboot(path: &Path) -> Header {
        let file = path.join(FENCES);
        let mut bytes = std::fs::read(&file).unwrap();
        let Decoded::Sound(mut header) = Header::decode(bytes.first_chunk().unwrap()) else {
            panic!("damaged")
        };
        header.boot ^= 2;
        bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
        std::fs::write(file, bytes).unwrap();
        header
    }

    /// After a power loss: what was synced counts on, from beyond every position that may have been in use;
    /// what was not, begins anew, unless it was closed in peace.
    #[test]
    fn a_new_boot_is_trusted_with_what_was_synced() {
        for (durability, is_closed) in [
            (Durability::Power, false),
            (Durability::Power, true),
            (Durability::Process, false),
            (Durability::Process, true),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("cache");
            let fence = open(&path, durability);
            let mut locked = fence.lock("put").unwrap();
            locked.begin(1).unwrap();
            locked.advance();
            drop(locked.publish().unwrap());
            if is_closed {
                locked.close().unwrap();
            }
            drop(locked);
            drop(fence);
            let before = reboot(&path);
            let after = open(&path, durability).snapshot().unwrap();
            let is_trusted = durability == Durability::Power || is_closed;
            assert_eq!(after.inc == before.inc, is_trusted, "{durability:?}, closed: {is_closed}");
            if is_trusted {
                assert!(after.pos >= before.reserved, "a position may be used twice");
            }
        }
    }

    /// Somebody with less durability was killed: after a power loss that costs nothing which was acknowledged as
    /// safe from one since.
    #[test]
    fn a_new_boot_is_trusted_with_what_was_synced_after_what_was_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache");
        for durability in [Durability::Process, Durability::Power] {
            let fence = open(&path, durability);
            let mut locked = fence.lock("put").unwrap();
            locked.begin(1).unwrap();
            locked.advance();
            drop(locked.publish().unwrap());
        }
        let before = reboot(&path);
        assert_eq!(open(&path, Durability::Power).snapshot().unwrap().inc, before.inc);
    }

    /// A holder that was killed between a change and its publication: the next one goes on beyond it.
    #[test]
    fn what_was_announced_and_not_published_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let fence = open(&folder.path().join("cache"), Durability::Process);
        let before = fence.snapshot().unwrap();
        let mut locked = fence.lock("put").unwrap();
        locked.begin(5).unwrap();
        drop(locked);
        assert_eq!(fence.snapshot().unwrap().pos, before.pos, "a ticket of now is older than what began");
        let next = fence.lock("put").unwrap();
        assert_eq!((next.header.pos, next.header.drifted), (before.pos + 5, true));
    }
}
