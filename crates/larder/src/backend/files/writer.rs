//! The one thread that changes the folder: group commit, and what runs in the background.
//!
//! It writes the files of a group next to their places, takes the folder's lock, decides and moves them, gives
//! the lock back, syncs, and answers. What takes long (patterns, sweeps, eviction, tidying) runs in steps of one
//! or a few of the 256 folders, and others get in between.

use super::entry::Place;
use super::fault::{NAME, damaged, to_error};
use super::fence::Header;
use super::folder::{SHARDS, Staged};
use super::store::{Seen, Store};
use crate::backend::queue::{Queue, Queued};
use crate::backend::{Mark, Miss, Put, PutOutcome, Removed};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{EntryKey, Namespace, Pattern};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Most operations of one turn with the lock.
pub(super) const GROUP_OPS: usize = 64;
/// Folders of entries that one step of a long operation visits.
const STEP_SHARDS: u16 = 16;
/// Most files deleted in one turn with the lock.
const STEP_DELETED: usize = 1000;
/// Files that an eviction looks at to find how old the oldest are.
const SAMPLE_FILES: usize = 65_536;

/// What the writer is asked to do.
pub(super) enum Op {
    Put(Put),
    Remove(EntryKey),
    Discard(EntryKey, Bytes, Option<&'static str>),
    Mark(Namespace, Mark),
    RemoveMatching(Namespace, Pattern),
    /// What is left of a removal by pattern after its floor was raised.
    RemoveMatchingBelow {
        namespace: Namespace,
        pattern: Pattern,
        floor: u64,
        shard: u16,
        removed: u64,
    },
    Sweep {
        left: u64,
        freed: u64,
        visited: u16,
    },
    /// Count and clean from this folder of entries on.
    Tidy(u16),
    Evict(Eviction),
}

/// An eviction under way.
#[derive(Default)]
pub(super) struct Eviction {
    /// Holds off other processes.
    turn: Option<File>,
    /// (used, disk bytes) of the files that were looked at.
    sample: Vec<(u64, u64)>,
    /// Of so many folders.
    sampled: u16,
    /// What was used last at or before this goes.
    threshold_ms: Option<u64>,
    shard: u16,
}

/// What it answers.
#[derive(Clone, Copy)]
pub(super) enum Done {
    Put(PutOutcome),
    Removed(Removed),
    Count(u64),
    Nothing,
}

impl Op {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Op::Put(_) => "put",
            Op::Remove(_) => "remove",
            Op::Discard(..) => "discard",
            Op::Mark(..) => "mark",
            Op::RemoveMatching(..) | Op::RemoveMatchingBelow { .. } => "remove_matching",
            Op::Sweep { .. } | Op::Tidy(_) | Op::Evict(_) => "sweep",
        }
    }

    fn is_long(&self) -> bool {
        matches!(self, Op::RemoveMatchingBelow { .. } | Op::Sweep { .. } | Op::Tidy(_) | Op::Evict(_))
    }
}

/// An operation and who waits for it; `None` for the writer's own.
pub(super) struct Job {
    pub(super) op: Op,
    pub(super) answer: Option<oneshot::Sender<Result<Done>>>,
}

impl Job {
    fn finish(self, result: Result<Done>) {
        if let Some(answer) = self.answer {
            // Nobody waits any more: the operation took effect all the same.
            drop(answer.send(result));
        }
    }
}

/// How far one operation got.
enum Progressed {
    Done(Done),
    Left(Op),
}

pub(super) struct Writer {
    pub(super) store: Arc<Store>,
    pub(super) queue: Arc<Queue<Job>>,
    /// Where the next sweep begins.
    pub(super) sweep_from: u8,
    pub(super) is_tidying: bool,
    pub(super) is_evicting: bool,
}

impl Writer {
    /// Works until the queue is closed and empty. The result of the closing.
    pub(super) fn run(mut self) -> Result<()> {
        let abort_if_it_panics = AbortOnDrop(self.queue.clone());
        while let Some(jobs) = self.queue.pop_many(GROUP_OPS, 1) {
            let mut group = Vec::new();
            for queued in jobs {
                if queued.job.op.is_long() {
                    self.run_group(std::mem::take(&mut group));
                    self.run_step(queued);
                } else {
                    group.push(queued);
                }
            }
            self.run_group(group);
        }
        drop(abort_if_it_panics);
        let mut locked = self.store.fence.lock("close")?;
        locked.close().map_err(|error| to_error("close", error))
    }

