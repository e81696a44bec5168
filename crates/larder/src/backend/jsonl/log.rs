//! A shard as its file tells it: the lines applied in order. Whoever reads the same file comes to the same
//! state, which is what makes several processes one store.
//!
//! [`Log::read`] and [`Log::follow`] only read. What an own operation changes is applied here first and then
//! written; if it can't be written, the log is thrown away and read again.

use super::disk::{Disk, Guard, Stat};
use super::index::{Index, Slot};
use super::line::{Line, Nonsense, Op, ShardLine, VERSION, WIDE, stamp};
use super::scan::{Found, walk};
use crate::backend::{Miss, Ticket};
use crate::entry::{EntryKind, Tags};
use crate::key::{EntryKey, Namespace};
use crate::l1::fence::{Fences, STRIPES};
use crate::stamp::Stamp;
use std::fs::File;
use std::io;
use std::sync::Arc;

/// A shard in memory, up to `end` of its file.
pub(super) struct Log {
    pub(super) file: Arc<File>,
    pub(super) id: (u64, u64),
    /// Behind the last line that was applied.
    pub(super) end: u64,
    /// Lines up to there.
    lines: u64,
    /// What the last rewriting kept ends here.
    kept_end: u64,
    pub(super) fences: Fences,
    /// What the last mover did: see [`Line::prev`].
    prev: i32,
    pub(super) index: Index,
    pub(super) last_stamp: Option<Stamp>,
    /// The boot of the machine since which lines may not be on the disk.
    pub(super) unsynced: Option<String>,
    /// The wall clock, as of the last use: stamps far ahead of it are no bound for anybody.
    pub(super) now_ms: u64,
}

/// What a file turned out to be.
pub(super) enum Reading {
    /// As it was written.
    Sound(Log),
    /// Damaged, and made good: to be rewritten. With what was damaged.
    Mended(Log, Vec<Damage>),
    /// Damaged so that a removal may be lost: nothing of it may be served. The last stamp that was seen.
    Lost(&'static str, Option<Stamp>, Vec<Damage>),
    /// Not a shard of larder's, or one whose first line is damaged.
    Foreign,
    /// Of a later version.
    Newer,
}

/// Bytes that are no line.
#[derive(Debug)]
pub(super) struct Damage {
    /// Counted from 1.
    pub(super) line: u64,
    pub(super) bytes: Vec<u8>,
}

/// Why a line can't follow.
enum Gap {
    /// It makes no sense although its sum is right.
    Nonsense,
    /// More is missing than can be made good.
    Lost,
}

impl From<Nonsense> for Gap {
    fn from(_: Nonsense) -> Self {
        Gap::Nonsense
    }
}

/// Most damaged lines that are kept for the quarantine of one reading.
const DAMAGES_MAX: usize = 64;
/// How much of a damaged line is kept.
const DAMAGE_BYTES_MAX: usize = 64 << 10;

impl Log {
    /// An empty shard whose file is `file`, of which the header is all.
    pub(super) fn empty(
        file: Arc<File>,
        id: (u64, u64),
        inc: u64,
        pos: u64,
        last_stamp: Option<Stamp>,
        unsynced: Option<String>,
        now_ms: u64,
    ) -> Self {
        let fences = Fences::resumed(inc, pos);
        let index = Index::default();
        Log {
            file,
            id,
            end: 0,
            lines: 0,
            kept_end: 0,
            fences,
            prev: WIDE,
            index,
            last_stamp,
            unsynced,
            now_ms,
        }
    }

