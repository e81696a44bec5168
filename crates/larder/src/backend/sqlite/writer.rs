//! The one thread that writes: group commit.
//!
//! It takes whatever is queued, runs it in one transaction, and answers after the commit: while one group
//! is being synced the next one gathers, so that 64 callers share one sync. A group that fails is rolled
//! back and its operations run one by one, so that only those which fail alone are reported as failed.

use super::fault::{NAME, is_corrupt, kind_on, to_error};
use super::file::{Conn, DataFile};
use super::inline::Shift;
use super::reclaim::{Limits, Progress, SHRINK_STEPS, Visited};
use super::store::{Place, Store};
use crate::backend::quarantine::Summary;
use crate::backend::queue::{Queue, Queued};
use crate::backend::{Durability, Exchange, Mark, Put, PutOutcome, Removed, boot_id};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{EntryKey, Namespace, Pattern};
use crate::report::Report;
use bytes::Bytes;
use rusqlite::Connection;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tokio::sync::oneshot;

/// Most operations of one transaction.
const GROUP_OPS: usize = 256;

/// What the writer is asked to do.
#[derive(Clone)]
pub(super) enum Op {
    Put(Put),
    Remove(EntryKey),
    Discard(EntryKey, Bytes),
    Exchange(Exchange),
    Quarantine(EntryKey, Bytes, &'static str),
    ForgetQuarantined,
    Report(EntryKey, Report),
    Mark(Namespace, Mark),
    RemoveMatching(Namespace, Pattern),
    /// What is left of a removal by pattern after its floor was raised.
    RemoveMatchingBelow {
        namespace: Namespace,
        pattern: Pattern,
        floor: u64,
        after: Place,
        removed: u64,
    },
    Sweep {
        left: u64,
        freed: u64,
    },
    /// The store is over its limit.
    Evict,
    /// The file is larger than what it holds; so many steps are left.
    Shrink(u32),
    /// What a test lets the thread do.
    #[cfg(test)]
    Run(Run),
}

#[cfg(test)]
pub(super) type Run = Arc<dyn Fn() + Send + Sync>;

/// What it answers.
#[derive(Clone, Copy)]
pub(super) enum Done {
    Put(PutOutcome),
    Removed(Removed),
    Count(u64),
    Reported(Option<u32>),
    Nothing,
}

impl Op {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Op::Put(_) => "put",
            Op::Remove(_) => "remove",
            Op::Discard(..) => "discard",
            Op::Exchange(_) => "exchange",
            Op::Quarantine(..) | Op::ForgetQuarantined => "quarantine",
            Op::Report(..) => "report",
            Op::Mark(..) => "mark",
            Op::RemoveMatching(..) | Op::RemoveMatchingBelow { .. } => "remove_matching",
            Op::Sweep { .. } | Op::Evict | Op::Shrink(_) => "sweep",
            #[cfg(test)]
            Op::Run(_) => "run",
        }
    }
}

pub(super) type Answer = oneshot::Sender<Result<Done>>;

/// An operation and who waits for it; `None` for the writer's own.
pub(super) struct Job {
    pub(super) op: Op,
    pub(super) answer: Option<Answer>,
}

impl Job {
    fn finish(self, result: Result<Done>) {
        if let Some(answer) = self.answer {
            // Nobody waits any more: the operation took effect all the same.
            drop(answer.send(result));
        }
    }
}

/// How far one operation got in one transaction.
enum Progressed {
    Done(Done),
    /// The rest runs in a later transaction, so that others get in between.
    Left(Op),
}

pub(super) struct Writer {
    pub(super) file: Arc<DataFile>,
    pub(super) queue: Arc<Queue<Job>>,
    pub(super) clock: Clock,
    pub(super) durability: Durability,
    pub(super) limits: Limits,
    pub(super) visited: Arc<Visited>,
    pub(super) conn: Option<Conn>,
    pub(super) progress: Progress,
    pub(super) shift: Arc<Shift>,
}

impl Writer {
    /// Works until the queue is closed and empty, then closes the file. The result of the closing.
    pub(super) fn run(mut self) -> Result<()> {
        let abort_if_it_panics = AbortOnDrop(self.queue.clone());
        while let Some(group) = self.queue.pop_many(GROUP_OPS, 1) {
            self.shift.begin();
            // A panic rolls its group back, as the connection is gone; the next group opens another.
            if catch_unwind(AssertUnwindSafe(|| self.run_group(group))).is_err() {
                self.file
                    .incident("the writer thread panicked; what was not acknowledged was not done", None);
            }
            self.shift.end();
        }
        drop(abort_if_it_panics);
        self.close()
    }

