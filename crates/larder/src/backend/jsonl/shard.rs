//! One shard of one process: its log brought up to date, and what may be done to it.
//!
//! Two locks, always in this order: the lock file keeps other processes' writers out, the mutex this
//! process's other threads. Reading up to date takes the mutex alone: a whole line is never withdrawn, and
//! half of one is not a line. Whoever finds anything else takes the lock file and mends it.

use super::disk::{Disk, NAME, Stat, io_error};
use super::index::Slot;
use super::line::{Line, Op, ShardLine, VERSION, WIDE};
use super::log::{Damage, Log, Reading, stripe};
use super::quarantine::Quarantine;
use crate::backend::durability::boot_id;
use crate::backend::{Mark, Miss, Put, PutOutcome, Removed};
use crate::clock::Clock;
use crate::entry::EntryKind;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{EntryKey, Namespace, Pattern};
use crate::stamp::Stamp;
use bytes::Bytes;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Files that were not larder's or can't be understood, kept per shard.
const ASIDE_MAX: usize = 4;
/// How often a rewriting begins anew because a line that it copies turns out to be damaged.
const REWRITES_MAX: usize = 64;

pub(super) struct Shard {
    pub(super) path: PathBuf,
    pub(super) lock_path: PathBuf,
    pub(super) folder: PathBuf,
    pub(super) disk: Arc<Disk>,
    pub(super) clock: Clock,
    pub(super) busy_timeout: Duration,
    pub(super) quarantine: Arc<Quarantine>,
    /// `None` before the first use, and when what is in memory may not be what is in the file.
    pub(super) state: Mutex<Option<Log>>,
    /// A sync of the file or of its name failed: what the system says of it can't be trusted, so it has to be
    /// written anew.
    pub(super) is_doubtful: AtomicBool,
}

/// A place of an entry, to read it from without a lock.
pub(super) struct Place {
    pub(super) file: Arc<File>,
    pub(super) offset: u64,
    pub(super) bytes: u32,
    pub(super) seen: u64,
}

/// What an operation is to do, on one shard.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Put(Put),
    Remove(EntryKey),
    /// With the reason, if it is to be kept for an operator.
    Drop(EntryKey, Bytes, Option<&'static str>),
    Mark(Namespace, Mark),
    Match(Namespace, Pattern),
    Sweep(usize),
}

/// What it answers.
#[derive(Clone, Copy, Debug)]
pub(super) enum Done {
    Put(PutOutcome),
    Removed(Removed),
    Count(u64),
    Nothing,
}

impl Change {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Change::Put(_) => "put",
            Change::Remove(_) => "remove",
            Change::Drop(_, _, None) => "discard",
            Change::Drop(..) => "quarantine",
            Change::Mark(..) => "mark",
            Change::Match(..) => "remove_matching",
            Change::Sweep(_) => "sweep",
        }
    }
}

