//! `miss`: inserts that evict, lookups before them, and loads, on one thread, in a full cache of never-seen
//! keys; then the flights of [`flights`](crate::flights).

use crate::measure::{Subject, single};
use crate::report::{Report, flag_over};
use crate::{flights, peers};

use larder::unstable_table::Terms;
use std::hint::black_box;

pub fn run(is_quick: bool, report: &mut Report) {
    let operations: u64 = if is_quick { 40_000 } else { 200_000 };
    for capacity in [1000, 100_000] {
        insert_only(capacity, operations, report);
        lookup_and_insert(capacity, operations, report);
        flights::load_insert_evict(capacity, operations / 4, report);
    }
    flights::thousand_callers(report);
    flights::failing_loader(report);
}

/// A batch of operations on keys that go on where the last batch ended.
macro_rules! fresh {
    ($operations:expr, $capacity:expr, |$key:ident| $body:expr) => {{
        let mut next = 0u64;
        // Full before the first round.
        for $key in 0..2 * $capacity as u64 {
            $body;
            next = $key;
        }
        Box::new(move || {
            for _ in 0..$operations {
                next += 1;
                let $key = next;
                $body;
            }
            $operations as usize
        })
    }};
}

fn insert_only(capacity: usize, operations: u64, report: &mut Report) {
    let (table, quick) =
        (&peers::table::<u64>(capacity), &quick_cache::sync::Cache::<u64, u64>::new(capacity));
    let moka = &moka::sync::Cache::<u64, u64>::new(capacity as u64);
    let mini = &mini_moka::sync::Cache::<u64, u64>::new(capacity as u64);
    let s3fifo = &peers::foyer::<u64>(capacity, foyer::S3FifoConfig::default().into());
    let lru = &peers::foyer::<u64>(capacity, foyer::LruConfig::default().into());
    let lfu = &peers::foyer::<u64>(capacity, foyer::LfuConfig::default().into());
    let subjects = vec![
        Subject { name: "quick_cache", batch: fresh!(operations, capacity, |key| quick.insert(key, key)) },
        Subject {
            name: "larder-table",
            batch: fresh!(operations, capacity, |key| {
                table.insert(key, key, Terms::weighing(1), &mut |key, _, _| {
                    black_box(key);
                });
            }),
        },
        Subject { name: "moka", batch: fresh!(operations, capacity, |key| moka.insert(key, key)) },
        Subject { name: "mini-moka", batch: fresh!(operations, capacity, |key| mini.insert(key, key)) },
        Subject { name: "foyer-s3fifo", batch: fresh!(operations, capacity, |key| s3fifo.insert(key, key)) },
        Subject { name: "foyer-lru", batch: fresh!(operations, capacity, |key| lru.insert(key, key)) },
        Subject { name: "foyer-lfu", batch: fresh!(operations, capacity, |key| lfu.insert(key, key)) },
    ];
    let lines = single(&format!("miss insert and evict u64 {capacity}"), subjects);
    // Counted one by one: what moka and mini-moka report is what their maintenance has seen.
    let held = [
        ("quick_cache", quick.len()),
        ("larder-table", table.len()),
        ("moka", moka.iter().count()),
        ("mini-moka", mini.iter().count()),
        ("foyer-s3fifo", s3fifo.usage()),
        ("foyer-lru", lru.usage()),
        ("foyer-lfu", lfu.usage()),
    ];
    report.group(&flag_over(lines, capacity, &held), "median_ns");
}

fn lookup_and_insert(capacity: usize, operations: u64, report: &mut Report) {
    let (table, quick) =
        (&peers::table::<u64>(capacity), &quick_cache::sync::Cache::<u64, u64>::new(capacity));
    let moka = &moka::sync::Cache::<u64, u64>::new(capacity as u64);
    let s3fifo = &peers::foyer::<u64>(capacity, foyer::S3FifoConfig::default().into());
    let subjects = vec![
        Subject {
            name: "quick_cache",
            batch: fresh!(operations, capacity, |key| {
                black_box(quick.get(&key));
                quick.insert(key, key);
            }),
        },
        Subject {
            name: "larder-table",
            batch: fresh!(operations, capacity, |key| {
                black_box(table.get(&key, |value| *value));
                table.insert(key, key, Terms::weighing(1), &mut |key, _, _| {
                    black_box(key);
                });
            }),
        },
        Subject {
            name: "moka",
            batch: fresh!(operations, capacity, |key| {
                black_box(moka.get(&key));
                moka.insert(key, key);
            }),
        },
        Subject {
            name: "foyer-s3fifo",
            batch: fresh!(operations, capacity, |key| {
                black_box(s3fifo.get(&key));
                s3fifo.insert(key, key);
            }),
        },
    ];
    let lines = single(&format!("miss lookup, insert and evict u64 {capacity}"), subjects);
    let held = [
        ("quick_cache", quick.len()),
        ("larder-table", table.len()),
        ("moka", moka.iter().count()),
        ("foyer-s3fifo", s3fifo.usage()),
    ];
    report.group(&flag_over(lines, capacity, &held), "median_ns");
}
