//! What the file system's errors mean to a cache, and the seam where tests make it fail.

use crate::error::{Error, ErrorKind};
use std::io;

/// The backend's name in errors and metrics.
pub(super) const NAME: &str = "files";

/// Larder's error for a file operation.
pub(super) fn to_error(operation: &'static str, error: io::Error) -> Error {
    use io::ErrorKind as Io;
    let kind = match error.kind() {
        Io::PermissionDenied => ErrorKind::Authentication,
        Io::ReadOnlyFilesystem => ErrorKind::ReadOnly,
        Io::StorageFull | Io::QuotaExceeded => ErrorKind::Full,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, operation).backend(NAME).source(error)
}

/// Bytes that larder never wrote.
pub(super) fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// What a test may switch off, to see that the promise depends on it. Always on in other builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guard {
    /// A write that began before a removal is refused.
    Fence,
    /// A file whose checksums are wrong is none.
    Sum,
    /// A state that was written to another file is none.
    Identity,
}

/// Where every system call of the backend passes. Outside of this crate's tests it is nothing.
#[cfg(not(test))]
#[derive(Debug, Default)]
pub(super) struct Faults;

#[cfg(not(test))]
impl Faults {
    #[inline(always)]
    #[allow(clippy::unused_self, reason = "the tests' version needs it")]
    pub(super) fn step(&self) -> io::Result<()> {
        Ok(())
    }

    #[inline(always)]
    #[allow(clippy::unused_self, reason = "the tests' version needs it")]
    pub(super) fn holds(&self, _: Guard) -> bool {
        true
    }

    #[inline(always)]
    #[allow(clippy::unused_self, reason = "the tests' version needs it")]
    pub(super) fn cap(&self, length: usize) -> usize {
        length
    }
}

#[cfg(test)]
pub(super) use injected::Faults;

#[cfg(test)]
mod injected {
    use super::Guard;
    use std::io;
    use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::SeqCst};
    use std::sync::{Mutex, PoisonError};

    /// Fails the n-th system call, and cuts writes short.
    #[derive(Debug, Default)]
    pub(in super::super) struct Faults {
        /// Calls until the one that fails; negative when none will.
        left: AtomicI64,
        errno: AtomicUsize,
        /// Calls that fail from then on.
        count: AtomicI64,
        /// Longest write that is done whole; 0 is any.
        write_max: AtomicUsize,
        off: Mutex<Option<Guard>>,
    }

    impl Faults {
        /// From the `after`-th call on, `count` calls fail with `errno`.
        pub(in super::super) fn arm(&self, after: i64, count: i64, errno: i32, write_max: usize) {
            self.errno.store(errno as usize, SeqCst);
            self.write_max.store(write_max, SeqCst);
            self.count.store(count, SeqCst);
            self.left.store(after + 1, SeqCst);
        }

        /// Whether the fault was met; none will be from now on.
        pub(in super::super) fn disarm(&self) -> bool {
            let met = self.left.swap(i64::MAX, SeqCst) <= 0;
            self.write_max.store(0, SeqCst);
            self.count.store(0, SeqCst);
            met
        }

        pub(in super::super) fn switch_off(&self, guard: Guard) {
            *self.off.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
        }

        pub(in super::super) fn holds(&self, guard: Guard) -> bool {
            *self.off.lock().unwrap_or_else(PoisonError::into_inner) != Some(guard)
        }

        pub(in super::super) fn step(&self) -> io::Result<()> {
            if self.count.load(SeqCst) == 0 || self.left.fetch_sub(1, SeqCst) > 1 {
                return Ok(());
            }
            if self.left.load(SeqCst) <= -self.count.load(SeqCst) {
                return Ok(());
            }
            Err(io::Error::from_raw_os_error(self.errno.load(SeqCst) as i32))
        }

        pub(in super::super) fn cap(&self, length: usize) -> usize {
            match self.write_max.load(SeqCst) {
                0 => length,
                max => length.min(max),
            }
        }
    }
}
