//! The table against a plain map: every entry that leaves must be accounted for, with its own value.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

fn table(weight_max: u64, entries_hint: usize, shards: usize) -> Table<u32, u64> {
    Table::new(Limits { weight_max, entries_hint, shards: Some(shards), seed: Some(1) })
}

fn put(table: &Table<u32, u64>, key: u32, terms: Terms) -> Vec<(u32, u64, Gone)> {
    let mut gone = Vec::new();
    table.insert(key, u64::from(key), terms, &mut |key, value, why| gone.push((key, value, why)));
    gone
}

#[derive(Debug, Clone)]
enum Op {
    Insert { key: u32, weight: u64, ttl: u64, pin: bool },
    Get(u32),
    Remove(u32),
    RemoveIfEven(u32),
    Expire { later: u64, limit: usize },
    SetMax(u64),
    Retain(u32),
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0u32..60;
    let ttl = prop_oneof![Just(u64::MAX), 0u64..200];
    prop_oneof![
        10 => (key.clone(), 0u64..12, ttl, prop::bool::weighted(0.1))
            .prop_map(|(key, weight, ttl, pin)| Op::Insert { key, weight, ttl, pin }),
        8 => key.clone().prop_map(Op::Get),
        2 => key.clone().prop_map(Op::Remove),
        1 => key.clone().prop_map(Op::RemoveIfEven),
        2 => (0u64..80, 0usize..10).prop_map(|(later, limit)| Op::Expire { later, limit }),
        1 => (0u64..150).prop_map(Op::SetMax),
        1 => (1u32..8).prop_map(Op::Retain),
    ]
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct Kept {
    value: u64,
    weight: u64,
    deadline: u64,
    pinned: bool,
}

/// What the table must hold, from what it handed back.
#[derive(Default)]
struct Model {
    kept: HashMap<u32, Kept>,
    now: u64,
    next_value: u64,
}

impl Model {
    fn left(&mut self, key: u32, value: u64) -> Kept {
        let kept = self.kept.remove(&key).expect("only what is held can leave");
        assert_eq!(kept.value, value, "a value that was replaced came back");
        kept
    }

    fn apply(&mut self, table: &Table<u32, u64>, op: &Op) {
        match *op {
            Op::Insert { key, weight, ttl, pin } => self.insert(table, key, weight, ttl, pin),
            Op::Get(key) => {
                let value = self.kept.get(&key).map(|kept| kept.value);
                assert_eq!(table.peek(&key, |value| *value), value);
                assert_eq!(table.get(&key, |value| *value), value);
            }
            Op::Remove(key) => {
                let value = self.kept.remove(&key).map(|kept| (key, kept.value));
                assert_eq!(table.remove(&key), value);
            }
            Op::RemoveIfEven(key) => {
                let even = self.kept.get(&key).is_some_and(|kept| kept.value.is_multiple_of(2));
                let removed = table.remove_if(&key, |value| value.is_multiple_of(2));
                assert_eq!(removed.is_some(), even);
                removed.into_iter().for_each(|(key, value)| _ = self.left(key, value));
            }
            Op::Expire { later, limit } => {
                self.now += later;
                let now = self.now;
                let more = table.expire(now, limit, &mut |key, value| {
                    assert!(self.left(key, value).deadline <= now, "expired early");
                });
                assert!(more || self.kept.values().all(|kept| kept.deadline > now), "left something due");
            }
            Op::SetMax(weight_max) => table.set_weight_max(weight_max, &mut |key, value, why| {
                assert_eq!(why, Gone::Evicted);
                assert!(!self.left(key, value).pinned);
            }),
            Op::Retain(divisor) => {
                let keep = |key: &u32, _: &u64| !key.is_multiple_of(divisor);
                table.retain(keep, &mut |key, value| _ = self.left(key, value));
                assert!(self.kept.keys().all(|key| !key.is_multiple_of(divisor)));
            }
        }
    }

