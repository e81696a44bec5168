//! Leases in PostgreSQL: a row each, in the schema of the tier; one statement for each step.

use super::{Acquired, Claim, LockBackend, LockInfo};
use crate::backend::PostgresOptions;
use crate::backend::postgres::{Param, PostgresClient, Sql, column, nonsense};
use crate::clock::millis;
use crate::error::Result;
use async_trait::async_trait;
use std::time::Duration;

/// Leases in PostgreSQL, for all nodes that use the same database and schema.
///
/// The server's clock ends a lease. Tokens come from a sequence that is logged, also where the tables are not, and so
/// grow over restarts and crashes of the server. They may repeat where it loses what it acknowledged: it crashes
/// with `synchronous_commit = off`, a replica that lagged behind takes over, an older backup is restored. Leases in
/// unlogged tables end with a crash. It has a connection of its own; who waits looks again after pauses.
#[derive(Debug)]
pub struct PostgresLocks(PostgresClient);

impl PostgresLocks {
    /// Checks the settings; connects with the first call, which makes the schema if nobody has.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config), naming the setting and what is allowed.
    pub fn new(options: &PostgresOptions) -> Result<Self> {
        Ok(PostgresLocks(PostgresClient::new(options)?))
    }
}

/// As PostgreSQL has 64 bits.
fn id(claim: &Claim) -> i64 {
    claim.id as i64
}

fn bytes(text: &str) -> Param {
    Box::new(text.as_bytes().to_vec())
}

fn left(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(1).max(1))
}

fn ttl_ms(ttl: Duration) -> i64 {
    i64::try_from(millis(ttl)).unwrap_or(i64::MAX)
}

#[async_trait]
impl LockBackend for PostgresLocks {
    fn name(&self) -> &str {
        "postgres"
    }

    async fn acquire(&self, name: &str, claim: &Claim, ttl: Duration) -> Result<Acquired> {
        let owner = bytes(&claim.owner);
        let rows = self
            .0
            .query("lock", Sql::Lease, vec![bytes(name), owner, Box::new(id(claim)), Box::new(ttl_ms(ttl))])
            .await?;
        let row = rows.first().ok_or_else(|| nonsense("lock"))?;
        if let Some(token) = column::<Option<i64>>("lock", row, 0)? {
            let token = u64::try_from(token).map_err(|_| nonsense("lock"))?;
            return Ok(Acquired::Granted { token });
        }
        let left_ms = column::<Option<i64>>("lock", row, 1)?.ok_or_else(|| nonsense("lock"))?;
        Ok(Acquired::Held { left: left(left_ms) })
    }

    async fn extend(&self, name: &str, claim: &Claim, ttl: Duration) -> Result<bool> {
        let owner = bytes(&claim.owner);
        let rows = self
            .0
            .query(
                "extend",
                Sql::Extend,
                vec![bytes(name), owner, Box::new(id(claim)), Box::new(ttl_ms(ttl))],
            )
            .await?;
        Ok(!rows.is_empty())
    }

    async fn release(&self, name: &str, claim: &Claim) -> Result<bool> {
        let owner = bytes(&claim.owner);
        let rows =
            self.0.query("release", Sql::Release, vec![bytes(name), owner, Box::new(id(claim))]).await?;
        Ok(!rows.is_empty())
    }

    async fn release_all(&self, owner: &str) -> Result<u64> {
        let rows = self.0.query("release all", Sql::ReleaseAll, vec![bytes(owner)]).await?;
        let row = rows.first().ok_or_else(|| nonsense("release all"))?;
        u64::try_from(column::<i64>("release all", row, 0)?).map_err(|_| nonsense("release all"))
    }

    async fn info(&self, name: &str) -> Result<Option<LockInfo>> {
        let rows = self.0.query("lock info", Sql::LeaseInfo, vec![bytes(name)]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let token = u64::try_from(column::<i64>("lock info", row, 1)?).map_err(|_| nonsense("lock info"))?;
        Ok(Some(LockInfo {
            owner: String::from_utf8_lossy(column("lock info", row, 0)?).into_owned(),
            token,
            left: left(column("lock info", row, 2)?),
        }))
    }
}
