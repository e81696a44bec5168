//! What a Redis server can do to a cache: forget, freeze, die, come back empty or with old data, run out of
//! memory, be demoted. Whatever it does, what was removed stays removed, nobody gets a wrong value, and the
//! tier works again by itself afterwards.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(feature = "redis")]

mod redis_support;

use bytes::Bytes;
use larder::ErrorKind;
use larder::backend::{Backend, Mark, Miss, Put, PutOutcome, RedisBackend, RedisOptions, Removed, Ticket};
use larder::clock::NEVER_MS;
use larder::entry::{EntryKind, Meta, Tags};
use larder::key::{EntryKey, Namespace};
use larder::stamp::Stamp;
use redis_support::Server;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

fn key(name: &str) -> EntryKey {
    EntryKey::new(&Namespace::default(), name).unwrap()
}

fn put(kind: EntryKind, name: &str, body: &str, ticket: Ticket) -> Put {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let wall_ms = larder::clock::Clock::system().wall_ms();
    let meta = Meta {
        kind,
        stamp: Stamp::new(wall_ms, COUNT.fetch_add(1, SeqCst) as u16, 1),
        created_ms: wall_ms,
        fresh_until_ms: NEVER_MS,
        revalidate_until_ms: NEVER_MS,
        gone_at_ms: NEVER_MS,
        load_ms: 0,
        is_negative: false,
        tags: Tags::NONE,
    };
    Put { key: key(name), meta, sealed: Bytes::copy_from_slice(body.as_bytes()), ticket }
}

async fn set(backend: &RedisBackend, name: &str, body: &str) {
    let ticket = backend.ticket(&key(name)).await.unwrap();
    assert_eq!(backend.put(put(EntryKind::Set, name, body, ticket)).await.unwrap(), PutOutcome::Stored);
}

async fn read(backend: &RedisBackend, name: &str) -> Result<Bytes, Miss> {
    backend.get(&key(name)).await.unwrap().found
}

