//! `l1`: a hit, on one thread, in a cache that holds all keys. Random order; the value is 8 bytes.
//!
//! larder's own cache is measured as a user has it: with a TTL, statistics and a namespace. The peers have no
//! TTL, except where their name says so.

use crate::measure::{Subject, single};
use crate::peers;
use crate::report::Report;
use larder::unstable_table::Terms;
use std::hint::black_box;
use std::time::Duration;

pub fn run(is_quick: bool, report: &mut Report) {
    let lookups = if is_quick { 25_000 } else { 300_000 };
    for entries in [1000, 100_000] {
        let order: Vec<u32> = {
            let mut rng = fastrand::Rng::with_seed(1);
            (0..lookups).map(|_| rng.u32(0..entries)).collect()
        };
        let keys: Vec<u64> = (0..u64::from(entries)).collect();
        report.group(&numbers(&format!("l1 hit u64 {entries}"), &keys, &order), "median_ns");
        let keys: Vec<String> = (0..entries).map(|key| format!("user:{key:08}:profile")).collect();
        report.group(&strings(&format!("l1 hit String {entries}"), &keys, &order), "median_ns");
    }
}

/// A batch of lookups, inlined into one loop per cache.
macro_rules! lookups {
    ($keys:expr, $order:expr, |$key:ident| $lookup:expr) => {
        Box::new(move || {
            for &at in $order {
                let $key = &$keys[at as usize];
                black_box($lookup);
            }
            $order.len()
        })
    };
}

macro_rules! cases {
    ($function:ident, $key:ty, $lookup:ty) => {
        fn $function(case: &str, keys: &[$key], order: &[u32]) -> Vec<crate::report::Line> {
            // Room to spare, so that shards that are fuller than others evict nothing.
            let capacity = keys.len() + keys.len() / 2 + 200;
            let table = peers::table::<$key>(capacity);
            let (cache, own_ttls) = (peers::whole::<$key>(capacity), peers::whole::<$key>(capacity));
            let quick = quick_cache::sync::Cache::<$key, u64>::new(capacity);
            let moka = moka::sync::Cache::<$key, u64>::new(capacity as u64);
            let moka_future = moka::future::Cache::<$key, u64>::new(capacity as u64);
            let moka_ttl = moka::future::Cache::builder().max_capacity(capacity as u64);
            let moka_ttl: moka::future::Cache<$key, u64> =
                moka_ttl.time_to_live(Duration::from_secs(300)).build();
            let mini = mini_moka::sync::Cache::<$key, u64>::new(capacity as u64);
            let cached = cached::ShardedLruCache::<$key, u64>::new(capacity);
            let s3fifo = peers::foyer::<$key>(capacity, foyer::S3FifoConfig::default().into());
            let lru = peers::foyer::<$key>(capacity, foyer::LruConfig::default().into());
            let lfu = peers::foyer::<$key>(capacity, foyer::LfuConfig::default().into());
            for (value, key) in keys.iter().enumerate() {
                let value = value as u64;
                table.insert(key.clone(), value, Terms::weighing(1), &mut |_, _, _| {});
                peers::set(&cache, key.clone(), value);
                let options = cache.options().ttl(Duration::from_secs(600 + value % 3000));
                let set = peers::ready(own_ttls.set_with(key.clone(), value, &options));
                set.expect("a set without tiers never waits").expect("an open cache takes a set");
                quick.insert(key.clone(), value);
                moka.insert(key.clone(), value);
                peers::ready(moka_future.insert(key.clone(), value));
                peers::ready(moka_ttl.insert(key.clone(), value));
                mini.insert(key.clone(), value);
                cached.set(key.clone(), value);
                s3fifo.insert(key.clone(), value);
                lru.insert(key.clone(), value);
                lfu.insert(key.clone(), value);
            }
            moka.run_pending_tasks();
            peers::ready(moka_future.run_pending_tasks());
            peers::ready(moka_ttl.run_pending_tasks());
            let (t, q, m, f) = (&table, &quick, &moka, &moka_future);
            let (whole, own, e) = (&cache, &own_ttls, &moka_ttl);
            let (i, c, s, l, u) = (&mini, &cached, &s3fifo, &lru, &lfu);
            let subjects = vec![
                Subject { name: "quick_cache", batch: lookups!(keys, order, |key| q.get::<$lookup>(key)) },
                Subject {
                    name: "larder-table",
                    batch: lookups!(keys, order, |key| t.get::<$lookup, _>(key, |value| *value)),
                },
                Subject {
                    name: "larder-table-peek",
                    batch: lookups!(keys, order, |key| t.peek::<$lookup, _>(key, |value| *value)),
                },
                Subject {
                    name: "larder-peek",
                    batch: lookups!(keys, order, |key| whole.peek::<$lookup>(key)),
                },
                Subject {
                    name: "larder-get",
                    batch: lookups!(keys, order, |key| peers::ready(whole.get::<$lookup>(key))),
                },
                Subject {
                    name: "larder-get-or-load",
                    batch: lookups!(keys, order, |key| {
                        let load = |_| async { Ok::<u64, std::convert::Infallible>(0) };
                        peers::ready(whole.get_or_load::<$lookup, _, _, _, _>(key, load)).and_then(Result::ok)
                    }),
                },
                Subject {
                    name: "larder-get ttl per entry",
                    batch: lookups!(keys, order, |key| peers::ready(own.get::<$lookup>(key))),
                },
                Subject { name: "moka", batch: lookups!(keys, order, |key| m.get::<$lookup>(key)) },
                Subject {
                    name: "moka-future",
                    batch: lookups!(keys, order, |key| peers::ready(f.get::<$lookup>(key))),
                },
                Subject {
                    name: "moka-future ttl",
                    batch: lookups!(keys, order, |key| peers::ready(e.get::<$lookup>(key))),
                },
                Subject { name: "mini-moka", batch: lookups!(keys, order, |key| i.get::<$key>(key)) },
                Subject { name: "cached", batch: lookups!(keys, order, |key| c.get::<$lookup>(key)) },
                Subject { name: "foyer-s3fifo", batch: lookups!(keys, order, |key| s.get::<$lookup>(key)) },
                Subject { name: "foyer-lru", batch: lookups!(keys, order, |key| l.get::<$lookup>(key)) },
                Subject { name: "foyer-lfu", batch: lookups!(keys, order, |key| u.get::<$lookup>(key)) },
            ];
            single(case, subjects)
        }
    };
}

cases!(numbers, u64, u64);
cases!(strings, String, str);
