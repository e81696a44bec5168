//! The same promises behind TLS, in a cluster of three, and behind a sentinel that promotes a replica.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(all(feature = "conformance", feature = "redis-tls"))]

mod redis_support;

use async_trait::async_trait;
use bytes::Bytes;
use larder::ErrorKind;
use larder::backend::conformance::{Subject, check_all};
use larder::backend::{Backend, Put, PutOutcome, RedisBackend, RedisOptions, Ticket};
use larder::clock::{Clock, NEVER_MS};
use larder::entry::{EntryKind, Meta, Tags};
use larder::key::{EntryKey, Namespace};
use larder::lock::{self, LockBackend, RedisLocks};
use larder::stamp::Stamp;
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

/// Three masters, each with a third of the slots.
struct Cluster {
    nodes: Vec<Server>,
}

impl Cluster {
    fn start() -> Cluster {
        let mut bus_ports = Vec::new();
        let nodes: Vec<Server> = (0..3)
            .map(|_| {
                let bus = free_port().to_string();
                bus_ports.push(bus.clone());
                let timeout = ["--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no"];
                Server::start(&[&["--cluster-enabled", "yes", "--cluster-port", &bus][..], &timeout].concat())
            })
            .collect();
        for (i, (node, slots)) in nodes.iter().zip([(0, 5460), (5461, 10922), (10923, 16383)]).enumerate() {
            let (from, to) = (slots.0.to_string(), slots.1.to_string());
            node.command(&[b"CLUSTER", b"ADDSLOTSRANGE", from.as_bytes(), to.as_bytes()]);
            node.command(&[b"CLUSTER", b"SET-CONFIG-EPOCH", (i + 1).to_string().as_bytes()]);
        }
        for (node, bus) in nodes.iter().zip(&bus_ports).skip(1) {
            let port = node.port.to_string();
            nodes[0].command(&[b"CLUSTER", b"MEET", b"127.0.0.1", port.as_bytes(), bus.as_bytes()]);
        }
        let began = Instant::now();
        let is_ready = |node: &Server| {
            let info = node.command(&[b"CLUSTER", b"INFO"]);
            info.contains("cluster_state:ok") && info.contains("cluster_slots_assigned:16384")
        };
        while !nodes.iter().all(is_ready) {
            assert!(began.elapsed() < Duration::from_secs(30), "the nodes don't meet");
            std::thread::sleep(Duration::from_millis(50));
        }
        Cluster { nodes }
    }

    fn options(&self, clock: Clock) -> RedisOptions {
        let more_urls = self.nodes[1..].iter().map(Server::tcp).collect();
        let options = self.nodes[0].options(clock);
        RedisOptions { url: self.nodes[0].tcp(), more_urls, cluster: true, shards: 8, ..options }
    }

    fn backend(&self) -> RedisBackend {
        RedisBackend::new(self.options(Clock::system())).unwrap()
    }

    /// A key for each node.
    fn keys(&self) -> [String; 3] {
        let mut found: [Option<String>; 3] = [None, None, None];
        for i in 0..1000 {
            let name = format!("k{i}");
            let place = usize::from(self.slot(&name) / 5461).min(2);
            found[place].get_or_insert(name);
        }
        found.map(Option::unwrap)
    }

    fn slot(&self, name: &str) -> u16 {
        let shard = (key(name).hash64() >> 32) as u32 % 8;
        let tag = format!("{{larder:default:{shard}}}");
        let answer = self.nodes[0].command(&[b"CLUSTER", b"KEYSLOT", tag.as_bytes()]);
        answer.trim_start_matches(':').trim().parse().unwrap()
    }
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
async fn locks_in_a_cluster_pass_theirs() {
    lock::conformance::check_all(&Locks(Cluster::start())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_moves_begins_anew_and_a_node_that_dies_takes_only_its_own() {
    let mut cluster = Cluster::start();
    let backend = cluster.backend();
    let keys = cluster.keys();
    let mut tickets = Vec::new();
    for name in &keys {
        let ticket = backend.ticket(&key(name)).await.unwrap();
        assert_eq!(backend.put(load(name, name, ticket)).await.unwrap(), PutOutcome::Stored);
        tickets.push(ticket);
    }
    // The first key's slot goes from the first node to the second.
    cluster.nodes[0].command(&[b"FLUSHALL"]);
    let slot = cluster.slot(&keys[0]).to_string();
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
    let mut master = Server::start(&[]);
    let port = master.port.to_string();
    let replica = Server::start(&["--replicaof", &format!("127.0.0.1 {port}")]);
    let folder = tempfile::tempdir().unwrap();
    let sentinel_port = free_port();
    let config = folder.path().join("sentinel.conf");
    std::fs::write(
        &config,
        format!(
            "port {sentinel_port}\ndir {}\nsentinel monitor m 127.0.0.1 {port} 1\n\
             sentinel down-after-milliseconds m 500\nsentinel failover-timeout m 5000\n",
            folder.path().display()
        ),
    )
    .unwrap();
    let mut sentinel = Command::new("redis-server")
        .arg(&config)
        .arg("--sentinel")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let options = RedisOptions {
        sentinel_master: Some("m".to_owned()),
        // The first sentinel doesn't exist.
        more_urls: vec![format!("redis://127.0.0.1:{sentinel_port}")],
        ..RedisOptions::new("redis://127.0.0.1:1")
    };
    let backend = RedisBackend::new(options).unwrap();
    let before = until_read(&backend, "k").await.ticket;
    assert_eq!(backend.put(load("k", "v", before)).await.unwrap(), PutOutcome::Stored);
    // Until sentinel knows of the replica, and it has the value, there is nobody to promote.
    let began = Instant::now();
    while !replica.command(&[b"DBSIZE"]).starts_with(":3")
        || !master.command(&[b"INFO", b"replication"]).contains("state=online")
    {
        assert!(began.elapsed() < Duration::from_secs(20), "the replica doesn't follow");
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_secs(2));
    master.kill();
    let read = until_read(&backend, "k").await;
    sentinel.kill().unwrap();
    sentinel.wait().unwrap();
    assert!(read.found.is_err(), "{:?}", read.found);
    assert_ne!(read.ticket.inc, before.inc);
    assert_eq!(backend.put(load("k", "late", before)).await.unwrap(), PutOutcome::Fenced);
    assert_eq!(backend.put(load("k", "new", read.ticket)).await.unwrap(), PutOutcome::Stored);
    assert!(replica.command(&[b"DBSIZE"]).starts_with(':'));
}