    fn run_group(&mut self, group: Vec<Queued<Job>>) {
        let error = match self.commit(&group) {
            Ok(results) => return self.answer(group, results),
            Err(error) => error,
        };
        // A locked file stays locked: each operation alone would wait as long again.
        let is_hopeless = error.kind() == ErrorKind::Unavailable;
        if group.len() == 1 || is_hopeless {
            for queued in group {
                queued.job.finish(Err(error.clone()));
            }
            return;
        }
        if error.kind() == ErrorKind::Full {
            // Moves what the log holds into the file, which may give the log its space back.
            self.checkpoint("PASSIVE");
        }
        for queued in group {
            match self.commit(std::slice::from_ref(&queued)) {
                Ok(results) => self.answer(vec![queued], results),
                Err(error) => queued.job.finish(Err(error)),
            }
        }
    }

    fn answer(&self, group: Vec<Queued<Job>>, results: Vec<Progressed>) {
        for (queued, result) in group.into_iter().zip(results) {
            match result {
                Progressed::Done(done) => queued.job.finish(Ok(done)),
                Progressed::Left(op) => self.queue.push_back(queued.map(|job| Job { op, ..job })),
            }
        }
    }

    /// Runs a group in one transaction. A damaged file is set aside and the group runs on the new one:
    /// there every removal holds, and every ticket of the old one is refused.
    fn commit(&mut self, group: &[Queued<Job>]) -> Result<Vec<Progressed>> {
        let name = group.first().map_or("put", |queued| queued.job.op.name());
        let mut is_second = false;
        loop {
            let conn = match self.conn.take() {
                Some(conn) if self.file.is_current(&conn) => conn,
                replaced => {
                    drop(replaced);
                    self.progress = Progress::default();
                    self.file.open_writer()?
                }
            };
            let result = self.transaction(&conn.db, group);
            let error = match result {
                Ok((results, is_over)) => {
                    self.conn = Some(conn);
                    if is_over {
                        self.queue.push_own(Job { op: Op::Evict, answer: None });
                    }
                    return Ok(results);
                }
                Err(error) => error,
            };
            let found = kind_on(&conn.db, &error);
            self.progress.forget();
            if !conn.db.is_autocommit() && conn.db.execute_batch("ROLLBACK").is_err() {
                // A connection that can't even roll back is not used again.
                drop(conn);
            } else if is_corrupt(&error) && !is_second {
                self.file.abandon(conn, &error)?;
                is_second = true;
                continue;
            } else {
                self.conn = Some(conn);
            }
            return Err(Error::new(found, name).backend(NAME).source(error));
        }
    }

    fn transaction(
        &mut self,
        db: &Connection,
        group: &[Queued<Job>],
    ) -> rusqlite::Result<(Vec<Progressed>, bool)> {
        let now_ms = self.clock.wall_ms();
        db.execute_batch("BEGIN IMMEDIATE")?;
        let mut store = Store::load(db, now_ms)?;
        if self.durability == Durability::Process && !store.state.unsynced {
            drop(store);
            self.announce_unsynced(db)?;
            store = Store::load(db, now_ms)?;
        }
        if self.durability == Durability::Power && store.state.unsynced {
            // Somebody with less durability was killed here. This commit makes all before it durable, too; without
            // this, the next power loss would take what it acknowledges.
            drop(store);
            db.execute("UPDATE store SET unsynced = 0", [])?;
            store = Store::load(db, now_ms)?;
        }
        let before = store.state;
        let mut results = Vec::with_capacity(group.len());
        for queued in group {
            results.push(self.apply(&mut store, &queued.job.op)?);
        }
        let evicted = store.evict(&self.limits, &self.visited, &mut self.progress)?;
        if store.state != before {
            store.save()?;
        }
        db.prepare_cached("COMMIT")?.execute([])?;
        Ok((results, !evicted.is_done))
    }

