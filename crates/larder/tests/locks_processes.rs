//! One load per cluster while the lock is healthy, one per node while it is not, and never a hang.
//!
//! The failures that this prevents: a cold key that many nodes ask for at once is loaded by each of them; a node
//! that dies or stands still while it loads keeps the others waiting, or puts an old value over theirs; a lock
//! that fails takes the loads with it. Nodes are processes, stopped and killed like any.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(all(feature = "redis", target_os = "linux"))]

mod redis_support;

use larder::backend::{RedisBackend, RedisOptions};
use larder::lock::{LockOptions, Locks, RedisLocks};
use larder::{Cache, EntryOptions, LoadLockOptions};
use redis_support::Server;
use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const CHILD: &str = "LARDER_TEST_LOCKS_CHILD";
/// How long to wait for what has to come.
const PATIENCE: Duration = Duration::from_secs(60);
/// Callers of the cold key, over two processes.
const CALLERS: u64 = 10_000;
/// Of a lease whose holder dies or stands still.
const TTL: Duration = Duration::from_secs(1);

/// What a node is told in its environment.
struct Job {
    role: String,
    tier: String,
    /// "-": none.
    lock: String,
    folder: PathBuf,
}

/// A node of the test, killed at the end.
struct Node {
    process: Child,
    lines: Receiver<String>,
    /// What it said and nobody has asked for yet.
    said: RefCell<Vec<String>>,
}

