//! How many calls are under way at once, learned from latency, and who waits when there are more.
//!
//! The limit follows the gradient of latency (Netflix, "Performance Under Load", 2018): while calls take about
//! as long as on a backend at ease it grows, when they take longer it shrinks. What "at ease" means is measured
//! again now and then at a quarter of it (as BBR does, Cardwell et al., 2016), since a mean over time would
//! take a queue that has grown slowly for normal. Past the limit, calls wait in a bounded queue by priority.

use super::Verdict;
use crate::sync::Unscheduled;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// How many calls a backend gets at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct AdmissionOptions {
    /// Calls under way at once, at most. Default: 1024: more only wait inside of the backend's client, where
    /// nobody can put an invalidation before them.
    pub concurrency_max: u32,
    /// The limit falls no lower. Default: 16, so that a few slow calls don't stop a cache.
    pub concurrency_min: u32,
    /// The limit at the start. Default: 128.
    pub concurrency_initial: u32,
    /// Calls that wait, at most. Default: 1024. Past it a call of lower priority gives way, and if there is
    /// none, the call is refused at once.
    pub queue_max: u32,
}

impl Default for AdmissionOptions {
    fn default() -> Self {
        AdmissionOptions {
            concurrency_max: 1024,
            concurrency_min: 16,
            concurrency_initial: 128,
            queue_max: 1024,
        }
    }
}

/// Who goes first. An invalidation that waits lets old values be read; warming can always wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Priority {
    Invalidate,
    Read,
    Set,
    Warm,
}

const PRIORITIES: usize = Priority::Warm as usize + 1;
/// Latency may double before the limit shrinks: batches and group commits make it vary that much.
const TOLERANCE: f64 = 2.0;
/// How much of a new limit is taken at once.
const SMOOTHING: f64 = 0.2;
/// So many windows after the last time, the latency at ease is measured again.
const WINDOWS_TO_PROBE: u32 = 100;
/// Calls to a window, at least.
const WINDOW_MIN: u32 = 16;
/// What a call that was given up does to the limit.
const BACK_OFF: f64 = 0.9;

#[derive(Debug)]
pub(crate) struct Admission {
    options: AdmissionOptions,
    inner: Unscheduled<Inner>,
}

#[derive(Debug)]
struct Inner {
    limit: f64,
    under_way: u32,
    queues: [VecDeque<Arc<Waiter>>; PRIORITIES],
    waiting: u32,
    /// The latency at ease; 0 until the first window ends.
    at_ease_us: f64,
    window_us: f64,
    window_calls: u32,
    /// Windows until the latency at ease is measured; in the window at 0 a quarter of the limit holds: less than
    /// what [`TOLERANCE`] allows, or a queue would pass for ease.
    to_probe: u32,
    /// Counts these measurements.
    probe: u64,
}

#[derive(Debug, Default)]
struct Waiter(Unscheduled<Wait>);

#[derive(Debug, Default)]
enum Wait {
    #[default]
    New,
    Waiting(Waker),
    Admitted,
    Refused,
}

/// A place among the calls under way. Dropped without a [`settle`](Place::settle), it teaches nothing.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    admission: &'a Admission,
    probe: u64,
}

/// How a call went.
#[derive(Clone, Copy, Debug)]
struct Sample {
    took: Duration,
    verdict: Verdict,
    /// The measurement that was the last when it began.
    probe: u64,
}

/// The queue is full of calls that are at least as urgent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct QueueFull;

impl Admission {
    pub(crate) fn new(options: AdmissionOptions) -> Self {
        let inner = Inner {
            limit: f64::from(
                options
                    .concurrency_initial
                    .clamp(options.concurrency_min.max(1), options.concurrency_max.max(1)),
            ),
            under_way: 0,
            queues: Default::default(),
            waiting: 0,
            at_ease_us: 0.0,
            window_us: 0.0,
            window_calls: 0,
            to_probe: WINDOWS_TO_PROBE,
            probe: 0,
        };
        Admission { options, inner: Unscheduled::new(inner) }
    }

