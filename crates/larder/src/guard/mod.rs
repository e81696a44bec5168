//! What every call below L1 passes, in one order that is written once: deadline, admission, breaker, time
//! limit of the attempt, retry budget.
//!
//! - The **deadline** is the call's own: whatever happens below, the caller has an answer by then.
//! - **Admission** bounds how many calls are under way and puts invalidations before reads before sets. At most
//!   half of a call's time is spent waiting for it.
//! - The **breaker** stops calling what keeps failing. Reads and writes have one each: a full disk or a
//!   replica refuses writes alone.
//! - The **attempt's limit** follows the latencies that were seen.
//! - The **retry budget** lets a few failed attempts be repeated, where that is safe.
//!
//! Owns whether and when a backend is called. Never what for: it neither knows keys nor values. What was
//! refused here has not reached the backend, and counts for nothing there.

mod admission;
mod breaker;
mod latency;
#[cfg(all(test, not(larder_shuttle)))]
mod overload_tests;
mod retry;
mod share;
#[cfg(all(feature = "redis", not(larder_shuttle)))]
mod share_redis;
#[cfg(all(test, not(larder_shuttle)))]
mod tests;

pub use admission::AdmissionOptions;
pub(crate) use admission::Priority;
pub use breaker::{BreakerMode, BreakerOptions, BreakerState};
pub use latency::AttemptTimeoutOptions;
pub use retry::RetryOptions;
pub(crate) use share::Sharing;
pub use share::{BreakerShare, MemoryBreakers};
#[cfg(all(feature = "redis", not(larder_shuttle)))]
pub use share_redis::RedisBreakers;

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::tier::before;
use admission::Admission;
use breaker::Breaker;
use latency::AttemptTimeout;
use retry::RetryBudget;
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The settings of a tier's guard.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct GuardOptions {
    /// How many calls at once.
    pub admission: AdmissionOptions,
    /// When to stop calling.
    pub breaker: BreakerOptions,
    /// How long one attempt may take.
    pub attempt_timeout: AttemptTimeoutOptions,
    /// When to try again.
    pub retry: RetryOptions,
}

impl GuardOptions {
    /// What suits a backend across a network: up to three attempts.
    pub fn remote() -> Self {
        let retry = RetryOptions { attempts_max: 3, ..RetryOptions::default() };
        GuardOptions { retry, ..GuardOptions::default() }
    }

    /// # Errors
    /// [`ErrorKind::Config`], naming the setting, what it was and what is allowed.
    pub(crate) fn check(&self) -> Result<()> {
        self.breaker.check()?;
        let AdmissionOptions { concurrency_min, concurrency_max, .. } = self.admission;
        if concurrency_min == 0 || concurrency_min > concurrency_max {
            return Err(Error::new(ErrorKind::Config, "build").message(format!(
                "admission.concurrency_min = {concurrency_min}: 1 to concurrency_max ({concurrency_max})"
            )));
        }
        let AttemptTimeoutOptions { factor, .. } = self.attempt_timeout;
        if !(0.0..=1e6).contains(&factor) {
            return Err(Error::new(ErrorKind::Config, "build")
                .message(format!("attempt_timeout.factor = {factor}: 0 to 1000000")));
        }
        if !(0.0..=1e6).contains(&self.retry.budget_ratio) {
            return Err(Error::new(ErrorKind::Config, "build")
                .message(format!("retry.budget_ratio = {}: 0 to 1000000", self.retry.budget_ratio)));
        }
        if self.retry.attempts_max == 0 || self.retry.wait_min > self.retry.wait_max {
            return Err(Error::new(ErrorKind::Config, "build").message(format!(
                "retry: attempts_max = {} has to be at least 1, wait_min = {:?} at most wait_max = {:?}",
                self.retry.attempts_max, self.retry.wait_min, self.retry.wait_max
            )));
        }
        Ok(())
    }
}

