//! `contention`: two threads on one cache. Zipf over ten times the capacity with an insert on a miss, and
//! one hot key that both read.

use crate::measure::{Shared, pairs};
use crate::peers;
use crate::report::{Line, Report};
use crate::trace::Zipf;
use larder::unstable_table::Terms;
use std::hint::black_box;

/// A loop over one thread's keys, inlined per cache.
macro_rules! each {
    ($keys:expr, |$key:ident| $body:expr) => {
        Box::new(move |thread: usize| {
            for &$key in &$keys[thread] {
                $body;
            }
            $keys[thread].len()
        })
    };
}

pub fn run(quick: bool, report: &mut Report) {
    let operations = if quick { 200_000 } else { 1_000_000 };
    let zipf = Zipf::new(1_000_000, 0.99);
    let draws = |seed| {
        let mut rng = fastrand::Rng::with_seed(seed);
        (0..operations).map(|_| zipf.draw(&mut rng)).collect::<Vec<_>>()
    };
    let keys = [draws(1), draws(2)];
    report.group(&case("contention zipf:0.99 100000", 100_000, &keys), "ops_per_s");
    let keys = [vec![7; operations], vec![7; operations]];
    report.group(&case("contention one hot key", 100_000, &keys), "ops_per_s");
}

fn case(case: &str, capacity: usize, keys: &[Vec<u64>; 2]) -> Vec<Line> {
    let table = &peers::table::<u64>(capacity);
    let quick = &quick_cache::sync::Cache::<u64, u64>::new(capacity);
    let moka = &moka::sync::Cache::<u64, u64>::new(capacity as u64);
    let mini = &mini_moka::sync::Cache::<u64, u64>::new(capacity as u64);
    let s3fifo = &peers::foyer::<u64>(capacity, foyer::S3FifoConfig::default().into());
    let subjects = [
        Shared {
            name: "quick_cache",
            batch: each!(keys, |key| if black_box(quick.get(&key)).is_none() {
                quick.insert(key, key);
            }),
        },
        Shared {
            name: "larder-table",
            batch: each!(keys, |key| if black_box(table.get(&key, |value| *value)).is_none() {
                table.insert(key, key, Terms::weighing(1), &mut |_, _, _| {});
            }),
        },
        Shared {
            name: "moka",
            batch: each!(keys, |key| if black_box(moka.get(&key)).is_none() {
                moka.insert(key, key);
            }),
        },
        Shared {
            name: "mini-moka",
            batch: each!(keys, |key| if black_box(mini.get(&key)).is_none() {
                mini.insert(key, key);
            }),
        },
        Shared {
            name: "foyer-s3fifo",
            batch: each!(keys, |key| if black_box(s3fifo.get(&key)).is_none() {
                s3fifo.insert(key, key);
            }),
        },
    ];
    pairs(case, &subjects)
}
