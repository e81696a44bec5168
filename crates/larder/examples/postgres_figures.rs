//! What the PostgreSQL tier costs beside `tokio-postgres` alone, with prepared statements on a plain table, pipelined
//! on one connection: calls per second with 64 callers, in alternating rounds against one server, which it starts.
//! The ratios are what to look at.
//!
//! `cargo run --release -p larder --features postgres --example postgres_figures`

#![allow(clippy::print_stdout, reason = "its output is the point")]

use bytes::Bytes;
use larder::backend::{Backend, PostgresBackend, PostgresOptions, Put};
use larder::clock::NEVER_MS;
use larder::entry::{EntryKind, Meta, Tags};
use larder::key::{EntryKey, Namespace};
use larder::stamp::Stamp;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls, Statement};

#[allow(clippy::unwrap_used, reason = "shared with the tests")]
#[path = "../tests/postgres_support/mod.rs"]
mod postgres_support;

const KEYS: usize = 10_000;
const VALUE_BYTES: usize = 1024;
const CALLERS: usize = 64;
static SETS: AtomicU64 = AtomicU64::new(1);

fn main() -> Result<(), Box<dyn Error>> {
    let rounds = std::env::var("ROUNDS").map_or(Ok(5), |rounds| rounds.parse())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    for fsync in ["fsync=off", "fsync=on"] {
        let server = postgres_support::Server::start(&["shared_buffers=128MB", fsync]);
        println!("{fsync}");
        runtime.block_on(measure(&server.url(), rounds))?;
    }
    Ok(())
}

/// One way to read and write.
#[derive(Clone)]
enum Way {
    Raw { client: Arc<Client>, get: Statement, put: Statement },
    Larder(Arc<PostgresBackend>),
}

#[derive(Clone, Copy, PartialEq)]
enum What {
    Get,
    Load,
    Set,
}

async fn raw(url: &str, table: &str, kind: &str) -> Result<Way, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    client
        .batch_execute(&format!("CREATE {kind} TABLE {table} (key bytea PRIMARY KEY, value bytea NOT NULL)"))
        .await?;
    let get = client.prepare(&format!("SELECT value FROM {table} WHERE key = $1")).await?;
    let put =
        format!("INSERT INTO {table} VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value");
    let put = client.prepare(&put).await?;
    Ok(Way::Raw { client: Arc::new(client), get, put })
}

fn larder(url: &str, schema: &str, logged: bool, batch_max: usize) -> larder::Result<Way> {
    let options =
        PostgresOptions { schema: schema.to_owned(), logged, batch_max, ..PostgresOptions::new(url) };
    Ok(Way::Larder(Arc::new(PostgresBackend::new(options)?)))
}

async fn measure(url: &str, rounds: usize) -> Result<(), Box<dyn Error>> {
    let ways = [
        ("tokio-postgres, unlogged", raw(url, "plain", "UNLOGGED").await?),
        ("larder, unlogged", larder(url, "unlogged", false, 256)?),
        ("larder, each by itself", larder(url, "alone", false, 1)?),
        ("tokio-postgres, logged", raw(url, "plain_logged", "").await?),
        ("larder, logged", larder(url, "logged", true, 256)?),
    ];
    let names = (0..KEYS).map(|i| EntryKey::new(&Namespace::default(), &format!("key {i}")));
    let names: Arc<Vec<EntryKey>> = Arc::new(names.collect::<Result<_, _>>()?);
    for (_, way) in &ways {
        run(way, &names, KEYS, What::Load, 1).await;
    }
    for (what, label, calls) in
        [(What::Get, "get", 40_000), (What::Load, "load", 10_000), (What::Set, "set", 10_000)]
    {
        let mut rates = vec![Vec::new(); ways.len()];
        for _ in 0..rounds {
            for (place, (_, way)) in ways.iter().enumerate() {
                let took = run(way, &names, calls, what, 31).await;
                rates[place].push(calls as f64 / took.as_secs_f64());
            }
        }
        println!("  {label} of {VALUE_BYTES} bytes, {CALLERS} in flight");
        for (place, (name, _)) in ways.iter().enumerate() {
            // Each beside the plain table of its kind.
            let beside = if place < 3 { 0 } else { 3 };
            let mut ratios: Vec<f64> =
                rates[place].iter().zip(&rates[beside]).map(|(rate, raw)| rate / raw).collect();
            ratios.sort_by(f64::total_cmp);
            rates[place].sort_by(f64::total_cmp);
            println!(
                "    {name:26} {:8.0}/s  {:.2} x ({:.2} to {:.2})",
                rates[place][rounds / 2],
                ratios[rounds / 2],
                ratios[0],
                ratios[rounds - 1]
            );
        }
    }
    Ok(())
}

async fn run(way: &Way, names: &Arc<Vec<EntryKey>>, calls: usize, what: What, stride: usize) -> Duration {
    let began = Instant::now();
    let tasks: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (way, names) = (way.clone(), names.clone());
            tokio::spawn(async move {
                for i in (caller..calls).step_by(CALLERS) {
                    call(&way, &names[(i * stride) % KEYS], what).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no caller panics");
    }
    began.elapsed()
}

async fn call(way: &Way, key: &EntryKey, what: What) {
    let body = vec![7_u8; VALUE_BYTES];
    match way {
        Way::Raw { client, get, .. } if what == What::Get => {
            let row = client.query_one(get, &[&&key.as_bytes()[..]]).await.expect("it answers");
            assert_eq!(row.get::<_, Vec<u8>>(0).len(), VALUE_BYTES);
        }
        Way::Raw { client, put, .. } => {
            client.execute(put, &[&&key.as_bytes()[..], &body]).await.expect("it answers");
        }
        Way::Larder(backend) if what == What::Get => {
            let found = backend.get(key).await.expect("it answers").found;
            assert!(found.is_ok_and(|found| found.len() == VALUE_BYTES));
        }
        Way::Larder(backend) => {
            let kind = if what == What::Set { EntryKind::Set } else { EntryKind::Load };
            let ticket = backend.ticket(key).await.expect("it answers");
            let meta = Meta {
                kind,
                // Later than what is there, or it would be refused.
                stamp: Stamp::new(SETS.fetch_add(1, Relaxed), 0, 1),
                created_ms: 0,
                fresh_until_ms: NEVER_MS,
                revalidate_until_ms: NEVER_MS,
                gone_at_ms: NEVER_MS,
                load_ms: 0,
                is_negative: false,
                tags: Tags::NONE,
            };
            let put = Put { key: key.clone(), meta, sealed: Bytes::from(body), ticket };
            backend.put(put).await.expect("it answers");
        }
    }
}