    fn insert(&mut self, table: &Table<u32, u64>, key: u32, weight: u64, ttl: u64, pin: bool) {
        self.next_value += 1;
        let value = self.next_value;
        let deadline = self.now.saturating_add(ttl);
        let pin = if pin { Pin::Pinned } else { Pin::Evictable };
        let mut gone = Vec::new();
        let terms = Terms { weight, expires_at_ms: deadline, pin };
        table.insert(key, value, terms, &mut |key, value, why| gone.push((key, value, why)));
        let mut fresh = Some(Kept { value, weight: weight.max(1), deadline, pinned: pin == Pin::Pinned });
        if gone.first().is_some_and(|(_, _, why)| *why == Gone::Replaced) {
            let (_, old, _) = gone.remove(0);
            self.left(key, old);
        }
        assert!(!self.kept.contains_key(&key), "the predecessor was not handed back");
        for (other, left, why) in gone {
            if other == key {
                // Refused, or evicted at once after it had grown in place.
                assert_eq!(left, value);
                fresh = None;
            } else {
                assert_eq!(why, Gone::Evicted);
                assert!(!self.left(other, left).pinned, "a pinned entry was evicted");
            }
        }
        fresh.into_iter().for_each(|fresh| _ = self.kept.insert(key, fresh));
    }

    fn check(&self, table: &Table<u32, u64>) {
        table.assert_valid();
        assert_eq!(table.len(), self.kept.len());
        assert_eq!(table.weight(), self.kept.values().map(|kept| kept.weight).sum::<u64>());
        let mut seen = HashMap::new();
        let mut cursor = Some(0);
        while let Some(at) = cursor {
            cursor = table.scan(at, 7, |key, value| assert_eq!(seen.insert(*key, *value), None));
        }
        let expected: HashMap<_, _> = self.kept.iter().map(|(key, kept)| (*key, kept.value)).collect();
        assert_eq!(seen, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 256 }, failure_persistence: None, ..Default::default() })]

    #[test]
    fn agrees_with_a_plain_map(
        ops in prop::collection::vec(op(), 1..if cfg!(miri) { 40 } else { 250 }),
        weight_max in 0u64..150,
        shards in 0u32..3,
        hint in 0usize..50,
    ) {
        let table = table(weight_max, hint, 1 << shards);
        let mut model = Model::default();
        for op in &ops {
            model.apply(&table, op);
            model.check(&table);
        }
    }
}

#[test]
fn never_over_the_limit_and_full_to_it() {
    for shards in [1, 4] {
        let table = table(5000, 5000, shards);
        let mut held = 0i64;
        for key in 0..20_000 {
            held += 1 - put(&table, key, Terms::weighing(1)).len() as i64;
            assert!(held <= 5000);
        }
        assert_eq!((table.len(), table.weight(), held), (5000, 5000, 5000));
        table.assert_valid();
    }
}

#[test]
fn weights_are_exact_whatever_their_spread() {
    let table = table(1_000_000, 2000, 2);
    let mut rng = fastrand::Rng::with_seed(7);
    let mut held: HashMap<u32, u64> = HashMap::new();
    for _ in 0..30_000 {
        let (key, weight) = (rng.u32(0..5000), 1 << rng.u32(0..19));
        if table.get(&key, |_| ()).is_some() {
            continue;
        }
        held.insert(key, weight);
        for (key, _, _) in put(&table, key, Terms::weighing(weight)) {
            held.remove(&key);
        }
        assert!(held.values().sum::<u64>() <= 1_000_000);
    }
    assert_eq!(table.weight(), held.values().sum::<u64>());
    table.assert_valid();
}

