//! Prevents: keys that nobody dares to rotate, because the cache is empty afterwards, or because of the misses
//! while the processes of a service learn the new key one after the other.

use super::{Texts, cache, memory, ring};
use async_trait::async_trait;
use bytes::Bytes;
use larder::backend::{
    Backend, Capabilities, Mark, MemoryBackend, Page, Put, PutOutcome, Read, Removed, Scan, Ticket, Usage,
};
use larder::clock::{Clock, ManualClock};
use larder::envelope::{Keyring, Protection, Sealing};
use larder::key::{EntryKey, Namespace, Pattern};
use larder::stamp::Stamp;
use larder::{Cache, EntryOptions, Result};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const KEYS: usize = 200;

/// A process: little of it in memory, so that reads go to the tier.
fn node(tier: &Arc<MemoryBackend>, keyring: &Keyring) -> Texts {
    let mut options = EntryOptions::default();
    options.ttl = Duration::MAX;
    let builder = Cache::builder().entries_max(1).defaults(options).tier(tier.clone());
    builder.encryption(keyring.clone()).build().unwrap()
}

async fn rotate(cache: &Texts) -> larder::RotationProgress {
    let mut rotation = cache.rotate_keys().await.unwrap();
    while rotation.step().await.unwrap().is_some() {}
    rotation.progress()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_rotate_one_after_the_other_under_load() {
    let tier = Arc::new(MemoryBackend::new(Default::default()));
    let rings = [ring(&[1]), ring(&[1])];
    let nodes = [node(&tier, &rings[0]), node(&tier, &rings[1])];
    for at in 0..KEYS {
        nodes[0].set(format!("key {at}"), "value 0".into()).await.unwrap();
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let reads = Arc::new(AtomicU64::new(0));
    let mut work = Vec::new();
    for (number, cache) in nodes.iter().cloned().enumerate() {
        let (is_over, reads, writer) = (is_over.clone(), reads.clone(), cache.clone());
        let over = is_over.clone();
        work.push(tokio::spawn(async move {
            for at in (0..KEYS).cycle() {
                if is_over.load(SeqCst) {
                    return;
                }
                let key = format!("key {at}");
                assert!(cache.get(key.as_str()).await.is_some(), "a false miss of {key} in node {number}");
                reads.fetch_add(1, SeqCst);
            }
        }));
        work.push(tokio::spawn(async move {
            for round in (0..KEYS).cycle() {
                if over.load(SeqCst) {
                    return;
                }
                writer.set(format!("key {}", round * 7 % KEYS), format!("value {round}")).await.unwrap();
                tokio::task::yield_now().await;
            }
        }));
    }
    let read_some = || async {
        let enough = reads.load(SeqCst) + 300;
        while reads.load(SeqCst) < enough && !work.iter().any(tokio::task::JoinHandle::is_finished) {
            tokio::task::yield_now().await;
        }
    };
    for step in [&[1, 2][..], &[2, 1]] {
        for keyring in &rings {
            read_some().await;
            keyring.replace(&ring(step)).unwrap();
        }
    }
    read_some().await;
    let progress = rotate(&nodes[0]).await;
    assert_eq!((progress.unknown, progress.tampered, progress.refused), (0, 0, 0));
    for keyring in &rings {
        keyring.replace(&ring(&[2])).unwrap();
        read_some().await;
    }
    is_over.store(true, SeqCst);
    for task in work {
        task.await.unwrap();
    }
    let usage = nodes[0].key_usage().await.unwrap();
    assert_eq!(usage[0].entries, [(Sealing::Encrypted, Some(ring(&[2]).current()), KEYS as u64)]);
}

/// The negative control: a process that begins to write with a key that the other has not learned.
#[tokio::test]
async fn the_wrong_order_is_seen_as_misses() {
    let tier = Arc::new(MemoryBackend::new(Default::default()));
    let (first, second) = (node(&tier, &ring(&[2, 1])), node(&tier, &ring(&[1])));
    first.set("a".into(), "value".into()).await.unwrap();
    assert_eq!(second.get("a").await, None);
    assert_eq!(second.stats().tiers[0].refused, [("key_id".to_owned(), 1)]);
}

#[tokio::test]
async fn a_rotation_that_was_dropped_goes_on_where_it_was() {
    let tier = Arc::new(MemoryBackend::new(Default::default()));
    let old = node(&tier, &ring(&[1]));
    for at in 0..600 {
        old.set(format!("key {at}"), "value".into()).await.unwrap();
    }
    let cache = node(&tier, &ring(&[2, 1]));
    let mut rotation = cache.rotate_keys().await.unwrap();
    assert_eq!(rotation.step().await.unwrap().unwrap().resealed, 256);
    drop(rotation);
    let progress = rotate(&cache).await;
    assert_eq!((progress.seen, progress.resealed), (600, 600 - 256));
    assert_eq!(rotate(&cache).await.resealed, 0);
    let reader = node(&tier, &ring(&[2]));
    for at in 0..600 {
        assert!(reader.get(format!("key {at}").as_str()).await.is_some());
    }
}

/// What was removed or set while the rotation had it in its hands stays as it was left.
#[tokio::test]
async fn a_rotation_puts_nothing_back() {
    let tier = Arc::new(MemoryBackend::new(Default::default()));
    let other = node(&tier, &ring(&[2, 1]));
    let old = node(&tier, &ring(&[1]));
    for key in ["left", "removed", "set"] {
        old.set(key.into(), "value".into()).await.unwrap();
    }
    let meddled = Arc::new(Meddled { inner: tier.clone(), other: Mutex::default() });
    let mut options = EntryOptions::default();
    options.ttl = Duration::MAX;
    let builder = Cache::builder().entries_max(1).defaults(options).tier(meddled.clone());
    let cache: Texts = builder.encryption(ring(&[2, 1])).build().unwrap();
    let mut rotation = cache.rotate_keys().await.unwrap();
    *meddled.other.lock().unwrap() = Some(other.clone());
    while rotation.step().await.unwrap().is_some() {}
    assert!(meddled.other.lock().unwrap().is_none(), "another process came in between");
    let progress = rotation.progress();
    assert_eq!((progress.seen, progress.resealed, progress.overtaken), (3, 1, 2));
    let reader = node(&tier, &ring(&[2]));
    assert_eq!(reader.get("left").await.as_deref(), Some("value"));
    assert_eq!(reader.get("removed").await, None);
    assert_eq!(reader.get("set").await.as_deref(), Some("new"));
}

/// A page that is removed between two steps is not put back by the next one, which began before.
#[tokio::test]
async fn a_removal_between_two_steps_stays() {
    let tier = Arc::new(MemoryBackend::new(Default::default()));
    let old = node(&tier, &ring(&[1]));
    for at in 0..600 {
        old.set(format!("key {at}"), "value".into()).await.unwrap();
    }
    let cache = node(&tier, &ring(&[2, 1]));
    let mut rotation = cache.rotate_keys().await.unwrap();
    let first = rotation.step().await.unwrap().unwrap().resealed;
    old.clear().await.unwrap();
    old.set("key 7".into(), "new".into()).await.unwrap();
    while rotation.step().await.unwrap().is_some() {}
    assert!(rotation.progress().resealed <= first + 1, "{:?}", rotation.progress());
    for at in 0..600 {
        let expected = (at == 7).then_some("new");
        assert_eq!(cache.get(format!("key {at}").as_str()).await.as_deref(), expected, "key {at}");
    }
}

/// A tier in which another process removes one entry and sets another, right after they were read.
#[derive(Debug)]
struct Meddled {
    inner: Arc<MemoryBackend>,
    other: Mutex<Option<Texts>>,
}

#[async_trait]
impl Backend for Meddled {
    fn name(&self) -> &str {
        "meddled"
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn get(&self, key: &EntryKey) -> Result<Read> {
        self.inner.get(key).await
    }
    async fn get_many(&self, keys: &[EntryKey]) -> Vec<Result<Read>> {
        let reads = self.inner.get_many(keys).await;
        let other = self.other.lock().unwrap().take();
        if let Some(other) = other {
            other.remove("removed").await.unwrap();
            other.set("set".into(), "new".into()).await.unwrap();
        }
        reads
    }
    async fn ticket(&self, key: &EntryKey) -> Result<Ticket> {
        self.inner.ticket(key).await
    }
    async fn put(&self, put: Put) -> Result<PutOutcome> {
        self.inner.put(put).await
    }
    async fn remove(&self, key: &EntryKey) -> Result<Removed> {
        self.inner.remove(key).await
    }
    async fn discard(&self, key: &EntryKey, sealed: &Bytes) -> Result<()> {
        self.inner.discard(key, sealed).await
    }
    async fn mark(&self, namespace: &Namespace, mark: &Mark) -> Result<()> {
        self.inner.mark(namespace, mark).await
    }
    async fn remove_matching(&self, namespace: &Namespace, pattern: &Pattern) -> Result<u64> {
        self.inner.remove_matching(namespace, pattern).await
    }
    async fn scan(&self, scan: Scan<'_>) -> Result<Page> {
        self.inner.scan(scan).await
    }
    async fn namespaces(&self) -> Result<Vec<Namespace>> {
        self.inner.namespaces().await
    }
    async fn sweep(&self, limit: usize) -> Result<u64> {
        self.inner.sweep(limit).await
    }
    async fn usage(&self) -> Result<Usage> {
        self.inner.usage().await
    }
    async fn last_stamp(&self) -> Result<Option<Stamp>> {
        self.inner.last_stamp().await
    }
    async fn ping(&self) -> Result<()> {
        self.inner.ping().await
    }
    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

#[tokio::test]
async fn reads_and_writes_seal_anew_where_that_is_asked_for() {
    let clock = ManualClock::new();
    let tier = memory(&clock);
    let old = cache(&clock, &tier, Protection::encrypt(ring(&[1])));
    for key in ["read", "written", "left"] {
        old.set(key.into(), "value".into()).await.unwrap();
    }
    let count = |cache: Texts| async move {
        let entries = cache.key_usage().await.unwrap().remove(0).entries;
        let of = |key| entries.iter().filter(move |(_, id, _)| *id == Some(ring(&[key]).current()));
        (of(1).map(|(_, _, n)| n).sum::<u64>(), of(2).map(|(_, _, n)| n).sum::<u64>())
    };
    let lazy = cache(&clock, &tier, Protection::encrypt(ring(&[2, 1])));
    assert_eq!(lazy.get("read").await.as_deref(), Some("value"));
    assert_eq!(count(lazy.clone()).await, (3, 0), "a read writes nothing unless it is asked to");
    lazy.set("written".into(), "new".into()).await.unwrap();
    assert_eq!(count(lazy.clone()).await, (2, 1));
    let eager = cache(&clock, &tier, Protection::encrypt(ring(&[2, 1])).reseal_on_read(true));
    assert_eq!(eager.get("read").await.as_deref(), Some("value"));
    // The reader has its answer before the write.
    let mut tries = 0;
    while count(eager.clone()).await != (1, 2) {
        tries += 1;
        assert!(tries < 1000, "{:?}", count(eager.clone()).await);
        tokio::task::yield_now().await;
    }
    let reader = cache(&clock, &tier, Protection::encrypt(ring(&[2])));
    assert_eq!(reader.get("read").await.as_deref(), Some("value"));
    // With its expiry as it was.
    clock.advance(Duration::from_secs(86_400));
    let later: Texts = Cache::builder()
        .clock(Clock::from(clock.clone()))
        .tier(tier.clone())
        .encryption(ring(&[2]))
        .build()
        .unwrap();
    assert_eq!(later.get("read").await, None);
}
