//! Hints in Redis: a key for each breaker, which expires by itself.

use super::share::BreakerShare;
use crate::backend::RedisOptions;
use crate::backend::redis::{RedisClient, nonsense};
use crate::clock::millis;
use crate::error::Result;
use async_trait::async_trait;
use redis::Value;
use std::time::Duration;

/// Hints of breakers for all nodes with the same server and [prefix](RedisOptions::prefix): a service that does not
/// call the same endpoints needs another one. The server may be the one whose breaker it is about; then there are
/// no hints while it is down.
#[derive(Debug)]
pub struct RedisBreakers(RedisClient);

impl RedisBreakers {
    /// Checks the settings; connects with the first call.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config), naming the setting and what is allowed.
    pub fn new(options: &RedisOptions) -> Result<Self> {
        Ok(RedisBreakers(RedisClient::new(options)?))
    }

    /// In one slot of a cluster.
    fn key(&self, breaker: &str) -> Vec<u8> {
        format!("{{{}:breakers}}:{breaker}", self.0.prefix()).into_bytes()
    }
}

#[async_trait]
impl BreakerShare for RedisBreakers {
    async fn tell(&self, breaker: &str, opening: u64, lasting: Duration) -> Result<()> {
        let key = self.key(breaker);
        let mut set = redis::cmd("SET");
        set.arg(&key).arg(opening).arg("PX").arg(millis(lasting).max(1));
        self.0.command("tell", &key, &set).await.map(drop)
    }

    async fn heard(&self, breakers: &[String]) -> Result<Vec<Option<u64>>> {
        let keys: Vec<_> = breakers.iter().map(|breaker| self.key(breaker)).collect();
        let Some(first) = keys.first() else { return Ok(Vec::new()) };
        let mut get = redis::cmd("MGET");
        get.arg(&keys);
        let Value::Array(told) = self.0.command("hear", first, &get).await? else {
            return Err(nonsense("hear"));
        };
        // What is no number was not told by larder.
        let opening = |told| match told {
            Value::BulkString(text) => std::str::from_utf8(&text).ok()?.parse().ok(),
            _ => None,
        };
        Ok(told.into_iter().map(opening).collect())
    }
}