    fn run_group(&mut self, group: Vec<Queued<Job>>) {
        if group.is_empty() {
            return;
        }
        if !self.make_room(&group) && group.len() > 1 {
            // Together they would not fit, one after the other they may.
            let mut first = group;
            let second = first.split_off(first.len() / 2);
            self.run_group(first);
            return self.run_group(second);
        }
        let store = self.store.clone();
        let results = commit(&store, &group);
        for (queued, result) in group.into_iter().zip(results) {
            match result {
                Ok(Progressed::Done(done)) => queued.job.finish(Ok(done)),
                Ok(Progressed::Left(op)) => self.queue.push_back(queued.map(|job| Job { op, ..job })),
                Err(error) => queued.job.finish(Err(error)),
            }
        }
        self.look_after();
    }

    /// Begins what the folder needs.
    pub(super) fn look_after(&mut self) {
        let Ok(header) = self.store.fence.snapshot() else { return };
        if header.drifted && !self.is_tidying {
            self.is_tidying = true;
            self.queue.push_own(Job { op: Op::Tidy(0), answer: None });
        }
        if self.store.limits.is_high(&header) && !self.is_evicting {
            self.is_evicting = true;
            self.queue.push_own(Job { op: Op::Evict(Eviction::default()), answer: None });
        }
    }

    /// Evicts at once what a group would not fit beside; whether it fits now.
    fn make_room(&mut self, group: &[Queued<Job>]) -> bool {
        let incoming: u64 = group
            .iter()
            .map(|queued| match &queued.job.op {
                Op::Put(put) => {
                    super::folder::disk_bytes(super::entry::HEAD_BYTES_USUAL as u64 + put.sealed.len() as u64)
                }
                _ => 0,
            })
            .sum();
        let limits = self.store.limits;
        let fits = |header: &Header| limits.fits(header, incoming, group.len() as u64);
        let Ok(header) = self.store.fence.snapshot() else { return true };
        if incoming == 0 || fits(&header) {
            return true;
        }
        let mut eviction = Eviction::default();
        // Two rounds at most: to look, and to delete.
        for _ in 0..2 * SHARDS {
            match self.evict(eviction, incoming) {
                Ok(Some(left)) => eviction = left,
                Ok(None) | Err(_) => break,
            }
        }
        self.store.fence.snapshot().is_ok_and(|header| fits(&header))
    }

    fn run_step(&mut self, queued: Queued<Job>) {
        let (is_tidy, is_evict) = match queued.job.op {
            Op::Tidy(_) => (true, false),
            Op::Evict(_) => (false, true),
            _ => (false, false),
        };
        let answer = queued.job.answer;
        let progressed = self.step(queued.job.op);
        let is_over = !matches!(progressed, Ok(Progressed::Left(_)));
        // A disk that fails here fails the next operation of a caller, too, who is told.
        self.is_tidying &= !(is_tidy && is_over);
        self.is_evicting &= !(is_evict && is_over);
        match progressed {
            // Once the queue is closed, the background ends; callers still get their answers.
            Ok(Progressed::Left(_)) if answer.is_none() && self.queue.is_closed() => {}
            Ok(Progressed::Left(op)) => self.queue.push_own(Job { op, answer }),
            Ok(Progressed::Done(done)) => Job { op: Op::Tidy(0), answer }.finish(Ok(done)),
            Err(error) => Job { op: Op::Tidy(0), answer }.finish(Err(error)),
        }
    }

