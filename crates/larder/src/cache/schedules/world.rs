//! What the programs share: a cache, a source of truth with a version, and who knows of which version.

use crate::backend::{
    Backend, Capabilities, Mark, MemoryBackend, MemoryOptions, Page, Put, PutOutcome, Read, Removed, Scan,
    Ticket, Usage,
};
use crate::cache::{Cache, LoadContext, Loaded};
use crate::clock::{Clock, ManualClock};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{EntryKey, Namespace, Pattern};
use crate::options::EntryOptions;
use crate::stamp::Stamp;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::SeqCst};
use async_trait::async_trait;
use bytes::Bytes;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

pub(super) const KEY: u8 = 0;
pub(super) const SECOND: Duration = Duration::from_secs(1);

/// Clones share everything.
#[derive(Clone)]
pub(super) struct World {
    pub(super) cache: Cache<u8, u64>,
    pub(super) clock: ManualClock,
    /// The version in the source.
    pub(super) truth: Arc<AtomicU64>,
    /// The version whose removal or set was acknowledged last: nobody who reads later may see an older one.
    pub(super) acknowledged: Arc<AtomicU64>,
    pub(super) loads: Arc<AtomicUsize>,
    tiers: Vec<Arc<dyn Backend>>,
    options: EntryOptions,
}

impl World {
    pub(super) fn new(options: EntryOptions, tiers: Vec<Arc<dyn Backend>>) -> Self {
        let clock = ManualClock::new();
        World {
            cache: build(&clock, &options, &tiers),
            clock,
            truth: Arc::new(AtomicU64::new(1)),
            acknowledged: Arc::new(AtomicU64::new(1)),
            loads: Arc::default(),
            tiers,
            options,
        }
    }

    pub(super) fn in_memory() -> Self {
        World::new(EntryOptions::default(), Vec::new())
    }

    pub(super) fn with_tier() -> Self {
        World::new(EntryOptions::default(), vec![memory()])
    }

    /// The same tiers under an L1 that is empty.
    pub(super) fn restarted(&self) -> Self {
        World { cache: build(&self.clock, &self.options, &self.tiers), ..self.clone() }
    }

    /// Changes the source, then does `remove`, then lets everybody know.
    pub(super) async fn change<T>(&self, remove: impl Future<Output = T>) -> T {
        let version = self.truth.fetch_add(1, SeqCst) + 1;
        let removed = remove.await;
        self.acknowledged.fetch_max(version, SeqCst);
        removed
    }

    pub(super) async fn change_and_remove(&self) {
        self.change(self.cache.remove(&KEY)).await.unwrap();
    }

    pub(super) async fn change_and_set(&self) {
        let version = self.truth.fetch_add(1, SeqCst) + 1;
        self.cache.set(KEY, version).await.unwrap();
        self.acknowledged.fetch_max(version, SeqCst);
    }

    pub(super) async fn load(&self) {
        self.load_tagged(None).await;
    }

    pub(super) async fn load_tagged(&self, tag: Option<&'static str>) {
        let least = self.acknowledged.load(SeqCst);
        let version = self.cache.get_or_load(&KEY, self.loader(tag)).await.unwrap();
        assert!(version >= least, "loaded version {version} although {least} was acknowledged before");
    }

    pub(super) async fn get(&self) -> Option<u64> {
        let least = self.acknowledged.load(SeqCst);
        let version = self.cache.get(&KEY).await;
        assert!(
            version.is_none_or(|version| version >= least),
            "got {version:?} although {least} was acknowledged before"
        );
        version
    }

    pub(super) fn loader(
        &self,
        tag: Option<&'static str>,
    ) -> impl FnOnce(
        LoadContext<u64>,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Loaded<u64>, Infallible>> + Send>>
    + Send
    + 'static {
        let (truth, loads) = (Arc::clone(&self.truth), Arc::clone(&self.loads));
        move |_| {
            Box::pin(async move {
                loads.fetch_add(1, SeqCst);
                let loaded = Loaded::new(truth.load(SeqCst));
                Ok(tag.into_iter().fold(loaded, Loaded::tag))
            })
        }
    }

    /// L1 drops the key to make room, which nobody hears of.
    pub(super) fn evict(&self) {
        let (shared, space) = (&self.cache.shared, &self.cache.space);
        if let Some(stamp) = shared.l1.peek(space, &KEY, 0, |resident| resident.stamp()) {
            shared.l1.evict(space, &KEY, stamp, crate::EvictReason::Size);
        }
    }

    /// Waits for flights and their write-backs.
    pub(super) async fn quiet(&self) {
        for _ in 0..100 {
            let shared = &self.cache.shared;
            if shared.flights.under_way() == 0 && shared.write_backs.load(SeqCst) == 0 {
                return;
            }
            shuttle::future::yield_now().await;
        }
    }

