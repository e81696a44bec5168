//! The threads that read, each with a connection of its own.
//!
//! What may wait for the disk never runs on the caller's thread: a disk that hangs must not hang the
//! runtime. The price is a hop to a thread and back; under load a thread takes several reads at once, in
//! one transaction, which saves each the file locks and the row `store`.

use super::fault::{NAME, is_corrupt, to_error};
use super::file::{Conn, DataFile};
use super::inline::{Inline, Shift};
use super::reclaim::Visited;
use super::store::{self, Place, Store};
use crate::backend::Quarantined;
use crate::backend::queue::{Queue, Queued, lost};
use crate::backend::{Cursor, Page, Read, Scan, Ticket, Usage};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::key::{EntryKey, Namespace, Pattern};
use crate::report::{self, Past, Query};
use crate::stamp::Stamp;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tokio::sync::oneshot;

/// Most requests that share a transaction.
const BATCH_MAX: usize = 32;

type Answer<T> = Option<oneshot::Sender<Result<T>>>;

/// What a reader is asked, and who waits for it. An answer is taken out when it is given, so that a
/// request can be run again on a new file.
pub(super) enum Request {
    Get(EntryKey, Answer<Read>),
    GetMany(Vec<EntryKey>, Answer<Vec<Read>>),
    Ticket(Answer<Ticket>),
    Scan(ScanOwned, Answer<Page>),
    Namespaces(Answer<Vec<Namespace>>),
    Usage(Answer<Usage>),
    LastStamp(Answer<Option<Stamp>>),
    /// What a test lets the thread do.
    #[cfg(test)]
    Run(Arc<dyn Fn() + Send + Sync>, Answer<()>),
    Quarantined(Answer<Vec<Quarantined>>),
    History(EntryKey, Answer<Vec<Past>>),
    /// The last part is where the page begins.
    Standings(Namespace, Query, i64, Answer<report::Page>),
}

/// A [`Scan`] that outlives its caller.
pub(super) struct ScanOwned {
    pub(super) namespace: Namespace,
    pub(super) pattern: Option<Pattern>,
    pub(super) after: Option<Cursor>,
    pub(super) limit: usize,
}

pub(super) struct Reader {
    pub(super) file: Arc<DataFile>,
    pub(super) queue: Arc<Queue<Request>>,
    pub(super) clock: Clock,
    pub(super) visited: Arc<Visited>,
    pub(super) readers: usize,
    pub(super) conn: Option<Conn>,
    pub(super) inline: Arc<Inline>,
    pub(super) shift: Arc<Shift>,
}

impl Reader {
    /// Works until the queue is closed and empty.
    pub(super) fn run(mut self) {
        while let Some(mut batch) = self.queue.pop_many(BATCH_MAX, self.readers) {
            self.shift.begin();
            // Whoever stopped waiting needs no read.
            batch.retain(|queued| !queued.job.is_abandoned());
            // After a panic the connection is gone, and the next batch opens another.
            match catch_unwind(AssertUnwindSafe(|| self.read(&mut batch))) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => fail_all(batch, &error),
                Err(_) => {
                    self.file.incident(
                        "a reader thread panicked; what it was reading was answered with an error",
                        None,
                    );
                    fail_all(batch, &lost(NAME, "get"));
                }
            }
            self.inline.renew();
            self.shift.end();
        }
        self.inline.close();
        if let Some(conn) = self.conn.take() {
            self.file.release(conn);
        }
    }

    /// Answers a batch from one snapshot. A damaged file is set aside, and the rest of the batch reads the
    /// new one.
    fn read(&mut self, batch: &mut [Queued<Request>]) -> Result<()> {
        let mut is_second = false;
        loop {
            let conn = match self.conn.take() {
                Some(conn) if self.file.is_current(&conn) => conn,
                replaced => {
                    drop(replaced);
                    self.file.open_reader()?
                }
            };
            let Err(error) = self.transaction(&conn, batch) else {
                self.conn = Some(conn);
                return Ok(());
            };
            if !conn.db.is_autocommit() && conn.db.execute_batch("ROLLBACK").is_err() {
                drop(conn);
            } else if is_corrupt(&error) && !is_second {
                self.file.abandon(conn, &error)?;
                is_second = true;
                continue;
            } else {
                self.conn = Some(conn);
            }
            return Err(to_error("get", error));
        }
    }

    fn transaction(&self, conn: &Conn, batch: &mut [Queued<Request>]) -> rusqlite::Result<()> {
        let now_ms = self.clock.wall_ms();
        if let [Queued { job: Request::Get(key, answer), .. }] = batch {
            return give(answer, || Ok(self.visit(store::get_alone(conn, key, now_ms)?)));
        }
        conn.db.prepare_cached("BEGIN")?.execute([])?;
        let mut store = Store::load(&conn.db, now_ms)?;
        for queued in batch {
            self.serve(&mut store, &mut queued.job)?;
        }
        conn.db.prepare_cached("COMMIT")?.execute([])?;
        Ok(())
    }

    fn serve(&self, store: &mut Store<'_>, request: &mut Request) -> rusqlite::Result<()> {
        match request {
            Request::Get(key, answer) => give(answer, || self.get(store, key)),
            Request::GetMany(keys, answer) => {
                give(answer, || keys.iter().map(|key| self.get(store, key)).collect())
            }
            Request::Ticket(answer) => give(answer, || Ok(store.ticket())),
            Request::Scan(scan, answer) => {
                let Some(waiting) = answer.take() else { return Ok(()) };
                // A scan can be refused for its cursor, which is the caller's fault and not the file's.
                let after = match Place::parse(scan.after.as_ref()) {
                    Ok(after) => after,
                    Err(error) => {
                        drop(waiting.send(Err(error)));
                        return Ok(());
                    }
                };
                *answer = Some(waiting);
                let ScanOwned { namespace, pattern, limit, .. } = scan;
                let scan = Scan { namespace, pattern: pattern.as_ref(), after: None, limit: *limit };
                give(answer, || store.scan(&scan, after))
            }
            Request::Namespaces(answer) => give(answer, || store.namespaces()),
            Request::Usage(answer) => give(answer, || Ok(store.usage())),
            Request::LastStamp(answer) => give(answer, || Ok(store.state.last_stamp)),
            #[cfg(test)]
            Request::Run(run, answer) => give(answer, || {
                run();
                Ok(())
            }),
            Request::Quarantined(answer) => give(answer, || store.quarantined()),
            Request::History(key, answer) => give(answer, || store.history(key)),
            Request::Standings(namespace, query, after, answer) => {
                give(answer, || store.standings(namespace, query, *after))
            }
        }
    }

    fn get(&self, store: &mut Store<'_>, key: &EntryKey) -> rusqlite::Result<Read> {
        Ok(self.visit(store.get(key)?))
    }

    fn visit(&self, (read, row): (Read, Option<i64>)) -> Read {
        if let Some(id) = row {
            self.visited.touch(id);
        }
        read
    }
}

