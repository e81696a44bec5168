//! `memory`: resident bytes per entry of a full cache, each subject in a process of its own.
//!
//! Twice as many keys as fit are inserted, so that whatever remembers evicted keys has its fill.

use crate::peers;
use crate::report::{Line, Report, flag_over};
use larder::unstable_table::Terms;
use std::process::Command;

const SUBJECTS: [&str; 9] = [
    "quick_cache",
    "larder-table",
    "larder-table with deadlines",
    "larder",
    "moka",
    "mini-moka",
    "foyer-s3fifo",
    "foyer-lru",
    "cached",
];

pub fn run(is_quick: bool, report: &mut Report) -> Result<(), String> {
    let entries = if is_quick { 200_000 } else { 1_000_000 };
    let (mut lines, mut held) = (Vec::new(), Vec::new());
    for subject in SUBJECTS {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let output = Command::new(program).args(["memory-of", subject, &entries.to_string()]).output();
        let output = output.map_err(|error| error.to_string())?;
        let printed = String::from_utf8_lossy(&output.stdout);
        let numbers: Vec<f64> = printed.split_whitespace().filter_map(|text| text.parse().ok()).collect();
        let [bytes, count] = numbers[..] else { return Err(format!("memory of {subject}: {printed:?}")) };
        lines.push(Line::new(&format!("memory u64 {entries}"), subject).value("bytes_per_entry", bytes));
        held.push((subject, count as usize));
    }
    report.group(&flag_over(lines, entries, &held), "bytes_per_entry");
    Ok(())
}

/// Fills one subject and prints the bytes per entry, and how many entries it holds.
#[allow(clippy::print_stdout, reason = "read by the process that started this one")]
pub fn child(subject: &str, entries: usize) -> Result<(), String> {
    let before = resident()?;
    let keys = 0..2 * entries as u64;
    let (held, after) = match subject {
        "quick_cache" => {
            let cache = quick_cache::sync::Cache::<u64, u64>::new(entries);
            keys.for_each(|key| cache.insert(key, key));
            (cache.len(), resident()?)
        }
        "larder-table" | "larder-table with deadlines" => {
            let table = peers::table::<u64>(entries);
            let expires_at_ms = if subject == "larder-table" { u64::MAX } else { 1 << 40 };
            let terms = Terms { expires_at_ms, ..Terms::weighing(1) };
            keys.for_each(|key| table.insert(key, key, terms, &mut |_, _, _| {}));
            (table.len(), resident()?)
        }
        "larder" => {
            let cache = peers::whole::<u64>(entries);
            keys.for_each(|key| peers::set(&cache, key, key));
            (cache.stats().entries as usize, resident()?)
        }
        "cached" => {
            let cache = cached::ShardedLruCache::<u64, u64>::new(entries);
            keys.for_each(|key| {
                cache.set(key, key);
            });
            (cache.len(), resident()?)
        }
        "moka" => {
            let cache = moka::sync::Cache::<u64, u64>::new(entries as u64);
            keys.for_each(|key| cache.insert(key, key));
            cache.run_pending_tasks();
            (cache.entry_count() as usize, resident()?)
        }
        "mini-moka" => {
            let cache = mini_moka::sync::Cache::<u64, u64>::new(entries as u64);
            keys.for_each(|key| cache.insert(key, key));
            mini_moka::sync::ConcurrentCacheExt::sync(&cache);
            (cache.entry_count() as usize, resident()?)
        }
        "foyer-s3fifo" | "foyer-lru" => {
            let lru = foyer::EvictionConfig::from(foyer::LruConfig::default());
            let s3fifo = foyer::EvictionConfig::from(foyer::S3FifoConfig::default());
            let cache = peers::foyer::<u64>(entries, if subject == "foyer-lru" { lru } else { s3fifo });
            for key in keys {
                cache.insert(key, key);
            }
            (cache.usage(), resident()?)
        }
        other => return Err(format!("unknown subject {other:?}")),
    };
    println!("{} {held}", after.saturating_sub(before) as f64 / held.max(1) as f64);
    Ok(())
}

fn resident() -> Result<u64, String> {
    let statm = std::fs::read_to_string("/proc/self/statm").map_err(|error| error.to_string())?;
    let pages = statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    Ok(pages.ok_or("no resident size in /proc/self/statm")? * 4096)
}
