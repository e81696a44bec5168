//! What a network and a sick server can do to the callers of a cache: nobody gets a wrong value, nobody waits for
//! longer than the deadlines say, the tier is back within seconds of healing, and an outage does not become a
//! storm of connections.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(feature = "redis")]

mod chaos_support;
mod redis_support;

use chaos_support::{End, Fault, Proxy};
use larder::backend::{Backend, RedisBackend, RedisOptions};
use larder::{BoxError, BreakerState, Cache, EntryOptions, TierOptions};
use redis_support::Server;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

const MS: Duration = Duration::from_millis(1);
const READ_TIMEOUT: Duration = Duration::from_millis(300);
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
/// A caller with a stale value at hand waits for no longer.
const SOFT: Duration = Duration::from_millis(400);
/// Nor does one without.
const HARD: Duration = Duration::from_secs(2);
/// A busy machine's scheduler is no part of the promise.
const SLACK: Duration = Duration::from_millis(400);
const RECOVERS_WITHIN: Duration = Duration::from_secs(5);
/// However long it waits for something that must happen: a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(30);
const KEYS: usize = 64;
/// Calls of each caller during a fault, at least, and how long it lasts, at least.
const CALLS: u64 = 150;
const OUTAGE: Duration = Duration::from_secs(2);

struct World {
    server: Server,
    proxy: Proxy,
    cache: Cache<String, String>,
    /// The truth: a version for each key.
    source: Arc<[AtomicU64]>,
    /// Up to which version a key's removal was acknowledged.
    removed: Vec<AtomicU64>,
    is_over: AtomicBool,
    calls: AtomicU64,
    waits: [std::sync::Mutex<Vec<Duration>>; 3],
}

/// Which waits.
#[derive(Clone, Copy)]
enum Caller {
    WithStale,
    Without,
    Remover,
}

impl World {
    fn new(args: &[&str]) -> Arc<World> {
        let server = Server::start(args);
        let proxy = Proxy::start(server.port);
        let options = RedisOptions::new(format!("redis://127.0.0.1:{}", proxy.port()));
        let backend: Arc<dyn Backend> = Arc::new(RedisBackend::new(options).unwrap());
        let mut tier = TierOptions::default();
        (tier.read_timeout, tier.write_timeout) = (READ_TIMEOUT, WRITE_TIMEOUT);
        let options = EntryOptions::default().ttl(Duration::from_secs(3600)).load_timeout_hard(HARD);
        // Values leave L1's freshness at once, so that the tier is asked.
        let cache = Cache::builder().defaults(options).l1_ttl_max(5 * MS).tier_with(backend, tier).build();
        Arc::new(World {
            server,
            proxy,
            cache: cache.unwrap(),
            source: (0..KEYS).map(|_| AtomicU64::new(0)).collect(),
            removed: (0..KEYS).map(|_| AtomicU64::new(0)).collect(),
            is_over: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            waits: Default::default(),
        })
    }

    /// Gets a value and checks it. Even keys have a stale one to fall back on.
    async fn call(&self, at: usize) {
        let options = self.cache.options();
        let (caller, options) = match at % 2 {
            0 => {
                (Caller::WithStale, options.stale_on_error(Duration::from_secs(3600)).load_timeout_soft(SOFT))
            }
            _ => (Caller::Without, options),
        };
        let at_least = self.removed[at].load(SeqCst);
        let began = Instant::now();
        let source = Arc::clone(&self.source);
        let load = move |_| async move { Ok::<_, BoxError>(format!("{at}:{}", source[at].load(SeqCst))) };
        let value = self.cache.get_or_load_with(&format!("k{at}"), &options, load).await;
        self.note(caller, began);
        let value = value.expect("the loader works");
        let (of, version) = value.split_once(':').unwrap();
        assert_eq!(of, at.to_string(), "another key's value");
        let version: u64 = version.parse().unwrap();
        assert!(version >= at_least, "key {at}: version {version} after the removal of {at_least}");
        self.calls.fetch_add(1, SeqCst);
    }

    async fn change(&self, at: usize) {
        let version = self.source[at].fetch_add(1, SeqCst) + 1;
        let began = Instant::now();
        self.cache.remove(&format!("k{at}")).await.unwrap();
        self.note(Caller::Remover, began);
        self.removed[at].fetch_max(version, SeqCst);
    }

    fn note(&self, caller: Caller, began: Instant) {
        self.waits[caller as usize].lock().unwrap().push(began.elapsed());
    }

