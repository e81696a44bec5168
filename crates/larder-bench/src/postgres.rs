//! `postgres`: the PostgreSQL tier beside `tokio-postgres` with prepared statements on a plain table, pipelined on one
//! connection, over a socket to a server that it starts and that never waits for the disk.

use crate::remote::{self, Call, Keys, Larder, Scale, VALUE, check};
use crate::report::Report;
use crate::stores::Result;
use larder::backend::{PostgresBackend, PostgresOptions};
use std::ops::Range;
use std::sync::Arc;
use tokio_postgres::{Client, NoTls, Statement};

#[allow(clippy::unwrap_used, reason = "the tests' own, of which this needs the server")]
#[path = "../../larder/tests/postgres_support/mod.rs"]
mod postgres_support;

const STEPS: [(Call, usize); 6] = [
    (Call::Get, 64),
    (Call::Get, 512),
    (Call::GetMany, 64),
    (Call::Load, 64),
    (Call::Set, 64),
    (Call::Remove, 64),
];

/// A plain table.
struct Raw {
    client: Client,
    get: Statement,
    get_many: Statement,
    put: Statement,
    remove: Statement,
}

impl Raw {
    async fn open(url: &str, table: &str, kind: &str) -> Result<Way> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        // It ends with the client.
        tokio::spawn(connection);
        let create = format!("CREATE {kind} TABLE {table} (key bytea PRIMARY KEY, value bytea NOT NULL)");
        client.batch_execute(&create).await?;
        let put = format!(
            "INSERT INTO {table} VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        );
        Ok(Way::Raw(Arc::new(Raw {
            get: client.prepare(&format!("SELECT value FROM {table} WHERE key = $1")).await?,
            get_many: client.prepare(&format!("SELECT value FROM {table} WHERE key = ANY($1)")).await?,
            put: client.prepare(&put).await?,
            remove: client.prepare(&format!("DELETE FROM {table} WHERE key = $1")).await?,
            client,
        })))
    }

    async fn call(&self, call: Call, keys: &Keys, at: Range<usize>) -> Result<()> {
        let key = keys.texts[at.start].as_bytes();
        match call {
            Call::Get => {
                let row = self.client.query_one(&self.get, &[&key]).await?;
                check(row.get::<_, Vec<u8>>(0).len())
            }
            Call::GetMany => {
                let many: Vec<&[u8]> = keys.texts[at].iter().map(String::as_bytes).collect();
                let rows = self.client.query(&self.get_many, &[&many]).await?;
                if rows.len() != many.len() {
                    return Err(format!("{} rows", rows.len()).into());
                }
                rows.iter().try_for_each(|row| check(row.get::<_, Vec<u8>>(0).len()))
            }
            Call::Load | Call::Set => {
                self.client.execute(&self.put, &[&key, &&VALUE[..]]).await?;
                Ok(())
            }
            Call::Remove => {
                self.client.execute(&self.remove, &[&key]).await?;
                Ok(())
            }
        }
    }
}

#[derive(Clone)]
enum Way {
    Raw(Arc<Raw>),
    Larder(Larder),
}

impl remote::Way for Way {
    async fn call(&mut self, call: Call, keys: &Keys, at: Range<usize>) -> Result<()> {
        match self {
            Way::Raw(raw) => raw.call(call, keys, at).await,
            Way::Larder(larder) => larder.call(call, keys, at).await,
        }
    }
}

pub fn run(is_quick: bool, report: &mut Report) -> Result<()> {
    let server = postgres_support::Server::start(&["shared_buffers=128MB"]);
    let runtime = remote::runtime()?;
    let ways = runtime.block_on(ways(&server.url()))?;
    let scale =
        Scale { keys: if is_quick { 1000 } else { 5000 }, calls: if is_quick { 2000 } else { 10_000 } };
    remote::measure("postgres", scale, &ways, &STEPS, &runtime, report)
}

/// The plain unlogged table first: the ratios are to it.
async fn ways(url: &str) -> Result<Vec<(&'static str, Way)>> {
    let larder = |schema: &str, logged, batch_max| -> Result<Way> {
        let options =
            PostgresOptions { schema: schema.to_owned(), logged, batch_max, ..PostgresOptions::new(url) };
        Ok(Way::Larder(Larder::of_one_order(PostgresBackend::new(options)?)))
    };
    Ok(vec![
        ("tokio-postgres", Raw::open(url, "plain", "UNLOGGED").await?),
        ("larder-postgres", larder("unlogged", false, 256)?),
        ("larder-postgres unbatched", larder("alone", false, 1)?),
        ("tokio-postgres logged", Raw::open(url, "plain_logged", "").await?),
        ("larder-postgres logged", larder("logged", true, 256)?),
    ])
}
