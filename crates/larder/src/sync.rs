//! The locks and atomics of everything that shuttle schedules: `std`'s, or shuttle's under
//! `--cfg larder_shuttle`.
//!
//! A poisoned lock is taken all the same: every critical section of larder leaves its data valid at each
//! point where it can panic, and a cache must not spread one thread's panic to all others.

#[cfg(not(larder_shuttle))]
use std::sync as imp;

#[cfg(larder_shuttle)]
use shuttle::sync as imp;

pub(crate) use imp::{MutexGuard, atomic};

/// A mutex that ignores poison.
#[derive(Default)]
pub(crate) struct Mutex<T: ?Sized>(imp::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Mutex(imp::Mutex::new(value))
    }
}

impl<T: ?Sized> Mutex<T> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl<T: ?Sized> Mutex<T> {
    /// `None` while another thread holds it.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => None,
        }
    }
}

impl<T: ?Sized + std::fmt::Debug> std::fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mutex(..)")
    }
}

/// A mutex that ignores poison and is no step of a schedule: for state that no rule of the protocol depends on.
#[derive(Default)]
pub(crate) struct Unscheduled<T>(std::sync::Mutex<T>);

impl<T> Unscheduled<T> {
    pub(crate) fn new(value: T) -> Self {
        Unscheduled(std::sync::Mutex::new(value))
    }

    #[cfg_attr(not(larder_shuttle), allow(unused_qualifications, reason = "shuttle's guard is another type"))]
    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl<T> std::fmt::Debug for Unscheduled<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unscheduled(..)")
    }
}

/// A reader-writer lock that ignores poison.
#[derive(Default)]
pub(crate) struct RwLock<T: ?Sized>(imp::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        RwLock(imp::RwLock::new(value))
    }
}

impl<T: ?Sized> RwLock<T> {
    pub(crate) fn read(&self) -> imp::RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> imp::RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl<T: ?Sized> std::fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RwLock(..)")
    }
}

/// The number of the flight whose loader runs on this thread right now; 0 for none.
pub(crate) mod current_flight {
    use std::cell::Cell;

    #[cfg(not(larder_shuttle))]
    thread_local! {
        static CURRENT: Cell<u64> = const { Cell::new(0) };
    }
    #[cfg(larder_shuttle)]
    shuttle::thread_local! {
        static CURRENT: Cell<u64> = Cell::new(0);
    }

    pub(crate) fn get() -> u64 {
        CURRENT.with(Cell::get)
    }

    pub(crate) fn set(flight: u64) {
        CURRENT.with(|current| current.set(flight));
    }

    pub(crate) fn replace(flight: u64) -> u64 {
        CURRENT.with(|current| current.replace(flight))
    }
}
