//! The table under every schedule that shuttle draws: what two threads do to the same few keys must add up.
//!
//! `RUSTFLAGS="--cfg larder_shuttle" cargo test -p larder --lib l1::table`

use super::*;
use shuttle::thread;
use std::sync::Arc;

const SCHEDULES: usize = 50_000;

fn table(weight_max: u64, shards: usize) -> Arc<Table<u32, u64>> {
    Arc::new(Table::new(Limits { weight_max, entries_hint: 4, shards: Some(shards), seed: Some(1) }))
}

/// Entries that came in less those that left must be those that are there: a lost or doubled one, or a
/// limit that two inserts overstep together, would show.
#[test]
fn entries_are_neither_lost_nor_doubled() {
    shuttle::check_random(
        || {
            let table = table(3, 1);
            let workers: Vec<_> = (0..3u64)
                .map(|thread| {
                    let table = table.clone();
                    thread::spawn(move || {
                        let (mut entered, mut left) = (0u64, 0u64);
                        for step in 0..4u64 {
                            let key = ((thread + step) % 4) as u32;
                            entered += 1;
                            let terms = Terms { expires_at_ms: step, ..Terms::weighing(1 + step % 2) };
                            table.insert(key, u64::from(key), terms, &mut |_, _, _| left += 1);
                            let seen = table.get(&((key + 1) % 4), |value| *value);
                            assert!(seen.is_none_or(|value| value == u64::from((key + 1) % 4)));
                            if step == thread {
                                left += u64::from(table.remove(&key).is_some());
                            }
                        }
                        table.expire(1, 4, &mut |_, _| left += 1);
                        (entered, left)
                    })
                })
                .collect();
            let totals = workers.into_iter().map(|worker| worker.join().expect("a worker"));
            let (entered, left) = totals.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
            assert_eq!(entered - left, table.len() as u64);
            table.assert_valid();
        },
        SCHEDULES,
    );
}

/// Two limits set at once: the one that was set last must hold in every shard.
#[test]
fn the_last_limit_holds_in_every_shard() {
    shuttle::check_random(
        || {
            let table = table(8, 2);
            for key in 0..8 {
                table.insert(key, 0, Terms::weighing(1), &mut |_, _, _| {});
            }
            let other = table.clone();
            let worker = thread::spawn(move || other.set_weight_max(2, &mut |_, _, _| {}));
            table.set_weight_max(5, &mut |_, _, _| {});
            table.insert(9, 0, Terms::weighing(1), &mut |_, _, _| {});
            worker.join().expect("a worker");
            assert!(table.weight() <= table.weight_max());
            table.assert_valid();
        },
        SCHEDULES,
    );
}

/// A removal that returned happened: no lookup that begins afterwards finds the entry.
#[test]
fn a_removed_entry_is_not_found_again() {
    shuttle::check_random(
        || {
            let table = table(4, 1);
            table.insert(1, 1, Terms::weighing(1), &mut |_, _, _| {});
            let other = table.clone();
            let reader = thread::spawn(move || {
                let first = other.get(&1, |_| ());
                let second = other.get(&1, |_| ());
                assert!(first.is_some() || second.is_none(), "it came back");
            });
            assert!(table.remove(&1).is_some());
            assert!(table.get(&1, |_| ()).is_none());
            reader.join().expect("a reader");
            table.assert_valid();
        },
        SCHEDULES,
    );
}
