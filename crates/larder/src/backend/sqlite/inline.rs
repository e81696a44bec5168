//! Reads on the caller's own thread, as long as everything that they need is in memory.
//!
//! A hop to a reader thread and back costs more than the query itself. A lone read that finds its pages in
//! the caches of SQLite or of the system doesn't need one. Whatever could wait is handed over instead: a
//! page that is not cached, a lock, a large value, a connection that is in use, a thread of the backend that
//! has been at its work for long (the disk may hang), a file system that is not of this machine.
//!
//! One connection serves all callers, and a caller never waits for it: what this module can't foresee in the
//! kernel or in SQLite holds at most one thread, ever.

use super::file::{Conn, DataFile};
use super::reclaim::Visited;
use super::store::{self, Store};
use crate::backend::Read;
use crate::clock::Clock;
use crate::key::EntryKey;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
use super::nowait;

/// Most keys of one inline read.
pub(super) const KEYS_MAX: usize = 16;
/// A thread that has been at one batch for so long may be waiting for a disk that hangs.
const STALLED_AFTER: Duration = Duration::from_millis(20);

/// Since when a thread of the backend is at work; told by the thread, read by callers.
pub(super) struct Shift {
    base: Instant,
    /// Microseconds since `base`, and 1; 0 while it waits for work.
    since: AtomicU64,
}

