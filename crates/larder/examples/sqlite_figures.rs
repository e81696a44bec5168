//! Figures of the SQLite tier beside plain `rusqlite`, in one run on one machine: the latency of a read
//! through the API, reads per second at 64 in flight, and synced puts per second of 64 callers beside one
//! commit per put. `cargo run --release --example sqlite_figures --features sqlite`

#![allow(clippy::print_stdout, reason = "it prints figures")]

use bytes::Bytes;
use larder::backend::{Backend, Durability, Put, SqliteBackend, SqliteOptions};
use larder::clock::NEVER_MS;
use larder::entry::{EntryKind, Meta, Tags};
use larder::key::{EntryKey, Namespace};
use larder::stamp::Stamp;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

type Failed = Box<dyn std::error::Error + Send + Sync>;

const ENTRIES: usize = 20_000;
const BODY_BYTES: usize = 1024;
const READS: usize = 100_000;

fn keys() -> Result<Vec<EntryKey>, Failed> {
    let namespace = Namespace::new("bench")?;
    Ok((0..ENTRIES).map(|i| EntryKey::new(&namespace, &format!("user:{i}"))).collect::<Result<_, _>>()?)
}

fn put(key: &EntryKey, ticket: larder::backend::Ticket, byte: u8) -> Put {
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
    Put { key: key.clone(), meta, sealed: Bytes::from(vec![byte; BODY_BYTES]), ticket }
}

fn percentile(times: &mut [Duration], share: f64) -> f64 {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6
}

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let folder = tempfile::tempdir_in(std::env::args().nth(1).unwrap_or_else(|| ".".to_owned()))?;
    raw_reads(&folder.path().join("raw.db"))?;
    let path = folder.path().join("larder.db");
    let fill = SqliteOptions { durability: Durability::Process, ..SqliteOptions::new(&path) };
    let backend = Arc::new(SqliteBackend::open(fill).await?);
    let keys = Arc::new(keys()?);
    let ticket = backend.ticket(&keys[0]).await?;
    for outcome in backend.put_many(keys.iter().map(|key| put(key, ticket, 7)).collect()).await {
        outcome?;
    }
    reads(&backend, &keys).await?;
    backend.close().await?;
    puts(&folder.path().join("puts.db"), &keys).await?;
    raw_puts(&folder.path().join("raw_puts.db"))
}

fn raw_reads(path: &Path) -> Result<(), Failed> {
    let db = rusqlite::Connection::open(path)?;
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
         CREATE TABLE entry (id INTEGER PRIMARY KEY, key BLOB UNIQUE, value BLOB); BEGIN",
    )?;
    let keys = keys()?;
    for key in &keys {
        let args = rusqlite::params![&key.as_bytes()[..], vec![7u8; BODY_BYTES]];
        db.execute("INSERT INTO entry (key, value) VALUES (?1, ?2)", args)?;
    }
    db.execute_batch("COMMIT")?;
    let mut select = db.prepare("SELECT value FROM entry WHERE key = ?1")?;
    let mut times = Vec::with_capacity(READS);
    let began = Instant::now();
    for i in 0..READS {
        let one = Instant::now();
        let value: Vec<u8> =
            select.query_row([&keys[i * 7919 % ENTRIES].as_bytes()[..]], |row| row.get(0))?;
        times.push(one.elapsed());
        black_box(value);
    }
    let rate = READS as f64 / began.elapsed().as_secs_f64();
    println!("raw rusqlite get:         p50 {:6.2} us, {rate:9.0}/s", percentile(&mut times, 0.5));
    Ok(())
}

async fn reads(backend: &Arc<SqliteBackend>, keys: &Arc<Vec<EntryKey>>) -> Result<(), Failed> {
    let mut times = Vec::with_capacity(READS);
    let began = Instant::now();
    for i in 0..READS {
        let one = Instant::now();
        black_box(backend.get(&keys[i * 7919 % ENTRIES]).await?.found.is_ok());
        times.push(one.elapsed());
    }
    let rate = READS as f64 / began.elapsed().as_secs_f64();
    println!("larder get, one caller:   p50 {:6.2} us, {rate:9.0}/s", percentile(&mut times, 0.5));
    for in_flight in [8, 64, 512] {
        let began = Instant::now();
        let callers: Vec<_> = (0..in_flight)
            .map(|caller| {
                let (backend, keys) = (backend.clone(), keys.clone());
                tokio::spawn(async move {
                    for i in (caller..2 * READS).step_by(in_flight) {
                        black_box(backend.get(&keys[i * 7919 % ENTRIES]).await?.found.is_ok());
                    }
                    Ok::<(), Failed>(())
                })
            })
            .collect();
        for caller in callers {
            caller.await??;
        }
        let rate = 2.0 * READS as f64 / began.elapsed().as_secs_f64();
        println!("larder get, {in_flight:3} in flight:                 {rate:9.0}/s");
    }
    let began = Instant::now();
    for batch in 0..READS / 100 {
        let wanted: Vec<EntryKey> =
            (0..100).map(|i| keys[(batch * 100 + i) * 7919 % ENTRIES].clone()).collect();
        black_box(backend.get_many(&wanted).await.len());
    }
    println!(
        "larder get_many by 100:                   {:9.0}/s",
        READS as f64 / began.elapsed().as_secs_f64()
    );
    Ok(())
}

async fn puts(path: &Path, keys: &Arc<Vec<EntryKey>>) -> Result<(), Failed> {
    let backend = Arc::new(SqliteBackend::open(SqliteOptions::new(path)).await?);
    for in_flight in [1, 64, 256] {
        let began = Instant::now();
        let count = if in_flight == 1 { 500 } else { 20_000 };
        let callers: Vec<_> = (0..in_flight)
            .map(|caller| {
                let (backend, keys) = (backend.clone(), keys.clone());
                tokio::spawn(async move {
                    for i in (caller..count).step_by(in_flight) {
                        let ticket = backend.ticket(&keys[i]).await?;
                        backend.put(put(&keys[i], ticket, in_flight as u8 | 1)).await?;
                    }
                    Ok::<(), Failed>(())
                })
            })
            .collect();
        for caller in callers {
            caller.await??;
        }
        println!(
            "larder put, {in_flight:3} callers, synced:           {:9.0}/s",
            count as f64 / began.elapsed().as_secs_f64()
        );
    }
    backend.close().await?;
    Ok(())
}

fn raw_puts(path: &Path) -> Result<(), Failed> {
    let db = rusqlite::Connection::open(path)?;
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
         CREATE TABLE entry (id INTEGER PRIMARY KEY, key BLOB UNIQUE, value BLOB)",
    )?;
    let keys = keys()?;
    let mut insert = db.prepare("INSERT INTO entry (key, value) VALUES (?1, ?2)")?;
    let began = Instant::now();
    for key in &keys[..500] {
        insert.execute(rusqlite::params![&key.as_bytes()[..], vec![7u8; BODY_BYTES]])?;
    }
    println!("raw rusqlite put, synced each:            {:9.0}/s", 500.0 / began.elapsed().as_secs_f64());
    Ok(())
}
