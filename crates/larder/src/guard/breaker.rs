//! Stops calling what keeps failing, and finds out with a few calls when it works again.
//!
//! Owns the three states and their window. Never measures a call: it is told how one went. Time is the
//! monotonic clock of its owner.

use super::Verdict;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::Unscheduled;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// When a breaker opens, and how it closes again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct BreakerOptions {
    /// How far back calls count. Default: 10 seconds: long enough for a rate, short enough that an outage
    /// is noticed before it fills queues.
    #[serde(with = "crate::options::seconds")]
    pub window: Duration,
    /// Fewer calls in the window prove nothing. Default: 20; with less, a rate of a half is chance.
    pub calls_min: u32,
    /// It opens when this share of the calls in the window failed. 0 to 1. Default: 0.5.
    pub failure_rate: f64,
    /// A call that takes longer is slow. Default: 500 ms: half of a read's time limit.
    #[serde(with = "crate::options::seconds")]
    pub slow_after: Duration,
    /// It opens when this share of the calls in the window was slow. 0 to 1; 1 or more: never for being
    /// slow alone. Default: 0.9, because a slow tier may still be faster than the loader.
    pub slow_rate: f64,
    /// How long it stays open before it lets probes pass. Default: 3 seconds, so that a tier is used again
    /// within five of its return.
    #[serde(with = "crate::options::seconds")]
    pub open_for: Duration,
    /// How many probes are under way at once while it is half open, and how many have to succeed until it
    /// closes. Default: 3: one may be luck.
    pub probes: u32,
}

impl Default for BreakerOptions {
    fn default() -> Self {
        BreakerOptions {
            window: Duration::from_secs(10),
            calls_min: 20,
            failure_rate: 0.5,
            slow_after: Duration::from_millis(500),
            slow_rate: 0.9,
            open_for: Duration::from_secs(3),
            probes: 3,
        }
    }
}

impl BreakerOptions {
    /// # Errors
    /// [`ErrorKind::Config`], naming the setting, what it was and what is allowed.
    pub(crate) fn check(&self) -> Result<()> {
        let config = |message: String| Err(Error::new(ErrorKind::Config, "build").message(message));
        let rate = |name: &str, rate: f64| match rate > 0.0 && rate.is_finite() {
            true => Ok(()),
            false => config(format!("breaker.{name} = {rate}: it has to be above 0 (1: all calls)")),
        };
        rate("failure_rate", self.failure_rate)?;
        rate("slow_rate", self.slow_rate)?;
        if self.window < Duration::from_millis(SLICES as u64) {
            return config(format!("breaker.window = {:?}: at least {SLICES} ms", self.window));
        }
        if self.calls_min == 0 || self.probes == 0 {
            return config("breaker.calls_min and breaker.probes: at least 1".into());
        }
        Ok(())
    }
}

/// What an operator wants of a breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerMode {
    /// It decides by itself.
    #[default]
    Automatic,
    /// Open, until told otherwise: nothing is called.
    ForcedOpen,
    /// It counts, and lets everything pass.
    Disabled,
}

/// The state that a breaker is in, as health and metrics show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Calls pass.
    Closed,
    /// Calls are refused.
    Open,
    /// A few calls pass, to find out.
    HalfOpen,
}

impl BreakerState {
    /// The state in snake case, as metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            BreakerState::Closed => "closed",
            BreakerState::Open => "open",
            BreakerState::HalfOpen => "half_open",
        }
    }
}

/// The window is forgotten in so many steps.
const SLICES: usize = 10;

#[derive(Debug)]
pub(crate) struct Breaker {
    options: BreakerOptions,
    inner: Unscheduled<Inner>,
}

#[derive(Debug)]
struct Inner {
    mode: BreakerMode,
    phase: Phase,
    /// Counts changes of the phase: how a call went that began in another one no longer matters.
    epoch: u64,
    opened: u64,
    /// Until when another node's word stands, unless a call refutes it.
    suspected_until_ms: u64,
    hints: u64,
    window: Window,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed,
    Open { until_ms: u64 },
    HalfOpen { under_way: u32, succeeded: u32, progress_ms: u64 },
}

/// The right to one call. Dropped without a [`settle`](Permit::settle), the call counts for nothing, and a
/// probe's place is free again.
#[derive(Debug)]
pub(crate) struct Permit {
    breaker: Arc<Breaker>,
    epoch: u64,
    is_settled: bool,
}

