//! A mirror whose source fails, hangs, forgets and comes back. Prevents: nothing served during an outage, a read error
//! that looks like an absence, a record put back by the warming that was removed meanwhile, and a source that is asked
//! by everybody while it is down.

#![allow(clippy::unwrap_used, reason = "tests")]

use async_trait::async_trait;
use larder::backend::{MemoryBackend, MemoryOptions};
use larder::clock::ManualClock;
use larder::mirror::{Collection, Mirror, Source};
use larder::{BoxError, Cache, ErrorKind};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

const PATIENCE: Duration = Duration::from_secs(30);
const MINUTE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct State {
    rows: Mutex<BTreeMap<String, u64>>,
    /// Whether it lists keys, and whether it gives records.
    is_down: Mutex<(bool, bool)>,
    fetches: AtomicU64,
    listings: AtomicU64,
    /// While it is set, a fetch waits between reading and answering.
    gate: Mutex<Option<Arc<Semaphore>>>,
}

#[derive(Clone, Default)]
struct Fake(Arc<State>);

#[async_trait]
impl Source<u64> for Fake {
    async fn fetch(&self, keys: &[String]) -> Result<HashMap<String, u64>, BoxError> {
        self.0.fetches.fetch_add(1, SeqCst);
        if self.0.is_down.lock().unwrap().1 {
            return Err("down".into());
        }
        let found = {
            let rows = self.0.rows.lock().unwrap();
            keys.iter().filter_map(|key| Some((key.clone(), *rows.get(key)?))).collect()
        };
        let gate = self.0.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            gate.acquire().await?.forget();
        }
        Ok(found)
    }

    async fn keys(&self, after: Option<&str>, limit: usize) -> Result<Vec<String>, BoxError> {
        self.0.listings.fetch_add(1, SeqCst);
        if self.0.is_down.lock().unwrap().0 {
            return Err("down".into());
        }
        let rows = self.0.rows.lock().unwrap();
        let follows = |key: &&String| after.is_none_or(|after| key.as_str() > after);
        Ok(rows.keys().filter(follows).take(limit).cloned().collect())
    }
}

impl Fake {
    fn with(count: u64) -> Fake {
        let fake = Fake::default();
        fake.0.rows.lock().unwrap().extend((0..count).map(|i| (format!("k{i:04}"), i)));
        fake
    }

    fn down(&self, lists: bool, fetches: bool) {
        *self.0.is_down.lock().unwrap() = (lists, fetches);
    }
}

fn open(fake: &Fake, clock: &ManualClock) -> Collection<u64> {
    let tier = MemoryBackend::new(MemoryOptions { clock: clock.clone().into(), ..Default::default() });
    let builder = Cache::builder().clock(clock.clone().into()).tier(Arc::new(tier));
    Collection::new("rows", builder, fake.clone()).unwrap()
}

/// Waits for an event; the collection's own clock goes on meanwhile.
async fn until(clock: &ManualClock, mut is_so: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < PATIENCE);
        clock.advance(Duration::from_millis(50));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// What is written to the tier in the background must not be overtaken by half an hour.
