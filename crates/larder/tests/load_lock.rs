//! Nodes that share a tier and a lock take turns at loading, and nobody waits for what will not come.
//!
//! The failures that this prevents: waiting in a line for a value that is never stored, or all at once for a
//! source that fails; waiting for longer than a load may take; a lock that hangs and takes every load with it; an
//! old value from the node that loaded it before a removal. Nodes are caches in one process on a clock that the
//! test moves.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

mod support;

use async_trait::async_trait;
use larder::backend::{Backend, MemoryBackend, MemoryOptions};
use larder::clock::ManualClock;
use larder::lock::{Acquired, Claim, LockBackend, LockInfo, Locks, MemoryLocks};
use larder::{Builder, Cache, EntryOptions, ErrorKind, LoadLockOptions, Loaded};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};
use support::{Faulty, Mood};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

type Answer = larder::Result<u64>;
type Found = fn(u64) -> Result<Loaded<u64>, std::io::Error>;
const KEY: u64 = 7;

/// Nodes around one tier and one lock.
struct World {
    clock: ManualClock,
    tier: Arc<dyn Backend>,
    locks: Arc<dyn LockBackend>,
    source: Arc<Source>,
}

/// What is loaded from: loads that have begun wait for a permit each.
struct Source {
    version: AtomicUsize,
    begun: AtomicUsize,
    running: AtomicUsize,
    at_once_max: AtomicUsize,
    permits: Semaphore,
    loaded: Found,
}

impl Source {
    async fn load(self: Arc<Self>) -> Result<Loaded<u64>, std::io::Error> {
        let version = self.version.load(SeqCst) as u64;
        self.begun.fetch_add(1, SeqCst);
        let running = self.running.fetch_add(1, SeqCst) + 1;
        self.at_once_max.fetch_max(running, SeqCst);
        self.permits.acquire().await.unwrap().forget();
        self.running.fetch_sub(1, SeqCst);
        (self.loaded)(version)
    }

    fn begun(&self) -> usize {
        self.begun.load(SeqCst)
    }
}

impl World {
    fn new(loaded: Found) -> World {
        let clock = ManualClock::new();
        World {
            tier: Arc::new(MemoryBackend::new(MemoryOptions {
                clock: clock.clone().into(),
                ..MemoryOptions::default()
            })),
            locks: Arc::new(MemoryLocks::with_clock(clock.clone().into())),
            clock,
            source: Arc::new(Source {
                version: AtomicUsize::new(1),
                begun: AtomicUsize::new(0),
                running: AtomicUsize::new(0),
                at_once_max: AtomicUsize::new(0),
                permits: Semaphore::new(0),
                loaded,
            }),
        }
    }

    fn builder(&self) -> Builder<u64, u64> {
        let locks = Locks::new(self.locks.clone()).clock(self.clock.clone().into());
        Cache::builder().clock(self.clock.clone().into()).tier(self.tier.clone()).load_lock(locks)
    }

    fn nodes(&self, count: usize, defaults: &EntryOptions) -> Vec<Cache<u64, u64>> {
        (0..count).map(|_| self.builder().defaults(defaults.clone()).build().unwrap()).collect()
    }

    fn load(&self, node: &Cache<u64, u64>) -> JoinHandle<Answer> {
        let (node, source) = (node.clone(), self.source.clone());
        tokio::spawn(async move { node.get_or_load(&KEY, |_| source.load()).await })
    }

    /// Lets time pass until something is so.
    async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < Duration::from_secs(60), "{what}");
            tokio::time::sleep(Duration::from_millis(1)).await;
            self.clock.advance(Duration::from_millis(5));
        }
    }

    /// The first loads; all others wait for it.
    async fn one_loads(&self, nodes: &[Cache<u64, u64>]) -> Vec<JoinHandle<Answer>> {
        let mut calls = vec![self.load(&nodes[0])];
        self.until("the first loads", || self.source.begun() == 1).await;
        calls.extend(nodes[1..].iter().map(|node| self.load(node)));
        let waits = |node: &Cache<u64, u64>| node.stats().loads_awaited == 1;
        self.until("the others wait", || nodes[1..].iter().all(waits)).await;
        assert_eq!(self.source.begun(), 1);
        calls
    }

    async fn answers(&self, calls: Vec<JoinHandle<Answer>>) -> Vec<Answer> {
        self.until("all callers have an answer", || calls.iter().all(JoinHandle::is_finished)).await;
        let mut answers = Vec::new();
        for call in calls {
            answers.push(call.await.unwrap());
        }
        answers
    }
}