    fn apply(&mut self, store: &mut Store<'_>, op: &Op) -> rusqlite::Result<Progressed> {
        let done = match op {
            Op::Put(put) => Done::Put(store.put(put)?),
            Op::Remove(key) => Done::Removed(store.remove(key)?),
            Op::Discard(key, sealed) => {
                let _ = store.discard(key, sealed)?;
                Done::Nothing
            }
            Op::Exchange(Exchange { key, old, new }) => {
                Done::Count(u64::from(store.exchange(key, old, new)?))
            }
            Op::Quarantine(key, sealed, why) => {
                if let Some(summary) = store.quarantine(key, sealed, why)? {
                    self.file.note_quarantine(summary);
                }
                Done::Nothing
            }
            Op::ForgetQuarantined => {
                store.forget_quarantined()?;
                self.file.note_quarantine(Summary::default());
                Done::Nothing
            }
            Op::Report(key, report) => Done::Reported(store.report(key, report)?),
            Op::Mark(namespace, mark) => {
                store.mark(namespace, mark, self.limits.marks_max)?;
                Done::Nothing
            }
            // The floor is committed before anything is deleted: what a load in flight writes after the
            // scan has passed its place is refused.
            Op::RemoveMatching(namespace, pattern) => {
                let floor = store.raise_floor(namespace)?;
                return Ok(Progressed::Left(Op::RemoveMatchingBelow {
                    namespace: namespace.clone(),
                    pattern: pattern.clone(),
                    floor,
                    after: Place::START,
                    removed: 0,
                }));
            }
            Op::RemoveMatchingBelow { namespace, pattern, floor, after, removed } => {
                let (more, next) = store.remove_matching(namespace, pattern, *floor, *after)?;
                let removed = removed + more;
                match next {
                    None => Done::Count(removed),
                    Some(after) => {
                        let (namespace, pattern, floor) = (namespace.clone(), pattern.clone(), *floor);
                        return Ok(Progressed::Left(Op::RemoveMatchingBelow {
                            namespace,
                            pattern,
                            floor,
                            after,
                            removed,
                        }));
                    }
                }
            }
            Op::Sweep { left, freed } => {
                let step = store.sweep(*left, &mut self.progress)?;
                let freed = freed + step.freed;
                if !step.is_done {
                    return Ok(Progressed::Left(Op::Sweep { left: left - step.freed, freed }));
                }
                if store.is_sparse()? {
                    self.queue.push_own(Job { op: Op::Shrink(SHRINK_STEPS), answer: None });
                }
                Done::Count(freed)
            }
            // Every transaction ends with a step of the eviction.
            Op::Evict => Done::Nothing,
            Op::Shrink(left) => {
                store.shrink()?;
                if *left > 1 && store.is_sparse()? {
                    return Ok(Progressed::Left(Op::Shrink(left - 1)));
                }
                Done::Nothing
            }
            #[cfg(test)]
            Op::Run(run) => {
                run();
                Done::Nothing
            }
        };
        Ok(Progressed::Done(done))
    }

    /// Records, synced, that from now on commits are not synced one by one; the group's transaction then
    /// begins anew.
    fn announce_unsynced(&self, db: &Connection) -> rusqlite::Result<()> {
        db.execute_batch("ROLLBACK; PRAGMA synchronous = FULL; BEGIN IMMEDIATE")?;
        db.execute("UPDATE store SET unsynced = 1, boot = ?1", [boot_id()])?;
        db.execute_batch("COMMIT; PRAGMA synchronous = NORMAL; BEGIN IMMEDIATE")
    }

    fn checkpoint(&self, how: &str) {
        if let Some(conn) = &self.conn {
            // Best effort: what stays in the log is read from there.
            drop(conn.db.query_row(&format!("PRAGMA wal_checkpoint({how})"), [], |_| Ok(())));
        }
    }

    fn close(&mut self) -> Result<()> {
        let Some(conn) = self.conn.take() else { return Ok(()) };
        let result = if self.file.is_current(&conn) {
            conn.db
                .execute_batch(
                    // Synced in full, this commit makes all before it durable, too.
                    "PRAGMA synchronous = FULL;
                     BEGIN IMMEDIATE;
                     UPDATE store SET clean = 1, unsynced = 0;
                     COMMIT;",
                )
                .map_err(|error| to_error("close", error))
        } else {
            Ok(())
        };
        self.conn = Some(conn);
        self.checkpoint("TRUNCATE");
        if let Some(conn) = self.conn.take() {
            self.file.release(conn);
        }
        result
    }
}

/// Fails everybody who waits when the writer is gone, whatever ended it: nobody hangs.
struct AbortOnDrop(Arc<Queue<Job>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
