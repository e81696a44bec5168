//! Figures of the SQLite tier beside plain prepared `rusqlite` (a rowid table, its key indexed), for three
//! sizes of value, in one run on one machine. What is compared alternates, and the middle of the rounds
//! counts: a shared machine is noisy. `cargo run --release --example sqlite_figures --features sqlite`

#![allow(clippy::print_stdout, reason = "it prints figures")]

use bytes::Bytes;
use larder::backend::{Backend, Durability, Put, SqliteBackend, SqliteOptions, Ticket};
use larder::clock::NEVER_MS;
use larder::entry::{EntryKind, Meta, Tags};
use larder::key::{EntryKey, Namespace};
use larder::stamp::Stamp;
use rusqlite::{Connection, params};
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

type Failed = Box<dyn std::error::Error + Send + Sync>;

const ROUNDS: usize = 7;
/// Bytes of a value, entries of the file, reads of a round.
const SIZES: [(usize, usize, usize); 3] = [(100, 50_000, 4_000), (1024, 20_000, 4_000), (65_536, 600, 1_000)];

/// Places that are far from each other, each as often as any other.
fn shuffled(i: usize, entries: usize) -> usize {
    i * 7919 % entries
}

fn put(key: &EntryKey, ticket: Ticket, bytes: usize, fill: u8) -> Put {
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
    Put { key: key.clone(), meta, sealed: Bytes::from(vec![fill; bytes]), ticket }
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The median of the rounds, beside that of the raw ones.
fn print(what: &str, unit: &str, raw: Vec<f64>, larder: Vec<f64>) {
    let ratio = middle(raw.iter().zip(&larder).map(|(raw, larder)| larder / raw).collect());
    let (raw, larder) = (middle(raw), middle(larder));
    println!("  {what:34} raw {raw:10.2} {unit:5} larder {larder:10.2} {unit:5} ratio {ratio:6.2}");
}

struct Raw(Connection);

impl Raw {
    fn open(path: &Path, synchronous: &str) -> Result<Self, Failed> {
        let db = Connection::open(path)?;
        db.execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous}; PRAGMA cache_size = -8192;
             CREATE TABLE IF NOT EXISTS entry (id INTEGER PRIMARY KEY, key BLOB UNIQUE, value BLOB)"
        ))?;
        Ok(Raw(db))
    }

    fn fill(&self, keys: &[EntryKey], bytes: usize) -> Result<(), Failed> {
        self.0.execute_batch("BEGIN")?;
        for key in keys {
            let args = params![&key.as_bytes()[..], vec![7u8; bytes]];
            self.0.prepare_cached("INSERT INTO entry (key, value) VALUES (?1, ?2)")?.execute(args)?;
        }
        Ok(self.0.execute_batch("COMMIT")?)
    }

    /// The median of single reads in microseconds, each a transaction of its own.
    fn gets(&self, keys: &[EntryKey], count: usize) -> Result<f64, Failed> {
        let mut select = self.0.prepare("SELECT value FROM entry WHERE key = ?1")?;
        let mut times = Vec::with_capacity(count);
        for i in 0..count {
            let one = Instant::now();
            let key = &keys[shuffled(i, keys.len())];
            let value: Vec<u8> = select.query_row([&key.as_bytes()[..]], |row| row.get(0))?;
            black_box(value);
            times.push(one.elapsed().as_secs_f64() * 1e6);
        }
        Ok(middle(times))
    }
}

async fn gets(backend: &SqliteBackend, keys: &[EntryKey], count: usize) -> Result<f64, Failed> {
    let mut times = Vec::with_capacity(count);
    for i in 0..count {
        let one = Instant::now();
        black_box(backend.get(&keys[shuffled(i, keys.len())]).await?.found.is_ok());
        times.push(one.elapsed().as_secs_f64() * 1e6);
    }
    Ok(middle(times))
}

/// Microseconds per key, in batches of 100.
async fn batches(backend: &SqliteBackend, keys: &[EntryKey], count: usize) -> f64 {
    let began = Instant::now();
    for batch in 0..count / 100 {
        let wanted: Vec<EntryKey> =
            (0..100).map(|i| keys[shuffled(batch * 100 + i, keys.len())].clone()).collect();
        black_box(backend.get_many(&wanted).await.len());
    }
    began.elapsed().as_secs_f64() * 1e6 / count as f64
}

/// Microseconds per read of 64 callers.
async fn in_flight(
    backend: &Arc<SqliteBackend>,
    keys: &Arc<Vec<EntryKey>>,
    count: usize,
) -> Result<f64, Failed> {
    let began = Instant::now();
    let callers: Vec<_> = (0..64)
        .map(|caller| {
            let (backend, keys) = (backend.clone(), keys.clone());
            tokio::spawn(async move {
                for i in (caller..count).step_by(64) {
                    black_box(backend.get(&keys[shuffled(i, keys.len())]).await?.found.is_ok());
                }
                Ok::<(), Failed>(())
            })
        })
        .collect();
    for caller in callers {
        caller.await??;
    }
    Ok(began.elapsed().as_secs_f64() * 1e6 / count as f64)
}