impl Shift {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Shift { base: Instant::now(), since: AtomicU64::new(0) })
    }

    pub(super) fn begin(&self) {
        self.since.store(1 + self.base.elapsed().as_micros() as u64, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    fn is_stalled(&self) -> bool {
        let since = self.since.load(Ordering::Relaxed);
        since != 0 && self.base.elapsed().as_micros() as u64 > since + STALLED_AFTER.as_micros() as u64
    }
}

pub(super) struct Inline {
    file: Arc<DataFile>,
    clock: Clock,
    visited: Arc<Visited>,
    shifts: Vec<Arc<Shift>>,
    conn: Mutex<Option<Conn>>,
    is_on: AtomicBool,
    /// A reader thread is to open the connection again.
    is_stale: AtomicBool,
    #[cfg(test)]
    served: AtomicU64,
    #[cfg(test)]
    handed_over: AtomicU64,
}

impl Inline {
    /// Off unless `is_wanted` and the system can tell what is in memory.
    pub(super) fn new(
        is_wanted: bool,
        file: Arc<DataFile>,
        clock: Clock,
        visited: Arc<Visited>,
        shifts: Vec<Arc<Shift>>,
    ) -> Self {
        let is_on = is_wanted && is_possible(file.path());
        Inline {
            file,
            clock,
            visited,
            shifts,
            conn: Mutex::new(None),
            is_on: AtomicBool::new(is_on),
            is_stale: AtomicBool::new(is_on),
            #[cfg(test)]
            served: AtomicU64::new(0),
            #[cfg(test)]
            handed_over: AtomicU64::new(0),
        }
    }

    /// Reads without waiting for anything; `None`: a reader thread has to.
    pub(super) fn read(&self, keys: &[EntryKey]) -> Option<Vec<Read>> {
        if !self.is_on.load(Ordering::Relaxed) || keys.len() > KEYS_MAX {
            return None;
        }
        let reads = self.attempt(keys);
        #[cfg(test)]
        if reads.is_some() { &self.served } else { &self.handed_over }.fetch_add(1, Ordering::Relaxed);
        reads
    }

    /// How many calls were served inline, and how many were handed over.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.served.load(Ordering::Relaxed), self.handed_over.load(Ordering::Relaxed))
    }

    /// Uses the connection for as long as `run` takes.
    #[cfg(test)]
    pub(super) fn hold(&self, run: &dyn Fn()) {
        let _conn = self.lock();
        run();
    }

    fn attempt(&self, keys: &[EntryKey]) -> Option<Vec<Read>> {
        if self.shifts.iter().any(|shift| shift.is_stalled()) {
            return None;
        }
        let conn = match self.conn.try_lock() {
            Ok(conn) => conn,
            Err(TryLockError::Poisoned(conn)) => conn.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        let current = conn.as_ref().filter(|conn| self.file.is_current(conn));
        let Some(current) = current else {
            // Closing a connection may wait: not here.
            self.is_stale.store(true, Ordering::Relaxed);
            return None;
        };
        let (result, is_unsupported) = without_waiting(|| self.query(current, keys));
        if is_unsupported {
            self.is_on.store(false, Ordering::Relaxed);
        }
        result
    }

    fn query(&self, conn: &Conn, keys: &[EntryKey]) -> Option<Vec<Read>> {
        let now_ms = self.clock.wall_ms();
        let result = match keys {
            [key] => store::get_alone(conn, key, now_ms).map(|found| vec![found]),
            _ => (|| {
                conn.db.prepare_cached("BEGIN")?.execute([])?;
                let mut store = Store::load(&conn.db, now_ms)?;
                let found = keys.iter().map(|key| store.get(key)).collect::<Result<Vec<_>, _>>()?;
                conn.db.prepare_cached("COMMIT")?.execute([])?;
                Ok(found)
            })(),
        };
        match result {
            Ok(found) => Some(
                found
                    .into_iter()
                    .map(|(read, row)| {
                        row.inspect(|id| self.visited.touch(*id));
                        read
                    })
                    .collect(),
            ),
            Err(_) => {
                // Whatever it is, a thread finds it again, and reports it. A read has nothing to roll back.
                if !conn.db.is_autocommit() && conn.db.execute_batch("ROLLBACK").is_err() {
                    self.is_stale.store(true, Ordering::Relaxed);
                }
                None
            }
        }
    }

    /// Opens the connection if a caller found none that it can use. For a thread that may wait.
    pub(super) fn renew(&self) {
        if !self.is_stale.load(Ordering::Relaxed) || !self.is_on.load(Ordering::Relaxed) {
            return;
        }
        // Opened before the lock is taken: callers must find the lock free.
        let Ok(fresh) = opening(|| self.file.open_inline()) else { return };
        self.is_stale.store(false, Ordering::Relaxed);
        let old = self.lock().replace(fresh);
        drop(old);
    }

    /// From now on everything is handed over.
    pub(super) fn stop(&self) {
        self.is_on.store(false, Ordering::Relaxed);
    }

    /// Ends it. For a thread that may wait.
    pub(super) fn close(&self) {
        self.stop();
        let conn = self.lock().take();
        if let Some(conn) = conn {
            self.file.release(conn);
        }
    }

    /// For threads that may wait: a caller holds it for some microseconds.
    fn lock(&self) -> MutexGuard<'_, Option<Conn>> {
        self.conn.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn without_waiting<T>(read: impl FnOnce() -> T) -> (T, bool) {
    nowait::reading(read)
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn opening<T>(open: impl FnOnce() -> T) -> T {
    nowait::opening(open)
}

/// Only on file systems whose locks and names are this machine's own: elsewhere, a lock may wait for a
/// server.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn is_possible(path: &std::path::Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    const EXT4: i64 = 0xef53;
    const XFS: i64 = 0x5846_5342;
    const BTRFS: i64 = 0x9123_683e;
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return false };
    let mut info = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path is a C string, and `info` has room for the answer.
    if unsafe { libc::statfs(path.as_ptr(), info.as_mut_ptr()) } != 0 {
        return false;
    }
    #[allow(clippy::unnecessary_cast, reason = "the field has another type on some architectures")]
    // SAFETY: the call succeeded, so it is filled in.
    let kind = unsafe { info.assume_init() }.f_type as i64;
    [EXT4, XFS, BTRFS].contains(&kind) && nowait::install()
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
fn without_waiting<T>(read: impl FnOnce() -> T) -> (T, bool) {
    (read(), true)
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
fn opening<T>(open: impl FnOnce() -> T) -> T {
    open()
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
fn is_possible(_: &std::path::Path) -> bool {
    false
}