/// Answers, unless that was done. An error keeps the answer open, for a second try or [`Request::fail`].
fn give<T>(answer: &mut Answer<T>, read: impl FnOnce() -> rusqlite::Result<T>) -> rusqlite::Result<()> {
    if answer.is_none() {
        return Ok(());
    }
    let value = read()?;
    if let Some(answer) = answer.take() {
        // Nobody waits any more: a read leaves nothing behind.
        drop(answer.send(Ok(value)));
    }
    Ok(())
}

impl Request {
    fn is_abandoned(&self) -> bool {
        fn is_closed<T>(answer: &Answer<T>) -> bool {
            answer.as_ref().is_some_and(oneshot::Sender::is_closed)
        }
        match self {
            Request::Get(_, answer) => is_closed(answer),
            Request::GetMany(_, answer) => is_closed(answer),
            Request::Ticket(answer) => is_closed(answer),
            Request::Scan(_, answer) => is_closed(answer),
            Request::Namespaces(answer) => is_closed(answer),
            Request::Usage(answer) => is_closed(answer),
            Request::LastStamp(answer) => is_closed(answer),
            #[cfg(test)]
            Request::Run(_, answer) => is_closed(answer),
            Request::Quarantined(answer) => is_closed(answer),
            Request::History(_, answer) => is_closed(answer),
            Request::Standings(.., answer) => is_closed(answer),
        }
    }

    fn fail(self, error: &Error) {
        fn send<T>(answer: Answer<T>, error: &Error) {
            if let Some(answer) = answer {
                drop(answer.send(Err(error.clone())));
            }
        }
        match self {
            Request::Get(_, answer) => send(answer, error),
            Request::GetMany(_, answer) => send(answer, error),
            Request::Ticket(answer) => send(answer, error),
            Request::Scan(_, answer) => send(answer, error),
            Request::Namespaces(answer) => send(answer, error),
            Request::Usage(answer) => send(answer, error),
            Request::LastStamp(answer) => send(answer, error),
            #[cfg(test)]
            Request::Run(_, answer) => send(answer, error),
            Request::Quarantined(answer) => send(answer, error),
            Request::History(_, answer) => send(answer, error),
            Request::Standings(.., answer) => send(answer, error),
        }
    }
}

/// Asks a reader and waits.
pub(super) async fn ask<T>(
    queue: &Queue<Request>,
    operation: &'static str,
    request: impl FnOnce(Answer<T>) -> Request,
) -> Result<T> {
    let (answer, answered) = oneshot::channel();
    queue.push(operation, 0, request(Some(answer))).await?;
    answered.await.unwrap_or_else(|_| Err(lost(NAME, operation)))
}

fn fail_all(batch: Vec<Queued<Request>>, error: &Error) {
    for queued in batch {
        queued.job.fail(error);
    }
}
