//! Timing: interleaved rounds, thread CPU time for one thread, wall time for two that truly ran in parallel.

use crate::report::Line;
use std::sync::Barrier;
use std::time::Instant;

/// Odd, so that the median is a round.
const ROUNDS: usize = 9;

/// A subject of a single-threaded case: runs a batch and returns how many operations it was.
pub struct Subject<'a> {
    pub name: &'static str,
    pub batch: Box<dyn FnMut() -> usize + 'a>,
}

/// Measures all subjects in turns and reports the nanoseconds of CPU time per operation.
pub fn single(case: &str, mut subjects: Vec<Subject<'_>>) -> Vec<Line> {
    let mut times = vec![Vec::new(); subjects.len()];
    for round in 0..=ROUNDS {
        for (subject, times) in subjects.iter_mut().zip(&mut times) {
            let start = thread_cpu_ns();
            let operations = (subject.batch)();
            let ns = (thread_cpu_ns() - start) as f64 / operations as f64;
            // The first round warms up.
            if round > 0 {
                times.push(ns);
            }
        }
    }
    subjects.iter().zip(times).map(|(subject, times)| line(case, subject.name, "median_ns", times)).collect()
}

/// A subject of a two-threaded case: one batch of thread 0 or 1.
pub struct Shared<'a> {
    pub name: &'static str,
    pub batch: Box<dyn Fn(usize) -> usize + Sync + 'a>,
}

/// Measures the operations per second of two threads together. Rounds in which either did not have its
/// processor for 95 % of the time are void; with fewer than seven left the subject is.
pub fn pairs(case: &str, subjects: &[Shared<'_>]) -> Vec<Line> {
    let mut rates = vec![Vec::new(); subjects.len()];
    for round in 0..=4 * ROUNDS {
        for (subject, rates) in subjects.iter().zip(&mut rates) {
            if rates.len() < ROUNDS
                && let Some(rate) = pair(&*subject.batch)
                && round > 0
            {
                rates.push(rate);
            }
        }
    }
    let lines = subjects.iter().zip(rates).map(|(subject, rates)| {
        if rates.len() < 7 {
            return Line::new(case, subject.name).flag("void: the threads did not run in parallel");
        }
        line(case, subject.name, "ops_per_s", rates)
    });
    lines.collect()
}

fn pair(batch: &(dyn Fn(usize) -> usize + Sync)) -> Option<f64> {
    let barrier = Barrier::new(2);
    let one = |thread: usize| {
        barrier.wait();
        let (start, cpu) = (Instant::now(), thread_cpu_ns());
        let operations = batch(thread);
        (start, Instant::now(), thread_cpu_ns() - cpu, operations)
    };
    let runs = std::thread::scope(|scope| {
        let other = scope.spawn(|| one(1));
        [Some(one(0)), other.join().ok()]
    });
    let [a, b] = [runs[0]?, runs[1]?];
    let both = a.1.min(b.1).saturating_duration_since(a.0.max(b.0)).as_nanos() as f64;
    let mut rate = 0.0;
    for (start, end, cpu, operations) in [a, b] {
        let wall = (end - start).as_nanos() as f64;
        if (cpu as f64) < 0.95 * wall || both < 0.8 * wall {
            return None;
        }
        rate += operations as f64 / wall * 1e9;
    }
    Some(rate)
}

fn line(case: &str, subject: &str, measure: &'static str, mut values: Vec<f64>) -> Line {
    values.sort_by(f64::total_cmp);
    let median = values[values.len() / 2];
    let spread = (values[values.len() - 2] - values[1]) / median;
    Line::new(case, subject).value(measure, median).value("spread", spread)
}

fn thread_cpu_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec to write to, and this clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
