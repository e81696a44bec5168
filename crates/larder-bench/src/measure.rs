//! Timing: interleaved rounds after a warm-up, thread CPU time for one thread, wall time for what waits or
//! has several threads, and a check that two threads truly ran in parallel.
//!
//! Thread CPU time is not disturbed by other programs that take the processor, but by what they leave of its
//! caches: compare within one run, and mind the spread.

use crate::report::Line;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Odd, so that the median is a round.
const ROUNDS: usize = 9;

/// What a case counts, and the name of its clock in the output.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// The time this thread had a processor.
    ThreadCpu,
    /// Time as a caller sees it.
    Wall,
}

impl Clock {
    fn name(self) -> &'static str {
        match self {
            Clock::ThreadCpu => "thread CPU",
            Clock::Wall => "wall",
        }
    }

    /// Runs `work` and returns the nanoseconds it took per operation that it reports.
    pub fn per_operation(self, work: impl FnOnce() -> usize) -> f64 {
        let (wall, cpu) = (Instant::now(), thread_cpu_ns());
        let operations = work() as f64;
        let ns = match self {
            Clock::ThreadCpu => (thread_cpu_ns() - cpu) as f64,
            Clock::Wall => wall.elapsed().as_nanos() as f64,
        };
        ns / operations
    }
}

/// Runs a batch and returns how many operations it was.
pub struct Subject<'a> {
    pub name: &'static str,
    pub batch: Box<dyn FnMut() -> usize + 'a>,
}

/// Measures single-threaded subjects in turns, in nanoseconds of thread CPU time per operation.
pub fn single(case: &str, mut subjects: Vec<Subject<'_>>) -> Vec<Line> {
    let names: Vec<_> = subjects.iter().map(|subject| subject.name).collect();
    let one = |at: usize| Clock::ThreadCpu.per_operation(&mut subjects[at].batch);
    interleaved(case, "median_ns", Clock::ThreadCpu, &names, one)
}

/// Asks for one value of each subject in turns. The first round warms up.
pub fn interleaved(
    case: &str,
    measure: &'static str,
    clock: Clock,
    names: &[&str],
    mut one: impl FnMut(usize) -> f64,
) -> Vec<Line> {
    let mut rounds = vec![Vec::new(); names.len()];
    for round in 0..=ROUNDS {
        for (at, values) in rounds.iter_mut().enumerate() {
            let value = one(at);
            if round > 0 {
                values.push(value);
            }
        }
    }
    names.iter().zip(rounds).map(|(name, values)| line(case, name, measure, clock, values)).collect()
}

/// A subject of a two-threaded case: thread 0 or 1 does a slice of its operations.
pub struct Shared<'a> {
    pub name: &'static str,
    pub slice: Box<dyn Fn(usize, Range<usize>) + Sync + 'a>,
}

/// Some milliseconds: short enough that two threads often keep their processors for all of it, also on a
/// machine with other work.
const SLICE: usize = 10_000;
const VALID_ROUNDS: usize = 31;
const VALID_ROUNDS_MIN: usize = 7;

/// Measures the operations per second of two threads together, in short rounds of [`SLICE`] operations a
/// thread, until each subject has enough valid ones or `budget` is over. A round is void when a thread had a
/// processor for less than 95 % of the time, or the two overlapped for less than 80 % of it. With fewer than
/// seven valid rounds the subject has no figure.
pub fn pairs(case: &str, operations: usize, budget: Duration, subjects: &[Shared<'_>]) -> Vec<Line> {
    // Warm: each cache has seen all keys of both threads.
    for subject in subjects {
        for thread in 0..2 {
            (subject.slice)(thread, 0..operations);
        }
    }
    let mut valid = vec![Vec::new(); subjects.len()];
    let mut void = vec![0u32; subjects.len()];
    let (began, mut at) = (Instant::now(), 0);
    while valid.iter().any(|rates| rates.len() < VALID_ROUNDS) && began.elapsed() < budget {
        for (subject, (valid, void)) in subjects.iter().zip(valid.iter_mut().zip(&mut void)) {
            match pair(&*subject.slice, at..at + SLICE) {
                _ if valid.len() == VALID_ROUNDS => {}
                Some(rate) => valid.push(rate),
                None => *void += 1,
            }
        }
        at = (at + SLICE) % (operations - SLICE);
    }
    let lines = subjects.iter().zip(valid.into_iter().zip(void)).map(|(subject, (rates, void))| {
        let rounds = rates.len();
        let line = if rounds < VALID_ROUNDS_MIN {
            let flag = "void: the threads did not run in parallel often enough";
            Line::new(case, subject.name).clock(Clock::Wall.name()).flag(flag)
        } else {
            line(case, subject.name, "ops_per_s", Clock::Wall, rates)
        };
        line.value("rounds", rounds as f64).value("rounds_void", f64::from(void))
    });
    lines.collect()
}

/// The rate of two threads together; `None` if they did not run in parallel.
fn pair(slice: &(dyn Fn(usize, Range<usize>) + Sync), range: Range<usize>) -> Option<f64> {
    // Spinning, both have a processor when they start; a sleeping barrier would wake one late.
    let arrived = AtomicUsize::new(0);
    let one = |thread: usize| {
        arrived.fetch_add(1, Ordering::AcqRel);
        while arrived.load(Ordering::Acquire) < 2 {
            std::hint::spin_loop();
        }
        let (start, cpu) = (Instant::now(), thread_cpu_ns());
        slice(thread, range.clone());
        let cpu = thread_cpu_ns() - cpu;
        (start, Instant::now(), cpu)
    };
    let (a, b) = std::thread::scope(|scope| {
        let other = scope.spawn(|| one(1));
        Some((one(0), other.join().ok()?))
    })?;
    let both = a.1.min(b.1).saturating_duration_since(a.0.max(b.0)).as_nanos() as f64;
    let mut rate = 0.0;
    for (start, end, cpu) in [a, b] {
        let wall = (end - start).as_nanos() as f64;
        if (cpu as f64) < 0.95 * wall || both < 0.8 * wall {
            return None;
        }
        rate += range.len() as f64 / wall * 1e9;
    }
    Some(rate)
}

/// The median, and as spread the distance between the second lowest and the second highest, in ratio to it.
fn line(case: &str, subject: &str, measure: &'static str, clock: Clock, mut values: Vec<f64>) -> Line {
    values.sort_by(f64::total_cmp);
    let median = values[values.len() / 2];
    let spread = (values[values.len() - 2] - values[1]) / median;
    Line::new(case, subject).clock(clock.name()).value(measure, median).value("spread", spread)
}

fn thread_cpu_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec to write to, and this clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
