//! The same promises behind TLS, in a cluster of three, and behind a sentinel that promotes a replica.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(all(feature = "conformance", feature = "redis-tls"))]

mod redis_support;

use async_trait::async_trait;
use bytes::Bytes;
use larder::ErrorKind;
use larder::backend::conformance::{Subject, check_all};
use larder::backend::{Backend, Mark, Miss, Put, PutOutcome, RedisBackend, RedisOptions, Removed, Ticket};
use larder::clock::{Clock, NEVER_MS};
use larder::entry::{EntryKind, Meta, Tags};
use larder::key::{EntryKey, Namespace};
use larder::lock::{self, LockBackend, RedisLocks};
use larder::stamp::Stamp;
use redis_support::topologies::{Cluster, Pair};
use redis_support::{Server, free_port};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn key(name: &str) -> EntryKey {
    EntryKey::new(&Namespace::default(), name).unwrap()
}

fn load(name: &str, body: &str, ticket: Ticket) -> Put {
    let meta = Meta {
        kind: EntryKind::Load,
        stamp: Stamp::MIN,
        created_ms: 0,
        fresh_until_ms: NEVER_MS,
        revalidate_until_ms: NEVER_MS,
        gone_at_ms: NEVER_MS,
        load_ms: 0,
        is_negative: false,
        tags: Tags::NONE,
    };
    Put { key: key(name), meta, sealed: Bytes::copy_from_slice(body.as_bytes()), ticket }
}