fn now_ms(clock: &ManualClock) -> u64 {
    larder::clock::Clock::from(clock.clone()).mono_ms()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_one_node_loads_all_have() {
    for loaded in [|version| Ok(Loaded::new(version)), |_| Ok(Loaded::absent())] {
        let world = World::new(loaded);
        let nodes = world.nodes(5, &EntryOptions::default());
        let calls = world.one_loads(&nodes).await;
        world.source.permits.add_permits(1);
        let answers = world.answers(calls).await;
        let known = |answer: &Answer| answer.as_ref().copied().map_err(larder::Error::kind);
        let first = known(&answers[0]);
        assert!(matches!(first, Ok(1) | Err(ErrorKind::NotFound)), "{first:?}");
        assert!(answers.iter().all(|answer| known(answer) == first), "{answers:?}");
        assert_eq!(world.source.begun(), 1);
        assert!(nodes.iter().all(|node| node.stats().loads_unlocked == 0));
    }
}

/// Grants when it is told to.
#[derive(Debug)]
struct Late {
    locks: Arc<dyn LockBackend>,
    asked: AtomicUsize,
    go: Semaphore,
}

#[async_trait]
impl LockBackend for Late {
    fn name(&self) -> &str {
        "late"
    }
    async fn acquire(&self, name: &str, claim: &Claim, ttl: Duration) -> larder::Result<Acquired> {
        self.asked.fetch_add(1, SeqCst);
        self.go.acquire().await.unwrap().forget();
        self.locks.acquire(name, claim, ttl).await
    }
    async fn extend(&self, name: &str, claim: &Claim, ttl: Duration) -> larder::Result<bool> {
        self.locks.extend(name, claim, ttl).await
    }
    async fn release(&self, name: &str, claim: &Claim) -> larder::Result<bool> {
        self.locks.release(name, claim).await
    }
    async fn release_all(&self, owner: &str) -> larder::Result<u64> {
        self.locks.release_all(owner).await
    }
    async fn info(&self, name: &str) -> larder::Result<Option<LockInfo>> {
        self.locks.info(name).await
    }
}

/// The tiers were read before the other node stored the value, and the lease came after it was released.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_stored_before_the_lease_came_is_found() {
    let world = World::new(|version| Ok(Loaded::new(version)));
    world.source.permits.add_permits(2);
    let late =
        Arc::new(Late { locks: world.locks.clone(), asked: AtomicUsize::new(0), go: Semaphore::new(0) });
    let locks = Locks::new(late.clone()).clock(world.clock.clone().into());
    let patient = LoadLockOptions::default().call_timeout(Duration::from_secs(3600));
    let second = world.builder().load_lock_with(locks, patient).build().unwrap();
    let call = world.load(&second);
    world.until("the second asks for the lease", || late.asked.load(SeqCst) == 1).await;
    let first = world.nodes(1, &EntryOptions::default()).remove(0);
    assert_eq!(world.answers(vec![world.load(&first)]).await[0].as_ref().unwrap(), &1);
    let is_over =
        || first.stats().tiers[0].writes == 1 && format!("{:?}", world.locks).contains("(0 leases)");
    world.until("the value is stored and the lease released", is_over).await;
    late.go.add_permits(100);
    assert_eq!(world.answers(vec![call]).await[0].as_ref().unwrap(), &1);
    assert_eq!((world.source.begun(), second.stats().loads), (1, 0));
}

/// The tiers were read before the removal, and their tickets renewed after it: these would let the value back in.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_removed_before_the_lease_came_is_not_declared_current() {
    let hour = Duration::from_secs(3600);
    let minute = EntryOptions::default().ttl(Duration::from_secs(60));
    // A value that is only there for errors, and one that is served while it is refreshed.
    for options in [minute.clone().stale_on_error(hour), minute.stale_while_revalidate(hour)] {
        let world = World::new(|version| Ok(Loaded::new(version)));
        world.source.permits.add_permits(1);
        let first = world.nodes(1, &options).remove(0);
        assert_eq!(world.answers(vec![world.load(&first)]).await[0].as_ref().unwrap(), &1);
        world.until("it is stored", || first.stats().tiers[0].writes == 1).await;
        world.clock.advance(Duration::from_secs(61));

        let late =
            Arc::new(Late { locks: world.locks.clone(), asked: AtomicUsize::new(0), go: Semaphore::new(0) });
        let locks = Locks::new(late.clone()).clock(world.clock.clone().into());
        let patient = LoadLockOptions::default().call_timeout(hour);
        let second = world.builder().defaults(options).load_lock_with(locks, patient).build().unwrap();
        let call = {
            let second = second.clone();
            tokio::spawn(async move {
                second.get_or_load(&KEY, |_| async { Ok::<_, std::io::Error>(Loaded::not_modified()) }).await
            })
        };
        world.until("the second asks for the lease", || late.asked.load(SeqCst) == 1).await;
        first.remove(&KEY).await.unwrap();
        late.go.add_permits(100);
        drop(world.answers(vec![call]).await);
        world.until("its flight is over", || second.stats().flights == 0).await;
        assert_eq!(world.builder().build().unwrap().get(&KEY).await, None, "what was removed is back");
    }
}