async fn until_written(rows: &Collection<u64>, total: u64) {
    let began = Instant::now();
    while rows.stats().await.unwrap().total < total {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_served_through_and_asked_about_by_one() {
    let (fake, clock) = (Fake::with(500), ManualClock::new());
    let rows = open(&fake, &clock);
    assert_eq!(rows.warm().await.unwrap().fresh, 500);
    assert_eq!(fake.0.fetches.load(SeqCst), 3, "200 records of one page in one question");
    until_written(&rows, 500).await;
    fake.down(true, true);
    clock.advance(31 * MINUTE);
    let found = rows.get("k0007").await.unwrap().unwrap();
    assert!(found.value == 7 && found.is_stale && found.age >= 31 * MINUTE, "{found:?}");
    until(&clock, async || rows.is_offline()).await;
    let asked = fake.0.fetches.load(SeqCst);
    for i in 0..500 {
        assert!(rows.get(&format!("k{i:04}")).await.unwrap().unwrap().is_stale);
    }
    assert_eq!(rows.get("unknown").await.unwrap_err().kind(), ErrorKind::Loader, "no answer is no absence");
    assert_eq!(fake.0.fetches.load(SeqCst), asked, "nobody asks a source that is known to be down");
    let stats = rows.stats().await.unwrap();
    assert!(stats.total == 500 && stats.stale == 500 && stats.is_offline, "{stats:?}");
    assert!(stats.oldest_age.unwrap() >= 31 * MINUTE);
    fake.0.rows.lock().unwrap().insert("k0007".to_owned(), 70);
    fake.0.rows.lock().unwrap().remove("k0008");
    fake.down(false, false);
    until(&clock, async || !rows.is_offline() && rows.stats().await.unwrap().stale == 0).await;
    assert_eq!(rows.stats().await.unwrap().total, 499, "what the source has no longer is gone");
    let found = rows.get("k0007").await.unwrap().unwrap();
    assert!(found.value == 70 && !found.is_stale);
    assert!(rows.get("k0008").await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_fails_alone_takes_nothing_offline() {
    let (fake, clock) = (Fake::with(3), ManualClock::new());
    let rows = open(&fake, &clock);
    rows.warm().await.unwrap();
    fake.down(false, true);
    clock.advance(31 * MINUTE);
    let listings = fake.0.listings.load(SeqCst);
    assert!(rows.get("k0001").await.unwrap().unwrap().is_stale);
    until(&clock, async || fake.0.listings.load(SeqCst) > listings).await;
    fake.down(false, false);
    assert!(!rows.get("k0001").await.unwrap().unwrap().is_stale, "asked again at once");
    assert!(!rows.is_offline());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_hangs_costs_a_second() {
    let (fake, clock) = (Fake::with(3), ManualClock::new());
    let rows = open(&fake, &clock);
    rows.warm().await.unwrap();
    clock.advance(31 * MINUTE);
    *fake.0.gate.lock().unwrap() = Some(Arc::new(Semaphore::new(0)));
    let began = clock_ms(&clock);
    let reader = tokio::spawn({
        let rows = rows.clone();
        async move { rows.get("k0001").await.unwrap().unwrap() }
    });
    until(&clock, async || reader.is_finished()).await;
    assert!(reader.await.unwrap().is_stale);
    assert!(clock_ms(&clock) - began < 20_000);
}

fn clock_ms(clock: &ManualClock) -> u64 {
    larder::clock::Clock::from(clock.clone()).mono_ms()
}

/// It lists its keys again, and gives its records a moment later.
#[tokio::test(flavor = "multi_thread")]
async fn a_warming_that_fails_is_made_again() {
    let (fake, clock) = (Fake::with(3), ManualClock::new());
    let rows = open(&fake, &clock);
    rows.warm().await.unwrap();
    fake.down(true, true);
    clock.advance(31 * MINUTE);
    assert!(rows.get("k0001").await.unwrap().unwrap().is_stale);
    until(&clock, async || rows.is_offline()).await;
    let asked = fake.0.fetches.load(SeqCst);
    fake.down(false, true);
    until(&clock, async || fake.0.fetches.load(SeqCst) > asked).await;
    fake.down(false, false);
    until(&clock, async || rows.stats().await.unwrap().stale == 0).await;
}

/// The record was read from the source before it was removed; the warming must not put it back.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_wins_against_the_warming() {
    let (fake, clock) = (Fake::with(3), ManualClock::new());
    let rows = open(&fake, &clock);
    let gate = Arc::new(Semaphore::new(0));
    *fake.0.gate.lock().unwrap() = Some(Arc::clone(&gate));
    let warming = tokio::spawn({
        let rows = rows.clone();
        async move { rows.warm().await }
    });
    until(&clock, async || fake.0.fetches.load(SeqCst) == 1).await;
    fake.0.rows.lock().unwrap().insert("k0001".to_owned(), 100);
    rows.remove("k0001").await.unwrap();
    *fake.0.gate.lock().unwrap() = None;
    gate.add_permits(10);
    warming.await.unwrap().unwrap();
    assert_eq!(rows.get("k0001").await.unwrap().unwrap().value, 100);
    assert_eq!(rows.get("k0002").await.unwrap().unwrap().value, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stale_is_cleared_and_what_is_wrong_is_said() {
    let (fake, clock) = (Fake::with(450), ManualClock::new());
    let rows = open(&fake, &clock);
    let all = Mirror::new().with(&rows);
    rows.warm().await.unwrap();
    until_written(&rows, 450).await;
    clock.advance(31 * MINUTE);
    rows.set("k0001", 1).await.unwrap();
    assert_eq!(all.is_stale("rows:k0001").await.unwrap(), Some(false));
    assert_eq!(all.is_stale("rows:k0002").await.unwrap(), Some(true));
    assert_eq!(all.is_stale("rows:unknown").await.unwrap(), None);
    for (record, why) in [("k0001", "collection:key"), ("lines:k0001", "known are: rows")] {
        let error = all.is_stale(record).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Key && error.to_string().contains(why), "{error}");
    }
    fake.down(true, true);
    assert_eq!(rows.warm().await.unwrap_err().kind(), ErrorKind::Loader);
    assert_eq!(all.clear_stale().await.unwrap(), 449);
    assert_eq!(all.stats().await.unwrap()[0].total, 1);
    assert_eq!(all.clear_stale().await.unwrap(), 0);
    all.clear_all().await.unwrap();
    assert_eq!(all.stats().await.unwrap()[0].total, 0);
    let config = |name| Collection::new(name, Cache::builder(), Fake::default()).unwrap_err().kind();
    assert_eq!(config("rows"), ErrorKind::Config, "without a tier");
    assert_eq!(config("rows:more"), ErrorKind::Config);
}

/// The task that looks after the source ends with its runtime; the next one looks again.
#[test]
fn a_runtime_that_ends_leaves_the_mirror_usable() {
    let (fake, clock) = (Fake::with(3), ManualClock::new());
    let rows = open(&fake, &clock);
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let first = runtime();
    first.block_on(async {
        rows.warm().await.unwrap();
        clock.advance(31 * MINUTE);
        fake.down(true, true);
        assert!(rows.get("k0001").await.unwrap().unwrap().is_stale);
        until(&clock, async || rows.is_offline()).await;
    });
    drop(first);
    fake.down(false, false);
    runtime().block_on(async {
        until(&clock, async || rows.get("k0001").await.unwrap().is_some_and(|found| !found.is_stale)).await;
    });
}
