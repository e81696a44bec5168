//! Timing: interleaved rounds after a warm-up, thread CPU time for one thread, wall time for what waits or
//! has several threads, and a check that two threads truly ran in parallel.
//!
//! Thread CPU time is not disturbed by other programs that take the processor, but by what they leave of its
//! caches: compare within one run, and mind the spread.

use crate::report::Line;
use std::ops::Range;
use std::sync::Barrier;
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

/// Operations of a thread between two looks at the clocks: some microseconds to a third of a millisecond, in
/// which a thread often keeps its processor also on a machine with other work.
const CHUNK: usize = 1000;
/// Chunks of each thread that make a round, from as many turns as it takes.
const CHUNKS: usize = 20;
/// How long the two threads run before the other subjects have their turn.
const TURN: Duration = Duration::from_millis(30);
const VALID_ROUNDS: usize = 21;
const VALID_ROUNDS_MIN: usize = 7;

/// Measures the operations per second of two threads together, in turns of 30 ms, until each subject has enough
/// rounds or `budget` is over. Only chunks that truly ran in parallel count; the others are void. With fewer
/// than seven rounds, of 20 chunks a thread and more, the subject has no figure.
pub fn pairs(case: &str, operations: usize, budget: Duration, subjects: &[Shared<'_>]) -> Vec<Line> {
    // Warm: each cache has seen all keys of both threads.
    for subject in subjects {
        for thread in 0..2 {
            (subject.slice)(thread, 0..operations);
        }
    }
    let mut tallies: Vec<Tally> = subjects.iter().map(|_| Tally::default()).collect();
    let began = Instant::now();
    while tallies.iter().any(|tally| tally.rates.len() < VALID_ROUNDS) && began.elapsed() < budget {
        for (subject, tally) in subjects.iter().zip(&mut tallies) {
            if tally.rates.len() < VALID_ROUNDS {
                tally.turn(&*subject.slice, operations);
            }
        }
    }
    let lines = subjects.iter().zip(tallies).map(|(subject, tally)| {
        let rounds = tally.rates.len();
        let line = if rounds < VALID_ROUNDS_MIN {
            let flag = "void: the threads did not run in parallel often enough";
            Line::new(case, subject.name).clock(Clock::Wall.name()).flag(flag)
        } else {
            line(case, subject.name, "ops_per_s", Clock::Wall, tally.rates)
        };
        line.value("rounds", rounds as f64).value("chunks_void", tally.void as f64)
    });
    lines.collect()
}

/// What a subject has done so far.
#[derive(Default)]
struct Tally {
    /// Nanoseconds of the valid chunks of each thread that are not yet part of a round.
    chunks_ns: [Vec<f64>; 2],
    /// One for each round.
    rates: Vec<f64>,
    /// Chunks that did not run in parallel.
    void: usize,
}

impl Tally {
    fn turn(&mut self, slice: &(dyn Fn(usize, Range<usize>) + Sync), operations: usize) {
        let [a, b] = pair(slice, operations);
        for (chunks, (own, other)) in self.chunks_ns.iter_mut().zip([(&a, &b), (&b, &a)]) {
            let parallel = parallel_chunks_ns(own, other);
            self.void += own.len() - 1 - parallel.len();
            chunks.extend(parallel);
        }
        // One round a turn at most, so that rounds of all subjects are interleaved.
        if self.chunks_ns.iter().all(|chunks| chunks.len() >= CHUNKS) {
            let rate = |chunks: &Vec<f64>| (chunks.len() * CHUNK) as f64 / chunks.iter().sum::<f64>() * 1e9;
            self.rates.push(self.chunks_ns.iter().map(rate).sum());
            self.chunks_ns.iter_mut().for_each(Vec::clear);
        }
    }
}

/// The two clocks of a thread at one moment, between two chunks.
#[derive(Clone, Copy)]
struct Moment {
    wall: Instant,
    cpu_ns: u64,
}

impl Moment {
    fn now() -> Self {
        Moment { wall: Instant::now(), cpu_ns: thread_cpu_ns() }
    }

    fn wall_ns_until(self, later: Moment) -> f64 {
        later.wall.duration_since(self.wall).as_nanos() as f64
    }

    /// Whether the thread had a processor from here until `later`.
    fn ran_until(self, later: Moment) -> bool {
        (later.cpu_ns - self.cpu_ns) as f64 >= 0.95 * self.wall_ns_until(later)
    }
}

/// The moments between the chunks of two threads that run at once.
fn pair(slice: &(dyn Fn(usize, Range<usize>) + Sync), operations: usize) -> [Vec<Moment>; 2] {
    let barrier = Barrier::new(2);
    let one = |thread: usize| {
        barrier.wait();
        let began = Moment::now();
        let (mut moments, mut first) = (vec![began], fastrand::usize(0..operations / CHUNK) * CHUNK);
        while moments[moments.len() - 1].wall.duration_since(began.wall) < TURN {
            slice(thread, first..first + CHUNK);
            first = if first + 2 * CHUNK > operations { 0 } else { first + CHUNK };
            moments.push(Moment::now());
        }
        moments
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| one(1));
        [one(0), other.join().expect("a batch does not panic")]
    })
}

/// The times of those chunks of `own` in which both threads had a processor from beginning to end.
fn parallel_chunks_ns(own: &[Moment], other: &[Moment]) -> Vec<f64> {
    let is_parallel = |chunk: &&[Moment]| {
        let is_covered = other[0].wall <= chunk[0].wall && other[other.len() - 1].wall >= chunk[1].wall;
        // The other's chunks that overlap this one.
        let first = other.partition_point(|moment| moment.wall <= chunk[0].wall).saturating_sub(1);
        let mut beside = other[first..].windows(2).take_while(|beside| beside[0].wall < chunk[1].wall);
        is_covered && chunk[0].ran_until(chunk[1]) && beside.all(|beside| beside[0].ran_until(beside[1]))
    };
    own.windows(2).filter(is_parallel).map(|chunk| chunk[0].wall_ns_until(chunk[1])).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENTS: u64 = 20;

    /// A thread's moments, a millisecond apart from `from_ms`, that ran except in the chunks `waited`.
    fn moments(zero: Instant, from_ms: u64, waited: &[u64]) -> Vec<Moment> {
        let mut cpu_ns = 0;
        let moment = |at: u64| {
            cpu_ns += if at > 0 && waited.contains(&(at - 1)) { 500_000 } else { 1_000_000 };
            Moment { wall: zero + Duration::from_millis(from_ms + at), cpu_ns }
        };
        (0..=MOMENTS).map(moment).collect()
    }

    #[test]
    fn only_parallel_chunks_count() {
        let (zero, none) = (Instant::now(), Vec::<f64>::new());
        let (whole, same) = (moments(zero, 0, &[]), moments(zero, 0, &[]));
        assert_eq!(parallel_chunks_ns(&whole, &same), vec![1e6; MOMENTS as usize]);
        // One after the other, or in turns: never in parallel.
        assert_eq!(parallel_chunks_ns(&whole, &moments(zero, MOMENTS, &[])), none);
        let odd: Vec<u64> = (0..MOMENTS).filter(|at| at % 2 == 1).collect();
        let even: Vec<u64> = (0..MOMENTS).filter(|at| at % 2 == 0).collect();
        assert_eq!(parallel_chunks_ns(&moments(zero, 0, &odd), &moments(zero, 0, &even)), none);
        // Half is left when the other waits for half of the time.
        assert_eq!(parallel_chunks_ns(&whole, &moments(zero, 0, &odd)).len(), MOMENTS as usize / 2);
    }
}
