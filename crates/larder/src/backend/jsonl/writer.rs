//! The thread that writes one shard: group commit.
//!
//! For each group, in this order: the shard's lock; what others appended; the changes, applied to the log
//! and made into lines; one write; the lock is given back; one sync; the answers. While one group is synced
//! the next one gathers.
//!
//! What fails where: before the write, nobody's change took effect. In the write, the lines that arrived
//! whole did, and their callers are told so; the others' did not. In the sync, the outcome is unknown, and
//! the file is written anew before anything else is acknowledged, because the system may have dropped what
//! it could not write.

use super::disk::{Guard, NAME, Torn, io_error};
use super::line::{Line, Op};
use super::log::Log;
use super::shard::{Change, Done, Shard};
use crate::backend::durability::{Durability, boot_id};
use crate::backend::queue::{Queue, Queued};
use crate::error::{Error, ErrorKind, Result};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::oneshot;

/// Most changes of one group.
const GROUP_MAX: usize = 256;
/// A file is not rewritten for fewer dead bytes than this.
const DEAD_BYTES_MIN: u64 = 256 << 10;
/// Eviction frees down to this share of a limit, so that it doesn't run for every put.
const LOW_MARK_PERCENT: u64 = 95;

/// A change and who waits for it.
pub(super) struct Job {
    pub(super) change: Change,
    pub(super) answer: oneshot::Sender<Result<Done>>,
}

impl Job {
    fn finish(self, result: Result<Done>) {
        // Nobody waits any more: the change took effect all the same.
        drop(self.answer.send(result));
    }
}

/// One shard's share of the limits.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) entries: u64,
    /// Of the lines of entries; dead ones take as much again at most.
    pub(super) bytes: u64,
}

pub(super) struct Writer {
    pub(super) shard: Arc<Shard>,
    pub(super) queue: Arc<Queue<Job>>,
    pub(super) durability: Durability,
    pub(super) limits: Limits,
    /// A rewriting that failed is tried again when the file has grown to this.
    pub(super) rewrite_at: u64,
}

/// A group whose lines are in the file.
struct Written {
    results: Vec<Result<Done>>,
    /// To be synced before the answers.
    unsynced: Option<Arc<File>>,
}

impl Writer {
    /// Works until the queue is closed and empty, then leaves the file as clean as it can be.
    pub(super) fn run(mut self) -> Result<()> {
        let abort_if_it_panics = AbortOnDrop(self.queue.clone());
        while let Some(group) = self.queue.pop_many(GROUP_MAX, 1) {
            self.run_group(group);
        }
        drop(abort_if_it_panics);
        self.close()
    }

    fn run_group(&mut self, group: Vec<Queued<Job>>) {
        let operation = group.first().map_or("put", |queued| queued.job.change.name());
        let Written { mut results, unsynced } = match self.write(&group, operation) {
            Ok(written) => written,
            Err(error) => {
                return group.into_iter().for_each(|queued| queued.job.finish(Err(error.clone())));
            }
        };
        if let Some(file) = unsynced
            && let Err(error) = self.shard.disk.sync(&file)
            && self.shard.disk.holds(Guard::Sync)
        {
            self.shard.is_doubtful.store(true, Ordering::SeqCst);
            let error = Error::new(ErrorKind::Unavailable, operation)
                .backend(NAME)
                .message("the outcome is unknown: the file could not be synced")
                .source(error);
            results
                .iter_mut()
                .filter(|result| result.is_ok())
                .for_each(|result| *result = Err(error.clone()));
        }
        for (queued, result) in group.into_iter().zip(results) {
            queued.job.finish(result);
        }
    }