/// What a guard counted, and the state that it is in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct GuardStats {
    /// The breaker of reads.
    pub read_breaker: Option<BreakerState>,
    /// The breaker of writes and removals.
    pub write_breaker: Option<BreakerState>,
    /// How often one of them opened.
    pub breakers_opened: u64,
    /// How often another node told that one of its own opened.
    pub breaker_hints: u64,
    /// Calls refused by an open breaker.
    pub refused_open: u64,
    /// Calls refused because the queue was full, or that waited in it for half of the time they had.
    pub refused_queue: u64,
    /// Attempts that were repeated.
    pub retries: u64,
    /// Calls under way, at most, as it was last learned.
    pub concurrency_limit: u32,
    /// Calls under way.
    pub under_way: u32,
    /// Calls that wait for a place.
    pub queued: u32,
}

/// How an attempt went, as far as the backend is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Succeeded,
    Failed,
    /// It says nothing of the backend: a value too large, a closed cache.
    Ignored,
}

/// One call, apart from what it does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) operation: &'static str,
    pub(crate) side: Side,
    pub(crate) priority: Priority,
    pub(crate) deadline: Duration,
    pub(crate) repeat: Repeat,
}

/// Which breaker a call passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Read,
    Write,
}

/// Whether a second execution does no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    Safe,
    Never,
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(crate) enum Stopped {
    /// The guard refused: the backend was not called, or not to the end.
    Refused(Error),
    /// The backend failed, or gave no answer in time.
    Failed(Error),
}