async fn reads(folder: &Path, keys: &Arc<Vec<EntryKey>>, bytes: usize, count: usize) -> Result<(), Failed> {
    let (raw_path, path) = (folder.join("raw.db"), folder.join("larder.db"));
    let raw = Raw::open(&raw_path, "NORMAL")?;
    raw.fill(keys, bytes)?;
    raw.0.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").ok();
    let options = |inline_reads| SqliteOptions {
        durability: Durability::Process,
        inline_reads,
        ..SqliteOptions::new(&path)
    };
    let filling = SqliteBackend::open(options(true)).await?;
    let ticket = filling.ticket(&keys[0]).await?;
    for chunk in keys.chunks(100) {
        for outcome in filling.put_many(chunk.iter().map(|key| put(key, ticket, bytes, 7)).collect()).await {
            outcome?;
        }
    }
    filling.close().await?;
    let per_entry =
        |path: &Path| std::fs::metadata(path).map(|file| vec![file.len() as f64 / keys.len() as f64; ROUNDS]);
    print("space per entry", "B", per_entry(&raw_path)?, per_entry(&path)?);

    let (mut raw_opens, mut opens) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let cold = Raw::open(&raw_path, "NORMAL")?;
        cold.gets(keys, 1)?;
        raw_opens.push(began.elapsed().as_secs_f64() * 1e3);
        drop(cold);
        let began = Instant::now();
        let cold = SqliteBackend::open(options(true)).await?;
        black_box(cold.get(&keys[0]).await?);
        opens.push(began.elapsed().as_secs_f64() * 1e3);
        cold.close().await?;
    }
    print("open and the first get", "ms", raw_opens, opens);

    let inline = Arc::new(SqliteBackend::open(options(true)).await?);
    let threads = Arc::new(SqliteBackend::open(options(false)).await?);
    let mut times = [const { Vec::new() }; 7];
    for _ in 0..ROUNDS {
        times[0].push(raw.gets(keys, count)?);
        times[1].push(gets(&inline, keys, count).await?);
        times[2].push(gets(&threads, keys, count).await?);
        let began = Instant::now();
        raw.gets(keys, count)?;
        times[3].push(began.elapsed().as_secs_f64() * 1e6 / count as f64);
        times[4].push(batches(&inline, keys, count).await);
        times[5].push(in_flight(&inline, keys, 4 * count).await?);
        times[6].push(in_flight(&threads, keys, 4 * count).await?);
    }
    let [one, inline_one, thread_one, each, batch, flight, thread_flight] = times;
    print("lone get, median", "us", one.clone(), inline_one);
    print("lone get, on a thread, median", "us", one, thread_one);
    print("get_many by 100, a key", "us", each.clone(), batch);
    print("get, 64 in flight, a key", "us", each.clone(), flight);
    print("get, 64 in flight, on threads", "us", each, thread_flight);
    Ok(())
}

/// Synced puts per second: one commit each, of one caller, and of 64.
async fn puts(folder: &Path, keys: &Arc<Vec<EntryKey>>, bytes: usize) -> Result<(), Failed> {
    let raw = Raw::open(&folder.join("raw_puts.db"), "FULL")?;
    let backend = Arc::new(SqliteBackend::open(SqliteOptions::new(folder.join("puts.db"))).await?);
    let ticket = backend.ticket(&keys[0]).await?;
    let mut rates = [const { Vec::new() }; 3];
    // A value of its own for each: SQLite doesn't write what is there already.
    for round in 0..3u8 {
        let (few, many) = (60, if bytes > 10_000 { 128 } else { 1024 });
        let began = Instant::now();
        for i in 0..few {
            let args = params![&keys[i].as_bytes()[..], vec![round; bytes]];
            raw.0
                .prepare_cached(
                    "INSERT INTO entry (key, value) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2",
                )?
                .execute(args)?;
        }
        rates[0].push(few as f64 / began.elapsed().as_secs_f64());
        let began = Instant::now();
        for key in &keys[..few] {
            backend.put(put(key, ticket, bytes, round)).await?;
        }
        rates[1].push(few as f64 / began.elapsed().as_secs_f64());
        let began = Instant::now();
        let callers: Vec<_> = (0..64)
            .map(|caller| {
                let (backend, keys) = (backend.clone(), keys.clone());
                tokio::spawn(async move {
                    for i in (caller..many).step_by(64) {
                        backend.put(put(&keys[i % keys.len()], ticket, bytes, 100 + round)).await?;
                    }
                    Ok::<(), Failed>(())
                })
            })
            .collect();
        for caller in callers {
            caller.await??;
        }
        rates[2].push(many as f64 / began.elapsed().as_secs_f64());
    }
    let [each, lone, group] = rates;
    print("synced put, one caller", "/s", each.clone(), lone);
    print("synced put, 64 callers", "/s", each, group);
    backend.close().await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let namespace = Namespace::new("bench")?;
    for (bytes, entries, count) in SIZES {
        let folder = tempfile::tempdir_in(std::env::args().nth(1).unwrap_or_else(|| ".".to_owned()))?;
        let keys = (0..entries).map(|i| EntryKey::new(&namespace, &format!("user:{i}")));
        let keys = Arc::new(keys.collect::<Result<Vec<_>, _>>()?);
        println!("{bytes} bytes, {entries} entries");
        reads(folder.path(), &keys, bytes, count).await?;
        puts(folder.path(), &keys, bytes).await?;
    }
    Ok(())
}
