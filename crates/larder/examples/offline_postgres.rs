//! Vendors and work items in PostgreSQL, mirrored to SQLite and served from there while the server is down: stale
//! past 30 minutes, and saying so; also after a restart of the process, with the server still down; warmed again by
//! itself when the server is back.
//!
//! The example starts a PostgreSQL of its own, stops it, and moves its own clock.
//!
//! `cargo run -p larder --features postgres,sqlite --example offline_postgres`

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use async_trait::async_trait;
use larder::backend::{SqliteBackend, SqliteOptions};
use larder::clock::ManualClock;
use larder::mirror::{Collection, Mirror, Source};
use larder::{BoxError, Builder, Cache, Value};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls, Row};

const MINUTE: Duration = Duration::from_secs(60);

#[derive(Clone, Serialize, Deserialize)]
struct Vendor {
    name: String,
    city: String,
}

#[derive(Clone, Serialize, Deserialize)]
struct WorkItem {
    title: String,
    is_done: bool,
}

/// A table with a text key.
struct Table<V> {
    url: String,
    fetch: &'static str,
    keys: &'static str,
    parse: fn(&Row) -> V,
}

impl<V> Table<V> {
    /// A connection for each question; a service would keep some.
    async fn connect(&self) -> Result<Client, BoxError> {
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }
}

#[async_trait]
impl<V: Send + Sync + 'static> Source<V> for Table<V> {
    async fn fetch(&self, keys: &[String]) -> Result<HashMap<String, V>, BoxError> {
        let rows = self.connect().await?.query(self.fetch, &[&keys]).await?;
        Ok(rows.iter().map(|row| (row.get(0), (self.parse)(row))).collect())
    }

    async fn keys(&self, after: Option<&str>, limit: usize) -> Result<Vec<String>, BoxError> {
        let rows = self.connect().await?.query(self.keys, &[&after, &(limit as i64)]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}

struct Shop {
    vendors: Collection<Vendor>,
    items: Collection<WorkItem>,
    all: Mirror,
}

impl Shop {
    async fn open(folder: &Path, url: &str, clock: &ManualClock) -> larder::Result<Shop> {
        let file =
            SqliteOptions { clock: clock.clone().into(), ..SqliteOptions::new(folder.join("mirror.db")) };
        let file = Arc::new(SqliteBackend::open(file).await?);
        fn builder<V: Value + Serialize + DeserializeOwned>(
            file: &Arc<SqliteBackend>,
            clock: &ManualClock,
        ) -> Builder<String, V> {
            Cache::builder().clock(clock.clone().into()).tier(file.clone())
        }
        let vendors = Table {
            url: url.to_owned(),
            fetch: "SELECT name, city FROM vendors WHERE name = ANY ($1)",
            keys: "SELECT name FROM vendors WHERE name > coalesce($1, '') ORDER BY name LIMIT $2",
            parse: |row| Vendor { name: row.get(0), city: row.get(1) },
        };
        let items = Table {
            url: url.to_owned(),
            fetch: "SELECT id::text, title, is_done FROM work_items WHERE id::text = ANY ($1)",
            keys: "SELECT id::text FROM work_items WHERE id::text > coalesce($1, '') ORDER BY 1 LIMIT $2",
            parse: |row| WorkItem { title: row.get(1), is_done: row.get(2) },
        };
        let vendors = Collection::new("vendors", builder(&file, clock), vendors)?;
        let items = Collection::new("work_items", builder(&file, clock), items)?;
        let all = Mirror::new().with(&vendors).with(&items);
        Ok(Shop { vendors, items, all })
    }

    async fn show(&self, name: &str) {
        match self.vendors.get(name).await {
            Ok(Some(found)) => {
                let Vendor { name, city } = &found.value;
                let age = found.age.as_secs() / 60;
                let state = if found.is_stale { "STALE" } else { "fresh" };
                println!("    vendor {name}, {city}: {state}, {age} min old");
            }
            Ok(None) => println!("    vendor {name}: there is none"),
            Err(error) => println!("    vendor {name}: {}", error.kind().name()),
        }
    }

    async fn show_stats(&self) -> larder::Result<()> {
        for stats in self.all.stats().await? {
            let age = stats.oldest_age.map_or("none".to_owned(), |age| format!("{} min", age.as_secs() / 60));
            println!(
                "    {}: {} in all, {} stale, oldest {age}, offline: {}",
                stats.collection, stats.total, stats.stale, stats.is_offline
            );
        }
        Ok(())
    }

    /// The failed load has begun a task that looks after the source.
    async fn until_offline(&self, is_offline: bool, clock: &ManualClock) -> Result<(), BoxError> {
        let began = Instant::now();
        while self.vendors.is_offline() != is_offline || self.items.is_offline() != is_offline {
            clock.advance(Duration::from_millis(100));
            tokio::time::sleep(Duration::from_millis(5)).await;
            if began.elapsed() > MINUTE {
                return Err("nobody noticed".into());
            }
        }
        Ok(())
    }

    async fn close(self) -> larder::Result<()> {
        self.vendors.cache().close().await?;
        self.items.cache().close().await
    }
}

#[allow(missing_docs, reason = "an example")]
pub fn main() -> Result<(), BoxError> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(run())
}