/// Repeats what the guard of a tier would repeat.
async fn until_read(backend: &RedisBackend, name: &str) -> Result<Bytes, Miss> {
    let began = Instant::now();
    loop {
        match backend.get(&key(name)).await {
            Ok(read) => return read.found,
            Err(error) => assert!(began.elapsed() < Duration::from_secs(20), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn limited<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), test).await.expect("nobody hangs")
}

/// What must hold after the server may have forgotten a removal: nothing of before is served, no write that
/// began before is let in, and new ones are.
async fn begins_anew(backend: &RedisBackend, before: Ticket) {
    let found = until_read(backend, "kept").await;
    assert!(matches!(found, Err(Miss::Absent | Miss::Incarnation)), "{found:?}");
    assert_ne!(backend.ticket(&key("kept")).await.unwrap().inc, before.inc);
    for kind in [EntryKind::Load, EntryKind::Set] {
        let late = backend.put(put(kind, "removed", "late", before)).await.unwrap();
        assert_eq!(late, PutOutcome::Fenced);
        assert!(read(backend, "removed").await.is_err());
    }
    set(backend, "kept", "new").await;
    assert_eq!(read(backend, "kept").await, Ok(Bytes::from_static(b"new")));
}

async fn with_a_removal(backend: &RedisBackend) -> Ticket {
    set(backend, "kept", "old").await;
    set(backend, "removed", "old").await;
    let ticket = backend.ticket(&key("removed")).await.unwrap();
    assert_eq!(backend.remove(&key("removed")).await.unwrap(), Removed::Existed);
    ticket
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_restarts_empty_begins_anew() {
    let server = Server::start(&[]);
    let backend = server.backend();
    let before = with_a_removal(&backend).await;
    server.kill();
    let refused = backend.get(&key("kept")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    server.begin();
    limited(begins_anew(&backend, before)).await;
}

/// The snapshot holds the value, and not its removal: without the comparison of `run_id` it would be served.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_restarts_from_an_old_snapshot_begins_anew() {
    let server = Server::start(&[]);
    let backend = server.backend();
    set(&backend, "kept", "old").await;
    set(&backend, "removed", "old").await;
    server.command(&[b"SAVE"]);
    let before = backend.ticket(&key("removed")).await.unwrap();
    backend.remove(&key("removed")).await.unwrap();
    server.kill();
    server.begin();
    assert!(server.command(&[b"DBSIZE"]) != ":0\r\n", "the snapshot was loaded");
    // The other node comes first, with a connection of its own.
    let other = server.backend();
    for backend in [&other, &backend] {
        let found = until_read(backend, "removed").await;
        assert!(found.is_err(), "a removed value came back");
    }
    limited(begins_anew(&backend, before)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_begins_anew() {
    let server = Server::start(&[]);
    let backend = server.backend();
    let before = with_a_removal(&backend).await;
    server.command(&[b"FLUSHALL"]);
    limited(begins_anew(&backend, before)).await;
}

/// As `allkeys-lru` would: the record of removals goes, the entries stay.
#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_meta_record_begins_anew() {
    let server = Server::start(&[]);
    let backend = server.backend();
    let before = with_a_removal(&backend).await;
    assert_eq!(server.command(&[b"DEL", b"{larder:default:0}m"]), ":1\r\n");
    limited(begins_anew(&backend, before)).await;
}

/// Entries with tags are judged in two looks; the record with the tag's marker goes between them.
#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_tag_marker_does_not_bring_entries_back() {
    let server = Server::start(&[]);
    let backend = Arc::new(server.backend());
    for _ in 0..1500 {
        let ticket = backend.ticket(&key("k")).await.unwrap();
        let mut tagged = put(EntryKind::Load, "k", "v", ticket);
        tagged.meta.tags = Tags::new(["red"]).unwrap();
        backend.put(tagged).await.unwrap();
        backend.mark(&Namespace::default(), &Mark::Tag("red".into())).await.unwrap();
        let reader = backend.clone();
        let reading = tokio::spawn(async move { read(&reader, "k").await });
        server.command(&[b"DEL", b"{larder:default:0}m"]);
        let found = reading.await.unwrap();
        assert!(found.is_err(), "{found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_clients_and_forgotten_scripts_are_replaced() {
    let server = Server::start(&[]);
    let backend = server.backend();
    set(&backend, "k", "v").await;
    for _ in 0..20 {
        server.command(&[b"SCRIPT", b"FLUSH"]);
        // No error: the scripts are loaded again, and nothing was executed before.
        assert_eq!(backend.remove(&key("other")).await.unwrap(), Removed::Absent);
        server.command(&[b"CLIENT", b"KILL", b"TYPE", b"normal"]);
        let found = until_read(&backend, "k").await;
        assert_eq!(found, Ok(Bytes::from_static(b"v")));
    }
}

/// A frozen server keeps its connections open. Callers leave by their own deadlines; what they had asked for
/// may happen once the server thaws, and its late answers reach nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_hangs_nobody_and_mixes_no_answers() {
    let server = Server::start(&[]);
    let response_timeout = Duration::from_millis(300);
    let options = RedisOptions { response_timeout, ..RedisOptions::new(server.unix()) };
    let backend = RedisBackend::new(options).unwrap();
    for i in 0..50 {
        set(&backend, &format!("k{i}"), &format!("k{i}")).await;
    }
    for round in 0..3 {
        server.signal(libc::SIGSTOP);
        // Some give up before the connection does, some after.
        for i in 0..20 {
            let wait = Duration::from_millis(if i % 4 == 0 { 350 } else { 2 });
            let name = key(&format!("k{i}"));
            if let Ok(answer) = tokio::time::timeout(wait, backend.get(&name)).await {
                assert!(matches!(answer.unwrap_err().kind(), ErrorKind::Timeout | ErrorKind::Unavailable));
            }
        }
        server.signal(libc::SIGCONT);
        for i in 0..50 {
            let name = format!("k{i}");
            let found = until_read(&backend, &name).await;
            assert_eq!(found, Ok(Bytes::from(name)), "round {round}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_still_removes() {
    let server = Server::start(&["--maxmemory", "3mb", "--maxmemory-policy", "noeviction"]);
    let backend = server.backend();
    set(&backend, "small", "v").await;
    let ticket = backend.ticket(&key("small")).await.unwrap();
    let body = "x".repeat(100_000);
    let mut filled = 0;
    let refused = loop {
        match backend.put(put(EntryKind::Load, &format!("large {filled}"), &body, ticket)).await {
            Ok(_) => filled += 1,
            Err(error) => break error,
        }
        assert!(filled < 100);
    };
    assert_eq!(refused.kind(), ErrorKind::Full, "{refused}");
    server.command(&[b"CONFIG", b"SET", b"maxmemory", b"1mb"]);
    assert!(backend.put(put(EntryKind::Set, "small", "w", ticket)).await.is_err());
    assert_eq!(read(&backend, "small").await, Ok(Bytes::from_static(b"v")), "nothing was written");
    backend.mark(&Namespace::default(), &Mark::Tag("red".into())).await.unwrap();
    assert_eq!(backend.remove(&key("small")).await.unwrap(), Removed::Existed);
    assert_eq!(read(&backend, "small").await, Err(Miss::Absent));
    backend.mark(&Namespace::default(), &Mark::Clear).await.unwrap();
    assert!(read(&backend, "large 0").await.is_err());
}

/// A replica may lag behind a removal.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_refused_and_demoted_masters_left() {
    let (master, other) = (Server::start(&[]), Server::start(&[]));
    let backend = other.backend();
    set(&backend, "k", "v").await;
    let port = master.port.to_string();
    other.command(&[b"REPLICAOF", b"127.0.0.1", port.as_bytes()]);
    let fresh = other.backend();
    assert_eq!(fresh.get(&key("k")).await.unwrap_err().kind(), ErrorKind::ReadOnly);
    assert_eq!(backend.remove(&key("k")).await.unwrap_err().kind(), ErrorKind::ReadOnly);
    assert_eq!(backend.get(&key("k")).await.unwrap_err().kind(), ErrorKind::ReadOnly);
}

/// A lagging copy of what a server had comes back to it under its old `run_id`, without the removal that it had
/// acknowledged: it was demoted, took over the other's data, and was promoted again.
#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_returns_with_a_replicas_data_begins_anew() {
    let (server, other) = (Server::start(&[]), Server::start(&[]));
    let until = |what: &str, is_so: &dyn Fn() -> bool| {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < Duration::from_secs(30), "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let follow = |server: &Server, master: &Server| {
        server.command(&[b"REPLICAOF", b"127.0.0.1", master.port.to_string().as_bytes()]);
        let is_up = || server.command(&[b"INFO", b"replication"]).contains("master_link_status:up");
        until("it doesn't follow", &is_up);
    };
    follow(&other, &server);
    let backend = server.backend();
    set(&backend, "kept", "old").await;
    set(&backend, "removed", "old").await;
    let before = backend.ticket(&key("removed")).await.unwrap();
    let size = |server: &Server| server.command(&[b"DBSIZE"]);
    until("nothing is copied", &|| size(&server) == size(&other));
    other.command(&[b"REPLICAOF", b"NO", b"ONE"]);
    backend.remove(&key("removed")).await.unwrap();
    follow(&server, &other);
    server.command(&[b"REPLICAOF", b"NO", b"ONE"]);
    let found = read(&server.backend(), "removed").await;
    assert!(found.is_err(), "a removed value came back");
    limited(begins_anew(&server.backend(), before)).await;
}

/// Without any write, reads notice within a second or two.
#[tokio::test(flavor = "multi_thread")]
async fn readers_notice_that_their_master_was_demoted() {
    let (master, other) = (Server::start(&[]), Server::start(&[]));
    let backend = other.backend();
    set(&backend, "k", "v").await;
    let port = master.port.to_string();
    other.command(&[b"REPLICAOF", b"127.0.0.1", port.as_bytes()]);
    let began = Instant::now();
    while backend.get(&key("k")).await.is_ok() {
        assert!(began.elapsed() < Duration::from_secs(3));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_number_of_shards_is_refused() {
    let server = Server::start(&[]);
    set(&server.backend(), "k", "v").await;
    let options = RedisOptions { shards: 2, ..RedisOptions::new(server.unix()) };
    let refused = RedisBackend::new(options).unwrap().get(&key("k")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config);
    assert!(refused.to_string().contains("shards is 2"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_fences_and_stamps_outlive_the_process() {
    let server = Server::start(&[]);
    let backend = server.backend();
    let before = with_a_removal(&backend).await;
    let last = backend.last_stamp().await.unwrap();
    backend.close().await.unwrap();
    let again = server.backend();
    assert_eq!(read(&again, "kept").await, Ok(Bytes::from_static(b"old")));
    assert_eq!(again.last_stamp().await.unwrap(), last);
    let late = again.put(put(EntryKind::Load, "removed", "late", before)).await.unwrap();
    assert_eq!(late, PutOutcome::Fenced);
}

/// Foreign types at larder's keys cost what was there, and never a removal.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_types_at_its_keys_stop_no_removal() {
    let server = Server::start(&[]);
    let backend = server.backend();
    set(&backend, "k", "v").await;
    server.command(&[b"DEL", b"{larder:default:0}e:\x05k"]);
    server.command(&[b"SADD", b"{larder:default:0}e:\x05k", b"x"]);
    server.command(&[b"DEL", b"{larder:default:0}l"]);
    server.command(&[b"SET", b"{larder:default:0}l", b"x"]);
    assert_eq!(read(&backend, "k").await, Err(Miss::Absent));
    assert_eq!(backend.remove(&key("k")).await.unwrap(), Removed::Absent);
    set(&backend, "k", "w").await;
    assert_eq!(read(&backend, "k").await, Ok(Bytes::from_static(b"w")));
    server.command(&[b"DEL", b"{larder:default:0}m"]);
    server.command(&[b"SET", b"{larder:default:0}m", b"x"]);
    assert_eq!(backend.get(&key("k")).await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(backend.remove(&key("k")).await.unwrap_err().kind(), ErrorKind::Corrupt);
}

/// For the bus: exactly one record per position, whatever refuses or removes.
#[tokio::test(flavor = "multi_thread")]
async fn every_position_has_one_log_record() {
    let server = Server::start(&[]);
    let backend = server.backend();
    let early = backend.ticket(&key("k")).await.unwrap();
    set(&backend, "k", "v").await;
    backend.remove(&key("k")).await.unwrap();
    backend.mark(&Namespace::default(), &Mark::Tag("red".into())).await.unwrap();
    backend.mark(&Namespace::default(), &Mark::Clear).await.unwrap();
    backend.put(put(EntryKind::Load, "k", "loaded", backend.ticket(&key("k")).await.unwrap())).await.unwrap();
    assert_eq!(backend.put(put(EntryKind::Set, "k", "x", early)).await.unwrap(), PutOutcome::Fenced);
    assert_eq!(backend.put(put(EntryKind::Load, "k", "x", early)).await.unwrap(), PutOutcome::Fenced);
    let pattern = larder::key::Pattern::new("k*").unwrap();
    backend.remove_matching(&Namespace::default(), &pattern).await.unwrap();
    let pos = backend.ticket(&key("k")).await.unwrap().pos;
    let log = server.command(&[b"XRANGE", b"{larder:default:0}l", b"-", b"+"]);
    let lines: Vec<&str> = log.lines().collect();
    let ids: Vec<String> =
        lines.iter().filter(|line| line.starts_with("0-")).map(|&id| id.to_owned()).collect();
    assert_eq!(ids, (early.pos + 1..=pos).map(|pos| format!("0-{pos}")).collect::<Vec<_>>());
    let after_k = |at: usize| lines[at + 2];
    let kinds: Vec<&str> =
        (0..lines.len()).filter(|at| lines[*at] == "k" && lines[at - 1] == "$1").map(after_k).collect();
    let kinds: String = kinds.into_iter().filter(|kind| kind.len() == 1).collect();
    assert_eq!(kinds, "srtcrfp", "set, removal, tag, clear, refused set, floor, pattern");
}

/// Two nodes: one loads what the other changes and removes. Nobody reads a value from before a removal that
/// was acknowledged before the read began.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_nodes_race_removals_against_loads() {
    let server = Server::start(&[]);
    let (loader, remover) = (Arc::new(server.backend()), Arc::new(server.backend()));
    // The source of truth, and what was acknowledged as removed.
    let source: Arc<Vec<AtomicU64>> = Arc::new((0..8).map(|_| AtomicU64::new(0)).collect());
    let removed: Arc<Vec<AtomicU64>> = Arc::new((0..8).map(|_| AtomicU64::new(0)).collect());
    let mut tasks = Vec::new();
    for task in 0..6_u64 {
        let backend = if task % 2 == 0 { loader.clone() } else { remover.clone() };
        let (source, removed) = (source.clone(), removed.clone());
        tasks.push(tokio::spawn(async move {
            let mut random = xorshift(task);
            let mut hits = 0;
            for _ in 0..3000 {
                let i = (random() % 8) as usize;
                let name = format!("k{i}");
                if task % 3 == 0 && random() & 3 == 0 {
                    let version = source[i].fetch_add(1, SeqCst) + 1;
                    if random() & 7 == 0 {
                        backend.mark(&Namespace::default(), &Mark::Clear).await.unwrap();
                    } else {
                        backend.remove(&key(&name)).await.unwrap();
                    }
                    removed[i].fetch_max(version, SeqCst);
                    continue;
                }
                let at_least = removed[i].load(SeqCst);
                let found = backend.get(&key(&name)).await.unwrap();
                if let Ok(body) = found.found {
                    hits += 1;
                    let version: u64 = std::str::from_utf8(&body).unwrap().parse().unwrap();
                    assert!(version >= at_least, "{name}: version {version} after the removal of {at_least}");
                    continue;
                }
                let version = source[i].load(SeqCst);
                for _ in 0..random() % 16 {
                    tokio::task::yield_now().await;
                }
                backend.put(put(EntryKind::Load, &name, &version.to_string(), found.ticket)).await.unwrap();
            }
            hits
        }));
    }
    let mut hits = 0;
    for task in tasks {
        hits += task.await.unwrap();
    }
    assert!(hits > 500, "{hits}: the race is worth something only if values are found");
}

fn xorshift(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 11
    }
}