    fn p99(&self, caller: Caller) -> Duration {
        let mut waits = self.waits[caller as usize].lock().unwrap();
        waits.sort_unstable();
        waits[waits.len() * 99 / 100]
    }

    /// Eight callers and one who changes, until the world is over.
    fn inhabit(self: &Arc<Self>) -> Vec<tokio::task::JoinHandle<()>> {
        let caller = |number: usize| {
            let world = Arc::clone(self);
            tokio::spawn(async move {
                let mut at = number;
                while !world.is_over.load(SeqCst) {
                    at = (at * 5 + 7 + number) % KEYS;
                    match number {
                        0 => world.change(at).await,
                        _ => world.call(at).await,
                    }
                    // A caller has other things to do, too.
                    tokio::time::sleep(2 * MS).await;
                }
            })
        };
        (0..9).map(caller).collect()
    }

    /// Until the tier answers reads, takes writes, and nothing is kept for it.
    async fn until_the_tier_serves(&self) {
        let before = self.cache.stats().tiers[0].clone();
        until("the tier serves again", || {
            let now = &self.cache.stats().tiers[0];
            let is_closed = |state| state == Some(BreakerState::Closed);
            let serves = now.hits > before.hits && now.writes > before.writes;
            !now.is_aside
                && now.undelivered == 0
                && serves
                && is_closed(now.guard.read_breaker)
                && is_closed(now.guard.write_breaker)
        })
        .await;
    }

    async fn until_calls_were_made(&self, lasting: Duration) {
        let (began, enough) = (Instant::now(), self.calls.load(SeqCst) + 8 * CALLS);
        until("callers go on", || self.calls.load(SeqCst) >= enough && began.elapsed() >= lasting).await;
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(5 * MS).await;
    }
}

/// Lets a fault come over a cache in use, and pass.
async fn survives(
    what: &str,
    args: &[&str],
    inflict: impl AsyncFnOnce(&World),
    heal: impl AsyncFnOnce(&World),
) {
    let world = World::new(args);
    let tasks = world.inhabit();
    world.until_the_tier_serves().await;
    world.until_calls_were_made(Duration::ZERO).await;
    world.waits.iter().for_each(|waits| waits.lock().unwrap().clear());
    let (dials, began) = (world.proxy.dials(), Instant::now());
    let hurt = world.cache.stats().tiers[0].errors;
    inflict(&world).await;
    world.until_calls_were_made(OUTAGE).await;
    let hurt = world.cache.stats().tiers[0].errors - hurt;
    heal(&world).await;
    let healed = Instant::now();
    world.until_the_tier_serves().await;
    let recovery = healed.elapsed();
    let (dials, lasted) = (world.proxy.dials() - dials, began.elapsed());
    world.is_over.store(true, SeqCst);
    for task in tasks {
        tokio::time::timeout(PATIENCE, task).await.expect("nobody hangs").expect("no value was wrong");
    }
    let longest = world.waits.iter().flat_map(|waits| waits.lock().unwrap().clone()).max().unwrap();
    assert!(longest <= 2 * HARD, "{what}: somebody waited for {longest:?}");
    let [stale, without, remover] =
        [Caller::WithStale, Caller::Without, Caller::Remover].map(|caller| world.p99(caller));
    eprintln!(
        "{what}: {hurt} errors, back after {recovery:?}, {dials} dials in {lasted:?}, p99 {stale:?} with a stale value, {without:?} without, {remover:?} of removals"
    );
    assert!(hurt > 0, "{what}: the fault was not felt");
    assert!(stale <= SOFT + SLACK, "{what}: with a stale value at hand {stale:?}");
    assert!(without <= HARD + SLACK, "{what}: without a stale value {without:?}");
    assert!(remover <= WRITE_TIMEOUT + SLACK, "{what}: removals {remover:?}");
    assert!(recovery <= RECOVERS_WITHIN, "{what}: back after {recovery:?}");
    // A few until the tier is set aside, then the signs of life that are asked for once a second.
    let most = 10 + 3 * lasted.as_secs();
    assert!(dials <= most, "{what}: {dials} dials in {lasted:?}");
}

