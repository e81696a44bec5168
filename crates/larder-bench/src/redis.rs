//! `redis`: the Redis tier beside the `redis` crate's multiplexed connection, `fred` and the Redis backend of
//! `multi-tier-cache`, over TCP to a server that it starts, with 64 and 512 calls in flight. `hitbox` is left out:
//! it needs `bincode`, which `deny.toml` forbids.
//!
//! Peers write without a check; the tier's put is a load's, which loses against any removal since its ticket.

use crate::measure::{Clock, interleaved};
use crate::report::Report;
use crate::stores::Result;
use ::larder::backend::{Backend as _, Put, RedisBackend, RedisOptions, Ticket};
use ::larder::clock::NEVER_MS;
use ::larder::entry::{EntryKind, Meta, Tags};
use ::larder::key::{EntryKey, Namespace};
use ::larder::stamp::Stamp;
use ::redis::aio::MultiplexedConnection;
use bytes::Bytes;
use fred::interfaces::{ClientLike, KeysInterface};
use multi_tier_cache::CacheBackend as _;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const VALUE_BYTES: usize = 1024;
const DAY: Duration = Duration::from_secs(86_400);

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// One way to read and write. Cheap to clone: each caller has its own.
#[derive(Clone)]
enum Way {
    Redis(MultiplexedConnection),
    Larder(Arc<RedisBackend>, Ticket),
    Fred(fred::clients::Client),
    Tiered(Arc<multi_tier_cache::RedisCache>),
}

/// A key as each of them wants it, made beforehand.
struct Key {
    text: String,
    entry: EntryKey,
}

impl Way {
    /// The size of the value.
    async fn get(&mut self, key: &Key) -> Result<usize> {
        let found = match self {
            Way::Redis(connection) => {
                let found: Option<Vec<u8>> =
                    ::redis::cmd("GET").arg(&key.text).query_async(connection).await?;
                found.map(|found| found.len())
            }
            Way::Larder(backend, _) => backend.get(&key.entry).await?.found.ok().map(|found| found.len()),
            Way::Fred(client) => {
                let found: Option<Bytes> = client.get(&key.text).await?;
                found.map(|found| found.len())
            }
            Way::Tiered(cache) => cache.get(&key.text).await.map(|found| found.len()),
        };
        Ok(found.unwrap_or(0))
    }

    async fn put(&mut self, key: &Key, value: &Bytes) -> Result<()> {
        match self {
            Way::Redis(connection) => {
                ::redis::cmd("SET").arg(&key.text).arg(&value[..]).exec_async(connection).await?;
            }
            Way::Larder(backend, ticket) => {
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
                let put = Put { key: key.entry.clone(), meta, sealed: value.clone(), ticket: *ticket };
                backend.put(put).await?;
            }
            Way::Fred(client) => client.set(&key.text, value.clone(), None, None, false).await?,
            Way::Tiered(cache) => cache.set_with_ttl(&key.text, value.clone(), DAY).await?,
        }
        Ok(())
    }
}

pub fn run(is_quick: bool, report: &mut Report) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--save", ""]).arg("--dir").arg(folder.path());
    let _server =
        Server(command.stdout(Stdio::null()).spawn().map_err(|error| format!("redis-server: {error}"))?);
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if began.elapsed() > Duration::from_secs(20) {
            return Err("redis-server doesn't answer".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ways = runtime.block_on(connect(&format!("redis://127.0.0.1:{port}")))?;
    let keys = if is_quick { 1000 } else { 10_000 };
    let keys: Arc<[Key]> = (0..keys)
        .map(|at| {
            let text = format!("user-{at:08}-profile");
            let entry = EntryKey::new(&Namespace::default(), &text)?;
            Ok(Key { entry, text })
        })
        .collect::<Result<_>>()?;
    let names: Vec<&str> = ways.iter().map(|(name, _)| *name).collect();
    let calls = if is_quick { 4000 } else { 40_000 };
    for (what, is_put) in [("put", true), ("get", false)] {
        for callers in [64, 512] {
            let mut failed = None;
            let one = |at: usize| {
                let way: &Way = &ways[at].1;
                runtime.block_on(calls_per_second(way, &keys, callers, calls, is_put)).unwrap_or_else(
                    |error| {
                        failed = Some(format!("{}: {error}", names[at]));
                        0.0
                    },
                )
            };
            let case = format!("redis {what} 1 KiB, {callers} in flight");
            let lines = interleaved(&case, "ops_per_s", Clock::Wall, &names, one);
            if let Some(failed) = failed {
                return Err(failed.into());
            }
            report.group(&lines, "ops_per_s");
        }
    }
    Ok(())
}

/// The `redis` crate first: the ratios are to it.
async fn connect(url: &str) -> Result<Vec<(&'static str, Way)>> {
    let larder = async |prefix: &str, batch_max| {
        let options = RedisOptions { prefix: prefix.into(), batch_max, ..RedisOptions::new(url) };
        let backend = Arc::new(RedisBackend::new(options)?);
        let ticket = backend.ticket(&EntryKey::new(&Namespace::default(), "any")?).await?;
        Result::Ok(Way::Larder(backend, ticket))
    };
    let config = ::redis::AsyncConnectionConfig::new().set_response_timeout(None);
    let redis = ::redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await?;
    let fred = fred::types::Builder::from_config(fred::types::config::Config::from_url(url)?).build()?;
    fred.init().await?;
    Ok(vec![
        ("redis", Way::Redis(redis)),
        ("larder-redis", larder("larder", 256).await?),
        ("larder-redis unbatched", larder("alone", 1).await?),
        ("fred", Way::Fred(fred)),
        ("multi-tier-cache", Way::Tiered(Arc::new(multi_tier_cache::RedisCache::with_url(url).await?))),
    ])
}

async fn calls_per_second(
    way: &Way,
    keys: &Arc<[Key]>,
    callers: usize,
    calls: usize,
    is_put: bool,
) -> Result<f64> {
    let began = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let (mut way, keys) = (way.clone(), keys.clone());
            tokio::spawn(async move {
                let value = Bytes::from(vec![7; VALUE_BYTES]);
                for call in 0..calls / callers {
                    // Every key is put by somebody.
                    let key = &keys[(call * callers + caller) % keys.len()];
                    if is_put {
                        way.put(key, &value).await?;
                    } else if way.get(key).await? != VALUE_BYTES {
                        return Err("a value is missing, or another one".into());
                    }
                }
                Result::Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok((calls / callers * callers) as f64 / began.elapsed().as_secs_f64())
}
