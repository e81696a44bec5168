//! Whether a failed attempt is tried again, and when.
//!
//! A budget bounds what retries add to the load of a backend that is failing already; the waits are spread
//! so that callers that failed together do not come back together.

use crate::sync::Unscheduled;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How often and how soon failed attempts are repeated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RetryOptions {
    /// Most attempts of one call. 1: no retries. Default: 1 for what is local, where the next attempt finds
    /// the same; 3 for a backend across a network.
    pub attempts_max: u32,
    /// Retries allowed per call that was made, over all callers. Default: 0.1: a backend that is down sees
    /// at most a tenth more calls.
    pub budget_ratio: f64,
    /// Retries that are saved up at most, and there at the start. Default: 10.
    pub budget_max: u32,
    /// The shortest wait before a retry. Default: 10 ms.
    #[serde(with = "crate::options::seconds")]
    pub wait_min: Duration,
    /// The longest. Default: 250 ms: a caller of a cache waits for less than that.
    #[serde(with = "crate::options::seconds")]
    pub wait_max: Duration,
}

impl Default for RetryOptions {
    fn default() -> Self {
        RetryOptions {
            attempts_max: 1,
            budget_ratio: 0.1,
            budget_max: 10,
            wait_min: Duration::from_millis(10),
            wait_max: Duration::from_millis(250),
        }
    }
}

/// The retries that are left, shared by all calls of a guard.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    options: RetryOptions,
    left: Unscheduled<f64>,
}

impl RetryBudget {
    pub(crate) fn new(options: RetryOptions) -> Self {
        let left = Unscheduled::new(f64::from(options.budget_max));
        RetryBudget { options, left }
    }

    /// A call begins: it earns its share.
    pub(crate) fn earn(&self) {
        let mut left = self.left.lock();
        *left = (*left + self.options.budget_ratio).min(f64::from(self.options.budget_max));
    }

    /// Whether there may be another attempt after number `attempt`, as the budget is now.
    pub(crate) fn may_follow(&self, attempt: u32) -> bool {
        attempt < self.options.attempts_max && *self.left.lock() >= 1.0
    }

    /// Whether attempt number `attempt` (the first is 1) may be followed by another; takes it from the budget.
    pub(crate) fn take(&self, attempt: u32) -> bool {
        if attempt >= self.options.attempts_max {
            return false;
        }
        let mut left = self.left.lock();
        if *left < 1.0 {
            return false;
        }
        *left -= 1.0;
        true
    }

    /// The wait after one of `previous`: decorrelated jitter (Brooker, "Exponential Backoff And Jitter",
    /// 2015), a random time between the shortest wait and three times the last one.
    pub(crate) fn wait(&self, previous: Option<Duration>) -> Duration {
        let RetryOptions { wait_min, wait_max, .. } = self.options;
        let upper = previous.unwrap_or(wait_min).saturating_mul(3).max(wait_min);
        let spread = upper.saturating_sub(wait_min).mul_f64(fastrand::f64());
        wait_min.saturating_add(spread).min(wait_max)
    }
}
