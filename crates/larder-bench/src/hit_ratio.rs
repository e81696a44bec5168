//! `hit-ratio`: every engine over a trace, single-threaded, beside LRU, ARC and Belady.
//!
//! An access is a lookup and, on a miss, an insert. Without a trace, made-up ones are replayed. An engine that holds more than its capacity at a
//! checkpoint is flagged: its ratio is not comparable.

use crate::oracles;
use crate::report::{Line, Report};
use crate::trace::{self, Trace};
use larder::unstable_table::{Limits, Table, Terms};

const TRACES: [(&str, [usize; 2]); 3] = [
    ("OLTP.lis.zst", [1000, 5000]),
    ("scarab-recs.keys.zst", [25_000, 75_000]),
    ("P6.lis.zst", [20_000, 100_000]),
];

/// Replayed when no trace is given: popularity of several skews, a loop, scans, phases, recency.
const MADE_UP: [&str; 7] = ["zipf:0.7", "zipf:0.9", "zipf:1.1", "loop:25000", "scan", "phases", "churn"];

/// With `--quick`, the accesses of a trace that are replayed, at its largest capacity only.
const QUICK_ACCESSES: usize = 200_000;

pub struct Options {
    /// Empty: the made-up ones.
    pub traces: Vec<String>,
    /// Empty: 1 % and 10 % of the distinct keys, or what is usual for the trace.
    pub capacities: Vec<usize>,
    /// Empty: all.
    pub engines: Vec<String>,
    pub seeds: u64,
    pub shards: Option<usize>,
    pub trace_seed: u64,
}

/// A cache as the harness sees it.
struct Engine {
    access: Box<dyn FnMut(u32) -> bool>,
    len: Box<dyn Fn() -> usize>,
}

type Make = fn(usize, u64, Option<usize>) -> Engine;
const ENGINES: [(&str, Make); 6] = [
    ("larder", larder),
    ("quick_cache", quick_cache),
    ("moka", moka),
    ("foyer-s3fifo", |capacity, _, _| foyer(capacity, foyer::S3FifoConfig::default().into())),
    ("foyer-lru", |capacity, _, _| foyer(capacity, foyer::LruConfig::default().into())),
    ("foyer-lfu", |capacity, _, _| foyer(capacity, foyer::LfuConfig::default().into())),
];
type Oracle = fn(&[u32], usize) -> u64;
const ORACLES: [(&str, Oracle); 3] =
    [("lru", oracles::lru), ("arc", oracles::arc), ("belady", oracles::belady)];

pub fn run(is_quick: bool, options: &Options, report: &mut Report) -> Result<(), String> {
    let made_up = MADE_UP.map(String::from);
    for what in if options.traces.is_empty() { &made_up[..] } else { &options.traces } {
        let mut trace = trace::load(what, options.trace_seed)?;
        let mut capacities =
            if options.capacities.is_empty() { defaults(what, &trace) } else { options.capacities.clone() };
        if is_quick {
            trace.keys.truncate(QUICK_ACCESSES);
            capacities.drain(..capacities.len() - 1);
        }
        for capacity in capacities {
            one(&trace, capacity, options, report);
        }
    }
    Ok(())
}

fn defaults(what: &str, trace: &Trace) -> Vec<usize> {
    let known = TRACES.iter().find(|(name, _)| what.ends_with(name));
    known.map_or_else(
        || vec![trace.distinct.div_ceil(100), trace.distinct.div_ceil(10)],
        |(_, sizes)| sizes.to_vec(),
    )
}

