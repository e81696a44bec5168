//! `memcached`: the Memcached tier beside `async-memcached`, at 64 and 512 callers, against one server that it
//! starts. That crate serves one call at a time per connection, so it has one for each caller, and one for all.

use crate::measure::{Clock, interleaved};
use crate::report::Report;
use async_memcached::{AsciiProtocol, Client};
use bytes::Bytes;
use larder::backend::{Backend, MemcachedBackend, MemcachedOptions, Put};
use larder::clock::NEVER_MS;
use larder::entry::{EntryKind, Meta, Tags};
use larder::key::{EntryKey, Namespace};
use larder::stamp::Stamp;
use std::error::Error;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Mutex;

const KEYS: usize = 10_000;
const VALUE_BYTES: usize = 1024;
const CALLERS: [usize; 2] = [64, 512];
const STARTS_WITHIN: Duration = Duration::from_secs(10);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Server(Child);

impl Server {
    fn start(socket: &Path) -> Result<Server> {
        let mut command = Command::new("memcached");
        let child = command.args(["-u", "root", "-t", "2", "-m", "256", "-s"]).arg(socket).spawn();
        let server = Server(child.map_err(|error| format!("memcached has to be installed: {error}"))?);
        let began = Instant::now();
        while !socket.exists() {
            if began.elapsed() > STARTS_WITHIN {
                return Err("memcached doesn't begin to listen".into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// One way to read and write.
enum Way {
    /// As many connections as there are; callers share them in turns.
    Peer(Vec<Arc<Mutex<Client>>>),
    Larder(Arc<MemcachedBackend>),
}

#[derive(Clone, Copy)]
enum Call {
    Get,
    Put,
}

pub fn run(is_quick: bool, report: &mut Report) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("memcached.sock");
    let _server = Server::start(&socket)?;
    let url = format!("unix://{}", socket.display());
    // As many threads as two cores leave to a client that shares them with its server.
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let calls = if is_quick { 20_000 } else { 60_000 };
    let names: Arc<Vec<String>> = Arc::new((0..KEYS).map(|i| format!("key{i}")).collect());
    for callers in CALLERS {
        let ways = runtime.block_on(ways(&url, callers))?;
        for way in &ways {
            // One caller, so that every key has a value.
            round(&runtime, way, &names, 1, KEYS, Call::Put)?;
        }
        for (what, call) in [("get", Call::Get), ("put", Call::Put)] {
            let case = format!("memcached {what} of 1 KiB, {callers} callers");
            let subjects =
                ["async-memcached, a connection each", "async-memcached, one connection", "larder"];
            let mut failed = None;
            let lines = interleaved(&case, "ops_per_s", Clock::Wall, &subjects, |at| {
                match round(&runtime, &ways[at], &names, callers, calls, call) {
                    Ok(took) => calls as f64 / took.as_secs_f64(),
                    Err(error) => {
                        failed = Some(error);
                        0.0
                    }
                }
            });
            if let Some(error) = failed {
                return Err(error);
            }
            report.group(&lines, "ops_per_s");
        }
    }
    Ok(())
}

async fn ways(url: &str, callers: usize) -> Result<[Way; 3]> {
    let mut each = Vec::with_capacity(callers);
    for _ in 0..callers {
        each.push(Arc::new(Mutex::new(Client::new(url).await?)));
    }
    let one = vec![Arc::new(Mutex::new(Client::new(url).await?))];
    let larder = MemcachedBackend::new(MemcachedOptions::new([url]))?;
    Ok([Way::Peer(each), Way::Peer(one), Way::Larder(Arc::new(larder))])
}

/// Each caller makes one call after the other.
fn round(
    runtime: &Runtime,
    way: &Way,
    names: &Arc<Vec<String>>,
    callers: usize,
    calls: usize,
    call: Call,
) -> Result<Duration> {
    runtime.block_on(async {
        let began = Instant::now();
        let tasks: Vec<_> = (0..callers)
            .map(|caller| {
                let names = names.clone();
                let places = (0..calls / callers + 1).map(move |i| (caller * 977 + i) % KEYS);
                match way {
                    Way::Peer(clients) => {
                        tokio::spawn(peer(clients[caller % clients.len()].clone(), names, places, call))
                    }
                    Way::Larder(backend) => tokio::spawn(larder(backend.clone(), names, places, call)),
                }
            })
            .collect();
        for task in tasks {
            task.await?.map_err(|error| -> Box<dyn Error> { error.into() })?;
        }
        Ok(began.elapsed())
    })
}

async fn peer(
    client: Arc<Mutex<Client>>,
    names: Arc<Vec<String>>,
    places: impl Iterator<Item = usize> + Send,
    call: Call,
) -> std::result::Result<(), String> {
    let value = [7_u8; VALUE_BYTES];
    for place in places {
        let mut client = client.lock().await;
        match call {
            Call::Get => {
                let found = client.get(&names[place]).await.map_err(|error| error.to_string())?;
                let length = found.and_then(|found| found.data).map_or(0, |data| data.len());
                if length != VALUE_BYTES {
                    return Err(format!("a value of {length} bytes"));
                }
            }
            Call::Put => {
                let stored = client.set(&names[place], &value[..], None, None).await;
                stored.map_err(|error| error.to_string())?;
            }
        }
    }
    Ok(())
}

async fn larder(
    backend: Arc<MemcachedBackend>,
    names: Arc<Vec<String>>,
    places: impl Iterator<Item = usize> + Send,
    call: Call,
) -> std::result::Result<(), String> {
    let sealed = Bytes::from(vec![7; VALUE_BYTES]);
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
    for place in places {
        let failed = |error: larder::Error| error.to_string();
        let key = EntryKey::new(&Namespace::default(), &names[place]).map_err(failed)?;
        match call {
            Call::Get => {
                let found = backend.get(&key).await.map_err(failed)?.found;
                if found.as_ref().map_or(0, Bytes::len) != VALUE_BYTES {
                    return Err(format!("found {:?}", found.map(|found| found.len())));
                }
            }
            // As a load does: a ticket first, which is a read.
            Call::Put => {
                let ticket = backend.ticket(&key).await.map_err(failed)?;
                let put = Put { key, meta: meta.clone(), sealed: sealed.clone(), ticket };
                backend.put(put).await.map_err(failed)?;
            }
        }
    }
    Ok(())
}