#[test]
fn an_entry_may_take_a_whole_shard_and_no_more() {
    let table = table(1001, 10, 2);
    assert_eq!(put(&table, 1, Terms::weighing(500)), []);
    assert_eq!(put(&table, 2, Terms::weighing(502)), [(2, 2, Gone::TooHeavy)]);
    // Refused, and its predecessor is gone: the old value must not outlive the write.
    assert_eq!(put(&table, 1, Terms::weighing(5000)), [(1, 1, Gone::Replaced), (1, 1, Gone::TooHeavy)]);
    assert!(table.is_empty());
    let vast =
        Table::<u32, u64>::new(Limits { weight_max: u64::MAX, entries_hint: 4, shards: None, seed: None });
    let mut refused = 0;
    vast.insert(1, 1, Terms::weighing(1 << 32), &mut |_, _, _| refused += 1);
    vast.insert(2, 2, Terms::weighing((1 << 32) - 1), &mut |_, _, _| refused += 1);
    assert_eq!((refused, vast.weight()), (1, (1 << 32) - 1));
}

#[test]
fn pinned_entries_stay_under_pressure() {
    let table = table(100, 100, 1);
    for key in 0..60 {
        put(&table, key, Terms { pin: Pin::Pinned, ..Terms::weighing(1) });
    }
    for key in 100..5000 {
        put(&table, key, Terms::weighing(1));
    }
    assert!((0..60).all(|key| table.peek(&key, |_| ()).is_some()));
    assert_eq!(table.len(), 100);
    let gone = put(&table, 5000, Terms { pin: Pin::Pinned, ..Terms::weighing(41) });
    assert_eq!(gone, [(5000, 5000, Gone::TooHeavy)]);
    table.assert_valid();
}

#[test]
fn a_hot_set_survives_a_scan() {
    let table = table(1000, 1000, 1);
    for round in 0..20u32 {
        for key in 0..500 {
            if table.get(&key, |_| ()).is_none() {
                put(&table, key, Terms::weighing(1));
            }
        }
        for key in 0..2000 {
            put(&table, 10_000 + round * 2000 + key, Terms::weighing(1));
        }
    }
    let kept = (0..500).filter(|key| table.peek(key, |_| ()).is_some()).count();
    assert!(kept > 450, "{kept}");
}

#[test]
fn the_panel_follows_the_accesses() {
    // A loop over a little more than fits: a large window keeps nothing, a small one almost all.
    let table = table(4000, 4000, 1);
    let mut hits = 0;
    for at in 0..400_000u32 {
        let key = at % 5000;
        if table.get(&key, |_| ()).is_some() {
            hits += u32::from(at >= 200_000);
        } else {
            put(&table, key, Terms::weighing(1));
        }
    }
    assert!(hits > 120_000, "{hits} of 200000, at best 160000");
    table.assert_valid();
}

#[test]
fn shrinks_and_grows_while_running() {
    let table = table(10_000, 10_000, 4);
    for key in 0..10_000 {
        put(&table, key, Terms::weighing(1));
    }
    let mut evicted = 0;
    table.set_weight_max(777, &mut |_, _, why| {
        assert_eq!(why, Gone::Evicted);
        evicted += 1;
    });
    assert_eq!(table.len() + evicted, 10_000 - (10_000 - table.len() - evicted));
    assert!(table.weight() <= 777);
    table.assert_valid();
    table.set_weight_max(50_000, &mut |_, _, _| unreachable!());
    for key in 0..200_000 {
        put(&table, key, Terms::weighing(1));
    }
    assert_eq!(table.len(), 50_000);
    table.assert_valid();
}

#[test]
fn expires_in_bounded_steps_and_rotates_over_shards() {
    let table = table(4000, 4000, 4);
    for key in 0..1000 {
        put(&table, key, Terms { expires_at_ms: 1000 + u64::from(key), ..Terms::weighing(1) });
    }
    assert!(!table.expire(999, usize::MAX, &mut |_, _| unreachable!("early")));
    let mut expired = 0;
    let mut calls = 0;
    while table.expire(1499, 10, &mut |_, _| expired += 1) {
        calls += 1;
        assert!(calls < 1000);
    }
    assert_eq!((expired, table.len()), (500, 500));
    assert!(calls >= 50, "{calls} calls of 10 steps for 500 entries");
    table.assert_valid();
}

