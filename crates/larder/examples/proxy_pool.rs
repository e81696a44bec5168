//! A pool of proxies with sealed credentials on memory, JSONL and SQLite. It survives a restart, a rotation of
//! keys and a corrupted shard, drops a proxy that fails three times in a row, and has no credential in plain on
//! the disk: the example searches its own folder, and shows that the search would find one.
//!
//! `cargo run -p larder --features encryption,jsonl,sqlite --example proxy_pool`. `PROXY_FEED` names a feed: JSON (a
//! list), JSON lines or CSV (`url,user,password`, without quotes), by its extension.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use larder::backend::{JsonlBackend, JsonlOptions, SqliteBackend, SqliteOptions};
use larder::envelope::{Keyring, SecretKey};
use larder::report::{Query, Report, Verdict};
use larder::{Cache, EntryOptions};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

type Failure = Box<dyn std::error::Error>;

/// Made-up credentials; the first is what the search looks for.
const FEED: &str = "url,user,password
http://one.example:8080,ada,canary-one-91c3
http://two.example:8080,bob,canary-two-4e77
http://three.example:8080,eve,canary-three-0b5d
";

/// No `Debug`: it has a password.
#[derive(Clone, Serialize, Deserialize)]
struct Proxy {
    url: String,
    user: String,
    password: String,
}

fn feed(path: &Path) -> Result<Vec<Proxy>, Failure> {
    let text = std::fs::read_to_string(path)?;
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => Ok(serde_json::from_str(&text)?),
        Some("jsonl") => Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?),
        Some("csv") => text
            .lines()
            .skip(1)
            .map(|line| match line.split(',').collect::<Vec<_>>()[..] {
                [url, user, password] => {
                    Ok(Proxy { url: url.into(), user: user.into(), password: password.into() })
                }
                _ => Err("a line has not three fields: url,user,password".into()),
            })
            .collect(),
        _ => Err("the feed must end with .json, .jsonl or .csv".into()),
    }
}

async fn open(folder: &Path, keyring: &Keyring) -> larder::Result<Cache<String, Proxy>> {
    let lines = JsonlBackend::open(JsonlOptions::new(folder.join("lines"))).await?;
    let file = SqliteBackend::open(SqliteOptions::new(folder.join("pool.db"))).await?;
    Cache::builder()
        .defaults(EntryOptions::default().ttl(Duration::from_secs(3600)))
        .tier(Arc::new(lines))
        .tier(Arc::new(file))
        .encryption(keyring.clone())
        .build()
}

async fn show(pool: &Cache<String, Proxy>, urls: &[String]) {
    let found = pool.get_many(urls).await.into_iter().flatten().count();
    println!("    {found} of {} proxies, with their credentials", urls.len());
}

/// How many files below `folder` there are, and how many of them hold `needle`.
fn search(folder: &Path, needle: &str) -> std::io::Result<(usize, usize)> {
    let (mut files, mut hits) = (0, 0);
    for found in std::fs::read_dir(folder)? {
        let path = found?.path();
        if path.is_dir() {
            let (more, found) = search(&path, needle)?;
            (files, hits) = (files + more, hits + found);
        } else {
            let bytes = std::fs::read(&path)?;
            files += 1;
            hits += usize::from(bytes.windows(needle.len()).any(|window| window == needle.as_bytes()));
        }
    }
    Ok((files, hits))
}

/// Overwrites the middle of every shard of lines.
fn corrupt(folder: &Path) -> std::io::Result<usize> {
    let mut corrupted = 0;
    for found in std::fs::read_dir(folder)? {
        let path = found?.path();
        let mut bytes = if path.is_file() { std::fs::read(&path)? } else { continue };
        if path.extension().is_none_or(|extension| extension != "jsonl") || bytes.len() < 200 {
            continue;
        }
        let middle = bytes.len() / 2;
        bytes[middle..middle + 40].fill(b'#');
        std::fs::write(path, bytes)?;
        corrupted += 1;
    }
    Ok(corrupted)
}

/// Runs it step by step.
#[tokio::main(flavor = "current_thread")]
pub async fn main() -> Result<(), Failure> {
    let (inbox, folder) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let path = match std::env::var_os("PROXY_FEED") {
        Some(path) => path.into(),
        None => {
            let path = inbox.path().join("feed.csv");
            std::fs::write(&path, FEED)?;
            path
        }
    };
    let proxies = feed(&path)?;
    let urls: Vec<String> = proxies.iter().map(|proxy| proxy.url.clone()).collect();
    let [first, ..] = &proxies[..] else { return Err("the feed is empty".into()) };
    let needle = first.password.clone();
    let (old, new) = (SecretKey::generate(), SecretKey::generate());

    println!("1. The feed is read and sealed into memory, lines and SQLite:");
    let keyring = Keyring::builder().encrypt_with(old.clone()).build()?;
    let pool = open(folder.path(), &keyring).await?;
    for proxy in proxies.iter().cloned() {
        pool.set(proxy.url.clone(), proxy).await?;
    }
    show(&pool, &urls).await;

    println!("2. After a restart they are still there:");
    pool.close().await?;
    let keyring = Keyring::builder().encrypt_with(new.clone()).decrypt_with(old).build()?;
    let pool = open(folder.path(), &keyring).await?;
    show(&pool, &urls).await;

    println!("3. All is sealed anew under a new key, and the old one is thrown away:");
    let mut rotation = pool.rotate_keys().await?;
    while rotation.step().await?.is_some() {}
    println!("    {} entries sealed anew", rotation.progress().resealed);
    pool.close().await?;
    let keyring = Keyring::builder().encrypt_with(new).build()?;
    let pool = open(folder.path(), &keyring).await?;
    show(&pool, &urls).await;

    println!("4. The lines are corrupted; what they lost comes from SQLite:");
    pool.close().await?;
    println!("    {} shards corrupted", corrupt(&folder.path().join("lines"))?);
    let pool = open(folder.path(), &keyring).await?;
    show(&pool, &urls).await;

    println!("5. The first proxy fails three times in a row, and is gone from every tier:");
    for url in &urls[1..] {
        pool.report(url.as_str(), Report::good().latency(Duration::from_millis(80)).source("feed")).await?;
    }
    for _ in 0..3 {
        let report = Report::bad().note("connection refused").source("feed");
        let reported = pool.report(urls[0].as_str(), report).await?;
        println!("    bad reports in a row: {}, evicted: {}", reported.in_a_row, reported.is_evicted);
    }
    show(&pool, &urls).await;
    let good = Query { verdict: Some(Verdict::Good), source: Some("feed".into()), ..Query::default() };
    println!("    {} known to be good", pool.by_health(&good).await?.entries.len());
    pool.close().await?;

    println!("6. The folder is searched for a credential:");
    let (files, hits) = search(folder.path(), &needle)?;
    println!("    found in {hits} of {files} files");
    std::fs::write(folder.path().join("plain"), &needle)?;
    let (_, control) = search(folder.path(), &needle)?;
    println!("    with one written in plain on purpose: found in {control}");
    if hits > 0 || control != 1 {
        return Err("a credential is on the disk in plain, or the search is blind".into());
    }
    Ok(())
}