impl Breaker {
    pub(crate) fn new(options: BreakerOptions) -> Arc<Self> {
        let inner = Inner {
            mode: BreakerMode::Automatic,
            phase: Phase::Closed,
            epoch: 0,
            opened: 0,
            suspected_until_ms: 0,
            hints: 0,
            window: Window::default(),
        };
        Arc::new(Breaker { options, inner: Unscheduled::new(inner) })
    }

    /// A permit, or for how long there will be none.
    pub(crate) fn permit(self: &Arc<Self>, now_ms: u64) -> Result<Permit, Duration> {
        let mut inner = self.inner.lock();
        let permit =
            |inner: &Inner| Ok(Permit { breaker: Arc::clone(self), epoch: inner.epoch, is_settled: false });
        match inner.mode {
            BreakerMode::ForcedOpen => return Err(Duration::MAX),
            BreakerMode::Disabled => return permit(&inner),
            BreakerMode::Automatic => {}
        }
        if let Phase::Open { until_ms } = inner.phase {
            if now_ms < until_ms {
                return Err(Duration::from_millis(until_ms - now_ms));
            }
            inner.enter(Phase::HalfOpen { under_way: 0, succeeded: 0, progress_ms: now_ms });
        }
        let Phase::HalfOpen { under_way, succeeded, progress_ms } = inner.phase else {
            return permit(&inner);
        };
        let mut under_way = under_way;
        if under_way >= self.options.probes {
            let patience_ms = self.patience_ms();
            let waited_ms = now_ms.saturating_sub(progress_ms);
            if waited_ms < patience_ms {
                return Err(Duration::from_millis(patience_ms - waited_ms));
            }
            // Probes that never come back must not keep it half open: they are given up for new ones.
            inner.epoch += 1;
            under_way = 0;
        }
        inner.phase = Phase::HalfOpen { under_way: under_way + 1, succeeded, progress_ms: now_ms };
        permit(&inner)
    }

    /// How long probes may hang before others take their places.
    fn patience_ms(&self) -> u64 {
        crate::clock::millis(self.options.open_for).max(1)
    }

    pub(crate) fn is_slow(&self, took: Duration) -> bool {
        took > self.options.slow_after
    }

    pub(crate) fn state(&self, now_ms: u64) -> BreakerState {
        let inner = self.inner.lock();
        match (inner.mode, inner.phase) {
            (BreakerMode::ForcedOpen, _) => BreakerState::Open,
            (BreakerMode::Disabled, _) | (_, Phase::Closed) => BreakerState::Closed,
            (_, Phase::Open { until_ms }) if now_ms < until_ms => BreakerState::Open,
            _ => BreakerState::HalfOpen,
        }
    }

    /// Calls of the last window, and how many of them failed.
    pub(crate) fn recent(&self, now_ms: u64) -> (u64, u64) {
        let slice_ms = crate::clock::millis(self.options.window) / SLICES as u64;
        let recent = self.inner.lock().window.at(now_ms / slice_ms.max(1));
        (u64::from(recent.calls), u64::from(recent.failed))
    }

    /// How often it has opened.
    pub(crate) fn opened(&self) -> u64 {
        self.inner.lock().opened
    }

    /// Takes an operator's word. [`BreakerMode::Automatic`] begins closed, with nothing remembered.
    pub(crate) fn set_mode(&self, mode: BreakerMode) {
        let mut inner = self.inner.lock();
        inner.mode = mode;
        inner.window = Window::default();
        inner.enter(Phase::Closed);
    }

    /// A sign of life came by another way: probes may pass at once.
    pub(crate) fn try_again(&self, now_ms: u64) {
        let mut inner = self.inner.lock();
        if matches!(inner.phase, Phase::Open { .. }) {
            inner.enter(Phase::HalfOpen { under_way: 0, succeeded: 0, progress_ms: now_ms });
        }
    }

    /// Another node's opened: the next call that fails is proof enough, one that succeeds refutes it.
    pub(crate) fn suspect(&self, now_ms: u64, lasting: Duration) {
        let mut inner = self.inner.lock();
        inner.hints += 1;
        inner.suspected_until_ms = now_ms.saturating_add(crate::clock::millis(lasting));
    }

    /// How often another node's word came.
    pub(crate) fn hints(&self) -> u64 {
        self.inner.lock().hints
    }

    pub(crate) fn open_for(&self) -> Duration {
        self.options.open_for
    }

