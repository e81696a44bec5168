//! Calls whose futures are dropped at random moments, many at once on one connection: no answer reaches another
//! call. Every value names its key, so that a value under a wrong one shows.
//!
//! `LARDER_TEST_CANCELLATIONS` says how many are dropped; a million take a minute or two.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(feature = "redis")]

mod chaos_support;
mod redis_support;

use bytes::Bytes;
use chaos_support::{End, Fault, Proxy};
use larder::Result;
use larder::backend::{Backend, Put, Read, RedisBackend, RedisOptions, Ticket};
use larder::clock::NEVER_MS;
use larder::entry::{EntryKind, Meta, Tags};
use larder::key::{EntryKey, Namespace};
use larder::stamp::Stamp;
use redis_support::Server;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::task::Poll;
use std::time::{Duration, Instant};

const KEYS: usize = 200;
const CALLERS: u64 = 32;
/// However slow the machine is.
const PATIENCE: Duration = Duration::from_secs(600);

fn name(at: usize) -> String {
    format!("key {at}")
}

fn key(at: usize) -> EntryKey {
    EntryKey::new(&Namespace::default(), &name(at)).unwrap()
}

fn put(at: usize, number: u64, ticket: Ticket, kind: EntryKind) -> Put {
    let meta = Meta {
        kind,
        stamp: Stamp::new(larder::clock::Clock::system().wall_ms(), number as u16, 1),
        created_ms: 0,
        fresh_until_ms: NEVER_MS,
        revalidate_until_ms: NEVER_MS,
        gone_at_ms: NEVER_MS,
        load_ms: 0,
        is_negative: false,
        tags: Tags::NONE,
    };
    Put { key: key(at), meta, sealed: Bytes::from(format!("{}={number}", name(at))), ticket }
}

/// Panics if it is another key's.
fn check(at: usize, read: &Read) {
    if let Ok(body) = &read.found {
        let body = std::str::from_utf8(body).unwrap();
        assert_eq!(body.split_once('=').unwrap().0, name(at), "a reply crossed");
    }
}

/// The output, if it comes within so many polls. Then the future is dropped.
async fn within_polls<T>(polls: u64, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

struct World {
    backend: RedisBackend,
    cancelled: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
}

impl World {
    fn new(options: RedisOptions) -> Arc<World> {
        let backend = RedisBackend::new(options).unwrap();
        let [cancelled, answered, failed] = [(); 3].map(|()| AtomicU64::new(0));
        Arc::new(World { backend, cancelled, answered, failed })
    }

    fn count<T>(&self, answer: Option<Result<T>>) -> Option<T> {
        let counter = match &answer {
            None => &self.cancelled,
            Some(Ok(_)) => &self.answered,
            Some(Err(_)) => &self.failed,
        };
        counter.fetch_add(1, SeqCst);
        answer.and_then(Result::ok)
    }

    async fn call(&self, random: &mut fastrand::Rng, ticket: &mut Ticket) {
        let backend = &self.backend;
        let at = random.usize(..KEYS);
        // Before it is queued, while it waits, while it is under way; and now and then not at all.
        let polls = if random.u8(..16) == 0 { u64::MAX } else { random.u64(..12) };
        match random.u8(..8) {
            0..3 => {
                if let Some(read) = self.count(within_polls(polls, backend.get(&key(at))).await) {
                    check(at, &read);
                    *ticket = read.ticket;
                }
            }
            3 | 4 => {
                let many: Vec<usize> = (0..random.usize(1..5)).map(|step| (at + step * 7) % KEYS).collect();
                let keys: Vec<EntryKey> = many.iter().map(|at| key(*at)).collect();
                let reads = within_polls(polls, backend.get_many(&keys)).await;
                let reads = reads.map(|reads| reads.into_iter().collect::<Result<Vec<_>>>());
                for (at, read) in many.into_iter().zip(self.count(reads).into_iter().flatten()) {
                    check(at, &read);
                }
            }
            5 | 6 => {
                let kind = if random.bool() { EntryKind::Load } else { EntryKind::Set };
                let put = put(at, random.u64(..), *ticket, kind);
                self.count(within_polls(polls, backend.put(put)).await);
            }
            _ => {
                self.count(within_polls(polls, backend.remove(&key(at))).await);
            }
        }
    }

    /// Callers until so many calls were cancelled, or the word is given.
    async fn run(self: &Arc<Self>, cancellations: u64, is_over: &Arc<AtomicBool>) {
        let callers: Vec<_> = (0..CALLERS)
            .map(|seed| {
                let (world, is_over) = (Arc::clone(self), Arc::clone(is_over));
                tokio::spawn(async move {
                    let mut random = fastrand::Rng::with_seed(seed);
                    let mut ticket = Ticket { inc: 0, pos: 0 };
                    while world.cancelled.load(SeqCst) < cancellations && !is_over.load(SeqCst) {
                        world.call(&mut random, &mut ticket).await;
                    }
                })
            })
            .collect();
        for caller in callers {
            tokio::time::timeout(PATIENCE, caller).await.expect("nobody hangs").unwrap();
        }
    }

    /// In the end everything works, and every key has its own value or none.
    async fn ends_well(&self) {
        let began = Instant::now();
        while self.backend.ping().await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(20), "it doesn't come back");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for at in 0..KEYS {
            check(at, &self.backend.get(&key(at)).await.unwrap());
        }
    }
}