impl Node {
    fn start(role: &str, tier: &Server, lock: Option<&Server>, folder: &TempDir) -> Node {
        let lock = lock.map_or("-".to_owned(), Server::unix);
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["child_is_a_node", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, format!("{role} {} {lock} {}", tier.unix(), folder.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let errors = BufReader::new(process.stderr.take().unwrap());
        std::thread::spawn(move || {
            errors.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
        });
        Node { process, lines, said: RefCell::default() }
    }

    /// What follows the word on the line that begins with it, once there is one.
    fn says(&self, word: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(rest) = self.has_said(word) {
                return rest;
            }
            let said = self.said.borrow().join("\n");
            assert!(Instant::now() < until, "a node never said \"{word}\", but: {said}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The same, if there is one already.
    fn has_said(&self, word: &str) -> Option<String> {
        let mut said = self.said.borrow_mut();
        said.extend(self.lines.try_iter());
        let line = said.iter().position(|line| line.split(' ').next() == Some(word))?;
        Some(said.remove(line)[word.len()..].trim().to_owned())
    }

    fn tell(&mut self, line: &str) {
        self.process.stdin.as_mut().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a signal to a child that was not waited for.
        assert_eq!(unsafe { libc::kill(self.process.id() as i32, signal) }, 0);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn say(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// The process that is a node.
#[test]
fn child_is_a_node() {
    let Ok(job) = std::env::var(CHILD) else { return };
    let fields: Vec<&str> = job.splitn(4, ' ').collect();
    let [role, tier, lock, folder] = fields[..] else { panic!("{job}") };
    let job = Job { role: role.into(), tier: tier.into(), lock: lock.into(), folder: folder.into() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        match &job.role[..] {
            "crowd" => crowd(&job, CALLERS / 2, LoadLockOptions::default().ttl(PATIENCE)).await,
            "one" => crowd(&job, 1, LoadLockOptions::default().ttl(TTL)).await,
            "holder" => holder(&job).await,
            role => panic!("{role}"),
        }
    });
}

fn locks(job: &Job) -> Locks {
    Locks::new(Arc::new(RedisLocks::new(&RedisOptions::new(&job.lock)).unwrap()))
}

/// Many callers of one key, whose loader waits for the parent's word.
async fn crowd(job: &Job, callers: u64, options: LoadLockOptions) {
    let defaults = EntryOptions::default().load_timeout_hard(4 * PATIENCE);
    let mut builder = Cache::<u64, String>::builder()
        .defaults(defaults)
        .tier(Arc::new(RedisBackend::new(RedisOptions::new(&job.tier)).unwrap()));
    if job.lock != "-" {
        // A call to a lock that hangs is given up soon; one to a busy machine's is not.
        let call_timeout = if job.folder.join("lock hangs").exists() { TTL } else { PATIENCE };
        builder = builder.load_lock_with(locks(job), options.wait(PATIENCE).call_timeout(call_timeout));
    }
    let cache = builder.build().unwrap();
    // What begins before a node knows what the others did is loaded anew once it does.
    cache.get(&0).await;
    while cache.stats().bus.is_none_or(|bus| bus.is_suspect) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let before = cache.stats().misses;
    let calls: Vec<_> = (0..callers)
        .map(|_| {
            let (cache, folder) = (cache.clone(), job.folder.clone());
            tokio::spawn(async move { cache.get_or_load(&7, move |_| load(folder)).await.unwrap() })
        })
        .collect();
    while cache.stats().misses < before + callers {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    say("begun");
    let watched = cache.clone();
    let awaited = tokio::spawn(async move {
        while watched.stats().loads_awaited == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        say("awaited");
    });
    let mut values = Vec::new();
    for call in calls {
        values.push(call.await.unwrap());
    }
    awaited.abort();
    values.dedup();
    let stats = cache.stats();
    say(&format!("done {} {} {}", stats.loads, stats.loads_unlocked, values.join(" and ")));
    cache.close().await.unwrap();
    say("closed");
}

/// Takes the source's value as it is when the load begins, and returns when the parent says so.
async fn load(folder: PathBuf) -> std::io::Result<String> {
    let value = std::fs::read_to_string(folder.join("source"))?;
    say("loading");
    while !folder.join("go").exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(value)
}

/// Takes a lock, and says with which token it would write when it is told to.
async fn holder(job: &Job) {
    let lease = locks(job).lock_with("resource", &LockOptions::default().ttl(TTL)).await.unwrap();
    say(&format!("token {}", lease.token()));
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    say(&format!("write {} {}", lease.token(), lease.is_held()));
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("source"), "old").unwrap();
    folder
}

fn let_go(folder: &Path) {
    std::fs::write(folder.join("go"), "").unwrap();
}

/// Two processes with half of the callers each; the loads of each and those without a lease.
fn two_crowds(lock: Option<&Server>, loads: usize, folder: &TempDir) -> [(u64, u64); 2] {
    let tier = Server::start(&[]);
    let nodes = [(); 2].map(|()| Node::start("crowd", &tier, lock, folder));
    nodes.iter().for_each(|node| drop(node.says("begun")));
    // Nobody's load ends before all that will begin have, and the other node has met the first one's lease.
    match loads {
        1 => {
            let until = Instant::now() + PATIENCE;
            while nodes.iter().all(|node| node.has_said("awaited").is_none()) {
                assert!(Instant::now() < until, "neither of them waits for the other");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        _ => nodes.iter().for_each(|node| drop(node.says("loading"))),
    }
    let_go(folder.path());
    nodes.map(|node| {
        let done = node.says("done");
        let fields: Vec<&str> = done.splitn(3, ' ').collect();
        assert_eq!(fields[2], "old", "all callers have the value");
        (fields[0].parse().unwrap(), fields[1].parse().unwrap())
    })
}

#[test]
fn ten_thousand_callers_on_two_nodes_are_one_load() {
    let lock = Server::start(&[]);
    let mut loads = two_crowds(Some(&lock), 1, &folder());
    loads.sort_unstable();
    assert_eq!(loads, [(0, 0), (1, 0)]);
}

/// The negative control: what the lock saves.
#[test]
fn without_a_lock_each_node_loads() {
    assert_eq!(two_crowds(None, 2, &folder()), [(1, 0); 2]);
}

#[test]
fn with_a_lock_that_hangs_each_node_loads() {
    let (lock, folder) = (Server::start(&[]), folder());
    std::fs::write(folder.path().join("lock hangs"), "").unwrap();
    lock.signal(libc::SIGSTOP);
    assert_eq!(two_crowds(Some(&lock), 2, &folder), [(1, 1); 2]);
}

#[test]
fn with_a_lock_that_is_gone_each_node_loads() {
    let lock = Server::start(&[]);
    lock.kill();
    assert_eq!(two_crowds(Some(&lock), 2, &folder()), [(1, 1); 2]);
}

#[test]
fn a_node_that_dies_while_it_loads_is_succeeded_when_its_lease_ends() {
    let (tier, lock, folder) = (Server::start(&[]), Server::start(&[]), folder());
    let first = Node::start("one", &tier, Some(&lock), &folder);
    first.says("loading");
    let second = Node::start("one", &tier, Some(&lock), &folder);
    second.says("awaited");
    first.signal(libc::SIGKILL);
    let killed = Instant::now();
    second.says("loading");
    // Far from the minute that it would wait for one that lives.
    assert!(killed.elapsed() < PATIENCE / 2, "{:?}", killed.elapsed());
    let_go(folder.path());
    assert_eq!(second.says("done"), "1 0 old", "one load, under its own lease");
}

/// The old value is loaded, but not stored, while its loader stands still: the source changes, the key is removed
/// and loaded anew by somebody else. Then it goes on.
#[test]
fn a_node_that_stood_still_for_three_leases_overwrites_nothing() {
    let (tier, lock, folder) = (Server::start(&[]), Server::start(&[]), folder());
    let stopped = Node::start("one", &tier, Some(&lock), &folder);
    stopped.says("loading");
    stopped.signal(libc::SIGSTOP);
    let began = Instant::now();
    std::fs::write(folder.path().join("source"), "new").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let cache = || Cache::<u64, String>::builder().tier(Arc::new(tier.backend())).build().unwrap();
    runtime.block_on(async { cache().remove(&7).await }).unwrap();
    let next = Node::start("one", &tier, Some(&lock), &folder);
    next.says("loading");
    let_go(folder.path());
    assert_eq!(next.says("done"), "1 0 new", "it had the lease when that of the first was over");
    next.says("closed");
    while began.elapsed() < 3 * TTL {
        std::thread::sleep(TTL / 10);
    }
    stopped.signal(libc::SIGCONT);
    // Its own caller asked before the removal, and is told what was so then.
    assert_eq!(stopped.says("done"), "1 0 old");
    stopped.says("closed");
    let found = runtime.block_on(async { cache().get(&7).await });
    assert_eq!(found.as_deref(), Some("new"));
}

#[test]
fn a_holder_that_stood_still_for_three_leases_is_refused_by_its_token() {
    let (lock, folder) = (Server::start(&[]), folder());
    let mut stopped = Node::start("holder", &lock, Some(&lock), &folder);
    let first: u64 = stopped.says("token").parse().unwrap();
    stopped.signal(libc::SIGSTOP);
    let began = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let locks = Locks::new(Arc::new(RedisLocks::new(&RedisOptions::new(lock.unix())).unwrap()));
        let options = LockOptions::default().wait(PATIENCE).call_timeout(PATIENCE);
        let lease = locks.lock_with("resource", &options).await.unwrap();
        assert!(lease.token() > first);
        // What the resource has seen, and so refuses what is less.
        let resource = lease.token();
        while began.elapsed() < 3 * TTL {
            tokio::time::sleep(TTL / 10).await;
        }
        stopped.tell("write");
        stopped.signal(libc::SIGCONT);
        let wrote = stopped.says("write");
        let (token, is_held) = wrote.split_once(' ').unwrap();
        assert!(token.parse::<u64>().unwrap() < resource, "the resource refuses it");
        assert_eq!(is_held, "false", "it knows by its own clock");
        assert!(lease.is_held() && lease.release().await.unwrap(), "nobody took the lease away");
    });
}