    fn step(&mut self, op: Op) -> Result<Progressed> {
        let store = self.store.clone();
        match op {
            Op::RemoveMatchingBelow { namespace, pattern, floor, mut shard, mut removed } => {
                let matches = |seen: &Seen| {
                    seen.head.as_ref().is_some_and(|head| {
                        head.seen < floor
                            && head.key.namespace() == &namespace
                            && pattern.matches(&head.key.text())
                    })
                };
                for _ in 0..STEP_SHARDS {
                    let Ok(this) = u8::try_from(shard) else { break };
                    let deleted = store.delete_where(this, STEP_DELETED, matches, |_| false)?;
                    removed += deleted.valid;
                    // A full step may have left some.
                    shard += u16::from((deleted.freed as usize) < STEP_DELETED);
                }
                Ok(if usize::from(shard) == SHARDS {
                    Progressed::Done(Done::Count(removed))
                } else {
                    Progressed::Left(Op::RemoveMatchingBelow { namespace, pattern, floor, shard, removed })
                })
            }
            Op::Sweep { mut left, mut freed, mut visited } => {
                // A distrusted stamp may be trusted once the clock is set right.
                let is_invalid = |seen: &Seen| seen.miss.is_some_and(|miss| miss != Miss::Clock);
                for _ in 0..STEP_SHARDS {
                    let most = STEP_DELETED.min(left as usize);
                    let deleted = store.delete_where(self.sweep_from, most, is_invalid, |_| false)?;
                    (left, freed) = (left - deleted.freed, freed + deleted.freed);
                    if left == 0 {
                        break;
                    }
                    if (deleted.freed as usize) < most {
                        self.sweep_from = self.sweep_from.wrapping_add(1);
                        visited += 1;
                    }
                }
                Ok(if left == 0 || usize::from(visited) >= SHARDS {
                    Progressed::Done(Done::Count(freed))
                } else {
                    Progressed::Left(Op::Sweep { left, freed, visited })
                })
            }
            Op::Tidy(shard) => {
                let Ok(this) = u8::try_from(shard) else { return Ok(Progressed::Done(Done::Nothing)) };
                store.tidy(this)?;
                Ok(if this == u8::MAX {
                    Progressed::Done(Done::Nothing)
                } else {
                    Progressed::Left(Op::Tidy(shard + 1))
                })
            }
            Op::Evict(eviction) => Ok(match self.evict(eviction, 0)? {
                None => Progressed::Done(Done::Nothing),
                Some(left) => Progressed::Left(Op::Evict(left)),
            }),
            Op::Put(_) | Op::Remove(_) | Op::Discard(..) | Op::Mark(..) | Op::RemoveMatching(..) => {
                unreachable!("it is committed with its group")
            }
        }
    }

    /// One step: looks at a folder, or deletes from one. `None` at the end.
    ///
    /// First it looks how old the oldest files are, all of them or those of so many folders that a sample is
    /// enough; then it deletes what is as old, or invalid, until the low mark is reached. Memory is bounded by
    /// the sample, and what was read since is spared.
    fn evict(&mut self, mut eviction: Eviction, incoming: u64) -> Result<Option<Eviction>> {
        let store = self.store.clone();
        if eviction.turn.is_none() {
            match store.fence.folder.try_evictor() {
                Some(turn) => eviction.turn = Some(turn),
                // Another process is at it.
                None if incoming == 0 => return Ok(None),
                None => {}
            }
        }
        let header = store.fence.snapshot()?;
        if store.limits.is_low(&header, incoming) {
            return Ok(None);
        }
        let failed = |error| to_error("sweep", error);
        let Ok(shard) = u8::try_from(eviction.shard) else { return Ok(None) };
        let Some(threshold_ms) = eviction.threshold_ms else {
            for place in store.fence.folder.places(shard).map_err(failed)? {
                if let Some(seen) = store.look(&place).map_err(failed)?? {
                    let used_ms = if seen.miss.is_some() { 0 } else { seen.used_ms };
                    eviction.sample.push((used_ms, seen.amount.disk));
                }
            }
            eviction.shard += 1;
            eviction.sampled += 1;
            if usize::from(eviction.shard) == SHARDS || eviction.sample.len() >= SAMPLE_FILES {
                eviction.shard = 0;
                eviction.threshold_ms = Some(store.limits.threshold_ms(&header, incoming, &mut eviction));
            }
            return Ok(Some(eviction));
        };
        let is_old = |seen: &Seen| seen.miss.is_some() || seen.used_ms <= threshold_ms;
        let is_enough = |header: &Header| store.limits.is_low(header, incoming);
        store.delete_where(shard, usize::MAX, is_old, is_enough)?;
        eviction.shard += 1;
        Ok(Some(eviction))
    }
}