/// A fault of the network.
async fn survives_fault(fault: Fault) {
    survives(
        &format!("{fault:?}"),
        &[],
        async |world| world.proxy.set(fault),
        async |world| world.proxy.heal(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_that_are_cut_off() {
    for end in [End::Reset, End::Close, End::Half] {
        survives_fault(Fault::Cut { after: 100, end }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_that_drip() {
    survives_fault(Fault::Drip(20 * MS)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_is_slower_than_the_deadline() {
    survives_fault(Fault::Delay(2 * READ_TIMEOUT)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_black_hole() {
    survives_fault(Fault::BlackHole).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_carried_out_and_replies_that_come_late() {
    survives_fault(Fault::Mute).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_refused() {
    let inflict = async |world: &World| {
        world.proxy.set(Fault::Refuse);
        world.proxy.reset_all();
    };
    survives("refused", &[], inflict, async |world| world.proxy.heal()).await;
}

/// The server is well, new connections work, and the old one says nothing any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_a_firewall_forgot() {
    survives("forgotten", &[], async |world| world.proxy.bury_all(), async |_| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_stopped() {
    let inflict = async |world: &World| world.server.signal(libc::SIGSTOP);
    survives("SIGSTOP", &[], inflict, async |world| world.server.signal(libc::SIGCONT)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed() {
    let inflict = async |world: &World| world.server.kill();
    survives("kill -9", &[], inflict, async |world| world.server.begin()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_loads_for_long() {
    // Half a millisecond a key, and an event loop in between.
    let args = ["--key-load-delay", "500", "--loading-process-events-interval-bytes", "1024"];
    let args = [&args[..], &["--enable-debug-command", "local"]].concat();
    let inflict = async |world: &World| {
        world.server.command(&[b"DEBUG", b"POPULATE", b"6000"]);
        world.server.command(&[b"SAVE"]);
        world.server.kill();
        world.server.spawn();
        until("it loads", || world.server.first_word(&[b"PING"]).is_some_and(|word| word == "-LOADING"))
            .await;
    };
    let heal = async |world: &World| {
        until("it has loaded", || world.server.first_word(&[b"PING"]).is_some_and(|word| word == "+PONG"))
            .await;
    };
    survives("LOADING", &args, inflict, heal).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_busy_with_a_script() {
    let inflict = async |world: &World| {
        world.server.say(&[b"EVAL", b"while true do end", b"0"]);
        until("it is busy", || world.server.first_word(&[b"PING"]).is_some_and(|word| word == "-BUSY")).await;
    };
    let heal = async |world: &World| {
        world.server.command(&[b"SCRIPT", b"KILL"]);
    };
    survives("BUSY", &["--lua-time-limit", "20"], inflict, heal).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_memory() {
    let inflict = async |world: &World| {
        world.server.command(&[b"CONFIG", b"SET", b"maxmemory", b"1mb"]);
    };
    let heal = async |world: &World| {
        world.server.command(&[b"CONFIG", b"SET", b"maxmemory", b"0"]);
    };
    survives("OOM", &["--maxmemory-policy", "noeviction"], inflict, heal).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_is_demoted_for_a_while() {
    let other = Server::start(&[]);
    let port = other.port.to_string();
    let inflict = async |world: &World| {
        world.server.command(&[b"REPLICAOF", b"127.0.0.1", port.as_bytes()]);
    };
    let heal = async |world: &World| {
        world.server.command(&[b"REPLICAOF", b"NO", b"ONE"]);
    };
    survives("READONLY", &[], inflict, heal).await;
}

/// Without a cache and its guard above it, callers who come back at once are held off by the backend itself.
#[tokio::test(flavor = "multi_thread")]
async fn callers_who_never_rest_do_not_become_dials() {
    let server = Server::start(&[]);
    let proxy = Proxy::start(server.port);
    let options = RedisOptions::new(format!("redis://127.0.0.1:{}", proxy.port()));
    let backend = Arc::new(RedisBackend::new(options).unwrap());
    backend.ping().await.unwrap();
    proxy.set(Fault::Refuse);
    proxy.reset_all();
    let (dials, began) = (proxy.dials(), Instant::now());
    let tries = Arc::new(AtomicU64::new(0));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (backend, tries) = (Arc::clone(&backend), Arc::clone(&tries));
            tokio::spawn(async move {
                while tries.fetch_add(1, SeqCst) < 20_000 {
                    backend.ping().await.unwrap_err();
                }
            })
        })
        .collect();
    for caller in callers {
        tokio::time::timeout(PATIENCE, caller).await.expect("nobody hangs").unwrap();
    }
    let dials = proxy.dials() - dials;
    let most = 2 + began.elapsed().as_millis() / 100;
    assert!(u128::from(dials) <= most, "{dials} dials in {:?}", began.elapsed());
    proxy.heal();
    let began = Instant::now();
    while backend.ping().await.is_err() {
        assert!(began.elapsed() < RECOVERS_WITHIN);
        tokio::time::sleep(5 * MS).await;
    }
}
