//! The Redis backend keeps every promise of the suite, however it reaches the server.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(all(feature = "conformance", feature = "redis"))]

mod redis_support;

use async_trait::async_trait;
use larder::backend::conformance::{Subject, check_all};
use larder::backend::{Backend, RedisBackend, RedisOptions};
use larder::clock::Clock;
use redis_support::Server;
use std::sync::Arc;

/// One server; it is flushed before each case.
struct Redis {
    server: Server,
    change: fn(&Server, RedisOptions) -> RedisOptions,
}

impl Redis {
    fn new(change: fn(&Server, RedisOptions) -> RedisOptions) -> Self {
        Redis { server: Server::start(&[]), change }
    }
}

#[async_trait]
impl Subject for Redis {
    async fn fresh(&self, clock: Clock) -> Arc<dyn Backend> {
        self.server.command(&[b"FLUSHALL"]);
        let options = (self.change)(&self.server, self.server.options(clock));
        Arc::new(RedisBackend::new(options).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn redis_passes_on_a_unix_socket() {
    check_all(&Redis::new(|_, options| options)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn redis_passes_on_tcp_with_each_call_by_itself() {
    check_all(&Redis::new(|server, options| RedisOptions { url: server.tcp(), batch_max: 1, ..options }))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn redis_passes_with_seven_shards() {
    check_all(&Redis::new(|_, options| RedisOptions { shards: 7, ..options })).await;
}
