//! Figures of the tier of files beside plain files, in one run on one machine: the median latency of one get
//! and one put at a time, of 1 KiB, 64 KiB and 1 MiB. `cargo run --release --example files_figures --features files`

#![allow(clippy::print_stdout, reason = "it prints figures")]

use bytes::Bytes;
use larder::backend::{Backend, Durability, FilesBackend, FilesOptions, Put};
use larder::clock::NEVER_MS;
use larder::entry::{EntryKind, Meta, Tags};
use larder::key::{EntryKey, Namespace};
use larder::stamp::Stamp;
use std::fs::{self, File};
use std::hint::black_box;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

type Failed = Box<dyn std::error::Error + Send + Sync>;

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

fn put(key: &EntryKey, ticket: larder::backend::Ticket, sealed: Bytes) -> Put {
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
    Put { key: key.clone(), meta, sealed, ticket }
}

/// What a careful program does by itself: write beside, perhaps sync, move into place, perhaps sync the folder.
fn raw_put(folder: &Path, name: &str, body: &[u8], durability: Durability) -> Result<(), Failed> {
    let beside = folder.join("beside");
    let mut file = File::create(&beside)?;
    file.write_all(body)?;
    if durability == Durability::Power {
        file.sync_all()?;
    }
    fs::rename(beside, folder.join(name))?;
    if durability == Durability::Power {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failed> {
    let folder = tempfile::tempdir_in(std::env::args().nth(1).unwrap_or_else(|| ".".to_owned()))?;
    let namespace = Namespace::new("bench")?;
    println!(
        "{:>8} {:>8} {:>11} {:>11} {:>7}  (median us, one at a time)",
        "bytes", "", "raw file", "larder", "ratio"
    );
    for size in [1 << 10, 64 << 10, 1 << 20] {
        for durability in [Durability::Process, Durability::Power] {
            let rounds = if durability == Durability::Power { 60 } else { 400 };
            let path = folder.path().join(format!("{size}-{durability:?}"));
            let raw = folder.path().join(format!("raw-{size}-{durability:?}"));
            fs::create_dir(&raw)?;
            let backend = FilesBackend::open(FilesOptions { durability, ..FilesOptions::new(path) }).await?;
            let body = Bytes::from(vec![7; size]);
            let (mut raw_puts, mut puts) = (Vec::new(), Vec::new());
            // In turns, so that both meet the same disk.
            for i in 0..rounds {
                let key = EntryKey::new(&namespace, &format!("k{}", i % 50))?;
                let ticket = backend.ticket(&key).await?;
                let began = Instant::now();
                raw_put(&raw, &format!("k{}", i % 50), &body, durability)?;
                raw_puts.push(began.elapsed());
                let began = Instant::now();
                backend.put(put(&key, ticket, body.clone())).await?;
                puts.push(began.elapsed());
            }
            let (raw_put, larder_put) = (median(raw_puts), median(puts));
            println!(
                "{size:8} {durability:?} put {raw_put:9.1} {larder_put:11.1} {:7.2}",
                larder_put / raw_put
            );
            if durability == Durability::Process {
                let (mut raw_gets, mut gets) = (Vec::new(), Vec::new());
                for i in 0..2000 {
                    let name = format!("k{}", i * 7 % 50);
                    let key = EntryKey::new(&namespace, &name)?;
                    let began = Instant::now();
                    black_box(fs::read(raw.join(&name))?);
                    raw_gets.push(began.elapsed());
                    let began = Instant::now();
                    assert!(black_box(backend.get(&key).await?.found.is_ok()));
                    gets.push(began.elapsed());
                }
                let (raw_get, larder_get) = (median(raw_gets), median(gets));
                println!("{size:8}  cached get {raw_get:9.1} {larder_get:11.1} {:7.2}", larder_get / raw_get);
            }
            backend.close().await?;
        }
    }
    Ok(())
}