impl super::FilesLimits {
    /// The time at or before which files have to go, by the sample.
    fn threshold_ms(&self, header: &Header, incoming: u64, eviction: &mut Eviction) -> u64 {
        let share = f64::from(eviction.sampled) / SHARDS as f64;
        let (entries, disk) = self.excess(header, incoming);
        let (mut entries, mut disk) = ((entries as f64 * share).ceil(), (disk as f64 * share).ceil());
        eviction.sample.sort_unstable();
        for (used_ms, of_disk) in &eviction.sample {
            entries -= 1.0;
            disk -= *of_disk as f64;
            if entries <= 0.0 && disk <= 0.0 {
                return *used_ms;
            }
        }
        u64::MAX
    }
}

/// Runs a group with one turn of the lock.
fn commit(store: &Store, group: &[Queued<Job>]) -> Vec<Result<Progressed>> {
    let mut staged: Vec<Option<io::Result<Staged<'_>>>> = group
        .iter()
        .map(|queued| match &queued.job.op {
            Op::Put(put) => Some(store.stage(put)),
            _ => None,
        })
        .collect();
    let all = |error: &Error| group.iter().map(|_| Err(error.clone())).collect();
    let name = group.first().map_or("put", |queued| queued.job.op.name());
    let mut locked = match store.fence.lock(name) {
        Ok(locked) => locked,
        Err(error) => return all(&error),
    };
    if let Err(error) = locked.begin(group.len() as u64) {
        return all(&to_error(name, error));
    }
    let inc = locked.header.inc;
    let mut touched = BTreeSet::new();
    let mut results: Vec<Result<Progressed>> = Vec::with_capacity(group.len());
    for (queued, staged) in group.iter().zip(&mut staged) {
        let op = &queued.job.op;
        if locked.header.inc != inc {
            results.push(Err(to_error(op.name(), damaged("the folder began a new incarnation"))));
            continue;
        }
        let failed = |error| to_error(op.name(), error);
        let done = match op {
            Op::Put(put) => {
                touched.insert(Place::of(&put.key).shard);
                match staged.take().expect("every put was staged") {
                    Ok(mut staged) => store.put(&mut locked, put, &mut staged).map(Done::Put),
                    Err(error) => Err(failed(error).key(&put.key.text())),
                }
            }
            Op::Remove(key) => {
                touched.insert(Place::of(key).shard);
                store
                    .remove(&mut locked, key)
                    .map(Done::Removed)
                    .map_err(|error| failed(error).key(&key.text()))
            }
            Op::Discard(key, sealed, quarantine) => {
                touched.insert(Place::of(key).shard);
                store.discard(&mut locked, key, sealed, *quarantine).map(|()| Done::Nothing).map_err(failed)
            }
            Op::Mark(namespace, mark) => {
                store.mark(&mut locked, namespace, mark).map(|()| Done::Nothing).map_err(failed)
            }
            Op::RemoveMatching(namespace, pattern) => {
                // The floor is published before anything is deleted: what a load in flight writes after the scan
                // has passed its place is refused.
                let left = store.raise_floor(&mut locked, namespace).map(|floor| {
                    Progressed::Left(Op::RemoveMatchingBelow {
                        namespace: namespace.clone(),
                        pattern: pattern.clone(),
                        floor,
                        shard: 0,
                        removed: 0,
                    })
                });
                results.push(left.map_err(failed));
                continue;
            }
            _ => unreachable!("a long operation has no part in a group"),
        };
        results.push(done.map(Progressed::Done));
    }
    let is_new = locked.header.inc != inc;
    let published = locked.publish();
    drop(locked);
    let synced = published.and_then(|sync| {
        for shard in touched {
            store.fence.folder.sync_shard(shard)?;
        }
        store.fence.sync(&sync)
    });
    let synced = if is_new { Err(damaged("the folder began a new incarnation meanwhile")) } else { synced };
    if let Err(error) = synced {
        // Done, perhaps, but nobody can say so.
        let unknown = Error::new(ErrorKind::Unavailable, name).backend(NAME).source(error);
        for result in &mut results {
            if result.is_ok() {
                *result = Err(unknown.clone());
            }
        }
    }
    results
}

/// Fails everybody who waits if the writer panics: nobody hangs.
struct AbortOnDrop(Arc<Queue<Job>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
