//! What the Redis tier costs beside the `redis` crate alone: calls per second with 64 and 512 callers, in
//! alternating rounds against one server, which it starts. The ratios are what to look at.
//!
//! `cargo run --release -p larder --features redis --example redis_figures`

#![allow(clippy::print_stdout, reason = "its output is the point")]

use bytes::Bytes;
use larder::backend::{Backend, Put, RedisBackend, RedisOptions};
use larder::clock::NEVER_MS;
use larder::entry::{EntryKind, Meta, Tags};
use larder::key::{EntryKey, Namespace};
use larder::stamp::Stamp;
use redis::aio::MultiplexedConnection;
use std::error::Error;
use std::future::Future;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const KEYS: usize = 10_000;
const VALUE_BYTES: usize = 1024;
const CALLS: usize = 60_000;
const ROUNDS: usize = 7;

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("redis.sock");
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--save", ""]).arg("--unixsocket").arg(&socket).stdout(Stdio::null());
    let _server = Server(command.spawn()?);
    while !socket.exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let url = format!("unix://{}", socket.display());
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(measure(&url))
}

/// One way to read and write.
#[derive(Clone)]
enum Way {
    Raw(MultiplexedConnection),
    Larder(Arc<RedisBackend>),
}

async fn measure(url: &str) -> Result<(), Box<dyn Error>> {
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    let raw = redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await?;
    let alone = RedisOptions { batch_max: 1, ..RedisOptions::new(url) };
    let ways = [
        ("redis crate", Way::Raw(raw)),
        ("larder, coalesced", Way::Larder(Arc::new(RedisBackend::new(RedisOptions::new(url))?))),
        ("larder, each by itself", Way::Larder(Arc::new(RedisBackend::new(alone)?))),
    ];
    let names: Arc<Vec<EntryKey>> = Arc::new(
        (0..KEYS)
            .map(|i| EntryKey::new(&Namespace::default(), &format!("key {i}")))
            .collect::<Result<_, _>>()?,
    );
    for (_, way) in &ways {
        run(way, &names, 64, CALLS, true).await;
    }
    for (what, is_put) in [("get", false), ("put", true)] {
        for callers in [64, 512] {
            let mut rates = vec![Vec::new(); ways.len()];
            for _ in 0..ROUNDS {
                for (place, (_, way)) in ways.iter().enumerate() {
                    let took = run(way, &names, callers, CALLS, is_put).await;
                    rates[place].push(CALLS as f64 / took.as_secs_f64());
                }
            }
            println!("{what} of {VALUE_BYTES} bytes, {callers} in flight");
            let ratios = |place: usize| -> Vec<f64> {
                rates[place].iter().zip(&rates[0]).map(|(rate, raw)| rate / raw).collect()
            };
            for (place, (name, _)) in ways.iter().enumerate() {
                let ratios = ratios(place);
                let (low, high) = ratios
                    .iter()
                    .fold((f64::MAX, 0.0_f64), |(low, high), &ratio| (low.min(ratio), high.max(ratio)));
                println!(
                    "  {name:24} {:8.0}/s  {:.2} x ({low:.2} to {high:.2})",
                    median(rates[place].clone()),
                    median(ratios)
                );
            }
        }
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn run(way: &Way, names: &Arc<Vec<EntryKey>>, callers: usize, calls: usize, is_put: bool) -> Duration {
    let began = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let (way, names) = (way.clone(), names.clone());
            let count = calls / callers;
            let work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> = match (way, is_put) {
                (Way::Raw(connection), _) => Box::pin(raw(connection, names, caller, count, is_put)),
                (Way::Larder(backend), _) => Box::pin(larder(backend, names, caller, count, is_put)),
            };
            tokio::spawn(work)
        })
        .collect();
    for task in tasks {
        task.await.expect("no caller panics");
    }
    began.elapsed()
}

async fn raw(
    mut connection: MultiplexedConnection,
    names: Arc<Vec<EntryKey>>,
    caller: usize,
    count: usize,
    is_put: bool,
) {
    let body = vec![7_u8; VALUE_BYTES];
    for i in 0..count {
        let name = &names[(caller * 977 + i * 31) % KEYS].as_bytes()[..];
        if is_put {
            redis::cmd("SET").arg(name).arg(&body).exec_async(&mut connection).await.expect("it answers");
        } else {
            let found: Option<Vec<u8>> =
                redis::cmd("GET").arg(name).query_async(&mut connection).await.expect("it answers");
            assert!(found.is_some_and(|found| found.len() == VALUE_BYTES));
        }
    }
}

async fn larder(
    backend: Arc<RedisBackend>,
    names: Arc<Vec<EntryKey>>,
    caller: usize,
    count: usize,
    is_put: bool,
) {
    let sealed = Bytes::from(vec![7; VALUE_BYTES]);
    let ticket = backend.ticket(&names[0]).await.expect("it answers");
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
    for i in 0..count {
        let key = &names[(caller * 977 + i * 31) % KEYS];
        if is_put {
            let put = Put { key: key.clone(), meta: meta.clone(), sealed: sealed.clone(), ticket };
            backend.put(put).await.expect("it answers");
        } else {
            let found = backend.get(key).await.expect("it answers").found;
            assert!(found.is_ok_and(|found| found.len() == VALUE_BYTES));
        }
    }
}
