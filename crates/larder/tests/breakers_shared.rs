//! Nodes learn from each other, through Redis, that an endpoint fails, and depend on nothing of it.
//!
//! The failures that this prevents: each node finds out by itself, with a window full of failed calls; a Redis that
//! hangs or dies holds calls up, or keeps a breaker open.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(feature = "redis")]

mod redis_support;
mod support;

use larder::backend::{MemoryBackend, MemoryOptions, RedisOptions};
use larder::guard::{AdmissionOptions, BreakerShare, MemoryBreakers, RedisBreakers};
use larder::{BreakerState, Cache, ErrorKind, GuardOptions, TierOptions};
use redis_support::Server;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{Faulty, Mood};

const PATIENCE: Duration = Duration::from_secs(60);

struct Node {
    cache: Cache<u64, u64>,
    tier: Arc<Faulty>,
}

impl Node {
    fn new(redis: &Server, calls_min: u32) -> Node {
        let tier = Faulty::new(Arc::new(MemoryBackend::new(MemoryOptions::default())));
        let mut guard = GuardOptions::default();
        guard.admission = AdmissionOptions::default();
        guard.breaker.calls_min = calls_min;
        guard.retry.attempts_max = 1;
        let mut options = TierOptions::default();
        options.guard = Some(guard);
        options.breaker_name = Some("orders".to_owned());
        let share = RedisBreakers::new(&RedisOptions::new(redis.unix())).unwrap();
        let cache = Cache::builder()
            .tier_with(tier.clone(), options)
            .share_breakers(Arc::new(share))
            .build()
            .unwrap();
        Node { cache, tier }
    }

    /// Loads a new key, whose write to the tier is one call of the writes' breaker.
    async fn write(&self, key: u64) {
        let began = Instant::now();
        let load = |_| async { Ok::<_, std::io::Error>(1) };
        assert_eq!(self.cache.get_or_load(&key, load).await.unwrap(), 1);
        assert!(began.elapsed() < PATIENCE);
    }

    fn reads(&self) -> BreakerState {
        self.cache.stats().tiers[0].guard.read_breaker.unwrap()
    }

    fn hints(&self) -> u64 {
        self.cache.stats().tiers[0].guard.breaker_hints
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_hears_that_anothers_breaker_opened() {
    let redis = Server::start(&[]);
    let (first, second) = (Node::new(&redis, 1), Node::new(&redis, 1000));
    first.tier.feel(Mood::Down);
    first.write(1).await;
    until("the first opens", || first.reads() != BreakerState::Closed).await;
    until("the second hears of it", || second.hints() > 0).await;
    assert_eq!(second.reads(), BreakerState::Closed, "a hint alone opens nothing");
    // One failure, where it would have waited for a thousand.
    second.tier.feel(Mood::Down);
    second.write(2).await;
    until("the second opens", || second.reads() != BreakerState::Closed).await;
    // Without Redis, each finds out by itself that the endpoint works again.
    redis.signal(libc::SIGSTOP);
    for node in [&first, &second] {
        node.tier.feel(Mood::Well);
        let began = Instant::now();
        let mut key = 10;
        while node.reads() != BreakerState::Closed {
            assert!(began.elapsed() < PATIENCE, "it probes by itself");
            node.write(key).await;
            key += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_told_is_forgotten_by_itself() {
    let redis = Server::start(&[]);
    let breakers = RedisBreakers::new(&RedisOptions::new(redis.unix())).unwrap();
    let names = ["a:read", "a:write", "b:read"].map(str::to_owned);
    breakers.tell("a:write", u64::MAX, PATIENCE).await.unwrap();
    breakers.tell("b:read", 7, Duration::from_millis(50)).await.unwrap();
    assert_eq!(breakers.heard(&names[..2]).await.unwrap(), [None, Some(u64::MAX)]);
    let began = Instant::now();
    while breakers.heard(&names).await.unwrap()[2].is_some() {
        assert!(began.elapsed() < PATIENCE);
    }
    redis.command(&[b"SET", b"{larder:breakers}:a:read", b"nonsense"]);
    assert_eq!(breakers.heard(&names).await.unwrap(), [None, Some(u64::MAX), None]);
}

#[test]
fn what_can_not_work_is_refused() {
    let build = |name: Option<&str>, share: bool| {
        let mut options = TierOptions::default();
        options.breaker_name = name.map(str::to_owned);
        let tier = Arc::new(MemoryBackend::new(MemoryOptions::default()));
        let mut builder = Cache::<u64, u64>::builder().tier_with(tier, options);
        if share {
            builder = builder.share_breakers(Arc::new(MemoryBreakers::new()));
        }
        builder.build()
    };
    assert!(build(Some("a"), true).is_ok());
    for (name, share) in [(Some("a"), false), (Some(""), true), (None, true)] {
        let error = build(name, share).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    }
}
