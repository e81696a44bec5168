//! Every store of locks keeps every promise of the suite.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(all(feature = "conformance", feature = "redis", feature = "postgres", unix))]

mod postgres_support;
mod redis_support;

use async_trait::async_trait;
use larder::backend::{PostgresOptions, RedisOptions};
use larder::clock::{Clock, ManualClock};
use larder::lock::conformance::{Subject, check_all};
use larder::lock::{LockBackend, MemoryLocks, PostgresLocks, RedisLocks};
use redis_support::Server;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

struct Memory(ManualClock);

#[async_trait]
impl Subject for Memory {
    async fn fresh(&self) -> Arc<dyn LockBackend> {
        Arc::new(MemoryLocks::with_clock(self.clock()))
    }
    fn clock(&self) -> Clock {
        self.0.clone().into()
    }
    async fn pass(&self, time: Duration) {
        // Whoever is about to sleep gets the chance to.
        let began = std::time::Instant::now();
        while self.0.sleepers() == 0 && began.elapsed() < Duration::from_millis(20) {
            tokio::task::yield_now().await;
        }
        self.0.advance(time);
    }
}

/// One server, flushed before each case. Its clock is the system's.
struct Redis(Server, fn(RedisOptions) -> RedisOptions);

#[async_trait]
impl Subject for Redis {
    async fn fresh(&self) -> Arc<dyn LockBackend> {
        self.0.command(&[b"FLUSHALL"]);
        Arc::new(RedisLocks::new(&self.1(RedisOptions::new(self.0.unix()))).unwrap())
    }
    fn clock(&self) -> Clock {
        Clock::system()
    }
    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}

/// One server, and a schema of its own for each case.
struct Postgres(postgres_support::Server, AtomicU32);

#[async_trait]
impl Subject for Postgres {
    async fn fresh(&self) -> Arc<dyn LockBackend> {
        let schema = format!("case_{}", self.1.fetch_add(1, SeqCst));
        let options = PostgresOptions { schema, ..self.0.options(Clock::system()) };
        Arc::new(PostgresLocks::new(&options).unwrap())
    }
    fn clock(&self) -> Clock {
        Clock::system()
    }
    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn postgres_passes() {
    check_all(&Postgres(postgres_support::Server::start(&[]), AtomicU32::new(0))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_passes() {
    check_all(&Memory(ManualClock::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn redis_passes() {
    check_all(&Redis(Server::start(&[]), |options| options)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn redis_passes_with_each_call_by_itself() {
    let change = |options| RedisOptions { batch_max: 1, prefix: "other".to_owned(), ..options };
    check_all(&Redis(Server::start(&[]), change)).await;
}
