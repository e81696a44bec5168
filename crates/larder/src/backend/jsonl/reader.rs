//! The threads that read: a disk that hangs must not hang the caller's runtime.

use super::shard::{Place, Shard, place};
use crate::backend::queue::Queue;
use crate::backend::{Miss, Read};
use crate::error::Result;
use crate::key::EntryKey;
use std::sync::Arc;

/// What a reader does for somebody who waits, and how it learns that nobody does any more.
pub(super) struct Request {
    pub(super) work: Box<dyn FnOnce() + Send>,
}

/// Works until the queue is closed and empty.
pub(super) fn run(queue: &Arc<Queue<Request>>, readers: usize) {
    /// Most requests that one thread takes at a time.
    const BATCH_MAX: usize = 32;
    let abort = AbortIfPanicking(queue.clone());
    while let Some(batch) = queue.pop_many(BATCH_MAX, readers) {
        for queued in batch {
            (queued.job.work)();
        }
    }
    drop(abort);
}

/// Reads keys of one shard, with tickets of before.
pub(super) fn get_many(shard: &Shard, keys: &[EntryKey]) -> Result<Vec<Result<Read>>> {
    let (ticket, found) = shard.look("get", |log| {
        let mut found: Vec<Result<Place, Miss>> = Vec::with_capacity(keys.len());
        for key in keys {
            let slot = log.index.get(key).ok_or(Miss::Absent).and_then(|slot| {
                match log.why_invalid(key.namespace(), slot, log.now_ms) {
                    Some(miss) => Err(miss),
                    None => Ok(place(log, slot)),
                }
            });
            if slot.is_ok() {
                log.index.touch(key);
            }
            found.push(slot);
        }
        (log.ticket(), found)
    })?;
    let read = |(key, place): (&EntryKey, Result<Place, Miss>)| {
        let place = match place {
            Ok(place) => place,
            Err(miss) => return Ok(Read { ticket, found: Err(miss) }),
        };
        let found = shard.read(&place, key)?;
        if found.is_none() {
            shard.forget(key, &place);
        }
        Ok(Read { ticket, found: found.ok_or(Miss::Absent) })
    };
    Ok(keys.iter().zip(found).map(read).collect())
}

/// Fails everybody who waits if a reader panics: nobody hangs.
struct AbortIfPanicking(Arc<Queue<Request>>);

impl Drop for AbortIfPanicking {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.abort();
        }
    }
}