/// Reads until there is an answer, within a bound.
async fn until_read(backend: &RedisBackend, name: &str) -> larder::backend::Read {
    let began = Instant::now();
    loop {
        match backend.get(&key(name)).await {
            Ok(read) => return read,
            Err(error) => assert!(began.elapsed() < Duration::from_secs(30), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A CA and a certificate for 127.0.0.1 in `folder`.
fn certificates(folder: &Path) {
    let openssl = |args: &[&str]| {
        let mut command = Command::new("openssl");
        let made =
            command.args(args).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(made.expect("openssl is installed").success(), "{args:?}");
    };
    std::fs::write(folder.join("ext"), "subjectAltName=IP:127.0.0.1").unwrap();
    let new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    openssl(
        &[&["req", "-x509"], &new[..], &["-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca"]].concat(),
    );
    openssl(
        &[&["req"], &new[..], &["-keyout", "tls.key", "-out", "tls.csr", "-subj", "/CN=server"]].concat(),
    );
    openssl(&[
        "x509",
        "-req",
        "-in",
        "tls.csr",
        "-CA",
        "ca.crt",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-out",
        "tls.crt",
        "-extfile",
        "ext",
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_checks_the_servers_certificate() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let port = free_port();
    let server = Server::start(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &file("tls.crt"),
        "--tls-key-file",
        &file("tls.key"),
        "--tls-ca-cert-file",
        &file("ca.crt"),
        "--tls-auth-clients",
        "no",
    ]);
    let options = RedisOptions::new(format!("rediss://127.0.0.1:{port}"));
    let trusting = RedisOptions { tls_root: Some(file("ca.crt").into()), ..options.clone() };
    let backend = RedisBackend::new(trusting).unwrap();
    let ticket = backend.ticket(&key("k")).await.unwrap();
    assert_eq!(backend.put(load("k", "v", ticket)).await.unwrap(), PutOutcome::Stored);
    assert_eq!(backend.get(&key("k")).await.unwrap().found, Ok(Bytes::from_static(b"v")));
    let stranger = RedisBackend::new(options).unwrap();
    let refused = stranger.get(&key("k")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    let missing = RedisOptions { tls_root: Some(file("none").into()), ..RedisOptions::new(server.tcp()) };
    assert_eq!(RedisBackend::new(missing).unwrap_err().kind(), ErrorKind::Config);
}

/// A key for each node.
fn keys_of(cluster: &Cluster) -> [String; 3] {
    let mut found: [Option<String>; 3] = [None, None, None];
    for i in 0..1000 {
        let name = format!("k{i}");
        let place = usize::from(slot_of(cluster, &name) / 5461).min(2);
        found[place].get_or_insert(name);
    }
    found.map(Option::unwrap)
}

fn slot_of(cluster: &Cluster, name: &str) -> u16 {
    let shard = (key(name).hash64() >> 32) as u32 % 8;
    let tag = format!("{{larder:default:{shard}}}");
    let answer = cluster.nodes[0].command(&[b"CLUSTER", b"KEYSLOT", tag.as_bytes()]);
    answer.trim_start_matches(':').trim().parse().unwrap()
}

#[async_trait]
impl Subject for Cluster {
    async fn fresh(&self, clock: Clock) -> Arc<dyn Backend> {
        for node in &self.nodes {
            node.command(&[b"FLUSHALL"]);
        }
        Arc::new(RedisBackend::new(self.options(clock)).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cluster_passes_the_suite() {
    check_all(&Cluster::start()).await;
}

#[async_trait]
impl Subject for Pair {
    async fn fresh(&self, clock: Clock) -> Arc<dyn Backend> {
        self.master.command(&[b"FLUSHALL"]);
        Arc::new(RedisBackend::new(self.options(clock)).unwrap())
    }
}

struct Locks(Cluster);

#[async_trait]
impl lock::conformance::Subject for Locks {
    async fn fresh(&self) -> Arc<dyn LockBackend> {
        for node in &self.0.nodes {
            node.command(&[b"FLUSHALL"]);
        }
        Arc::new(RedisLocks::new(&self.0.options(self.clock())).unwrap())
    }
    fn clock(&self) -> Clock {
        Clock::system()
    }
    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_pair_behind_a_sentinel_passes_the_suite() {
    check_all(&Pair::start()).await;
}

/// A slot on its way has some of its keys here and some there. What is there is found, and a removal is either
/// done or an error, and never undone by the move.
#[tokio::test(flavor = "multi_thread")]
async fn keys_are_followed_while_their_slot_moves() {
    let cluster = Cluster::start();
    let backend = RedisBackend::new(cluster.options(Clock::system())).unwrap();
    let first = keys_of(&cluster)[0].clone();
    let slot = slot_of(&cluster, &first);
    // Four keys of one store: two that move early, two that stay for the time being.
    let names: Vec<String> =
        (0..).map(|i| format!("m{i}")).filter(|name| slot_of(&cluster, name) == slot).take(4).collect();
    let keys: Vec<EntryKey> = names.iter().map(|name| key(name)).collect();
    // Tagged, so that a marker has to be looked up as well.
    backend.mark(&Namespace::default(), &Mark::Tag("red".into())).await.unwrap();
    let before = backend.ticket(&keys[0]).await.unwrap();
    for name in &names {
        let mut put = load(name, name, before);
        put.meta.tags = Tags::new(["red"]).unwrap();
        assert_eq!(backend.put(put).await.unwrap(), PutOutcome::Stored);
    }
    backend.mark(&Namespace::default(), &Mark::Tag("blue".into())).await.unwrap();
    let (from, to) = (&cluster.nodes[0], &cluster.nodes[1]);
    let id = |node: &Server| node.command(&[b"CLUSTER", b"MYID"]).lines().nth(1).unwrap().to_owned();
    let (slot, port) = (slot.to_string(), to.port.to_string());
    let set_slot = |node: &Server, state: &[u8], of: &Server| {
        node.command(&[b"CLUSTER", b"SETSLOT", slot.as_bytes(), state, id(of).as_bytes()]);
    };
    set_slot(to, b"IMPORTING", from);
    set_slot(from, b"MIGRATING", to);
    let migrate = |name: &[u8]| {
        let moved = from.command(&[b"MIGRATE", b"127.0.0.1", port.as_bytes(), name, b"0", b"5000"]);
        assert_eq!(moved, "+OK\r\n");
    };
    let tag = from.command(&[b"CLUSTER", b"GETKEYSINSLOT", slot.as_bytes(), b"100"]);
    let tag = tag.lines().find_map(|line| line.strip_suffix('m').filter(|line| line.ends_with('}'))).unwrap();
    let tag = tag.to_owned();
    let in_redis = |key: &EntryKey| [tag.as_bytes(), b"e:", key.as_bytes()].concat();
    keys[..2].iter().for_each(|key| migrate(&in_redis(key)));
    // Entries here and there, their meta record here: all are found, by one or many.
    for (key, name) in keys.iter().zip(&names) {
        assert_eq!(backend.get(key).await.unwrap().found, Ok(Bytes::from(name.clone())));
    }
    let absent = (0..).map(|i| format!("n{i}")).find(|name| slot_of(&cluster, name).to_string() == slot);
    let mut all = keys.clone();
    all.push(key(&absent.unwrap()));
    let found: Vec<_> = backend.get_many(&all).await.into_iter().map(|read| read.unwrap().found).collect();
    for (found, name) in found.iter().zip(&names) {
        assert_eq!(*found, Ok(Bytes::from(name.clone())));
    }
    assert_eq!(found[4], Err(Miss::Absent));
    // Redis refuses a script whose keys are apart: an error, and not a removal that was only half done.
    let refused = backend.remove(&keys[0]).await.unwrap_err();
    assert!(refused.is_transient() && refused.to_string().contains("TRYAGAIN"), "{refused}");
    // What is all here is removed, and is gone for good.
    assert_eq!(backend.remove(&keys[3]).await.unwrap(), Removed::Existed);
    assert_eq!(backend.get(&keys[3]).await.unwrap().found, Err(Miss::Absent));
    // The meta record and the log follow: at their new place, the store begins anew.
    migrate(&[tag.as_bytes(), b"m"].concat());
    migrate(&[tag.as_bytes(), b"l"].concat());
    let read = backend.get(&keys[0]).await.unwrap();
    assert!(read.found.is_err() && read.ticket.inc != before.inc, "{read:?}");
    migrate(&in_redis(&keys[2]));
    for node in [to, from, &cluster.nodes[2]] {
        set_slot(node, b"NODE", to);
    }
    for key in &keys {
        let read = backend.get(key).await.unwrap();
        assert!(read.found.is_err(), "{:?}", read.found);
    }
    let read = backend.get(&keys[0]).await.unwrap();
    assert_eq!(backend.put(load(&names[0], "late", before)).await.unwrap(), PutOutcome::Fenced);
    assert_eq!(backend.put(load(&names[0], "new", read.ticket)).await.unwrap(), PutOutcome::Stored);
    assert_eq!(backend.get(&keys[0]).await.unwrap().found, Ok(Bytes::from_static(b"new")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn locks_in_a_cluster_pass_theirs() {
    lock::conformance::check_all(&Locks(Cluster::start())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_moves_begins_anew_and_a_node_that_dies_takes_only_its_own() {
    let cluster = Cluster::start();
    let backend = RedisBackend::new(cluster.options(Clock::system())).unwrap();
    let keys = keys_of(&cluster);
    let mut tickets = Vec::new();
    for name in &keys {
        let ticket = backend.ticket(&key(name)).await.unwrap();
        assert_eq!(backend.put(load(name, name, ticket)).await.unwrap(), PutOutcome::Stored);
        tickets.push(ticket);
    }
    // The first key's slot goes from the first node to the second.
    cluster.nodes[0].command(&[b"FLUSHALL"]);
    let slot = slot_of(&cluster, &keys[0]).to_string();
    let id = cluster.nodes[1].command(&[b"CLUSTER", b"MYID"]);
    let id = id.lines().nth(1).unwrap().to_owned();
    for node in [1, 0, 2] {
        cluster.nodes[node].command(&[b"CLUSTER", b"SETSLOT", slot.as_bytes(), b"NODE", id.as_bytes()]);
    }
    // No error: the move is followed.
    let read = backend.get(&key(&keys[0])).await.unwrap();
    assert!(read.found.is_err());
    assert_ne!(read.ticket.inc, tickets[0].inc);
    assert_eq!(backend.put(load(&keys[0], "late", tickets[0])).await.unwrap(), PutOutcome::Fenced);
    assert_eq!(backend.put(load(&keys[0], "new", read.ticket)).await.unwrap(), PutOutcome::Stored);
    let names: Vec<EntryKey> = keys.iter().map(|name| key(name)).collect();
    for (read, body) in backend.get_many(&names).await.into_iter().zip(["new", &keys[1], &keys[2]]) {
        assert_eq!(read.unwrap().found, Ok(Bytes::copy_from_slice(body.as_bytes())));
    }
    cluster.nodes[2].kill();
    assert!(backend.get(&names[2]).await.is_err());
    for name in &keys[..2] {
        let found = until_read(&backend, name).await.found;
        assert!(found.is_ok(), "{found:?}");
    }
    cluster.nodes[2].begin();
    let read = until_read(&backend, &keys[2]).await;
    assert!(read.found.is_err());
    assert_ne!(read.ticket.inc, tickets[2].inc);
}

/// The replica may have missed a removal, so what it has is worth nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_replica_begins_anew() {
    let pair = Pair::start();
    let backend = RedisBackend::new(pair.options(Clock::system())).unwrap();
    let before = until_read(&backend, "k").await.ticket;
    assert_eq!(backend.put(load("k", "v", before)).await.unwrap(), PutOutcome::Stored);
    let began = Instant::now();
    while !pair.replica.command(&[b"DBSIZE"]).starts_with(":3") {
        assert!(began.elapsed() < Duration::from_secs(20), "the replica doesn't follow");
        std::thread::sleep(Duration::from_millis(50));
    }
    pair.master.kill();
    let read = until_read(&backend, "k").await;
    assert!(read.found.is_err(), "{:?}", read.found);
    assert_ne!(read.ticket.inc, before.inc);
    assert_eq!(backend.put(load("k", "late", before)).await.unwrap(), PutOutcome::Fenced);
    assert_eq!(backend.put(load("k", "new", read.ticket)).await.unwrap(), PutOutcome::Stored);
    assert!(pair.replica.command(&[b"DBSIZE"]).starts_with(':'));
}