    fn write(&mut self, group: &[Queued<Job>], operation: &'static str) -> Result<Written> {
        let shard = self.shard.clone();
        let _lock = shard.lock(operation)?;
        let mut state = shard.state();
        shard.follow_locked(&mut state, operation)?;
        if shard.is_doubtful.load(Ordering::SeqCst) {
            shard.rewrite(&mut state, operation)?;
        }
        let Some(log) = state.as_mut() else { return Err(lost(operation)) };
        if self.durability == Durability::Process
            && (log.unsynced.is_none() || log.unsynced != Some(boot_id().unwrap_or_default()))
        {
            self.announce_unsynced(log, operation)?;
        }
        if self.durability == Durability::Power && log.unsynced.is_some() {
            // Somebody with less durability was killed here. What this group is told survives a power loss only if
            // the file is trusted after one.
            self.announce_synced(log, operation)?;
        }
        let mut lines = Vec::new();
        let mut results = Vec::with_capacity(group.len());
        let mut ends = Vec::with_capacity(group.len());
        for queued in group {
            results.push(shard.change(log, &queued.job.change, &mut lines));
            ends.push(lines.len());
        }
        if !lines.is_empty()
            && let Err(Torn { written, error }) = shard.disk.write_at(&log.file, &lines, log.end)
        {
            let whole = lines[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            // Best effort: whoever writes next cuts it, too.
            drop(shard.disk.truncate(&log.file, log.end + whole as u64));
            let file = log.file.clone();
            *state = None;
            let error = io_error(operation, error);
            for (result, end) in results.iter_mut().zip(ends) {
                if end > whole {
                    *result = Err(error.clone());
                }
            }
            let is_synced = self.durability == Durability::Power && whole > 0;
            return Ok(Written { results, unsynced: is_synced.then_some(file) });
        }
        let count = ends.iter().scan(0, |last, end| Some(std::mem::replace(last, *end) != *end));
        log.passed(lines.len() as u64, count.filter(|is_line| *is_line).count() as u64);
        self.evict(log);
        let mut unsynced =
            (self.durability == Durability::Power && !lines.is_empty()).then(|| log.file.clone());
        let is_due = log.dead_bytes() > log.index.bytes.max(DEAD_BYTES_MIN) && log.end >= self.rewrite_at;
        if is_due {
            let end = log.end;
            match shard.rewrite(&mut state, operation) {
                Ok(()) => {
                    self.rewrite_at = 0;
                    // The new file is on the disk, with all that was in the old one.
                    unsynced = None;
                }
                Err(error) => {
                    self.rewrite_at = end + end / 4;
                    shard.quarantine.note(&shard.path, &format!("it could not be rewritten: {error}"));
                }
            }
        }
        Ok(Written { results, unsynced })
    }

    /// Says, synced, that from now on lines are not synced one by one.
    fn announce_unsynced(&self, log: &mut Log, operation: &'static str) -> Result<()> {
        let boot = boot_id().unwrap_or_default();
        let mut line = log.line(Op::Unsynced, log.prev());
        line.boot = Some(boot.clone().into());
        self.append_synced(log, &line, operation)?;
        log.unsynced = Some(boot);
        Ok(())
    }

    /// Syncs all lines, and then says so.
    fn announce_synced(&self, log: &mut Log, operation: &'static str) -> Result<()> {
        self.shard.disk.sync(&log.file).map_err(|error| {
            // A second sync might succeed without what the first one could not write.
            self.shard.is_doubtful.store(true, Ordering::SeqCst);
            io_error(operation, error)
        })?;
        let line = log.line(Op::Synced, log.prev());
        self.append_synced(log, &line, operation)?;
        log.unsynced = None;
        Ok(())
    }

    fn append_synced(&self, log: &mut Log, line: &Line<'_>, operation: &'static str) -> Result<()> {
        let mut bytes = Vec::new();
        line.write(&mut bytes);
        let disk = &self.shard.disk;
        disk.write_at(&log.file, &bytes, log.end).map_err(|torn| io_error(operation, torn.error))?;
        log.passed(bytes.len() as u64, 1);
        disk.sync(&log.file).map_err(|error| io_error(operation, error))
    }

    fn evict(&self, log: &mut Log) {
        let is_over = |log: &Log, percent: u64| {
            let over = |value: u64, max: u64| u128::from(value) * 100 > u128::from(max) * u128::from(percent);
            over(log.index.len(), self.limits.entries) || over(log.index.bytes, self.limits.bytes)
        };
        if is_over(log, 100) {
            while is_over(log, LOW_MARK_PERCENT) && log.index.evict() {}
        }
    }

    fn close(&self) -> Result<()> {
        if self.durability == Durability::Power {
            return Ok(());
        }
        let _lock = self.shard.lock("close")?;
        let mut state = self.shard.state();
        if state.as_ref().is_none_or(|log| log.unsynced.is_none()) {
            return Ok(());
        }
        let log = self.shard.follow_locked(&mut state, "close")?;
        self.announce_synced(log, "close")
    }
}

/// Fails everybody who waits if the writer panics: nobody hangs.
struct AbortOnDrop(Arc<Queue<Job>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The error of a caller whose answer never comes.
pub(super) fn lost(operation: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, operation).backend(NAME).message("the thread that serves it has ended")
}