    fn open_until_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_add(crate::clock::millis(self.options.open_for))
    }

    fn settle(&self, epoch: u64, verdict: Verdict, is_slow: bool, now_ms: u64) {
        let mut inner = self.inner.lock();
        if inner.epoch != epoch {
            return;
        }
        let counts = verdict != Verdict::Ignored;
        match inner.phase {
            Phase::Closed => {
                if !counts {
                    return;
                }
                let slice_ms = crate::clock::millis(self.options.window) / SLICES as u64;
                inner.window.add(now_ms / slice_ms.max(1), verdict == Verdict::Failed, is_slow);
                let Slice { calls, failed, slow } = inner.window.total();
                let reaches = |part: u32, rate: f64| f64::from(part) >= rate * f64::from(calls);
                let is_sick = calls >= self.options.calls_min
                    && (reaches(failed, self.options.failure_rate) || reaches(slow, self.options.slow_rate));
                let is_proven = now_ms < inner.suspected_until_ms && verdict == Verdict::Failed;
                if verdict == Verdict::Succeeded {
                    inner.suspected_until_ms = 0;
                }
                if (is_sick || is_proven) && inner.mode == BreakerMode::Automatic {
                    inner.opened += 1;
                    let until_ms = self.open_until_ms(now_ms);
                    inner.enter(Phase::Open { until_ms });
                }
            }
            Phase::Open { .. } => {}
            Phase::HalfOpen { under_way, succeeded, progress_ms } => {
                let under_way = under_way.saturating_sub(1);
                match verdict {
                    Verdict::Ignored => {
                        inner.phase = Phase::HalfOpen { under_way, succeeded, progress_ms };
                    }
                    Verdict::Succeeded if !is_slow || self.options.slow_rate >= 1.0 => {
                        let succeeded = succeeded + 1;
                        if succeeded >= self.options.probes {
                            inner.window = Window::default();
                            inner.enter(Phase::Closed);
                        } else {
                            inner.phase = Phase::HalfOpen { under_way, succeeded, progress_ms: now_ms };
                        }
                    }
                    _ => {
                        inner.opened += 1;
                        let until_ms = self.open_until_ms(now_ms);
                        inner.enter(Phase::Open { until_ms });
                    }
                }
            }
        }
    }
}

impl Inner {
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.epoch += 1;
        self.suspected_until_ms = 0;
    }
}

impl Permit {
    /// Says how the call went.
    pub(crate) fn settle(mut self, verdict: Verdict, is_slow: bool, now_ms: u64) {
        self.is_settled = true;
        self.breaker.settle(self.epoch, verdict, is_slow, now_ms);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.is_settled {
            self.breaker.settle(self.epoch, Verdict::Ignored, false, 0);
        }
    }
}

/// Calls of the last while, forgotten a slice at a time.
#[derive(Debug, Default)]
struct Window {
    slices: [Slice; SLICES],
    newest: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slice {
    calls: u32,
    failed: u32,
    slow: u32,
}

impl Window {
    fn add(&mut self, number: u64, failed: bool, slow: bool) {
        if number > self.newest {
            let passed = (number - self.newest).min(SLICES as u64);
            for step in 0..passed {
                self.slices[((number - step) % SLICES as u64) as usize] = Slice::default();
            }
            self.newest = number;
        }
        let slice = &mut self.slices[(self.newest % SLICES as u64) as usize];
        slice.calls = slice.calls.saturating_add(1);
        slice.failed = slice.failed.saturating_add(u32::from(failed));
        slice.slow = slice.slow.saturating_add(u32::from(slow));
    }

    /// What of it is not older than the window, when time has gone on without calls.
    fn at(&self, number: u64) -> Slice {
        let passed = usize::try_from(number.saturating_sub(self.newest)).unwrap_or(SLICES);
        let left = SLICES.saturating_sub(passed) as u64;
        let numbers = (0..left).filter_map(|step| self.newest.checked_sub(step));
        Window::sum(numbers.map(|number| &self.slices[(number % SLICES as u64) as usize]))
    }

    fn total(&self) -> Slice {
        Window::sum(self.slices.iter())
    }

    fn sum<'s>(slices: impl Iterator<Item = &'s Slice>) -> Slice {
        slices.fold(Slice::default(), |sum, slice| Slice {
            calls: sum.calls.saturating_add(slice.calls),
            failed: sum.failed.saturating_add(slice.failed),
            slow: sum.slow.saturating_add(slice.slow),
        })
    }
}
