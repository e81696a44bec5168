//! Failure: ten times the load that a backend can take. Its queue grows until every answer comes too late for
//! its caller: it works at full speed and nobody gets anything, and what fails is tried again on top.
//!
//! A model of a backend with a fixed capacity, on a clock that is moved by hand: the same on every machine.

use super::*;
use crate::clock::ManualClock;
use crate::sync::Unscheduled;
use std::collections::VecDeque;
use std::sync::atomic::Ordering::SeqCst;
use tokio::sync::oneshot;

const MS: Duration = Duration::from_millis(1);
/// How long an answer takes on a backend at ease.
const SERVICE_MS: u64 = 10;

/// Answers so many calls per second in the order in which they came, whether anybody still waits or not.
struct Backend {
    /// It refuses calls at once when so many wait.
    queue_max: usize,
    queue: Unscheduled<VecDeque<(u64, oneshot::Sender<()>)>>,
}

impl Backend {
    async fn call(&self, now_ms: u64) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        {
            let mut queue = self.queue.lock();
            if queue.len() >= self.queue_max {
                return Err(Error::new(ErrorKind::Unavailable, "get"));
            }
            queue.push_back((now_ms, answer));
        }
        answered.await.map_err(|_| Error::new(ErrorKind::Unavailable, "get"))
    }

    fn answer(&self, most: usize, now_ms: u64) {
        let mut queue = self.queue.lock();
        for _ in 0..most {
            if queue.front().is_none_or(|(since, _)| *since + SERVICE_MS > now_ms) {
                return;
            }
            let answer = queue.pop_front().map(|(_, answer)| answer);
            // Whether somebody still waits or not.
            let _ = answer.map(|answer| answer.send(()));
        }
    }
}

struct Outcome {
    /// Calls answered in time, per second.
    goodput: f64,
    calls: u64,
    retries: u64,
}

/// Offers `load` times the capacity, for some seconds after some to settle.
async fn run(options: &GuardOptions, per_second: u64, load: f64, queue_max: usize) -> Outcome {
    const SETTLING_MS: u64 = 3000;
    const MEASURED_MS: u64 = 5000;
    let clock = ManualClock::new();
    let guard = Arc::new(Guard::new(options, Clock::from(clock.clone())));
    let backend = Arc::new(Backend { queue_max, queue: Unscheduled::new(VecDeque::new()) });
    let succeeded = Arc::new(AtomicU64::new(0));
    let call = Call {
        operation: "get",
        side: Side::Read,
        priority: Priority::Read,
        deadline: DEADLINE,
        repeat: Repeat::Safe,
    };
    let (mut offered, mut served, mut calls) = (0.0, 0.0, 0);
    let mut before = 0;
    for now_ms in 0..SETTLING_MS + MEASURED_MS {
        if now_ms == SETTLING_MS {
            before = succeeded.load(SeqCst);
        }
        offered += load * per_second as f64 / 1000.0;
        while offered >= 1.0 {
            offered -= 1.0;
            calls += 1;
            let (guard, backend, succeeded) = (guard.clone(), backend.clone(), succeeded.clone());
            let clock = clock.clone();
            tokio::spawn(async move {
                let attempt = || backend.call(Clock::from(clock.clone()).mono_ms());
                if guard.call(call, attempt).await.is_ok() {
                    succeeded.fetch_add(1, SeqCst);
                }
            });
        }
        served += per_second as f64 / 1000.0;
        backend.answer(served as usize, Clock::from(clock.clone()).mono_ms());
        served -= served.floor();
        // One turn of the runtime takes up what was spawned and woken; another what that woke.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        clock.advance(MS);
    }
    let goodput = (succeeded.load(SeqCst) - before) as f64 * 1000.0 / MEASURED_MS as f64;
    Outcome { goodput, calls, retries: guard.stats().retries }
}

const DEADLINE: Duration = Duration::from_secs(1);
/// A slow backend's full queue holds more than a second of work, a fast one's does not.
const CAPACITIES: [u64; 3] = [200, 500, 2000];

fn budget(options: &GuardOptions, calls: u64) -> u64 {
    u64::from(options.retry.budget_max) + (options.retry.budget_ratio * calls as f64) as u64
}

fn without_admission() -> GuardOptions {
    let mut options = GuardOptions::remote();
    let admission = &mut options.admission;
    (admission.concurrency_min, admission.concurrency_initial) = (1_000_000, 1_000_000);
    admission.concurrency_max = 1_000_000;
    options
}

#[tokio::test]
async fn ten_times_the_capacity_leaves_nine_tenths_of_the_goodput() {
    let options = GuardOptions::remote();
    for capacity in CAPACITIES {
        let mut peak = 0.0;
        for load in [0.9, 1.0, 1.2] {
            peak = run(&options, capacity, load, usize::MAX).await.goodput.max(peak);
        }
        assert!(peak >= 0.99 * capacity as f64, "{peak} of {capacity}");
        for load in [2.0, 10.0] {
            let Outcome { goodput, calls, retries } = run(&options, capacity, load, usize::MAX).await;
            assert!(goodput >= 0.9 * peak, "{load} times {capacity}: {goodput} of {peak}");
            assert!(retries <= budget(&options, calls), "{load} times {capacity}: {retries} of {calls}");
        }
    }
}

/// The control: without admission it is what the model was made for.
#[tokio::test]
async fn without_admission_it_collapses() {
    for capacity in CAPACITIES {
        let goodput = run(&without_admission(), capacity, 10.0, usize::MAX).await.goodput;
        assert!(goodput < 0.3 * capacity as f64, "{goodput} of {capacity}");
    }
}

/// A backend that refuses what is too much, and nothing but the budget between it and the callers; and the control,
/// without it.
#[tokio::test]
async fn retries_stay_within_their_budget() {
    let mut options = without_admission();
    options.breaker.calls_min = u32::MAX;
    let Outcome { calls, retries, .. } = run(&options, 500, 10.0, 50).await;
    let most = budget(&options, calls);
    assert!(retries <= most && retries > most / 2, "{retries}, {most} allowed");
    (options.retry.budget_ratio, options.retry.budget_max) = (1e6, u32::MAX);
    let Outcome { retries, .. } = run(&options, 500, 10.0, 50).await;
    assert!(retries > 2 * most, "{retries}, without a budget");
}
