//! Failure: one server serves what another one, on the same Redis, has removed or replaced; or a server that is cut
//! off from it acknowledges a removal and forgets it when it ends.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

#[path = "../../larder/tests/redis_support/mod.rs"]
mod redis_support;
mod support;

use support::{Server, eventually};

struct Node {
    folder: tempfile::TempDir,
    config: String,
}

impl Node {
    fn new(redis: &redis_support::Server) -> Node {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("larder.yaml").to_str().unwrap().to_owned();
        let settings = format!("tiers:\n  - backend: sqlite\n  - backend: redis\n    url: {}\n", redis.tcp());
        std::fs::write(&config, settings).unwrap();
        Node { folder, config }
    }

    fn start(&self) -> Server {
        Server::start(self.folder.path(), &["--config", &self.config])
    }
}

/// Waits until a server knows what the others did.
fn has_caught_up(server: &Server) {
    eventually("it has caught up", || server.get("/metrics").text().contains("larder_bus_suspect 0"));
}

#[test]
fn removals_reach_all_and_survive_an_outage_and_a_kill() {
    let redis = redis_support::Server::start(&[]);
    let (first, second) = (Node::new(&redis), Node::new(&redis));
    let (one, two) = (first.start(), second.start());
    has_caught_up(&one);
    has_caught_up(&two);
    one.put("/v1/cache/ns/a", b"1").is(204);
    eventually("the other one sees it", || two.get("/v1/cache/ns/a").status == 200);
    one.request("DELETE", "/v1/cache/ns/a", &[], b"").is(204);
    eventually("the other one misses it", || two.get("/v1/cache/ns/a").status == 404);
    one.put("/v1/cache/ns/b", b"old").is(204);
    eventually("the other one sees it", || two.get("/v1/cache/ns/b").text() == "old");
    two.put("/v1/cache/ns/b", b"new").is(204);
    eventually("the first one sees the new one", || one.get("/v1/cache/ns/b").text() == "new");

    // Cut off: the removal waits, also while the server is dead.
    redis.signal(libc::SIGSTOP);
    eventually("the removal is taken", || {
        matches!(one.request("DELETE", "/v1/cache/ns/b", &[], b"").status, 202 | 204)
    });
    one.kill();
    redis.signal(libc::SIGCONT);
    let one = first.start();
    eventually("it is delivered", || two.get("/v1/cache/ns/b").status == 404);
    assert_eq!(one.get("/v1/cache/ns/b").status, 404);
    one.stop();
    two.stop();
}