impl Shard {
    /// Keeps other processes' writers out until the file is dropped.
    pub(super) fn lock(&self, operation: &'static str) -> Result<File> {
        self.disk.lock(&self.lock_path, self.busy_timeout, operation)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, Option<Log>> {
        self.state.lock().unwrap_or_else(|poisoned| {
            // A panic may have come between a line and its effect: the file knows.
            self.state.clear_poison();
            let mut state = poisoned.into_inner();
            *state = None;
            state
        })
    }

    /// Looks at the shard as it is now.
    pub(super) fn look<R>(&self, operation: &'static str, look: impl FnOnce(&mut Log) -> R) -> Result<R> {
        {
            let mut state = self.state();
            if let Some(log) = self.follow(&mut state).map_err(|error| io_error(operation, error))? {
                return Ok(look(log));
            }
        }
        let _lock = self.lock(operation)?;
        let mut state = self.state();
        Ok(look(self.follow_locked(&mut state, operation)?))
    }

    /// Brings the log up to date, if that can be done without the lock.
    fn follow<'s>(&self, state: &'s mut Option<Log>) -> std::io::Result<Option<&'s mut Log>> {
        let Some(log) = state else { return Ok(None) };
        let Some(stat) = self.disk.stat(&self.path)? else { return Ok(None) };
        log.now_ms = self.clock.wall_ms();
        let is_current = stat.id == log.id
            && stat.bytes >= log.end
            && (stat.bytes == log.end || {
                let is_sound = log.follow(&self.disk);
                if !matches!(is_sound, Ok(true)) {
                    *state = None;
                }
                is_sound?
            });
        Ok(if is_current { state.as_mut() } else { None })
    }

    /// Brings the log up to date, makes or mends the file. The lock is held.
    pub(super) fn follow_locked<'s>(
        &self,
        state: &'s mut Option<Log>,
        operation: &'static str,
    ) -> Result<&'s mut Log> {
        let failed = |error| io_error(operation, error);
        let stat = self.disk.stat(&self.path).map_err(failed)?;
        let mut is_current = false;
        if let (Some(stat), Some(log)) = (stat, state.as_mut())
            && stat.id == log.id
            && stat.bytes >= log.end
        {
            log.now_ms = self.clock.wall_ms();
            is_current = stat.bytes == log.end || matches!(log.follow(&self.disk), Ok(true));
            if is_current && stat.bytes > log.end {
                // Cut, so that it is never the beginning of anything.
                self.disk.truncate(&log.file, log.end).map_err(failed)?;
            }
        }
        if !is_current {
            let known = state.take();
            *state = Some(self.open_locked(known.as_ref(), operation)?);
        }
        Ok(state.as_mut().expect("it was just filled in"))
    }

    fn open_locked(&self, known: Option<&Log>, operation: &'static str) -> Result<Log> {
        let failed = |error| io_error(operation, error);
        let now_ms = self.clock.wall_ms();
        let stat = self.disk.stat(&self.path).map_err(failed)?;
        let last_known = known.and_then(|log| log.last_stamp);
        if stat.is_none_or(|stat| stat.bytes == 0) {
            if known.is_some() {
                self.note("the file was deleted or emptied while it was open; begun anew");
            }
            return self.begin_anew(last_known, operation);
        }
        let (file, stat) = self.disk.open(&self.path).map_err(failed)?;
        let (why, last_stamp, damages) = match Log::read(&self.disk, file, stat, now_ms).map_err(failed)? {
            Reading::Sound(log) if self.lost_power(&log) => {
                ("the machine went down with lines that were not synced", log.last_stamp, Vec::new())
            }
            Reading::Sound(log) if went_back(known, &log) => {
                ("the file is older than it was", log.last_stamp, Vec::new())
            }
            Reading::Sound(log) => {
                if stat.bytes > log.end {
                    self.disk.truncate(&log.file, log.end).map_err(failed)?;
                }
                return Ok(log);
            }
            Reading::Mended(log, damages) if !self.lost_power(&log) && !went_back(known, &log) => {
                self.keep(&damages);
                self.note("damaged lines were quarantined, the rest was kept");
                let mut state = Some(log);
                self.rewrite(&mut state, operation)?;
                return Ok(state.expect("a log that was rewritten is there"));
            }
            Reading::Mended(log, damages) => ("lines are missing", log.last_stamp, damages),
            Reading::Lost(why, last_stamp, damages) => (why, last_stamp, damages),
            Reading::Newer => {
                return Err(Error::new(ErrorKind::Config, operation)
                    .backend(NAME)
                    .message(format!("{} is of a later version of larder", self.path.display())));
            }
            Reading::Foreign => {
                self.set_aside().map_err(failed)?;
                ("its first line is none of larder's; the file was set aside", None, Vec::new())
            }
        };
        self.keep(&damages);
        self.note(&format!("{why}; begun anew"));
        self.begin_anew(last_stamp.max(last_known), operation)
    }

    fn lost_power(&self, log: &Log) -> bool {
        // Where a boot has no name, every unclean end is distrusted.
        log.unsynced.as_ref().is_some_and(|boot| boot.is_empty() || Some(boot) != boot_id().as_ref())
    }

    fn set_aside(&self) -> std::io::Result<()> {
        let name = |n| PathBuf::from(format!("{}.aside-{n}", self.path.display()));
        let target = (1..ASIDE_MAX).map(name).find(|path| !path.exists()).unwrap_or_else(|| name(ASIDE_MAX));
        self.disk.replace(&self.path, &target, &self.folder)
    }

    fn keep(&self, damages: &[Damage]) {
        for damage in damages {
            self.quarantine.damaged(&self.path, damage);
        }
    }

    fn note(&self, what: &str) {
        self.quarantine.note(&self.path, what);
    }

    /// A new incarnation: every entry and ticket of the old one is dead.
    fn begin_anew(&self, last_stamp: Option<Stamp>, operation: &'static str) -> Result<Log> {
        // Only its fields count, it has no file yet.
        let header = Header { inc: fastrand::u64(..), pos: 1, last_stamp, unsynced: None };
        let (file, stat) = self.write_file(&header, &[], None).map_err(|error| match error {
            Stopped::Io(error) => io_error(operation, error),
            Stopped::Damaged(_) => unreachable!("nothing was copied"),
        })?;
        let Header { inc, pos, .. } = header;
        let now_ms = self.clock.wall_ms();
        let mut log = Log::empty(Arc::new(file), stat.id, inc, pos, last_stamp, None, now_ms);
        log.moved_to(log.file.clone(), stat.id, stat.bytes);
        self.is_doubtful.store(false, Ordering::SeqCst);
        Ok(log)
    }

    /// Writes the live entries to a new file and puts it in the place of the old one. The lock is held; on
    /// an error the old file stays.
    pub(super) fn rewrite(&self, state: &mut Option<Log>, operation: &'static str) -> Result<()> {
        for _ in 0..REWRITES_MAX {
            let Some(log) = state.as_mut() else { return Ok(()) };
            let plan = Plan::of(log, self.clock.wall_ms());
            match self.write_file(&plan.header, &plan.entries, Some(&log.file)) {
                Ok((file, stat)) => {
                    plan.carry_out(log, file, stat);
                    self.is_doubtful.store(false, Ordering::SeqCst);
                    return Ok(());
                }
                Err(Stopped::Io(error)) => return Err(io_error(operation, error)),
                Err(Stopped::Damaged(key)) => {
                    self.note("an entry was damaged, and dropped");
                    log.index.remove(&key);
                }
            }
        }
        Err(Error::new(ErrorKind::Corrupt, operation).backend(NAME).message("too many lines are damaged"))
    }

    /// Writes, syncs and renames a file of these entries.
    fn write_file(
        &self,
        header: &Header,
        entries: &[Copied],
        from: Option<&File>,
    ) -> Result<(File, Stat), Stopped> {
        const BUFFER_BYTES: usize = 256 << 10;
        let draft = self.path.with_extension("jsonl.new");
        let (file, stat) = self.disk.create(&draft).map_err(Stopped::Io)?;
        let mut buffer = header.line(entries);
        let mut end = 0;
        let flush = |buffer: &mut Vec<u8>, end: &mut u64| {
            self.disk.write_at(&file, buffer, *end).map_err(|torn| Stopped::Io(torn.error))?;
            *end += buffer.len() as u64;
            buffer.clear();
            Ok::<(), Stopped>(())
        };
        for entry in entries {
            let start = buffer.len();
            buffer.resize(start + entry.bytes as usize, 0);
            let from = from.expect("entries come from a file");
            let read = self.disk.read_at(from, &mut buffer[start..], entry.offset).map_err(Stopped::Io)?;
            if read < entry.bytes as usize || Line::read(&buffer[start..]).is_none() {
                return Err(Stopped::Damaged(entry.key.clone()));
            }
            if buffer.len() >= BUFFER_BYTES {
                flush(&mut buffer, &mut end)?;
            }
        }
        flush(&mut buffer, &mut end)?;
        self.disk.sync(&file).map_err(Stopped::Io)?;
        self.disk.replace(&draft, &self.path, &self.folder).map_err(|error| {
            // The new name may be there and yet not be on the disk.
            self.is_doubtful.store(true, Ordering::SeqCst);
            Stopped::Io(error)
        })?;
        Ok((file, Stat { bytes: end, ..stat }))
    }

    /// Reads an entry. `None` if its line is damaged.
    pub(super) fn read(&self, place: &Place, key: &EntryKey) -> Result<Option<Bytes>> {
        let mut bytes = vec![0; place.bytes as usize];
        let read = self
            .disk
            .read_at(&place.file, &mut bytes, place.offset)
            .map_err(|error| io_error("get", error))?;
        bytes.truncate(read);
        Ok(sealed_of(&bytes, key, place.seen))
    }

    /// Forgets an entry whose line turned out to be damaged, if it still is that one.
    pub(super) fn forget(&self, key: &EntryKey, place: &Place) {
        let mut state = self.state();
        if let Some(log) = state.as_mut()
            && log.index.get(key).is_some_and(|slot| slot.offset == place.offset && slot.seen == place.seen)
            && Arc::ptr_eq(&log.file, &place.file)
        {
            log.index.remove(key);
        }
        drop(state);
        self.note("an entry was damaged, and dropped");
    }

    /// Carries out a change on the log, and appends what has to be written. The lock is held.
    pub(super) fn change(&self, log: &mut Log, change: &Change, out: &mut Vec<u8>) -> Result<Done> {
        match change {
            Change::Put(put) => Ok(Done::Put(self.put(log, put, out))),
            Change::Remove(key) => {
                let found = log.index.get(key);
                let was_valid =
                    found.is_some_and(|slot| log.why_invalid(key.namespace(), slot, log.now_ms).is_none());
                remove(log, key, out);
                Ok(Done::Removed(if was_valid { Removed::Existed } else { Removed::Absent }))
            }
            Change::Drop(key, sealed, why) => {
                if self.stored(log, key, out)?.as_ref() == Some(sealed) {
                    if let Some(why) = why {
                        self.quarantine.refused(key, sealed, why);
                    }
                    log.index.remove(key);
                    log.line(Op::Drop, log.prev()).with_key(key).write(out);
                }
                Ok(Done::Nothing)
            }
            Change::Mark(namespace, mark) => {
                let prev = log.prev();
                log.fences.mark(namespace, mark);
                log.set_prev(WIDE);
                let op = if matches!(mark, Mark::Clear) { Op::Clear } else { Op::Tag };
                log.line(op, prev).with_mark(namespace, mark).write(out);
                Ok(Done::Nothing)
            }
            Change::Match(namespace, pattern) => {
                let prev = log.prev();
                let mut matching: Vec<(EntryKey, bool)> = Vec::new();
                for (key, slot) in log.index.iter() {
                    if key.namespace() == namespace && pattern.matches(&key.text()) {
                        let is_valid = log.why_invalid(namespace, slot, log.now_ms).is_none();
                        matching.push((key.clone(), is_valid));
                    }
                }
                matching.iter().for_each(|(key, _)| drop(log.index.remove(key)));
                log.fences.raise_floor(namespace);
                log.set_prev(WIDE);
                log.line(Op::Match, prev).with_pattern(namespace, pattern).write(out);
                Ok(Done::Count(matching.iter().filter(|(_, was_valid)| *was_valid).count() as u64))
            }
            Change::Sweep(limit) => Ok(Done::Count(sweep(log, *limit))),
        }
    }

    fn put(&self, log: &mut Log, put: &Put, out: &mut Vec<u8>) -> PutOutcome {
        let Put { key, meta, sealed, ticket } = put;
        let valid_set = log
            .index
            .get(key)
            .filter(|slot| {
                slot.kind == EntryKind::Set && log.why_invalid(key.namespace(), slot, log.now_ms).is_none()
            })
            .map(|slot| slot.stamp);
        // Before the fences: a refused set acts as a removal, which a later set doesn't deserve.
        if meta.kind == EntryKind::Set
            && let Some(later) = valid_set.filter(|stamp| *stamp >= meta.stamp)
        {
            return PutOutcome::Older(later);
        }
        let prev = log.prev();
        let admitted = log.fences.lock(key.hash64()).admit(
            key.namespace(),
            *ticket,
            meta.kind,
            &meta.tags,
            valid_set.is_some(),
        );
        let Some(seen) = admitted else {
            if meta.kind == EntryKind::Set {
                remove(log, key, out);
            }
            return PutOutcome::Fenced;
        };
        let op = match meta.kind {
            EntryKind::Set => Op::Set,
            EntryKind::Load => Op::Load,
        };
        let start = out.len();
        log.line(op, prev).with_entry(key, meta, sealed).write(out);
        if meta.kind == EntryKind::Set {
            log.set_prev(stripe(key));
            if !meta.stamp.is_distrusted(log.now_ms) {
                log.last_stamp = log.last_stamp.max(Some(meta.stamp));
            }
        }
        let offset = log.end + start as u64;
        let head = super::line::EntryHead {
            key: key.clone(),
            kind: meta.kind,
            stamp: meta.stamp,
            gone_at_ms: meta.gone_at_ms,
            tags: meta.tags.clone(),
            sealed_bytes: u32::try_from(sealed.len()).expect("a line has at most 64 MiB"),
        };
        log.index.insert(head, seen, offset, out.len() - start);
        PutOutcome::Stored
    }

    /// The envelope of an entry, from the file or from what is about to be written.
    fn stored(&self, log: &Log, key: &EntryKey, out: &[u8]) -> Result<Option<Bytes>> {
        let Some(slot) = log.index.get(key) else { return Ok(None) };
        if let Some(start) = slot.offset.checked_sub(log.end) {
            let start = usize::try_from(start).expect("an offset in a buffer");
            return Ok(sealed_of(&out[start..start + slot.bytes as usize], key, slot.seen));
        }
        self.read(&place(log, slot), key)
    }
}

