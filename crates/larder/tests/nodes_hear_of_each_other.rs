//! Several nodes over one Redis: what one of them removes or sets, the others must not serve beyond the bound, 2
//! seconds while they hear of it and 5 while they don't. Without the bus, a node serves from its memory and its disk
//! what was removed long ago.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(all(feature = "redis", feature = "sqlite"))]

mod redis_support;

use larder::backend::{Backend, Mark, RedisBackend, RedisOptions, SqliteBackend, SqliteOptions};
use larder::bus::BusOptions;
use larder::entry::Tags;
use larder::key::{Namespace, Pattern};
use larder::{Cache, ErrorKind, HealthState};
use redis_support::Server;
use std::convert::Infallible;
use std::future::Future;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

type Node = Cache<String, u64>;

fn redis(server: &Server) -> Arc<RedisBackend> {
    Arc::new(RedisBackend::new(RedisOptions::new(server.unix())).unwrap())
}

/// A node of its own: memory over Redis.
fn node(server: &Server) -> Node {
    Cache::builder().tier(redis(server)).build().unwrap()
}

async fn open(file: &Path) -> Arc<SqliteBackend> {
    Arc::new(SqliteBackend::open(SqliteOptions::new(file)).await.unwrap())
}

/// A node with a disk.
async fn node_with_disk(server: &Server, file: &Path) -> Node {
    let sqlite = open(file).await;
    Cache::builder().tier(sqlite).tier(redis(server)).build().unwrap()
}

async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < Duration::from_secs(60), "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until a node knows what the others removed.
async fn until_heard(node: &Node) {
    until("the node hears of the others", || async { !node.stats().bus.unwrap().is_suspect }).await;
}

