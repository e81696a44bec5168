//! The PostgreSQL backend keeps every promise of the suite, with logged tables and without, one by one or together.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(all(feature = "conformance", feature = "postgres", unix))]

mod postgres_support;

use async_trait::async_trait;
use larder::backend::conformance::{Subject, check_all};
use larder::backend::{Backend, PostgresBackend, PostgresOptions};
use larder::clock::Clock;
use postgres_support::Server;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// One server, and a schema of its own for each case.
struct Postgres {
    server: Server,
    change: fn(&Server, PostgresOptions) -> PostgresOptions,
    cases: AtomicU32,
}

impl Postgres {
    fn new(change: fn(&Server, PostgresOptions) -> PostgresOptions) -> Self {
        Postgres { server: Server::start(&[]), change, cases: AtomicU32::new(0) }
    }

    fn open(&self, clock: Clock, case: u32) -> Arc<dyn Backend> {
        let options = PostgresOptions { schema: format!("case_{case}"), ..self.server.options(clock) };
        Arc::new(PostgresBackend::new((self.change)(&self.server, options)).unwrap())
    }
}

#[async_trait]
impl Subject for Postgres {
    async fn fresh(&self, clock: Clock) -> Arc<dyn Backend> {
        self.open(clock, self.cases.fetch_add(1, Relaxed))
    }

    async fn reopen(&self, closed: Arc<dyn Backend>, clock: Clock) -> Option<Arc<dyn Backend>> {
        drop(closed);
        Some(self.open(clock, self.cases.load(Relaxed) - 1))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn postgres_passes_on_a_unix_socket() {
    check_all(&Postgres::new(|_, options| options)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn postgres_passes_with_logged_tables_on_tcp() {
    check_all(&Postgres::new(|server, options| PostgresOptions {
        url: server.tcp(),
        logged: true,
        ..options
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn postgres_passes_with_each_call_by_itself() {
    check_all(&Postgres::new(|_, options| PostgresOptions { batch_max: 1, connections: 8, ..options })).await;
}
