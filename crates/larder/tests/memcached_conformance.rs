//! The Memcached backend keeps every promise of the suite, however it reaches its servers.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(all(feature = "conformance", feature = "memcached"))]

mod memcached_support;

use async_trait::async_trait;
use larder::backend::conformance::{Subject, check_all};
use larder::backend::{Backend, MemcachedBackend, MemcachedOptions};
use larder::clock::Clock;
use memcached_support::{Server, suite_options};
use std::sync::Arc;

struct Memcached {
    servers: Vec<Server>,
    change: fn(&[Server], MemcachedOptions) -> MemcachedOptions,
}

#[async_trait]
impl Subject for Memcached {
    async fn fresh(&self, clock: Clock) -> Arc<dyn Backend> {
        let options = (self.change)(&self.servers, suite_options(&self.servers, clock));
        Arc::new(MemcachedBackend::new(options).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memcached_passes_on_a_unix_socket() {
    check_all(&Memcached { servers: vec![Server::start(&[])], change: |_, options| options }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memcached_passes_on_tcp_with_each_call_by_itself() {
    let servers = vec![Server::start_tcp(&[])];
    check_all(&Memcached { servers, change: |_, options| MemcachedOptions { batch_max: 1, ..options } })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memcached_passes_on_three_servers_with_two_connections_each() {
    let servers = (0..3).map(|_| Server::start(&[])).collect();
    let change = |_: &[Server], options| MemcachedOptions { connections: 2, ..options };
    check_all(&Memcached { servers, change }).await;
}

/// Items of 8 KiB, so that larger values go in pieces.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memcached_passes_with_small_items() {
    let servers = vec![Server::start(&["-I", "32k", "-o", "slab_chunk_max=16384"])];
    check_all(&Memcached { servers, change: |_, options| options }).await;
}

#[cfg(feature = "memcached-tls")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memcached_passes_over_tls() {
    let change = |servers: &[Server], options| MemcachedOptions {
        tls_root: Some(servers[0].certificate()),
        ..options
    };
    check_all(&Memcached { servers: vec![Server::start_tls()], change }).await;
}
