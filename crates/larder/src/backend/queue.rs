//! What stands between the callers' tasks and a backend's own threads: a bounded queue.
//!
//! Bounded by weight, because a thousand queued megabytes are no bound. A caller that finds it full waits
//! for its turn, in order, for a limited time.

use crate::error::{Error, ErrorKind, Result};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The weight of everything queued, in KiB.
const WEIGHT_MAX: u32 = 64 * 1024;
/// What a job weighs at least: 4,096 small ones fit.
const JOB_WEIGHT: u32 = 16;

/// A longer busy timeout, "never" included, is this one: 20 days, which clocks and SQLite can count.
pub(super) const BUSY_TIMEOUT_MAX: Duration = Duration::from_secs(20 * 24 * 3600);

pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    ready: Condvar,
    permits: Arc<Semaphore>,
    wait_max: Duration,
    /// The backend's name, for errors.
    name: &'static str,
}

struct State<T> {
    jobs: VecDeque<Queued<T>>,
    /// Threads that wait in [`Queue::pop_many`].
    idle: usize,
    is_closed: bool,
}

/// A job, and its share of the bound until it is dropped.
pub(super) struct Queued<T> {
    pub(super) job: T,
    #[cfg_attr(
        not(any(feature = "sqlite", feature = "files")),
        expect(dead_code, reason = "held for its drop")
    )]
    permit: Option<OwnedSemaphorePermit>,
}

impl<T> Queued<T> {
    /// The same place in the bound for what is left of the job.
    #[cfg(any(feature = "sqlite", all(feature = "files", unix)))]
    pub(super) fn map(self, left: impl FnOnce(T) -> T) -> Self {
        Queued { job: left(self.job), permit: self.permit }
    }

    /// Does the job, and then gives its place back.
    #[cfg(all(feature = "files", unix))]
    pub(super) fn run(self, work: impl FnOnce(T)) {
        work(self.job);
    }
}

impl<T> Queue<T> {
    pub(super) fn new(name: &'static str, wait_max: Duration) -> Self {
        Queue {
            state: Mutex::new(State { jobs: VecDeque::new(), idle: 0, is_closed: false }),
            ready: Condvar::new(),
            permits: Arc::new(Semaphore::new(WEIGHT_MAX as usize)),
            wait_max,
            name,
        }
    }

    /// Queues a job that carries so many bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Overloaded`] when the queue stayed full, [`ErrorKind::Closed`] after the end.
    ///
    /// # Cancellation
    /// Dropped before its end, nothing is queued.
    pub(super) async fn push(&self, operation: &'static str, bytes: usize, job: T) -> Result<()> {
        let weight =
            JOB_WEIGHT.saturating_add(u32::try_from(bytes / 1024).unwrap_or(u32::MAX)).min(WEIGHT_MAX);
        let permit = match self.permits.clone().try_acquire_many_owned(weight) {
            Ok(permit) => permit,
            Err(_) => self.wait(operation, weight).await?,
        };
        let mut state = self.lock();
        if state.is_closed {
            return Err(closed(self.name, operation));
        }
        state.jobs.push_back(Queued { job, permit: Some(permit) });
        let is_awaited = state.idle > 0;
        drop(state);
        if is_awaited {
            self.ready.notify_one();
        }
        Ok(())
    }

    /// Puts what is left of a job at the end, also when the queue is closed.
    #[cfg(any(feature = "sqlite", all(feature = "files", unix)))]
    pub(super) fn push_back(&self, queued: Queued<T>) {
        self.lock().jobs.push_back(queued);
        self.ready.notify_one();
    }

    /// Queues work of the backend's own, outside of the bound.
    #[cfg(any(feature = "sqlite", all(feature = "files", unix)))]
    pub(super) fn push_own(&self, job: T) {
        self.push_back(Queued { job, permit: None });
    }

    /// The next jobs in order, at most `max` of them; `None` when the queue is closed and empty.
    /// With several threads, each takes its share and leaves the rest to the others.
    pub(super) fn pop_many(&self, max: usize, threads: usize) -> Option<Vec<Queued<T>>> {
        let mut state = self.lock();
        while state.jobs.is_empty() {
            if state.is_closed {
                return None;
            }
            state.idle += 1;
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
        let share = state.jobs.len().div_ceil(threads).min(max);
        Some(state.jobs.drain(..share).collect())
    }

    /// Refuses new jobs; what is queued is still done.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.permits.close();
        self.ready.notify_all();
    }

    #[cfg(all(feature = "files", unix))]
    pub(super) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Refuses new jobs and drops what is queued: nobody is there to do it.
    pub(super) fn abort(&self) {
        self.close();
        let jobs = std::mem::take(&mut self.lock().jobs);
        drop(jobs);
    }

    async fn wait(&self, operation: &'static str, weight: u32) -> Result<OwnedSemaphorePermit> {
        let mut permit = pin!(self.permits.clone().acquire_many_owned(weight));
        let mut limit = crate::runtime::sleep(self.wait_max);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(permit) = permit.as_mut().poll(cx) {
                return Poll::Ready(permit.map_err(|_| closed(self.name, operation)));
            }
            limit.as_mut().poll(cx).map(|()| {
                Err(Error::new(ErrorKind::Overloaded, operation)
                    .backend(self.name)
                    .message("the queue stayed full for the busy timeout"))
            })
        })
        .await
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn closed(name: &'static str, operation: &'static str) -> Error {
    Error::new(ErrorKind::Closed, operation).backend(name)
}

/// The error of a caller whose answer never comes.
#[cfg(any(feature = "sqlite", all(feature = "files", unix)))]
pub(super) fn lost(name: &'static str, operation: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, operation).backend(name).message("the thread that serves it has ended")
}