fn one(trace: &Trace, capacity: usize, options: &Options, report: &mut Report) {
    let case = format!("hit-ratio {}@{capacity}", trace.name);
    let chosen =
        |name: &str| options.engines.is_empty() || options.engines.iter().any(|engine| engine == name);
    let mut lines: Vec<Line> = Vec::new();
    for (name, make) in ENGINES.into_iter().filter(|(name, _)| chosen(name)) {
        let seeds = if name == "larder" { options.seeds } else { 1 };
        let runs: Vec<_> = (0..seeds)
            .map(|seed| replay(&mut make(capacity, seed, options.shards), trace, capacity))
            .collect();
        let mut ratios: Vec<f64> = runs.iter().map(|(ratio, _)| *ratio).collect();
        ratios.sort_by(f64::total_cmp);
        let mut line = Line::new(&case, name).value("hit_ratio", ratios[ratios.len() / 2]);
        if seeds > 1 {
            let (lowest, highest) = (ratios[0], ratios[ratios.len() - 1]);
            line = line.value("spread", highest - lowest).value("lowest", lowest).value("highest", highest);
        }
        if runs.iter().any(|(_, over)| *over) {
            line = line.flag("holds more than its capacity");
        }
        lines.push(line);
    }
    for (name, oracle) in ORACLES.into_iter().filter(|(name, _)| chosen(name)) {
        let hits = oracle(&trace.keys, capacity);
        lines.push(Line::new(&case, name).value("hit_ratio", hits as f64 / trace.keys.len() as f64));
    }
    report.group(&lines, "hit_ratio");
}

fn replay(engine: &mut Engine, trace: &Trace, capacity: usize) -> (f64, bool) {
    let (mut hits, mut over) = (0u64, false);
    for (at, &key) in trace.keys.iter().enumerate() {
        hits += u64::from((engine.access)(key));
        if at % 65_536 == 65_535 {
            over |= (engine.len)() > capacity + capacity / 50;
        }
    }
    (hits as f64 / trace.keys.len() as f64, over)
}

fn larder(capacity: usize, seed: u64, shards: Option<usize>) -> Engine {
    let limits = Limits { weight_max: capacity as u64, entries_hint: capacity, shards, seed: Some(seed) };
    let table = std::rc::Rc::new(Table::<u64, u64>::new(limits));
    let other = table.clone();
    Engine {
        access: Box::new(move |key| {
            let key = u64::from(key);
            let hit = table.get(&key, |_| ()).is_some();
            if !hit {
                table.insert(key, key, Terms::weighing(1), &mut |_, _, _| {});
            }
            hit
        }),
        len: Box::new(move || other.len()),
    }
}

fn quick_cache(capacity: usize, _: u64, _: Option<usize>) -> Engine {
    let cache = std::rc::Rc::new(quick_cache::sync::Cache::<u64, u64>::new(capacity));
    let other = cache.clone();
    Engine {
        access: Box::new(move |key| {
            let key = u64::from(key);
            let hit = cache.get(&key).is_some();
            if !hit {
                cache.insert(key, key);
            }
            hit
        }),
        len: Box::new(move || other.len()),
    }
}

fn moka(capacity: usize, _: u64, _: Option<usize>) -> Engine {
    let cache = moka::sync::Cache::<u64, u64>::new(capacity as u64);
    let other = cache.clone();
    let mut accesses = 0u32;
    Engine {
        access: Box::new(move |key| {
            let key = u64::from(key);
            let hit = cache.get(&key).is_some();
            if !hit {
                cache.insert(key, key);
            }
            // Its maintenance runs now and then; at full speed one thread outruns it.
            accesses = accesses.wrapping_add(1);
            if accesses.is_multiple_of(32) {
                cache.run_pending_tasks();
            }
            hit
        }),
        len: Box::new(move || {
            other.run_pending_tasks();
            other.entry_count() as usize
        }),
    }
}

fn foyer(capacity: usize, eviction: foyer::EvictionConfig) -> Engine {
    let builder = foyer::CacheBuilder::new(capacity).with_shards(1).with_eviction_config(eviction);
    let cache: foyer::Cache<u64, u64> = builder.build();
    let other = cache.clone();
    Engine {
        access: Box::new(move |key| {
            let key = u64::from(key);
            let hit = cache.get(&key).is_some();
            if !hit {
                cache.insert(key, key);
            }
            hit
        }),
        len: Box::new(move || other.usage()),
    }
}
