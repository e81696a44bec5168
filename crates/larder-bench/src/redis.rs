//! `redis`: the Redis tier beside the `redis` crate's multiplexed connection, `fred` and the Redis backend of
//! `multi-tier-cache`, over a socket to a server that it starts. `hitbox` is left out: it needs `bincode`, which
//! `deny.toml` forbids.

use crate::remote::{self, Call, Keys, Larder, Scale, Server, VALUE, check};
use crate::report::Report;
use crate::stores::Result;
use ::redis::aio::MultiplexedConnection;
use bytes::Bytes;
use fred::interfaces::{ClientLike, KeysInterface};
use larder::backend::{RedisBackend, RedisOptions};
use multi_tier_cache::CacheBackend as _;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);
const STEPS: [(Call, usize); 6] = [
    (Call::Get, 64),
    (Call::Get, 512),
    (Call::GetMany, 64),
    (Call::Load, 64),
    (Call::Set, 64),
    (Call::Remove, 64),
];

#[derive(Clone)]
enum Way {
    Redis(MultiplexedConnection),
    Larder(Larder),
    Fred(fred::clients::Client),
    Tiered(Arc<multi_tier_cache::RedisCache>),
}

impl remote::Way for Way {
    fn does(&self, call: Call) -> bool {
        !(matches!(self, Way::Tiered(_)) && call == Call::GetMany)
    }

    async fn call(&mut self, call: Call, keys: &Keys, at: Range<usize>) -> Result<()> {
        let key = &keys.texts[at.start];
        match (self, call) {
            (Way::Larder(larder), call) => larder.call(call, keys, at).await?,
            (Way::Redis(connection), Call::Get) => {
                let found: Vec<u8> = ::redis::cmd("GET").arg(key).query_async(connection).await?;
                check(found.len())?;
            }
            (Way::Redis(connection), Call::GetMany) => {
                let found: Vec<Vec<u8>> =
                    ::redis::cmd("MGET").arg(&keys.texts[at]).query_async(connection).await?;
                found.iter().try_for_each(|found| check(found.len()))?;
            }
            (Way::Redis(connection), Call::Load | Call::Set) => {
                ::redis::cmd("SET").arg(key).arg(&VALUE[..]).exec_async(connection).await?;
            }
            (Way::Redis(connection), Call::Remove) => {
                ::redis::cmd("DEL").arg(key).exec_async(connection).await?;
            }
            (Way::Fred(client), Call::Get) => {
                let found: Option<Bytes> = client.get(key).await?;
                check(found.map_or(0, |found| found.len()))?;
            }
            (Way::Fred(client), Call::GetMany) => {
                let found: Vec<Bytes> = client.mget(keys.texts[at].to_vec()).await?;
                found.iter().try_for_each(|found| check(found.len()))?;
            }
            (Way::Fred(client), Call::Load | Call::Set) => {
                let _: () = client.set(key, Bytes::from_static(&VALUE), None, None, false).await?;
            }
            (Way::Fred(client), Call::Remove) => {
                let _: i64 = client.del(key).await?;
            }
            (Way::Tiered(cache), Call::Get) => check(cache.get(key).await.map_or(0, |found| found.len()))?,
            (Way::Tiered(_), Call::GetMany) => return Err("it has no call for many keys".into()),
            (Way::Tiered(cache), Call::Load | Call::Set) => {
                cache.set_with_ttl(key, Bytes::from_static(&VALUE), DAY).await?;
            }
            (Way::Tiered(cache), Call::Remove) => cache.remove(key).await?,
        }
        Ok(())
    }
}

pub fn run(is_quick: bool, report: &mut Report) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("redis.sock");
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--save", "", "--dir"]).arg(folder.path()).arg("--unixsocket").arg(&socket);
    let _server = Server::start(&mut command, || UnixStream::connect(&socket).is_ok())?;
    let runtime = remote::runtime()?;
    let ways = runtime.block_on(ways(&socket))?;
    let scale =
        Scale { keys: if is_quick { 2000 } else { 10_000 }, calls: if is_quick { 6000 } else { 40_000 } };
    remote::measure("redis", scale, &ways, &STEPS, &runtime, report)
}

/// The `redis` crate first: the ratios are to it.
async fn ways(socket: &Path) -> Result<Vec<(&'static str, Way)>> {
    let url = format!("unix://{}", socket.display());
    let larder = |prefix: &str, batch_max| -> Result<Way> {
        let options = RedisOptions { prefix: prefix.into(), batch_max, ..RedisOptions::new(&url) };
        Ok(Way::Larder(Larder::of_one_order(RedisBackend::new(options)?)))
    };
    let config = ::redis::AsyncConnectionConfig::new().set_response_timeout(None);
    let client = ::redis::Client::open(&*url)?;
    let redis = client.get_multiplexed_async_connection_with_config(&config).await?;
    let config = fred::types::config::Config::from_url_unix(&format!("redis+{url}"))?;
    let fred = fred::types::Builder::from_config(config).build()?;
    fred.init().await?;
    Ok(vec![
        ("redis", Way::Redis(redis)),
        ("larder-redis", larder("larder", 256)?),
        ("larder-redis unbatched", larder("alone", 1)?),
        ("fred", Way::Fred(fred)),
        ("multi-tier-cache", Way::Tiered(Arc::new(multi_tier_cache::RedisCache::with_url(&url).await?))),
    ])
}