/// They would each wait for a load that leaves nothing, one after another.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_stands_in_a_line_for_what_is_not_stored() {
    let negative_ttl = EntryOptions::default().negative_ttl(Duration::ZERO);
    let cases: [(Found, EntryOptions); 3] = [
        (|version| Ok(Loaded::new(version).do_not_store()), EntryOptions::default()),
        (|version| Ok(Loaded::new(version)), EntryOptions::default().ttl(Duration::ZERO)),
        (|_| Ok(Loaded::absent()), negative_ttl),
    ];
    for (loaded, options) in cases {
        let world = World::new(loaded);
        let nodes = world.nodes(5, &options);
        let calls = world.one_loads(&nodes).await;
        let began_ms = now_ms(&world.clock);
        world.source.permits.add_permits(1);
        world.until("all others load at once", || world.source.running.load(SeqCst) == 4).await;
        assert!(now_ms(&world.clock) - began_ms < 4000, "before the bound of their wait");
        world.source.permits.add_permits(4);
        world.answers(calls).await;
        assert_eq!(world.source.begun(), 5);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_source_that_fails_is_asked_by_one_node_at_a_time() {
    let world = World::new(|_| Err(std::io::Error::other("down")));
    let nodes = world.nodes(5, &EntryOptions::default());
    let calls = world.one_loads(&nodes).await;
    world.source.permits.add_permits(5);
    let answers = world.answers(calls).await;
    assert!(answers.iter().all(|answer| answer.as_ref().is_err_and(|e| e.kind() == ErrorKind::Loader)));
    assert_eq!((world.source.begun(), world.source.at_once_max.load(SeqCst)), (5, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn waiting_is_bounded_and_counts_as_loading() {
    let world = World::new(|version| Ok(Loaded::new(version)));
    // Half of it is the longest wait, so that the other half is left for the load.
    let options = EntryOptions::default().load_timeout_hard(Duration::from_secs(4));
    let nodes = world.nodes(2, &options);
    let long = world.builder().build().unwrap();
    let held = world.load(&long);
    world.until("the first loads", || world.source.begun() == 1).await;
    let began_ms = now_ms(&world.clock);
    let call = world.load(&nodes[0]);
    world.until("the other loads by itself", || world.source.begun() == 2).await;
    assert!(now_ms(&world.clock) - began_ms >= 2000, "the bound of its wait");
    world.until("its loader is given up", || nodes[0].stats().loads_timed_out == 1).await;
    let took_ms = now_ms(&world.clock) - began_ms;
    assert!(took_ms < 5000, "its loader got what was left of its time, and not all of it: {took_ms}");
    assert_eq!(world.answers(vec![call]).await[0].as_ref().unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(nodes[0].stats().loads_unlocked, 1);
    world.source.permits.add_permits(2);
    assert_eq!(world.answers(vec![held]).await[0].as_ref().unwrap(), &1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_refresh_is_one_nodes_and_reaches_the_others() {
    let world = World::new(|version| Ok(Loaded::new(version)));
    let options = EntryOptions::default().ttl(Duration::from_secs(60));
    let nodes = world.nodes(2, &options.stale_while_revalidate(Duration::from_secs(3600)));
    world.source.permits.add_permits(1);
    for node in &nodes {
        world.answers(vec![world.load(node)]).await;
    }
    assert_eq!(world.source.begun(), 1);
    world.clock.advance(Duration::from_secs(61));
    world.source.version.store(2, SeqCst);
    for (begun, node) in [(2, &nodes[0]), (2, &nodes[1])] {
        assert_eq!(world.answers(vec![world.load(node)]).await[0].as_ref().unwrap(), &1, "stale, at once");
        world.until("one refreshes", || world.source.begun() == begun && node.stats().refreshes == 1).await;
    }
    world.until("the other waits", || nodes[1].stats().loads_awaited == 1).await;
    // Longer than it waits: it leaves the refresh to the one that has the lease.
    let loads = nodes[1].stats().loads;
    world.until("the other gives up", || nodes[1].stats().flights == 0).await;
    assert_eq!((nodes[1].stats().loads, world.source.begun()), (loads, 2));
    // The next one waits again, and gets what the holder has stored.
    assert_eq!(world.answers(vec![world.load(&nodes[1])]).await[0].as_ref().unwrap(), &1);
    world.until("the other waits again", || nodes[1].stats().loads_awaited == 2).await;
    world.source.permits.add_permits(1);
    world.until("the refresh is over", || nodes[1].stats().flights == 0).await;
    assert_eq!(nodes[1].get(&KEY).await, Some(2));
    assert_eq!(world.source.begun(), 2);
}

/// The first node's value was loaded before the removal.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_removal_while_others_wait_wins() {
    let world = World::new(|version| Ok(Loaded::new(version)));
    let nodes = world.nodes(2, &EntryOptions::default());
    let mut calls = world.one_loads(&nodes).await;
    world.source.version.store(2, SeqCst);
    nodes[1].remove(&KEY).await.unwrap();
    calls.push(world.load(&nodes[1]));
    world.source.permits.add_permits(4);
    let answers: Vec<_> = world.answers(calls).await.into_iter().map(Result::unwrap).collect();
    assert_eq!((answers[0], answers[2]), (1, 2), "{answers:?}");
    assert_eq!(world.builder().build().unwrap().get(&KEY).await, Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_tier_that_is_away_is_not_waited_for() {
    let mut world = World::new(|version| Ok(Loaded::new(version)));
    let tier = Faulty::new(world.tier.clone());
    world.tier = tier.clone();
    let nodes = world.nodes(3, &EntryOptions::default());
    let mut calls = world.one_loads(&nodes[..2]).await;
    tier.feel(Mood::Down);
    let began_ms = now_ms(&world.clock);
    calls.push(world.load(&nodes[2]));
    world.until("each loads by itself", || world.source.begun() == 3).await;
    assert!(now_ms(&world.clock) - began_ms < 2500, "nobody waited for long");
    world.source.permits.add_permits(3);
    assert!(world.answers(calls).await.iter().all(Result::is_ok));
}

/// A lock whose store never answers.
#[derive(Debug)]
struct Hangs;

#[async_trait]
impl LockBackend for Hangs {
    fn name(&self) -> &str {
        "hangs"
    }
    async fn acquire(&self, _: &str, _: &Claim, _: Duration) -> larder::Result<Acquired> {
        std::future::pending().await
    }
    async fn extend(&self, _: &str, _: &Claim, _: Duration) -> larder::Result<bool> {
        std::future::pending().await
    }
    async fn release(&self, _: &str, _: &Claim) -> larder::Result<bool> {
        std::future::pending().await
    }
    async fn release_all(&self, _: &str) -> larder::Result<u64> {
        std::future::pending().await
    }
    async fn info(&self, _: &str) -> larder::Result<Option<LockInfo>> {
        std::future::pending().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_lock_that_hangs_delays_a_few_loads_and_then_none() {
    let world = World { locks: Arc::new(Hangs), ..World::new(|version| Ok(Loaded::new(version))) };
    let node = world.builder().build().unwrap();
    let load = |key: u64| {
        let node = node.clone();
        tokio::spawn(async move { node.get_or_load(&key, |_| async { Ok::<_, std::io::Error>(1) }).await })
    };
    // As many calls as prove something.
    let calls: Vec<_> = (0..20).map(load).collect();
    world.until("each loads by itself", || calls.iter().all(JoinHandle::is_finished)).await;
    assert_eq!(node.stats().loads_unlocked, 20);
    let failed_ms = now_ms(&world.clock);
    world.until("their releases are given up, too", || now_ms(&world.clock) > failed_ms + 300).await;
    let (now, call) = (now_ms(&world.clock), load(100));
    assert_eq!(tokio::time::timeout(Duration::from_secs(60), call).await.unwrap().unwrap().unwrap(), 1);
    assert_eq!(now_ms(&world.clock), now, "it waited for no clock");
}

#[test]
fn what_can_not_work_is_refused() {
    let locks = || Locks::new(Arc::new(MemoryLocks::new()));
    let without_tier = Cache::<u64, u64>::builder().load_lock(locks()).build();
    let tier: Arc<dyn Backend> = Arc::new(MemoryBackend::new(MemoryOptions::default()));
    let options = LoadLockOptions::default().ttl(Duration::ZERO);
    let without_time = Cache::<u64, u64>::builder().tier(tier).load_lock_with(locks(), options).build();
    for (refused, what) in [(without_tier, "load_lock"), (without_time, "ttl")] {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(what), "{error}");
    }
}
