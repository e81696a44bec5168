//! `larder replay`: how a cache of some size would have served a recorded trace, before one is bought.
//!
//! Each trace is read into memory once ([`trace`]), replayed on a fresh stack per capacity ([`stack`]), and
//! set beside what LRU and a perfect policy make of it ([`oracle`]).

mod error;
mod folder;
mod input;
mod latency;
mod layout;
mod oracle;
pub(crate) mod plot;
pub(crate) mod progress;
mod report;
mod settings;
mod stack;
mod trace;

pub(crate) use error::ReplayError;
pub(crate) use settings::ReplayArgs;

use latency::{Histogram, Sampler};
use oracle::{LruCurve, NextUses};
use progress::{ACCESSES_PER_TICK, ACCESSES_PER_TICK_SLOW, Progress};
use report::{Best, Report, Row};
use settings::By;
use stack::{Limit, Outcome, SqliteTier, Stack, StackOptions, TierReport, Tiers, Values};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use trace::Trace;

/// Replays every trace of the command line and prints what came out.
///
/// A trace that can't be read is reported on stderr, the others are replayed all the same, and the exit code
/// is 1.
///
/// # Errors
/// When no trace could be replayed with these settings, or nothing can be printed.
pub(crate) fn run(args: &ReplayArgs) -> Result<ExitCode, ReplayError> {
    args.check()?;
    let mut code = ExitCode::SUCCESS;
    let mut out = BufWriter::new(io::stdout().lock());
    for (at, path) in args.traces.iter().enumerate() {
        match replay_trace(path, args) {
            Ok(report) => {
                let written = if args.json {
                    report.write_json(&mut out)
                } else {
                    let between = if at > 0 { "\n" } else { "" };
                    write!(out, "{between}").and_then(|()| report.write_table(&mut out, !args.no_plot))
                };
                match written.and_then(|()| out.flush()) {
                    // Whoever reads has seen enough.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(code),
                    written => written.map_err(ReplayError::Output)?,
                }
            }
            Err(error @ (ReplayError::Tier { .. } | ReplayError::Runtime(_) | ReplayError::Output(_))) => {
                return Err(error);
            }
            Err(ReplayError::Interrupted) => return Ok(ExitCode::from(folder::INTERRUPTED)),
            Err(error) => {
                eprintln!("error: {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

fn replay_trace(path: &Path, args: &ReplayArgs) -> Result<Report, ReplayError> {
    let progress = Progress::reading();
    let trace = Trace::read(path, &args.read_options(), &progress)?;
    progress.suspend(|| report_malformed(&trace));
    let distinct_bytes = trace.distinct_bytes();
    let whole = match args.by {
        By::Entries => u64::from(trace.distinct),
        By::Bytes => distinct_bytes,
    };
    let capacities = args.capacities_of(whole);
    // One pass of Belady per capacity and one of LRU; by bytes it is the other way round.
    progress.begin("comparing", (capacities.len() as u64 + 1) * trace.len() as u64);
    let (lru, best) = oracles(&trace, args.by, &capacities, &progress);

    progress.begin("replaying", capacities.len() as u64 * trace.len() as u64);
    let limit = |capacity| match args.by {
        By::Entries => Limit::Entries(capacity),
        By::Bytes => Limit::Bytes(capacity),
    };
    let values = Values::new(trace.smallest_sizes(), trace.largest_size());
    let mut rows = Vec::with_capacity(capacities.len());
    for (at, capacity) in capacities.iter().copied().enumerate() {
        let sqlite = match args.tiers {
            Tiers::L1 => None,
            Tiers::L1Sqlite => {
                Some(SqliteTier { limit: args.sqlite_capacity_of(capacity, whole).map(limit) })
            }
        };
        let options = StackOptions { l1: limit(capacity), sqlite, ttl: args.ttl, values: values.clone() };
        progress.pass(format!("capacity {} of {}", at + 1, capacities.len()));
        let (tiers, latencies) = runtime()?.block_on(replay(&options, &trace, &progress))?;
        progress.suspend(|| report_failures(&trace, capacity, &tiers));
        rows.push(Row { capacity, whole, lru_hits: lru[at], best_hits: best[at], tiers, latencies });
    }
    let best = match args.by {
        By::Entries => Best::Belady,
        By::Bytes => Best::Pfoo,
    };
    Ok(Report { trace, by: args.by, best, distinct_bytes, ttl: args.ttl, rows })
}

/// Hits of LRU and of the best policy, for each capacity.
fn oracles(trace: &Trace, by: By, capacities: &[u64], progress: &Progress) -> (Vec<u64>, Vec<u64>) {
    let next = NextUses::of(trace);
    match by {
        By::Entries => {
            let curve = LruCurve::of(trace, progress);
            let lru = capacities.iter().map(|capacity| curve.hits(*capacity)).collect();
            (lru, capacities.iter().map(|capacity| next.belady_hits(*capacity, progress)).collect())
        }
        By::Bytes => {
            let lru = capacities.iter().map(|capacity| oracle::lru_hits_by_bytes(trace, *capacity, progress));
            (lru.collect(), next.hits_bound_by_bytes(trace, capacities, progress))
        }
    }
}

/// How long hits of each tier and misses took.
#[derive(Clone, Debug)]
struct Latencies {
    hits: Vec<Histogram>,
    misses: Histogram,
}

/// Replays on a fresh stack, in one future for the whole trace: what is timed is then the cache, and not a
/// runtime being entered and left for each access.
async fn replay(
    options: &StackOptions,
    trace: &Trace,
    progress: &Progress,
) -> Result<(Vec<TierReport>, Latencies), ReplayError> {
    let mut stack = Stack::open(options).await?;
    let replayed = replay_on(&mut stack, trace, progress).await;
    // In any case, so that nothing stays on the disk; but the first failure is the one to tell.
    let closed = stack.close().await;
    let replayed = replayed?;
    closed.map(|()| replayed)
}

async fn replay_on(
    stack: &mut Stack,
    trace: &Trace,
    progress: &Progress,
) -> Result<(Vec<TierReport>, Latencies), ReplayError> {
    let tiers = stack.tiers();
    let accesses_per_tick = if tiers == 1 { ACCESSES_PER_TICK } else { ACCESSES_PER_TICK_SLOW };
    let mut latencies = Latencies { hits: vec![Histogram::new(); tiers], misses: Histogram::new() };
    let mut sampler = Sampler::new();
    let clock_cost = latency::clock_cost();
    for (access, id) in trace.ids.iter().copied().enumerate() {
        if access % accesses_per_tick == 0 {
            progress.advance(accesses_per_tick.min(trace.len() - access));
        }
        if let Some(times_ms) = &trace.times_ms {
            stack.set_time(times_ms[access]).await?;
        }
        if folder::is_interrupted() {
            return Err(ReplayError::Interrupted);
        }
        let size = trace.size(access);
        if !sampler.takes() {
            stack.access(id, size).await?;
            continue;
        }
        let begun = Instant::now();
        let outcome = stack.access(id, size).await?;
        let nanos = nanos(begun.elapsed().saturating_sub(clock_cost));
        match outcome {
            Outcome::Hit(tier) => latencies.hits[tier].record(nanos),
            Outcome::Miss => latencies.misses.record(nanos),
        }
    }
    Ok((stack.report().await?, latencies))
}

/// What a replay runs on: this thread, so that nothing competes with it but the tiers' own threads.
fn runtime() -> Result<Runtime, ReplayError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ReplayError::Runtime)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn report_malformed(trace: &Trace) {
    let malformed = &trace.malformed;
    for problem in &malformed.first {
        eprintln!("warning: {problem}; skipped");
    }
    let unseen = malformed.lines - malformed.first.len() as u64;
    if unseen > 0 {
        eprintln!(
            "warning: {}: {unseen} more malformed lines skipped, {} in all",
            trace.name, malformed.lines
        );
    }
    if trace.cut {
        eprintln!("warning: {}: stopped after {} accesses (--limit)", trace.name, trace.len());
    }
}

fn report_failures(trace: &Trace, capacity: u64, tiers: &[TierReport]) {
    for tier in tiers.iter().filter(|tier| tier.failures > 0) {
        eprintln!(
            "warning: {}: at capacity {capacity}, {} calls of {} failed or passed it by: it held less than it could",
            trace.name, tier.failures, tier.name
        );
    }
}
