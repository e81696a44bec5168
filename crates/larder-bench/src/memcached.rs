//! `memcached`: the Memcached tier beside `async-memcached`, at 64 and 512 callers, against one server that it
//! starts. That crate serves one call at a time per connection, so it has one for each caller, and one for all.
//! A load of larder's asks for its ticket here, which is a read: each key has an order of its own.

use crate::remote::{self, Call, Keys, Larder, Scale, Server, VALUE, check};
use crate::report::Report;
use crate::stores::Result;
use async_memcached::{AsciiProtocol, Client};
use larder::backend::{MemcachedBackend, MemcachedOptions};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use tokio::sync::Mutex;

const CALLERS: [usize; 2] = [64, 512];

#[derive(Clone)]
enum Way {
    /// As many connections as there are; callers share them in turns.
    Peer(Vec<Arc<Mutex<Client>>>),
    Larder(Larder),
}

impl remote::Way for Way {
    fn of_caller(&self, caller: usize) -> Self {
        match self {
            Way::Peer(clients) => Way::Peer(vec![clients[caller % clients.len()].clone()]),
            Way::Larder(larder) => Way::Larder(larder.clone()),
        }
    }

    async fn call(&mut self, call: Call, keys: &Keys, at: Range<usize>) -> Result<()> {
        let clients = match self {
            Way::Larder(larder) => return larder.call(call, keys, at).await,
            Way::Peer(clients) => clients,
        };
        let key = &keys.texts[at.start];
        let mut client = clients[0].lock().await;
        match call {
            Call::Get => {
                let found = client.get(key).await?;
                check(found.and_then(|found| found.data).map_or(0, |data| data.len()))
            }
            Call::Load => {
                client.set(key, &VALUE[..], None, None).await?;
                Ok(())
            }
            Call::GetMany | Call::Set | Call::Remove => Err("not measured".into()),
        }
    }
}

pub fn run(is_quick: bool, report: &mut Report) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("memcached.sock");
    let mut command = Command::new("memcached");
    command.args(["-u", "root", "-t", "2", "-m", "256", "-s"]).arg(&socket);
    let _server = Server::start(&mut command, || UnixStream::connect(&socket).is_ok())?;
    let url = format!("unix://{}", socket.display());
    let runtime = remote::runtime()?;
    let scale = Scale { keys: 10_000, calls: if is_quick { 20_000 } else { 60_000 } };
    for callers in CALLERS {
        let ways = runtime.block_on(ways(&url, callers))?;
        let steps = [(Call::Get, callers), (Call::Load, callers)];
        remote::measure("memcached", scale, &ways, &steps, &runtime, report)?;
    }
    Ok(())
}

async fn ways(url: &str, callers: usize) -> Result<[(&'static str, Way); 3]> {
    let mut each = Vec::with_capacity(callers);
    for _ in 0..callers {
        each.push(Arc::new(Mutex::new(Client::new(url).await?)));
    }
    let one = vec![Arc::new(Mutex::new(Client::new(url).await?))];
    let larder = MemcachedBackend::new(MemcachedOptions::new([url]))?;
    Ok([
        ("async-memcached, a connection each", Way::Peer(each)),
        ("async-memcached, one connection", Way::Peer(one)),
        ("larder-memcached", Way::Larder(Larder::of_an_order_each(larder))),
    ])
}