async fn run() -> Result<(), BoxError> {
    let folder = tempfile::tempdir()?;
    let mut server = Server::new()?;
    server.start().await?;
    server
        .sql(
            "CREATE TABLE vendors (name text PRIMARY KEY, city text NOT NULL);
             INSERT INTO vendors VALUES ('Acme', 'Oslo'), ('Bolt', 'Bergen'), ('Cask', 'Tromso');
             CREATE TABLE work_items (id uuid PRIMARY KEY, title text NOT NULL, is_done bool NOT NULL);
             INSERT INTO work_items SELECT gen_random_uuid(), 'item ' || i, i % 2 = 0 FROM generate_series(1, 250) i",
        )
        .await?;
    let clock = ManualClock::new();
    let shop = Shop::open(folder.path(), &server.url(), &clock).await?;

    println!("1. The server is up; the mirror is warmed from it.");
    let (vendors, items) = (shop.vendors.warm().await?, shop.items.warm().await?);
    println!("    {} vendors and {} work items", vendors.fresh, items.fresh);
    shop.show("Acme").await;
    shop.show("Nobody").await;

    println!("2. The server stops. Ten minutes later:");
    server.stop();
    clock.advance(10 * MINUTE);
    shop.show("Acme").await;

    println!("3. Another 25 minutes later:");
    clock.advance(25 * MINUTE);
    shop.show("Acme").await;
    shop.show("Drum").await;
    println!("    is_stale(\"vendors:Acme\"): {:?}", shop.all.is_stale("vendors:Acme").await?);
    println!(
        "    is_stale(\"Acme\"): {}",
        shop.all.is_stale("Acme").await.expect_err("it names no collection")
    );
    let listed = shop.items.cache().keys(&larder::KeysRequest::default()).await?;
    let item =
        listed.keys.first().and_then(|info| info.key.decode_str()).ok_or("no work item is mirrored")?;
    let found = shop.items.get(item).await?.ok_or("the work item is gone")?;
    println!(
        "    work item \"{}\", done: {}, stale: {}",
        found.value.title, found.value.is_done, found.is_stale
    );
    shop.until_offline(true, &clock).await?;
    shop.show_stats().await?;

    println!("4. The process restarts, and the server is still down:");
    shop.close().await?;
    let shop = Shop::open(folder.path(), &server.url(), &clock).await?;
    shop.show("Bolt").await;
    drop(shop.items.get(item).await?);
    shop.until_offline(true, &clock).await?;

    println!("5. The server is back; Bolt has moved, and Cask is no more. Nobody asks for anything:");
    server.start().await?;
    server
        .sql("UPDATE vendors SET city = 'Bodo' WHERE name = 'Bolt'; DELETE FROM vendors WHERE name = 'Cask'")
        .await?;
    shop.until_offline(false, &clock).await?;
    until_warm(&shop).await?;
    shop.show_stats().await?;
    shop.show("Bolt").await;
    shop.show("Cask").await;

    println!("6. Down again for an hour, and what is stale is not wanted any more:");
    server.stop();
    clock.advance(60 * MINUTE);
    shop.show("Acme").await;
    println!("    {} records cleared", shop.all.clear_stale().await?);
    shop.show("Acme").await;
    shop.show_stats().await?;
    shop.close().await?;
    Ok(())
}

async fn until_warm(shop: &Shop) -> Result<(), BoxError> {
    let began = Instant::now();
    while shop.all.stats().await?.iter().any(|stats| stats.stale > 0) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if began.elapsed() > MINUTE {
            return Err("it doesn't get warm".into());
        }
    }
    Ok(())
}

/// A PostgreSQL of the example's own, on a socket in a temporary folder.
struct Server {
    folder: tempfile::TempDir,
    /// PostgreSQL refuses to run as root: whom to be then.
    user: Option<(u32, u32)>,
    child: Option<Child>,
}

impl Server {
    fn new() -> Result<Server, BoxError> {
        let folder = tempfile::tempdir()?;
        // SAFETY: both ask and change nothing; the entry is read before anybody asks again.
        let user = unsafe {
            let nobody =
                if libc::geteuid() == 0 { libc::getpwnam(c"nobody".as_ptr()).as_ref() } else { None };
            nobody.map(|user| (user.pw_uid, user.pw_gid))
        };
        if let Some((uid, gid)) = user {
            std::os::unix::fs::chown(folder.path(), Some(uid), Some(gid))?;
        }
        let server = Server { folder, user, child: None };
        let mut init = server.program("initdb");
        init.args([
            "--username=larder",
            "--auth=trust",
            "--no-sync",
            "--no-instructions",
            "--encoding=UTF8",
            "--locale=C",
        ]);
        let made = init.arg("-D").arg(server.folder.path().join("data")).output()?;
        if !made.status.success() {
            return Err(String::from_utf8_lossy(&made.stderr).into_owned().into());
        }
        Ok(server)
    }

    /// The newest that Debian has installed, else what is on the path.
    fn program(&self, name: &str) -> Command {
        let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let newest =
            versions.map(|version| version.path().join("bin").join(name)).filter(|path| path.exists()).max();
        let mut command = Command::new(newest.unwrap_or_else(|| PathBuf::from(name)));
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn url(&self) -> String {
        format!("host={} user=larder dbname=postgres connect_timeout=5", self.folder.path().display())
    }

    async fn start(&mut self) -> Result<(), BoxError> {
        let mut command = self.program("postgres");
        command.arg("-D").arg(self.folder.path().join("data")).arg("-k").arg(self.folder.path());
        self.child = Some(command.args(["-c", "listen_addresses=", "-c", "fsync=off"]).spawn()?);
        let began = Instant::now();
        while let Err(error) = self.sql("SELECT 1").await {
            if began.elapsed() > MINUTE {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn sql(&self, text: &str) -> Result<(), BoxError> {
        let (client, connection) = tokio_postgres::connect(&self.url(), NoTls).await?;
        tokio::spawn(connection);
        Ok(client.batch_execute(text).await?)
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // SAFETY: a signal to a child that was not waited for: stop at once, in order.
            unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
            drop(child.wait());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}
