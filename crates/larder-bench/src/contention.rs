//! `contention`: two threads on one cache, its statistics on. Zipf over ten times the capacity with an
//! insert on a miss, and one hot key that both read.

use crate::measure::{Shared, pairs};
use crate::peers;
use crate::report::{Line, Report};
use crate::trace::Zipf;
use larder::unstable_table::Terms;
use std::hint::black_box;
use std::time::Duration;

/// A loop over a slice of one thread's keys, inlined per cache.
macro_rules! each {
    ($keys:expr, |$key:ident| $body:expr) => {
        Box::new(move |thread: usize, range: std::ops::Range<usize>| {
            for &$key in &$keys[thread][range] {
                $body;
            }
        })
    };
}

pub fn run(is_quick: bool, report: &mut Report) {
    let (operations, budget) = if is_quick { (100_000, 5) } else { (500_000, 30) };
    let budget = Duration::from_secs(budget);
    let zipf = Zipf::new(1_000_000, 0.99);
    let draws = |seed| {
        let mut rng = fastrand::Rng::with_seed(seed);
        (0..operations).map(|_| zipf.draw(&mut rng)).collect::<Vec<_>>()
    };
    let keys = [draws(1), draws(2)];
    report.group(&case("contention zipf:0.99 100000", budget, &keys), "ops_per_s");
    let keys = [vec![7; operations], vec![7; operations]];
    report.group(&case("contention one hot key", budget, &keys), "ops_per_s");
}

fn case(case: &str, budget: Duration, keys: &[Vec<u64>; 2]) -> Vec<Line> {
    const CAPACITY: usize = 100_000;
    let table = &peers::table::<u64>(CAPACITY);
    let whole = &peers::whole::<u64>(CAPACITY);
    let quick = &quick_cache::sync::Cache::<u64, u64>::new(CAPACITY);
    let moka = &moka::sync::Cache::<u64, u64>::new(CAPACITY as u64);
    let mini = &mini_moka::sync::Cache::<u64, u64>::new(CAPACITY as u64);
    let cached = &cached::ShardedLruCache::<u64, u64>::new(CAPACITY);
    let s3fifo = &peers::foyer::<u64>(CAPACITY, foyer::S3FifoConfig::default().into());
    let subjects = [
        Shared {
            name: "quick_cache",
            slice: each!(keys, |key| if black_box(quick.get(&key)).is_none() {
                quick.insert(key, key);
            }),
        },
        Shared {
            name: "larder-get",
            slice: each!(keys, |key| if black_box(peers::ready(whole.get(&key))).flatten().is_none() {
                peers::set(whole, key, key);
            }),
        },
        Shared {
            name: "larder-table",
            slice: each!(keys, |key| if black_box(table.get(&key, |value| *value)).is_none() {
                table.insert(key, key, Terms::weighing(1), &mut |_, _, _| {});
            }),
        },
        Shared {
            name: "moka",
            slice: each!(keys, |key| if black_box(moka.get(&key)).is_none() {
                moka.insert(key, key);
            }),
        },
        Shared {
            name: "mini-moka",
            slice: each!(keys, |key| if black_box(mini.get(&key)).is_none() {
                mini.insert(key, key);
            }),
        },
        Shared {
            name: "cached",
            slice: each!(keys, |key| if black_box(cached.get(&key)).is_none() {
                cached.set(key, key);
            }),
        },
        Shared {
            name: "foyer-s3fifo",
            slice: each!(keys, |key| if black_box(s3fifo.get(&key)).is_none() {
                s3fifo.insert(key, key);
            }),
        },
    ];
    pairs(case, keys[0].len(), budget, &subjects)
}