async fn cancel(cancellations: u64, batch_max: usize) {
    let server = Server::start(&[]);
    let world = World::new(RedisOptions { batch_max, ..RedisOptions::new(server.unix()) });
    let began = Instant::now();
    world.run(cancellations, &Arc::default()).await;
    let [cancelled, answered, failed] =
        [&world.cancelled, &world.answered, &world.failed].map(|count| count.load(SeqCst));
    eprintln!("{cancelled} cancelled, {answered} answered in {:?}", began.elapsed());
    assert_eq!(failed, 0, "the answer to another call is no answer to this one");
    assert!(answered > cancelled / 50, "{answered} of {cancelled}: little was looked at");
    world.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_reply_reaches_another_call() {
    let cancellations = std::env::var("LARDER_TEST_CANCELLATIONS");
    cancel(cancellations.map_or(100_000, |text| text.parse().unwrap()), 256).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_without_batches() {
    cancel(20_000, 1).await;
}

/// The same over a network that cuts, drips, holds back and resets.
#[tokio::test(flavor = "multi_thread")]
async fn nor_when_connections_fail() {
    let server = Server::start(&[]);
    let proxy = Proxy::start(server.port);
    let world = World::new(RedisOptions::new(format!("redis://127.0.0.1:{}", proxy.port())));
    let is_over = Arc::new(AtomicBool::new(false));
    let mut random = fastrand::Rng::with_seed(7);
    let running = tokio::spawn({
        let (world, is_over) = (Arc::clone(&world), Arc::clone(&is_over));
        async move { world.run(u64::MAX, &is_over).await }
    });
    let seen = || (world.cancelled.load(SeqCst), world.answered.load(SeqCst));
    for _ in 0..60 {
        let after = random.usize(1..3000);
        let fault = match random.u8(..6) {
            0 => Fault::Cut { after, end: End::Reset },
            1 => Fault::Cut { after, end: End::Half },
            2 => Fault::Drip(Duration::from_micros(50)),
            3 => Fault::Mute,
            4 => Fault::Delay(Duration::from_millis(5)),
            _ => Fault::None,
        };
        let before = seen();
        proxy.set(fault);
        if fault == Fault::None {
            proxy.reset_all();
        }
        let began = Instant::now();
        // Every fault meets some hundred calls, and then calls are answered again.
        while seen().0 < before.0 + 300 {
            assert!(began.elapsed() < Duration::from_secs(60), "{fault:?}: nobody calls");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        proxy.heal();
        while seen().1 < before.1 + 100 {
            assert!(began.elapsed() < Duration::from_secs(60), "{fault:?}: nobody is answered");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    is_over.store(true, SeqCst);
    running.await.unwrap();
    let (cancelled, answered) = seen();
    let failed = world.failed.load(SeqCst);
    eprintln!("{cancelled} cancelled, {answered} answered, {failed} failed");
    assert!(failed > 0, "no fault was felt");
    world.ends_well().await;
}