async fn load(node: &Node, key: &str, version: u64) -> u64 {
    node.get_or_load(key, move |_| async move { Ok::<_, Infallible>(version) }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removals_of_all_kinds_and_sets_reach_the_other_nodes() {
    let server = Server::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let one = node(&server);
    let others = [node(&server), node_with_disk(&server, &folder.path().join("other.db")).await];
    for other in &others {
        until_heard(other).await;
    }
    let mut tagged = one.options();
    tagged.tags = Tags::new(["red"]).unwrap();
    for key in ["key", "tag", "pattern:7", "cleared"] {
        one.set_with(key.to_owned(), 1, &tagged).await.unwrap();
        for other in &others {
            until("it is in the other's memory", || async {
                assert_eq!(load(other, key, 1).await, 1);
                other.peek(key) == Some(1)
            })
            .await;
        }
        match key {
            "key" => one.remove(key).await.map(|_| ()),
            "tag" => one.remove_tag("red").await.map(|_| ()),
            "cleared" => one.clear().await.map(|_| ()),
            _ => one.remove_matching(&Pattern::new("pattern:*").unwrap()).await.map(|_| ()),
        }
        .unwrap();
        let removed = Instant::now();
        for other in &others {
            until("the other drops it", || async {
                let asked_after = removed.elapsed();
                let met = other.get(key).await;
                assert!(met.is_none() || asked_after < Duration::from_secs(2), "{key}");
                met.is_none()
            })
            .await;
        }
    }
    // A set of one is seen by the others, which had an older one.
    one.set("set".to_owned(), 1).await.unwrap();
    for other in &others {
        until("it is in the other's memory", || async {
            other.get("set").await;
            other.peek("set") == Some(1)
        })
        .await;
    }
    one.set("set".to_owned(), 2).await.unwrap();
    let set = Instant::now();
    for other in &others {
        until("the other sees it", || async {
            let asked_after = set.elapsed();
            let met = other.get("set").await;
            assert!(met == Some(2) || asked_after < Duration::from_secs(2), "{met:?}");
            met == Some(2)
        })
        .await;
        let bus = other.stats().bus.unwrap();
        assert_eq!((bus.gaps, bus.malformed), (0, 0), "{bus:?}");
        assert!(bus.hints > 0, "{bus:?}");
    }
    // What a node wrote itself it keeps, however often it hears of it.
    for _ in 0..4 {
        one.catch_up().await;
        assert_eq!(one.peek("set"), Some(2));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_hints_the_log_alone_is_enough_and_tenants_are_followed_too() {
    // No channel may be subscribed.
    let server = Server::start(&["--user", "default", "on", "nopass", "~*", "resetchannels", "+@all"]);
    let (one, other) = (node(&server), node(&server));
    let spaces = ["a", "b@tenant", "c"].map(|name| Namespace::new(name).unwrap());
    for space in &spaces {
        one.namespace(space).set("key".to_owned(), 1).await.unwrap();
        until("it is in memory", || async {
            other.namespace(space).get("key").await;
            other.namespace(space).peek("key") == Some(1)
        })
        .await;
    }
    for space in &spaces {
        one.namespace(space).remove("key").await.unwrap();
        let removed = Instant::now();
        until("the other drops it", || async {
            let asked_after = removed.elapsed();
            let met = other.namespace(space).get("key").await;
            assert!(met.is_none() || asked_after < Duration::from_secs(2), "{space}");
            met.is_none()
        })
        .await;
    }
    // The first answer about a namespace may have come after its removal, and is no record of it.
    assert_eq!(other.stats().bus.unwrap().hints, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_hears_nothing_is_suspect_and_serves_nothing_old() {
    let server = Server::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let node = node_with_disk(&server, &folder.path().join("cache.db")).await;
    until_heard(&node).await;
    node.set("key".to_owned(), 1).await.unwrap();
    assert_eq!(node.get("key").await, Some(1));
    server.signal(libc::SIGSTOP);
    let stopped = Instant::now();
    until("it is suspect", || async { node.stats().bus.unwrap().is_suspect }).await;
    assert!(stopped.elapsed() < Duration::from_secs(10));
    let health = node.health().await;
    assert!(health.is_suspect && health.state == HealthState::Degraded);
    assert!(node.explain("key").await.to_string().contains("suspect"));
    // Nothing that is older than the bound, and nobody hangs: a load is served in its place.
    until("the bound has passed", || async { stopped.elapsed() > Duration::from_secs(5) }).await;
    assert_eq!(node.peek("key"), None, "from memory");
    let asked = Instant::now();
    assert_eq!(node.get("key").await, None, "from disk");
    assert_eq!(load(&node, "key", 2).await, 2);
    assert_eq!(node.peek("key"), Some(2), "what was just loaded is served");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    server.signal(libc::SIGCONT);
    let healed = Instant::now();
    until_heard(&node).await;
    assert!(healed.elapsed() < Duration::from_secs(5), "{:?}", healed.elapsed());
    assert!(!node.health().await.is_suspect);
    assert_eq!(node.stats().bus.unwrap().gaps, 0, "nothing was missed, nothing is dropped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_empty_empties_what_is_above_it() {
    let server = Server::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let node = node_with_disk(&server, &folder.path().join("cache.db")).await;
    until_heard(&node).await;
    node.set("key".to_owned(), 1).await.unwrap();
    server.kill();
    server.begin();
    until("it heard of the new incarnation", || async { node.stats().bus.unwrap().gaps == 1 }).await;
    until_heard(&node).await;
    assert_eq!(node.get("key").await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_goes_on_where_the_disk_was_told_to_be() {
    let server = Server::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.db");
    let state_on_disk = |node: Node, key: &'static str| async move {
        let explained = node.explain(key).await;
        explained.tiers.iter().find(|tier| tier.tier == "sqlite").unwrap().state.clone()
    };
    let before = node_with_disk(&server, &file).await;
    until_heard(&before).await;
    for key in ["kept", "removed", "removed later"] {
        before.set(key.to_owned(), 1).await.unwrap();
    }
    // A poll notes where it stands, the next one that nothing before is under way any longer.
    for _ in 0..4 {
        before.catch_up().await;
    }
    before.close().await.unwrap();
    drop(before);
    let other = node(&server);
    other.remove("removed").await.unwrap();
    let after = node_with_disk(&server, &file).await;
    assert_eq!(after.get("removed").await, None, "before anything was heard");
    until_heard(&after).await;
    assert_eq!(after.get("removed").await, None);
    assert_eq!(state_on_disk(after.clone(), "kept").await, "fresh", "a restart costs nothing else");
    assert_eq!(after.stats().bus.unwrap().gaps, 0);
    // Without a cursor that can be trusted, the disk starts empty.
    other.remove("removed later").await.unwrap();
    after.close().await.unwrap();
    drop(after);
    let disk = open(&file).await;
    disk.mark(&Namespace::new("larder.cursors").unwrap(), &Mark::Clear).await.unwrap();
    disk.close().await.unwrap();
    drop(disk);
    let unsure = node_with_disk(&server, &file).await;
    until_heard(&unsure).await;
    assert_eq!(unsure.get("removed later").await, None);
    assert_ne!(state_on_disk(unsure.clone(), "kept").await, "fresh");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caches_of_one_process_over_one_backend_hear_of_each_other_at_once() {
    let server = Server::start(&[]);
    let shared = redis(&server);
    let one: Node = Cache::builder().tier(shared.clone()).build().unwrap();
    let other: Node = Cache::builder().tier(shared).build().unwrap();
    for node in [&one, &other] {
        until_heard(node).await;
    }
    for version in 1..50 {
        one.set("key".to_owned(), version).await.unwrap();
        assert_eq!(other.get("key").await, Some(version));
        other.remove("key").await.unwrap();
        assert_eq!(one.get("key").await, None);
    }
    // Without a log as well.
    let folder = tempfile::tempdir().unwrap();
    let sqlite = open(&folder.path().join("shared.db")).await;
    let one: Node = Cache::builder().tier(sqlite.clone()).build().unwrap();
    one.set("early".to_owned(), 1).await.unwrap();
    let other: Node = Cache::builder().tier(sqlite).build().unwrap();
    other.set("early".to_owned(), 2).await.unwrap();
    assert_eq!(one.get("early").await, Some(2), "set before the other was there");
    assert!(one.stats().bus.is_none());
}

#[tokio::test]
async fn contradictions_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = open(&folder.path().join("cache.db")).await;
    let redis = || Arc::new(RedisBackend::new(RedisOptions::new("redis://127.0.0.1:1")).unwrap());
    let refused = |builder: larder::Builder<String, u64>| {
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        error.to_string()
    };
    let below = refused(Cache::builder().tier(redis()).tier(sqlite.clone()));
    assert!(below.contains("\"sqlite\" is below \"redis\""), "{below}");
    let mut options = BusOptions::default();
    options.journal = Some(folder.path().join("journal"));
    let private = refused(Cache::builder().tier(sqlite.clone()).bus(options.clone()));
    assert!(private.contains("bus.journal"), "{private}");
    options.journal = None;
    options.suspect_after = Duration::from_millis(300);
    let short = refused(Cache::builder().tier(redis()).bus(options));
    assert!(short.contains("bus.suspect_after is 300ms"), "{short}");
}

const CHILD: &str = "LARDER_TEST_JOURNAL_CHILD";

fn node_with_journal(socket: &str, journal: &Path) -> Node {
    let mut options = BusOptions::default();
    options.journal = Some(journal.to_owned());
    let redis = Arc::new(RedisBackend::new(RedisOptions::new(socket)).unwrap());
    Cache::builder().tier(redis).bus(options).build().unwrap()
}

/// The process that is killed: see below.
#[test]
fn child_that_removes_while_nobody_listens() {
    let Ok(arguments) = std::env::var(CHILD) else { return };
    let (socket, journal) = arguments.split_once(' ').unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let node = node_with_journal(socket, Path::new(journal));
        let removal = node.remove("key").await.unwrap();
        assert!(removal.is_queued && removal.is_journaled);
        std::fs::write(format!("{journal}.acknowledged"), "").unwrap();
        std::future::pending::<()>().await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_was_queued_survives_the_kill_of_its_process() {
    let server = Server::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal");
    let witness = node(&server);
    witness.set("key".to_owned(), 1).await.unwrap();
    server.signal(libc::SIGSTOP);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_removes_while_nobody_listens", "--nocapture"])
        .env(CHILD, format!("{} {}", server.unix(), journal.display()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let acknowledged = folder.path().join("journal.acknowledged");
    until("the child has acknowledged", || async { acknowledged.exists() }).await;
    child.kill().unwrap();
    child.wait().unwrap();
    let node = node_with_journal(&server.unix(), &journal);
    let before = node.stats().tiers[0].clone();
    assert!(before.is_aside && before.undelivered == 1, "nothing is read before it was delivered");
    assert!(node.stats().bus.unwrap().is_journal_durable);
    server.signal(libc::SIGCONT);
    until("it was delivered", || async { node.stats().tiers[0].undelivered == 0 }).await;
    until("the witness sees it", || async { witness.get("key").await.is_none() }).await;
    assert_eq!(node.get("key").await, None);
    node.close().await.unwrap();
    drop(node);
    until("the journal is given free and empty", || async {
        std::fs::read_to_string(&journal).is_ok_and(|text| text == "larder journal 1\n")
    })
    .await;
}