#[test]
fn readers_writers_and_removers_agree() {
    const THREADS: u64 = 4;
    let table = table(2000, 2000, 2);
    let (rounds, keys) = if cfg!(miri) { (300, 40) } else { (60_000, 6000) };
    let (entered, left) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (table, entered, left) = (&table, &entered, &left);
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(thread);
                let mut count = |_, _, _| _ = left.fetch_add(1, Ordering::Relaxed);
                for round in 0..rounds {
                    let key = rng.u32(0..keys);
                    match rng.u32(0..20) {
                        0 => {
                            let removed = table.remove(&key);
                            left.fetch_add(u64::from(removed.is_some()), Ordering::Relaxed);
                        }
                        1 => {
                            let mut expired = 0;
                            table.expire(round, 8, &mut |_, _| expired += 1);
                            left.fetch_add(expired, Ordering::Relaxed);
                        }
                        2 if round % 64 == 0 => table.set_weight_max(rng.u64(1500..2500), &mut count),
                        3..8 => {
                            let expires_at_ms = round + rng.u64(1..rounds);
                            entered.fetch_add(1, Ordering::Relaxed);
                            let terms = Terms { expires_at_ms, ..Terms::weighing(rng.u64(1..4)) };
                            table.insert(key, u64::from(key) << 32 | round, terms, &mut count);
                        }
                        _ => {
                            let value = table.get(&key, |value| *value);
                            assert!(value.is_none_or(|value| value >> 32 == u64::from(key)));
                        }
                    }
                }
            });
        }
    });
    table.set_weight_max(2000, &mut |_, _, _| _ = left.fetch_add(1, Ordering::Relaxed));
    assert_eq!(entered.into_inner() - left.into_inner(), table.len() as u64);
    assert!(table.weight() <= 2000);
    table.assert_valid();
}

#[test]
fn nothing_is_dropped_twice_or_leaked() {
    let alive = std::sync::Arc::new(());
    let table = Table::new(Limits { weight_max: 50, entries_hint: 50, shards: Some(1), seed: None });
    for key in 0..500u32 {
        table.insert(key % 120, alive.clone(), Terms::weighing(1), &mut |_, _, _| {});
        if key % 7 == 0 {
            table.remove(&(key % 60));
        }
    }
    assert_eq!(std::sync::Arc::strong_count(&alive), 1 + table.len());
    drop(table);
    assert_eq!(std::sync::Arc::strong_count(&alive), 1);
}

#[test]
fn a_callback_may_use_the_table() {
    let table = table(10, 10, 1);
    for key in 0..100 {
        table.insert(key, 0, Terms::weighing(1), &mut |gone, _, _| {
            assert!(table.peek(&gone, |_| ()).is_none());
            table.remove(&gone);
        });
    }
    table.retain(|_, _| false, &mut |gone, _| assert!(table.remove(&gone).is_none()));
}

#[test]
fn two_threads_that_use_it_are_allowed() {
    fn shared<T: Send + Sync>() {}
    shared::<Table<String, Box<[u8]>>>();
}

#[test]
fn neither_the_unit_of_weight_nor_a_wrong_hint_matters_much() {
    let hits = |weight: u64, entries_hint: usize| {
        let table = table(5000 * weight, entries_hint, 1);
        let mut rng = fastrand::Rng::with_seed(3);
        let mut hits = 0i32;
        for at in 0..400_000 {
            let key = if at % 10 == 0 { 1_000_000 + at } else { (rng.f64().powi(3) * 50_000.0) as u32 };
            if table.get(&key, |_| ()).is_some() {
                hits += 1;
            } else {
                put(&table, key, Terms::weighing(weight));
            }
        }
        table.assert_valid();
        hits
    };
    let right = hits(1, 5000);
    assert!(right > 100_000);
    for (weight, hint) in [(64, 5000), (64, 50), (1000, 200_000)] {
        let got = hits(weight, hint);
        assert!((right - got).abs() < right / 50, "{got} hits, not {right}: weight {weight}, hint {hint}");
    }
}
