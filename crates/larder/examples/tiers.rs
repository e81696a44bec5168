//! Memory above SQLite: one load, a restart, a removal by tag, and a source that goes down.
//!
//! `cargo run -p larder --features sqlite --example tiers`

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use larder::backend::{SqliteBackend, SqliteOptions};
use larder::{Cache, EntryOptions, Loaded};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

static SOURCE_IS_DOWN: AtomicBool = AtomicBool::new(false);

/// Something slow that may fail.
async fn price_of(article: String) -> Result<Loaded<u64>, &'static str> {
    println!("    (asked the source for {article})");
    if SOURCE_IS_DOWN.load(SeqCst) {
        return Err("the source is down");
    }
    Ok(Loaded::new(article.len() as u64 * 100).tag("prices"))
}

async fn open(file: &Path) -> larder::Result<Cache<String, u64>> {
    let options =
        EntryOptions::default().ttl(Duration::from_millis(200)).stale_on_error(Duration::from_secs(3600));
    let sqlite = SqliteBackend::open(SqliteOptions::new(file)).await?;
    Cache::builder().defaults(options).tier(Arc::new(sqlite)).build()
}

async fn show(cache: &Cache<String, u64>) -> larder::Result<()> {
    let price = cache.get_or_load("bread", |_| price_of("bread".to_owned())).await?;
    println!("    bread costs {price}");
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("cache.db");

    println!("1. The first caller loads, the second is served from memory:");
    let cache = open(&file).await?;
    show(&cache).await?;
    show(&cache).await?;

    println!("2. After a restart the value comes from SQLite:");
    cache.close().await?;
    let cache = open(&file).await?;
    show(&cache).await?;
    print!("{}", cache.explain("bread").await);

    println!("3. A tag is removed everywhere at once, so the next caller loads:");
    cache.remove_tag("prices").await?;
    show(&cache).await?;

    println!(
        "4. The value expires while the source is down: the old one is served, with one try in ten seconds:"
    );
    SOURCE_IS_DOWN.store(true, SeqCst);
    tokio::time::sleep(Duration::from_millis(250)).await;
    show(&cache).await?;
    show(&cache).await?;

    println!("5. What was removed stays removed, source or not:");
    cache.remove("bread").await?;
    if let Err(error) = show(&cache).await {
        println!("    {error}");
    }
    cache.close().await?;
    Ok(())
}