impl Stopped {
    pub(crate) fn into_error(self) -> Error {
        match self {
            Stopped::Refused(error) | Stopped::Failed(error) => error,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Guard {
    clock: Clock,
    admission: Admission,
    breakers: [Arc<Breaker>; 2],
    timeouts: [AttemptTimeout; 2],
    budget: RetryBudget,
    refused_open: AtomicU64,
    refused_queue: AtomicU64,
    retries: AtomicU64,
}

impl Guard {
    pub(crate) fn new(options: &GuardOptions, clock: Clock) -> Self {
        Guard {
            clock,
            admission: Admission::new(options.admission.clone()),
            breakers: [(); 2].map(|()| Breaker::new(options.breaker.clone())),
            timeouts: [(); 2].map(|()| AttemptTimeout::new(options.attempt_timeout.clone())),
            budget: RetryBudget::new(options.retry.clone()),
            refused_open: AtomicU64::new(0),
            refused_queue: AtomicU64::new(0),
            retries: AtomicU64::new(0),
        }
    }

    /// Makes attempts until one succeeds, none is left, or the deadline passes.
    ///
    /// # Cancellation
    /// Dropping the future drops the attempt, counts it for nothing and gives back its place and permit.
    pub(crate) async fn call<T, F>(&self, call: Call, mut attempt: impl FnMut() -> F) -> Result<T, Stopped>
    where
        F: Future<Output = Result<T>>,
    {
        let began_ms = self.clock.mono_ms();
        let left = || {
            let spent = Duration::from_millis(self.clock.mono_ms().saturating_sub(began_ms));
            call.deadline.saturating_sub(spent)
        };
        // Who waited for nearly all of its time would be given up as soon as it is let in, and the backend would
        // work for nobody: under overload everybody in the queue is that late.
        let patience = call.deadline / 2;
        let place = match before(&self.clock, patience, self.admission.enter(call.priority)).await {
            Some(Ok(place)) if !left().is_zero() => place,
            entered => {
                self.refused_queue.fetch_add(1, Relaxed);
                let why = match entered {
                    Some(Err(admission::QueueFull)) => "the tier's queue is full".to_owned(),
                    _ => format!("no place in the tier's queue within {patience:?}"),
                };
                return Err(Stopped::Refused(Error::new(ErrorKind::Overloaded, call.operation).message(why)));
            }
        };
        self.budget.earn();
        let mut number = 0;
        let mut last: Option<(Duration, Error)> = None;
        loop {
            number += 1;
            let (took, answer) = match (self.attempt(call, number, left(), attempt()).await, last.take()) {
                (Ok(made), before) => {
                    last = before;
                    made
                }
                // The breaker opened after an attempt: that one is the answer, since it did reach the backend.
                (Err(_), Some((_, error))) => return Err(Stopped::Failed(error)),
                (Err(refused), None) => return Err(refused),
            };
            let error = match answer {
                Ok(value) => {
                    place.settle(took, Verdict::Succeeded);
                    return Ok(value);
                }
                Err(error) => error,
            };
            let pause = self.budget.wait(last.take().map(|(pause, _)| pause));
            let is_worth_it = call.repeat == Repeat::Safe && may_pass(&error) && pause < left();
            if !is_worth_it || !self.budget.take(number) {
                place.settle(took, verdict(&error));
                return Err(Stopped::Failed(error));
            }
            self.retries.fetch_add(1, Relaxed);
            self.clock.sleep(pause).await;
            last = Some((pause, error));
        }
    }

    /// One attempt, through the breaker and under its time limit.
    async fn attempt<T>(
        &self,
        call: Call,
        number: u32,
        left: Duration,
        attempt: impl Future<Output = Result<T>>,
    ) -> Result<(Duration, Result<T>), Stopped> {
        let side = call.side as usize;
        let breaker = &self.breakers[side];
        let permit = breaker.permit(self.clock.mono_ms()).map_err(|wait| {
            self.refused_open.fetch_add(1, Relaxed);
            let wait = if wait == Duration::MAX { "an operator's word".into() } else { format!("{wait:?}") };
            Stopped::Refused(
                Error::new(ErrorKind::Unavailable, call.operation)
                    .message(format!("the tier's breaker is open, for {wait}")),
            )
        })?;
        let timeouts = &self.timeouts[side];
        // Only what can be repeated is worth being given up early. A read that can't be has the tiers below and
        // the loader; a write has nothing, and one that is given up is a removal or a tier that is set aside.
        let limit = match (call.repeat, call.side) {
            (Repeat::Safe, Side::Read) => timeouts.limit(left),
            (Repeat::Safe, Side::Write) if self.budget.may_follow(number) => timeouts.limit(left),
            _ => left,
        };
        let began_us = self.clock.mono_us();
        let answer = before(&self.clock, limit, attempt).await;
        let took = Duration::from_micros(self.clock.mono_us().saturating_sub(began_us));
        let answer = answer.unwrap_or_else(|| {
            timeouts.gave_up(limit);
            Err(Error::new(ErrorKind::Timeout, call.operation).message(format!("no answer within {limit:?}")))
        });
        let verdict = answer.as_ref().map_or_else(verdict, |_| Verdict::Succeeded);
        if verdict == Verdict::Succeeded {
            timeouts.took(took);
        }
        // A scan takes as long as the tier is large.
        let is_slow = call.repeat == Repeat::Safe && breaker.is_slow(took);
        permit.settle(verdict, is_slow, self.clock.mono_ms());
        Ok((took, answer))
    }

    /// A sign of life came past the guard: breakers that are open let probes through at once.
    pub(crate) fn try_again(&self) {
        self.breakers.iter().for_each(|breaker| breaker.try_again(self.clock.mono_ms()));
    }

    pub(crate) fn set_breaker_mode(&self, mode: BreakerMode) {
        self.breakers.iter().for_each(|breaker| breaker.set_mode(mode));
    }

    /// Calls within the breakers' windows, and how many of them failed.
    pub(crate) fn recent(&self) -> (u64, u64) {
        let now_ms = self.clock.mono_ms();
        let [read, write] = [0, 1].map(|side| self.breakers[side].recent(now_ms));
        (read.0 + write.0, read.1 + write.1)
    }

    pub(crate) fn stats(&self) -> GuardStats {
        let now_ms = self.clock.mono_ms();
        let (concurrency_limit, under_way, queued) = self.admission.numbers();
        let [read, write] = &self.breakers;
        GuardStats {
            read_breaker: Some(read.state(now_ms)),
            write_breaker: Some(write.state(now_ms)),
            breakers_opened: read.opened() + write.opened(),
            breaker_hints: read.hints() + write.hints(),
            refused_open: self.refused_open.load(Relaxed),
            refused_queue: self.refused_queue.load(Relaxed),
            retries: self.retries.load(Relaxed),
            concurrency_limit,
            under_way,
            queued,
        }
    }
}

/// Whether another attempt may find it gone.
fn may_pass(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable | ErrorKind::Overloaded)
}

/// What an error says of the backend.
fn verdict(error: &Error) -> Verdict {
    use ErrorKind::*;
    match error.kind() {
        // A store without room still reads and removes; a request that can't be served is its caller's.
        Full | TooLarge | Key | Codec | Config | Unsupported | NotFound | Closed => Verdict::Ignored,
        _ => Verdict::Failed,
    }
}