    /// Reads a whole file.
    pub(super) fn read(disk: &Disk, file: File, stat: Stat, now_ms: u64) -> io::Result<Reading> {
        let file = Arc::new(file);
        let mut log: Option<Log> = None;
        let mut end = Ending::Sound;
        let mut damages: Vec<Damage> = Vec::new();
        let mut is_mended = false;
        let mut damaged_to = 0;
        let tail = walk(disk, &file, 0, &mut |offset, bytes, found| {
            let Some(log) = &mut log else {
                let Found::Line(line) = found else {
                    end = Ending::Foreign;
                    return false;
                };
                match Self::begin(&line, file.clone(), stat.id, bytes, now_ms) {
                    Ok(begun) => log = Some(begun),
                    Err(other) => end = other,
                }
                return log.is_some();
            };
            match found {
                Found::Damage(bad) => {
                    let kept = &bad[..bad.len().min(DAMAGE_BYTES_MAX)];
                    if damages.len() < DAMAGES_MAX {
                        damages.push(Damage { line: log.lines + 1, bytes: kept.to_vec() });
                    }
                    log.lines += 1;
                    log.end = offset + bytes as u64;
                    // It may reach from the kept entries into what follows them.
                    if log.end > log.kept_end {
                        damaged_to = log.end;
                    }
                    is_mended = true;
                    true
                }
                Found::Line(line) => match log.apply(disk, &line, offset, bytes, true) {
                    Ok(was_mended) => {
                        is_mended |= was_mended;
                        true
                    }
                    Err(Gap::Nonsense | Gap::Lost) => {
                        end = Ending::Lost("lines are missing or make no sense, and may have been removals");
                        false
                    }
                },
            }
        })?;
        let Some(log) = log else {
            return Ok(match end {
                Ending::Newer => Reading::Newer,
                _ => Reading::Foreign,
            });
        };
        // Behind the last good line, no position tells whether a removal is missing.
        if matches!(end, Ending::Sound) && (tail.is_damaged || (damaged_to == log.end && damaged_to > 0)) {
            end = Ending::Lost("its last line is damaged, and may have been a removal");
        }
        // These were on the disk before the file had its name: it was cut, and removals with them.
        if matches!(end, Ending::Sound) && log.end < log.kept_end {
            end = Ending::Lost("it was cut short, and may have held removals");
        }
        Ok(match end {
            Ending::Lost(why) => Reading::Lost(why, log.last_stamp, damages),
            _ if is_mended => Reading::Mended(log, damages),
            _ => Reading::Sound(log),
        })
    }

    /// Applies what was appended since. `false` if there is anything but whole lines in order.
    pub(super) fn follow(&mut self, disk: &Disk) -> io::Result<bool> {
        let mut is_sound = true;
        let file = self.file.clone();
        let tail = walk(disk, &file, self.end, &mut |offset, bytes, found| {
            is_sound = match found {
                Found::Damage(_) => false,
                Found::Line(line) => matches!(self.apply(disk, &line, offset, bytes, false), Ok(false)),
            };
            is_sound
        })?;
        Ok(is_sound && !tail.is_damaged)
    }

    fn begin(
        line: &Line<'_>,
        file: Arc<File>,
        id: (u64, u64),
        bytes: usize,
        now_ms: u64,
    ) -> Result<Log, Ending> {
        let Some(shard) = &line.shard else { return Err(Ending::Foreign) };
        if shard.version > VERSION {
            return Err(Ending::Newer);
        }
        let ShardLine { inc, kept_bytes, last_stamp, .. } = shard;
        let last_stamp = last_stamp.as_deref().map(stamp).transpose().map_err(|Nonsense| Ending::Foreign)?;
        let unsynced = line.boot.as_deref().map(str::to_owned);
        let mut log = Log::empty(file, id, *inc, line.at, last_stamp, unsynced, now_ms);
        log.end = bytes as u64;
        log.lines = 1;
        log.kept_end = log.end.saturating_add(*kept_bytes);
        Ok(log)
    }

    /// Applies a line. `true` if a lost one before it was made good, which only happens with `mends`.
    fn apply(
        &mut self,
        disk: &Disk,
        line: &Line<'_>,
        offset: u64,
        bytes: usize,
        mends: bool,
    ) -> Result<bool, Gap> {
        let is_kept = offset < self.kept_end;
        let mut was_mended = false;
        if is_kept {
            if !matches!(line.op, Op::Set | Op::Load) || line.at > self.pos() {
                return Err(Gap::Nonsense);
            }
            self.index.insert(line.entry()?, line.at, offset, bytes);
        } else {
            let expected = self.pos() + u64::from(line.op.moves());
            if line.at != expected && disk.holds(Guard::Chain) {
                let stripe = u64::try_from(line.prev).map_err(|_| Gap::Lost)?;
                if !mends || line.at != expected + 1 {
                    return Err(Gap::Lost);
                }
                self.lose(stripe);
                was_mended = true;
            }
            self.apply_next(line, offset, bytes)?;
        }
        self.lines += 1;
        self.end = offset + bytes as u64;
        Ok(was_mended)
    }

