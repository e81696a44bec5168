//! What taking and releasing a lock in Redis costs beside a bare `SET NX PX` and a script that deletes, one after
//! the other on one connection, in alternating rounds against one server, which it starts.
//!
//! `cargo run --release -p larder --features redis --example lock_figures`

#![allow(clippy::print_stdout, reason = "its output is the point")]

use larder::backend::RedisOptions;
use larder::lock::{Locks, RedisLocks};
use redis::aio::MultiplexedConnection;
use std::error::Error;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const LOCKS: u32 = 2000;
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

async fn measure(url: &str) -> Result<(), Box<dyn Error>> {
    let mut raw = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    let locks = Locks::new(Arc::new(RedisLocks::new(&RedisOptions::new(url))?));
    let alone = RedisOptions { batch_max: 1, prefix: "alone".to_owned(), ..RedisOptions::new(url) };
    let alone = Locks::new(Arc::new(RedisLocks::new(&alone)?));
    let (mut bare, mut coalesced, mut single) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        for _ in 0..LOCKS {
            set_and_delete(&mut raw).await?;
        }
        bare.push(began.elapsed());
        for (locks, took) in [(&locks, &mut coalesced), (&alone, &mut single)] {
            let began = Instant::now();
            for _ in 0..LOCKS {
                let lease = locks.lock("x").await?;
                lease.release().await?;
            }
            took.push(began.elapsed());
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times[ROUNDS / 2] / LOCKS
    };
    let bare = median(&mut bare);
    println!("SET NX PX, then EVALSHA of GET and DEL: {bare:?}");
    for (name, times) in [("larder, coalesced", &mut coalesced), ("larder, each by itself", &mut single)] {
        let took = median(times);
        println!("{name}: {took:?}, {:.2} times that", took.as_secs_f64() / bare.as_secs_f64());
    }
    Ok(())
}

async fn set_and_delete(raw: &mut MultiplexedConnection) -> Result<(), Box<dyn Error>> {
    const DELETE: &str =
        "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";
    let mut set = redis::cmd("SET");
    set.arg("bare").arg("owner").arg("NX").arg("PX").arg(10_000);
    let _: redis::Value = set.query_async(raw).await?;
    let _: redis::Value = redis::Script::new(DELETE).key("bare").arg("owner").invoke_async(raw).await?;
    Ok(())
}
