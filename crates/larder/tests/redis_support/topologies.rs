//! Several servers that belong together: a cluster of three, and a pair behind a sentinel.

use super::{Server, command_at, free_port};
use larder::backend::RedisOptions;
use larder::clock::Clock;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Three masters, each with a third of the slots.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Server>,
}

impl Cluster {
    pub(crate) fn start() -> Cluster {
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

    pub(crate) fn options(&self, clock: Clock) -> RedisOptions {
        let more_urls = self.nodes[1..].iter().map(Server::tcp).collect();
        let options = self.nodes[0].options(clock);
        RedisOptions { url: self.nodes[0].tcp(), more_urls, cluster: true, shards: 8, ..options }
    }
}

/// A master, its replica, and a sentinel that promotes the one when the other is gone.
pub(crate) struct Pair {
    pub(crate) master: Server,
    pub(crate) replica: Server,
    sentinel: Child,
    sentinel_port: u16,
    _folder: TempDir,
}

impl Pair {
    /// Starts them; returns when the sentinel knows the replica.
    pub(crate) fn start() -> Pair {
        let master = Server::start(&[]);
        let port = master.port;
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
        let sentinel = Command::new("redis-server")
            .arg(&config)
            .arg("--sentinel")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pair = Pair { master, replica, sentinel, sentinel_port, _folder: folder };
        let began = Instant::now();
        // The sentinel asks the master for its replicas every ten seconds, and promotes none that it hasn't met.
        while !pair.is_ready() {
            assert!(began.elapsed() < Duration::from_secs(60), "the sentinel doesn't meet the replica");
            std::thread::sleep(Duration::from_millis(50));
        }
        pair
    }

    fn is_ready(&self) -> bool {
        let address = ("127.0.0.1", self.sentinel_port);
        let known = command_at(address, &[b"SENTINEL", b"REPLICAS", b"m"]).unwrap_or_default();
        known.contains("master-link-status\r\n$2\r\nok")
            && self.master.command(&[b"INFO", b"replication"]).contains("state=online")
    }

    pub(crate) fn options(&self, clock: Clock) -> RedisOptions {
        RedisOptions {
            sentinel_master: Some("m".to_owned()),
            // The first sentinel doesn't exist.
            url: "redis://127.0.0.1:1".to_owned(),
            more_urls: vec![format!("redis://127.0.0.1:{}", self.sentinel_port)],
            ..self.master.options(clock)
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        drop(self.sentinel.kill());
        drop(self.sentinel.wait());
    }
}