/// What a file begins with.
struct Header {
    inc: u64,
    pos: u64,
    last_stamp: Option<Stamp>,
    unsynced: Option<String>,
}

impl Header {
    fn line(&self, entries: &[Copied]) -> Vec<u8> {
        let mut line = Line::new(Op::Shard, self.pos, WIDE);
        line.shard = Some(ShardLine {
            version: VERSION,
            inc: self.inc,
            kept_bytes: entries.iter().map(|entry| u64::from(entry.bytes)).sum(),
            last_stamp: self.last_stamp.map(|stamp| stamp.to_string()),
        });
        line.boot = self.unsynced.as_deref().map(Into::into);
        let mut out = Vec::new();
        line.write(&mut out);
        out
    }
}

/// An entry to be copied.
struct Copied {
    key: EntryKey,
    offset: u64,
    bytes: u32,
}

enum Stopped {
    Io(std::io::Error),
    /// The line of this entry is not what was written.
    Damaged(EntryKey),
}

/// What a rewriting keeps, in the order of the old file.
struct Plan {
    header: Header,
    entries: Vec<Copied>,
}

impl Plan {
    /// Markers are not kept: what they invalidated isn't copied, and what they would refuse is refused by the
    /// position of the new file.
    fn of(log: &Log, now_ms: u64) -> Self {
        let ticket = log.ticket();
        let mut entries: Vec<Copied> = log
            .index
            .iter()
            .filter(|(key, slot)| {
                // A distrusted stamp may be trusted once the clock is set right.
                matches!(log.why_invalid(key.namespace(), slot, now_ms), None | Some(Miss::Clock))
            })
            .map(|(key, slot)| Copied { key: key.clone(), offset: slot.offset, bytes: slot.bytes })
            .collect();
        entries.sort_unstable_by_key(|entry| entry.offset);
        let header = Header {
            inc: ticket.inc,
            pos: ticket.pos,
            last_stamp: log.last_stamp,
            unsynced: log.unsynced.clone(),
        };
        Plan { header, entries }
    }

