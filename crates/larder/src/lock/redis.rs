//! Leases in Redis, one Lua script for each step.
//!
//! `P` is the prefix, `n` one of 16 shards, chosen by the name; its hash tag keeps what a script touches in one
//! slot of a cluster:
//!
//! | key | type | holds |
//! |---|---|---|
//! | `{P:lock:n}:<name>` | string, with its TTL | `<token> <id of the claim> <owner>` |
//! | `{P:lock:n}#` | string | the last token |
//! | `{P:lock:n}@<owner>` | set | the names of the owner's leases; it lives as long as the longest of them |

use super::{Acquired, Claim, LockBackend, LockInfo};
use crate::backend::RedisOptions;
use crate::backend::redis::{RedisClient, RedisScript, nonsense};
use crate::clock::millis;
use crate::error::Result;
use async_trait::async_trait;
use redis::Value;
use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;

/// Slots over which locks are spread: enough for the nodes of a cluster, few enough to visit all.
const SHARDS: u64 = 16;

static ACQUIRE: LazyLock<RedisScript> =
    LazyLock::new(|| RedisScript::new(include_str!("scripts/acquire.lua")));
static EXTEND: LazyLock<RedisScript> = LazyLock::new(|| RedisScript::new(include_str!("scripts/extend.lua")));
static RELEASE: LazyLock<RedisScript> =
    LazyLock::new(|| RedisScript::new(include_str!("scripts/release.lua")));
static RELEASE_ALL: LazyLock<RedisScript> =
    LazyLock::new(|| RedisScript::new(include_str!("scripts/release_all.lua")));
static INFO: LazyLock<RedisScript> = LazyLock::new(|| RedisScript::new(include_str!("scripts/info.lua")));

/// Leases in Redis, for all nodes that use the same server and prefix.
///
/// The server's clock ends a lease. Tokens grow over restarts of the server, also without its data: each is at
/// least its time in microseconds. They may repeat, and two may hold a lock at once, where a server loses what it
/// acknowledged *and* its clock goes back: a replica that takes over from a master it lagged behind, with a clock
/// that lags more. Evicting policies (`maxmemory-policy allkeys-*`) may end a lease early. Its connections are its
/// own, made from the options of a tier: [`batch_max`](RedisOptions::batch_max), the timeouts and all that says
/// where the server is apply.
pub struct RedisLocks {
    client: RedisClient,
}

impl RedisLocks {
    /// Checks the settings; connects with the first call.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config), naming the setting and what is allowed.
    pub fn new(options: &RedisOptions) -> Result<Self> {
        Ok(RedisLocks { client: RedisClient::new(options)? })
    }

    fn shard(&self, shard: u64) -> String {
        format!("{{{}:lock:{shard}}}", self.client.prefix())
    }

    fn keys(&self, name: &str, owner: &str) -> Keys {
        let shard = self.shard(xxhash_rust::xxh3::xxh3_64(name.as_bytes()) % SHARDS);
        let key = |mark: &str, rest: &str| [shard.as_bytes(), mark.as_bytes(), rest.as_bytes()].concat();
        Keys { lease: key(":", name), counter: key("#", ""), owned: key("@", owner) }
    }
}

/// The names of what a script touches.
struct Keys {
    lease: Vec<u8>,
    counter: Vec<u8>,
    owned: Vec<u8>,
}

fn id(claim: &Claim) -> String {
    format!("{:016x}", claim.id)
}

/// What `PTTL` says. A lease without one is none of larder's making, and lasts until somebody removes it.
fn left(pttl: i64) -> Duration {
    u64::try_from(pttl).map_or(Duration::MAX, Duration::from_millis)
}

fn is_one(operation: &'static str, reply: &Value) -> Result<bool> {
    match reply {
        Value::Int(number) => Ok(*number == 1),
        _ => Err(nonsense(operation)),
    }
}

#[async_trait]
impl LockBackend for RedisLocks {
    fn name(&self) -> &str {
        "redis"
    }

    async fn acquire(&self, name: &str, claim: &Claim, ttl: Duration) -> Result<Acquired> {
        let Keys { lease, counter, owned } = self.keys(name, &claim.owner);
        let (id, ttl) = (id(claim), millis(ttl).to_string());
        let args = [id.as_bytes(), claim.owner.as_bytes(), ttl.as_bytes(), name.as_bytes()];
        let reply = self.client.eval("lock", &ACQUIRE, &[lease, counter, owned], &args).await?;
        if let Value::Array(parts) = &reply {
            match &parts[..] {
                [Value::Int(0), Value::Int(pttl)] => return Ok(Acquired::Held { left: left(*pttl) }),
                [Value::Int(1), Value::BulkString(token)] => {
                    let token = std::str::from_utf8(token).ok().and_then(|token| token.parse().ok());
                    if let Some(token) = token {
                        return Ok(Acquired::Granted { token });
                    }
                }
                _ => {}
            }
        }
        Err(nonsense("lock"))
    }

    async fn extend(&self, name: &str, claim: &Claim, ttl: Duration) -> Result<bool> {
        let Keys { lease, owned, .. } = self.keys(name, &claim.owner);
        let (id, ttl) = (id(claim), millis(ttl).to_string());
        let args = [id.as_bytes(), ttl.as_bytes(), name.as_bytes()];
        is_one("extend", &self.client.eval("extend", &EXTEND, &[lease, owned], &args).await?)
    }

    async fn release(&self, name: &str, claim: &Claim) -> Result<bool> {
        let Keys { lease, owned, .. } = self.keys(name, &claim.owner);
        let id = id(claim);
        let args = [id.as_bytes(), name.as_bytes()];
        is_one("release", &self.client.eval("release", &RELEASE, &[lease, owned], &args).await?)
    }

    async fn release_all(&self, owner: &str) -> Result<u64> {
        let mut released = 0;
        for shard in 0..SHARDS {
            let shard = self.shard(shard);
            let owned = format!("{shard}@{owner}").into_bytes();
            let leases = format!("{shard}:");
            let args = [owner.as_bytes(), leases.as_bytes()];
            match self.client.eval("release all", &RELEASE_ALL, &[owned], &args).await? {
                Value::Int(number) => released += u64::try_from(number).unwrap_or(0),
                _ => return Err(nonsense("release all")),
            }
        }
        Ok(released)
    }

    async fn info(&self, name: &str) -> Result<Option<LockInfo>> {
        let Keys { lease, .. } = self.keys(name, "");
        let reply = self.client.eval("lock info", &INFO, &[lease], &[]).await?;
        let Value::Array(parts) = reply else { return Err(nonsense("lock info")) };
        let [Value::BulkString(held), Value::Int(pttl)] = &parts[..] else { return Ok(None) };
        let held = String::from_utf8_lossy(held);
        let mut fields = held.splitn(3, ' ');
        let token = fields.next().and_then(|token| token.parse().ok());
        let (Some(token), Some(owner)) = (token, fields.nth(1)) else { return Err(nonsense("lock info")) };
        Ok(Some(LockInfo { owner: owner.to_owned(), token, left: left(*pttl) }))
    }
}

/// Without credentials.
impl fmt::Debug for RedisLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLocks").field("server", &self.client).finish_non_exhaustive()
    }
}