    /// Waits for a place.
    ///
    /// # Cancellation
    /// Dropping the future gives up the wait, or the place if it has just come.
    pub(crate) async fn enter(&self, priority: Priority) -> Result<Place<'_>, QueueFull> {
        let waiter = {
            let mut inner = self.inner.lock();
            if inner.under_way < inner.room() && inner.waiting == 0 {
                inner.under_way += 1;
                return Ok(Place { admission: self, probe: inner.probe });
            }
            if inner.waiting >= self.options.queue_max && !inner.displace(priority) {
                return Err(QueueFull);
            }
            let waiter = Arc::new(Waiter::default());
            inner.queues[priority as usize].push_back(Arc::clone(&waiter));
            inner.waiting += 1;
            waiter
        };
        let leave = Leave { admission: self, priority, waiter: Some(waiter) };
        let is_admitted = poll_fn(|cx| {
            let waiter = leave.waiter.as_ref().expect("taken only after the wait");
            let mut wait = waiter.0.lock();
            match &mut *wait {
                Wait::Admitted => Poll::Ready(true),
                Wait::Refused => Poll::Ready(false),
                pending => {
                    *pending = Wait::Waiting(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await;
        leave.done();
        match is_admitted {
            true => Ok(Place { admission: self, probe: self.inner.lock().probe }),
            false => Err(QueueFull),
        }
    }

    /// Limit, calls under way, calls that wait.
    pub(crate) fn numbers(&self) -> (u32, u32, u32) {
        let inner = self.inner.lock();
        (inner.limit as u32, inner.under_way, inner.waiting)
    }

    fn release(&self, sample: Option<Sample>) {
        let woken = {
            let mut inner = self.inner.lock();
            if let Some(sample) = sample {
                inner.learn(sample, &self.options);
            }
            inner.under_way -= 1;
            inner.admit()
        };
        woken.into_iter().for_each(Waker::wake);
    }
}

impl Inner {
    /// Refuses the newest call of the lowest priority, if that is lower than `priority`.
    fn displace(&mut self, priority: Priority) -> bool {
        for queue in self.queues[priority as usize + 1..].iter_mut().rev() {
            if let Some(waiter) = queue.pop_back() {
                self.waiting -= 1;
                if let Wait::Waiting(waker) = std::mem::replace(&mut *waiter.0.lock(), Wait::Refused) {
                    waker.wake();
                }
                return true;
            }
        }
        false
    }

    /// Lets in who waits, most urgent first, oldest first.
    fn admit(&mut self) -> Vec<Waker> {
        let mut woken = Vec::new();
        while self.under_way < self.room() && self.waiting > 0 {
            let waiter = self.queues.iter_mut().find_map(VecDeque::pop_front);
            let waiter = waiter.expect("as many wait as are in the queues");
            self.waiting -= 1;
            self.under_way += 1;
            if let Wait::Waiting(waker) = std::mem::replace(&mut *waiter.0.lock(), Wait::Admitted) {
                woken.push(waker);
            }
        }
        woken
    }

    fn learn(&mut self, sample: Sample, options: &AdmissionOptions) {
        let (min, max) =
            (f64::from(options.concurrency_min.max(1)), f64::from(options.concurrency_max.max(1)));
        match sample.verdict {
            Verdict::Ignored => return,
            Verdict::Failed => {
                self.limit = (self.limit * BACK_OFF).clamp(min.min(max), max);
                return;
            }
            Verdict::Succeeded => {}
        }
        // What was under way before the limit was lowered doesn't tell the latency at ease.
        if self.to_probe == 0 && sample.probe != self.probe {
            return;
        }
        self.window_us += sample.took.as_micros().max(1) as f64;
        self.window_calls += 1;
        if self.window_calls < WINDOW_MIN.max(self.limit as u32 / 2) {
            return;
        }
        let mean_us = self.window_us / f64::from(self.window_calls);
        (self.window_us, self.window_calls) = (0.0, 0);
        if self.to_probe == 0 {
            self.to_probe = WINDOWS_TO_PROBE;
            self.at_ease_us = mean_us;
            return;
        }
        self.to_probe -= 1;
        if self.to_probe == 0 {
            self.probe += 1;
        }
        if self.at_ease_us == 0.0 || mean_us < self.at_ease_us {
            self.at_ease_us = mean_us;
        }
        // A limit that nobody comes near to is not tested by latency, and doesn't grow.
        if f64::from(self.under_way) < self.limit / 2.0 {
            return;
        }
        let gradient = (TOLERANCE * self.at_ease_us / mean_us).clamp(0.5, 1.0);
        let aim = self.limit * gradient + self.limit.sqrt();
        self.limit = (self.limit + SMOOTHING * (aim - self.limit)).clamp(min.min(max), max);
    }

    /// How many calls may be under way now.
    fn room(&self) -> u32 {
        let limit = if self.to_probe == 0 { self.limit / 4.0 } else { self.limit };
        (limit as u32).max(1)
    }
}

impl Place<'_> {
    /// Gives the place back and says how the call went.
    pub(crate) fn settle(self, took: Duration, verdict: Verdict) {
        self.admission.release(Some(Sample { took, verdict, probe: self.probe }));
        std::mem::forget(self);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.admission.release(None);
    }
}

/// Leaves the queue when its caller goes away.
struct Leave<'a> {
    admission: &'a Admission,
    priority: Priority,
    waiter: Option<Arc<Waiter>>,
}

impl Leave<'_> {
    fn done(mut self) {
        self.waiter = None;
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take() else { return };
        let is_admitted = {
            let mut inner = self.admission.inner.lock();
            let queue = &mut inner.queues[self.priority as usize];
            if let Some(at) = queue.iter().position(|other| Arc::ptr_eq(other, &waiter)) {
                queue.remove(at);
                inner.waiting -= 1;
            }
            matches!(*waiter.0.lock(), Wait::Admitted)
        };
        if is_admitted {
            self.admission.release(None);
        }
    }
}