    fn carry_out(self, log: &mut Log, file: File, stat: Stat) {
        let mut to = self.header.line(&self.entries).len() as u64;
        let now_ms = log.now_ms;
        let mut places = std::collections::HashMap::with_capacity(self.entries.len());
        for entry in &self.entries {
            places.insert(entry.offset, to);
            to += u64::from(entry.bytes);
        }
        log.index.remove_where(|_, slot| !places.contains_key(&slot.offset));
        for entry in &self.entries {
            log.index.relocate(&entry.key, entry.offset, places[&entry.offset]);
        }
        log.moved_to(Arc::new(file), stat.id, stat.bytes);
        log.now_ms = now_ms;
    }
}

pub(super) fn place(log: &Log, slot: &Slot) -> Place {
    Place { file: log.file.clone(), offset: slot.offset, bytes: slot.bytes, seen: slot.seen }
}

fn remove(log: &mut Log, key: &EntryKey, out: &mut Vec<u8>) {
    let prev = log.prev();
    log.remove(key);
    log.line(Op::Remove, prev).with_key(key).write(out);
}

/// Drops expired and invalidated entries from the index; their lines go with the next rewriting. Other
/// processes do so by themselves.
fn sweep(log: &mut Log, limit: usize) -> u64 {
    /// Entries that are looked at for each that may be freed, and at least.
    const LOOKS: (usize, usize) = (4, 1024);
    let mut freed = 0;
    for key in log.index.next_to_sweep(limit.saturating_mul(LOOKS.0).max(LOOKS.1)) {
        let Some(slot) = log.index.get(&key) else { continue };
        let why = log.why_invalid(key.namespace(), slot, log.now_ms);
        // A distrusted stamp may be trusted once the clock is set right.
        if freed < limit as u64 && why.is_some_and(|miss| miss != Miss::Clock) {
            log.index.remove(&key);
            freed += 1;
        }
    }
    freed
}

fn sealed_of(bytes: &[u8], key: &EntryKey, seen: u64) -> Option<Bytes> {
    let line = Line::read(bytes)?;
    (line.at == seen && line.entry_key().ok()? == *key).then(|| line.sealed().ok())?
}

/// Whether a file has lost positions that this process has given out.
fn went_back(known: Option<&Log>, found: &Log) -> bool {
    known.is_some_and(|known| known.ticket().inc == found.ticket().inc && known.pos() > found.pos())
}

/// The file of a shard.
pub(super) fn shard_path(folder: &Path, number: usize, of: usize) -> PathBuf {
    folder.join(format!("shard-{number:02}-of-{of:02}.jsonl"))
}