    /// What is in L1, then what is below it, must be known by now.
    pub(super) async fn settle(&self) {
        self.quiet().await;
        self.get().await;
        self.evict();
        self.get().await;
    }
}

fn build(clock: &ManualClock, options: &EntryOptions, tiers: &[Arc<dyn Backend>]) -> Cache<u8, u64> {
    let builder = Cache::builder().entries_max(8).clock(Clock::from(clock.clone())).defaults(options.clone());
    let cache = match tiers {
        // Without one, so that the cache is as it is without a format.
        [] => builder,
        _ => tiers.iter().fold(builder, |builder, tier| builder.tier(Arc::clone(tier))),
    };
    cache.node(1).build().unwrap()
}

pub(super) fn memory() -> Arc<dyn Backend> {
    fresh()
}

/// Runs tasks at once and waits for all.
macro_rules! together {
    ($($task:expr),+ $(,)?) => {
        for task in [$({
            let task = $task;
            shuttle::future::spawn(async move { task.await; })
        }),+] {
            task.await.unwrap();
        }
    };
}
pub(super) use together;

/// A program: builds a world, then runs tasks in it.
pub(super) fn run(program: impl Future<Output = ()>) {
    shuttle::future::block_on(program);
}

/// A memory tier that can be told to fail, or to forget everything.
#[derive(Debug)]
pub(super) struct Unreliable {
    inner: Mutex<Arc<MemoryBackend>>,
    mood: AtomicU8,
}

pub(super) const WELL: u8 = 0;
/// Nothing is done.
pub(super) const DOWN: u8 = 1;
/// Everything is done, and the answer is lost.
pub(super) const MUTE: u8 = 2;

impl Unreliable {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Unreliable { inner: Mutex::new(fresh()), mood: AtomicU8::new(WELL) })
    }

    pub(super) fn feel(&self, mood: u8) {
        self.mood.store(mood, SeqCst);
    }

    /// Restarts empty.
    pub(super) fn restart(&self) {
        *self.inner.lock() = fresh();
    }

    async fn call<T, F>(&self, call: impl FnOnce(Arc<MemoryBackend>) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mood = self.mood.load(SeqCst);
        let failed = || Error::new(ErrorKind::Unavailable, "call");
        if mood == DOWN {
            return Err(failed());
        }
        let inner = Arc::clone(&self.inner.lock());
        let answer = call(inner).await;
        if mood == MUTE { Err(failed()) } else { answer }
    }
}

/// With a clock that shows what all manual clocks show: programs with tiers don't move theirs.
fn fresh() -> Arc<MemoryBackend> {
    let clock = Clock::from(ManualClock::new());
    Arc::new(MemoryBackend::new(MemoryOptions { clock, ..MemoryOptions::default() }))
}

#[async_trait]
impl Backend for Unreliable {
    fn name(&self) -> &str {
        "unreliable"
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { durable: false, scan: true }
    }
    async fn get(&self, key: &EntryKey) -> Result<Read> {
        self.call(|inner| async move { inner.get(key).await }).await
    }
    async fn ticket(&self, key: &EntryKey) -> Result<Ticket> {
        self.call(|inner| async move { inner.ticket(key).await }).await
    }
    async fn put(&self, put: Put) -> Result<PutOutcome> {
        self.call(|inner| async move { inner.put(put).await }).await
    }
    async fn remove(&self, key: &EntryKey) -> Result<Removed> {
        self.call(|inner| async move { inner.remove(key).await }).await
    }
    async fn discard(&self, key: &EntryKey, sealed: &Bytes) -> Result<()> {
        self.call(|inner| async move { inner.discard(key, sealed).await }).await
    }
    async fn mark(&self, namespace: &Namespace, mark: &Mark) -> Result<()> {
        self.call(|inner| async move { inner.mark(namespace, mark).await }).await
    }
    async fn remove_matching(&self, namespace: &Namespace, pattern: &Pattern) -> Result<u64> {
        self.call(|inner| async move { inner.remove_matching(namespace, pattern).await }).await
    }
    async fn scan(&self, _: Scan<'_>) -> Result<Page> {
        Ok(Page::default())
    }
    async fn namespaces(&self) -> Result<Vec<Namespace>> {
        Ok(Vec::new())
    }
    async fn sweep(&self, _: usize) -> Result<u64> {
        Ok(0)
    }
    async fn usage(&self) -> Result<Usage> {
        Ok(Usage::default())
    }
    async fn last_stamp(&self) -> Result<Option<Stamp>> {
        Ok(None)
    }
    async fn ping(&self) -> Result<()> {
        self.call(|_| async { Ok(()) }).await
    }
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