    fn apply_next(&mut self, line: &Line<'_>, offset: u64, bytes: usize) -> Result<(), Nonsense> {
        match line.op {
            Op::Shard => return Err(Nonsense),
            Op::Set | Op::Load => {
                let entry = line.entry()?;
                if entry.kind == EntryKind::Set {
                    self.note_set(&entry.key, entry.stamp);
                }
                self.index.insert(entry, line.at, offset, bytes);
            }
            Op::Remove => self.remove(&line.entry_key()?),
            Op::Tag | Op::Clear => {
                self.fences.mark(&line.namespace()?, &line.mark()?);
                self.prev = WIDE;
            }
            Op::Match => {
                let (namespace, pattern) = (line.namespace()?, line.pattern()?);
                self.fences.raise_floor(&namespace);
                self.prev = WIDE;
                self.index
                    .remove_where(|key, _| key.namespace() == &namespace && pattern.matches(&key.text()));
            }
            Op::Drop => drop(self.index.remove(&line.entry_key()?)),
            Op::Unsynced => self.unsynced = Some(line.boot.as_deref().unwrap_or_default().to_owned()),
            Op::Synced => self.unsynced = None,
        }
        Ok(())
    }

    /// Moves on for a set that is accepted.
    fn note_set(&mut self, key: &EntryKey, stamp: Stamp) {
        let guard = self.fences.lock(key.hash64());
        // With the ticket of now nothing can fence it.
        guard.admit(key.namespace(), self.fences.ticket(), EntryKind::Set, &Tags::NONE, false);
        drop(guard);
        self.prev = stripe(key);
        if !stamp.is_distrusted(self.now_ms) {
            self.last_stamp = self.last_stamp.max(Some(stamp));
        }
    }

    /// Moves on for a removal.
    pub(super) fn remove(&mut self, key: &EntryKey) {
        self.fences.lock(key.hash64()).remove();
        self.index.remove(key);
        self.prev = stripe(key);
    }

    /// A mover's line is lost, of which the fence is known: each of its keys counts as removed.
    fn lose(&mut self, lost: u64) {
        self.fences.lock(lost).remove();
        self.index.remove_where(|key, _| key.hash64() % STRIPES as u64 == lost % STRIPES as u64);
    }

    pub(super) fn pos(&self) -> u64 {
        self.ticket().pos
    }

    pub(super) fn ticket(&self) -> Ticket {
        self.fences.ticket()
    }

    /// A line that follows the last one. `moves` it first.
    pub(super) fn line<'l>(&self, op: Op, prev: i32) -> Line<'l> {
        Line::new(op, self.pos(), prev)
    }

    /// What a line that is made now names as its forerunner.
    pub(super) fn prev(&self) -> i32 {
        self.prev
    }

    pub(super) fn set_prev(&mut self, prev: i32) {
        self.prev = prev;
    }

    /// A line was written and is applied already.
    pub(super) fn passed(&mut self, bytes: u64, lines: u64) {
        self.end += bytes;
        self.lines += lines;
    }

    /// Why an entry is not valid, if it isn't.
    pub(super) fn why_invalid(&self, namespace: &Namespace, slot: &Slot, now_ms: u64) -> Option<Miss> {
        self.fences.invalid(namespace, &slot.tags, slot.seen).or_else(|| {
            let is_gone = slot.gone_at_ms != crate::clock::NEVER_MS && slot.gone_at_ms <= now_ms;
            if slot.stamp.is_distrusted(now_ms) {
                Some(Miss::Clock)
            } else {
                is_gone.then_some(Miss::Expired)
            }
        })
    }

    /// Bytes of lines that no entry needs.
    pub(super) fn dead_bytes(&self) -> u64 {
        self.end.saturating_sub(self.index.bytes)
    }

    /// The file was rewritten. It no longer tells of single removals, so whoever reads it anew refuses more
    /// than this log, which still knows them.
    pub(super) fn moved_to(&mut self, file: Arc<File>, id: (u64, u64), end: u64) {
        self.lines = 1 + self.index.len();
        (self.file, self.id, self.end, self.kept_end) = (file, id, end, end);
    }
}

/// How the reading of a file ended.
enum Ending {
    Sound,
    Lost(&'static str),
    Foreign,
    Newer,
}

/// The fence of a key.
pub(super) fn stripe(key: &EntryKey) -> i32 {
    i32::try_from(key.hash64() % STRIPES as u64).expect("there are 4096 fences")
}
