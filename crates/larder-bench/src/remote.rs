//! What the cases of servers share: the calls, the callers who make them, and larder's own way to make them.
//!
//! Peers write without a check. A load's put by larder loses against any removal since its ticket, and the ticket came
//! with the read that found nothing, so it costs no call of its own; a set asks for one first.

use crate::measure::{Clock, interleaved};
use crate::report::Report;
use crate::stores::Result;
use bytes::Bytes;
use larder::backend::{Backend, Put, PutOutcome, Removed, Ticket};
use larder::clock::NEVER_MS;
use larder::entry::{EntryKind, Meta, Tags};
use larder::key::{EntryKey, Namespace};
use larder::stamp::Stamp;
use std::future::Future;
use std::ops::Range;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};

pub static VALUE: [u8; 1024] = [7; 1024];
/// Keys of one [`Call::GetMany`].
const MANY: usize = 20;
const FILLERS: usize = 64;
const STARTS_WITHIN: Duration = Duration::from_secs(20);

/// A server that ends with the case.
pub struct Server(Child);

impl Server {
    /// Returns when `answers` does so.
    pub fn start(command: &mut Command, answers: impl Fn() -> bool) -> Result<Server> {
        let program = command.get_program().display().to_string();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let mut server = Server(child.map_err(|error| format!("{program} has to be installed: {error}"))?);
        let began = Instant::now();
        while !answers() {
            if let Some(status) = server.0.try_wait()? {
                return Err(format!("{program} ended: {status}").into());
            }
            if began.elapsed() > STARTS_WITHIN {
                return Err(format!("{program} doesn't begin to listen").into());
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

/// As many threads as two cores leave to a client that shares them with its server.
pub fn runtime() -> Result<Runtime> {
    Ok(Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Get,
    GetMany,
    /// A put of what was loaded.
    Load,
    Set,
    /// Of a key that is there.
    Remove,
}

impl Call {
    fn name(self) -> String {
        match self {
            Call::Get => "get".to_owned(),
            Call::GetMany => format!("get by {MANY}"),
            Call::Load => "put of a load".to_owned(),
            Call::Set => "set".to_owned(),
            Call::Remove => "remove".to_owned(),
        }
    }
}

/// The keys, as each of them wants them, made beforehand.
pub struct Keys {
    pub texts: Vec<String>,
    pub entries: Vec<EntryKey>,
}

impl Keys {
    fn new(count: usize) -> Result<Keys> {
        let texts: Vec<String> = (0..count).map(|at| format!("user-{at:08}-profile")).collect();
        let entries = texts.iter().map(|text| EntryKey::new(&Namespace::default(), text));
        Ok(Keys { entries: entries.collect::<larder::Result<_>>()?, texts })
    }
}

/// One way to read and write.
pub trait Way: Clone + Send + Sync + 'static {
    /// What one of the callers uses.
    fn of_caller(&self, _caller: usize) -> Self {
        self.clone()
    }

    fn does(&self, _call: Call) -> bool {
        true
    }

    /// Makes a call for the keys at these places, of which only [`Call::GetMany`] has more than one, and checks
    /// what comes.
    fn call(&mut self, call: Call, keys: &Keys, at: Range<usize>) -> impl Future<Output = Result<()>> + Send;
}

/// An error unless it is as long as every value is.
pub fn check(length: usize) -> Result<()> {
    if length == VALUE.len() { Ok(()) } else { Err(format!("a value of {length} bytes").into()) }
}

/// A tier of larder's.
#[derive(Clone)]
pub struct Larder {
    backend: Arc<dyn Backend>,
    has_one_order: bool,
    ticket: Option<Ticket>,
}

impl Larder {
    /// Where a ticket of one key is as good for another.
    pub fn of_one_order(backend: impl Backend) -> Self {
        Larder { backend: Arc::new(backend), has_one_order: true, ticket: None }
    }

    /// Where each key has its own, so that each load asks for one.
    pub fn of_an_order_each(backend: impl Backend) -> Self {
        Larder { backend: Arc::new(backend), has_one_order: false, ticket: None }
    }

    async fn put(&self, key: &EntryKey, kind: EntryKind, ticket: Ticket) -> Result<()> {
        static SETS: AtomicU64 = AtomicU64::new(1);
        let meta = Meta {
            kind,
            // Later than what is there, or it would be refused.
            stamp: Stamp::new(SETS.fetch_add(1, Relaxed), 0, 1),
            created_ms: 0,
            fresh_until_ms: NEVER_MS,
            revalidate_until_ms: NEVER_MS,
            gone_at_ms: NEVER_MS,
            load_ms: 0,
            is_negative: false,
            tags: Tags::NONE,
        };
        let put = Put { key: key.clone(), meta, sealed: Bytes::from_static(&VALUE), ticket };
        match self.backend.put(put).await? {
            PutOutcome::Stored => Ok(()),
            // Of sets under way at once, a later one may have passed it: the store did as much work.
            PutOutcome::Fenced | PutOutcome::Older(_) if kind == EntryKind::Set => Ok(()),
            refused => Err(format!("a put was refused: {refused:?}").into()),
        }
    }
}

impl Way for Larder {
    async fn call(&mut self, call: Call, keys: &Keys, at: Range<usize>) -> Result<()> {
        let key = &keys.entries[at.start];
        match call {
            Call::Get => check(self.backend.get(key).await?.found.map_or(0, |found| found.len())),
            Call::GetMany => {
                let reads = self.backend.get_many(&keys.entries[at]).await;
                reads.into_iter().try_for_each(|read| check(read?.found.map_or(0, |found| found.len())))
            }
            Call::Load => {
                let ticket = match self.ticket {
                    Some(ticket) => ticket,
                    None => self.backend.ticket(key).await?,
                };
                self.ticket = self.has_one_order.then_some(ticket);
                self.put(key, EntryKind::Load, ticket).await
            }
            Call::Set => self.put(key, EntryKind::Set, self.backend.ticket(key).await?).await,
            Call::Remove => match self.backend.remove(key).await? {
                Removed::Existed => Ok(()),
                Removed::Absent => Err("what was there is gone".into()),
            },
        }
    }
}

/// How much of everything: a multiple of [`MANY`] keys, and calls of a round.
#[derive(Clone, Copy)]
pub struct Scale {
    pub keys: usize,
    pub calls: usize,
}

/// Measures each of `steps`, a call with so many callers, for all ways in turns.
pub fn measure<W: Way>(
    server: &str,
    scale: Scale,
    ways: &[(&'static str, W)],
    steps: &[(Call, usize)],
    runtime: &Runtime,
    report: &mut Report,
) -> Result<()> {
    let keys = Arc::new(Keys::new(scale.keys)?);
    let round = |way: &W, call, callers, calls| runtime.block_on(round(way, &keys, call, callers, calls));
    for (_, way) in ways {
        round(way, Call::Load, FILLERS, scale.keys)?;
    }
    for &(call, callers) in steps {
        let ways: Vec<_> = ways.iter().filter(|(_, way)| way.does(call)).collect();
        let names: Vec<&str> = ways.iter().map(|(name, _)| *name).collect();
        let (calls, each) = match call {
            Call::GetMany => (scale.calls / MANY, MANY),
            // No key twice.
            Call::Remove => (scale.calls.min(scale.keys), 1),
            _ => (scale.calls, 1),
        };
        let mut failed = None;
        let one = |at: usize| {
            let (name, way) = ways[at];
            let filled = match call {
                Call::Remove => round(way, Call::Load, FILLERS, scale.keys).map(drop),
                _ => Ok(()),
            };
            let took = filled.and_then(|()| round(way, call, callers, calls));
            took.map_or_else(
                |error| {
                    failed = Some(format!("{name}: {error}"));
                    0.0
                },
                |took| (calls * each) as f64 / took.as_secs_f64(),
            )
        };
        let case = format!("{server} {} of 1 KiB, {callers} in flight", call.name());
        let lines = interleaved(&case, "keys_per_s", Clock::Wall, &names, one);
        if let Some(failed) = failed {
            return Err(failed.into());
        }
        report.group(&lines, "keys_per_s");
    }
    Ok(())
}

/// How long it takes `callers` to make `calls` together, each one after the other.
async fn round<W: Way>(
    way: &W,
    keys: &Arc<Keys>,
    call: Call,
    callers: usize,
    calls: usize,
) -> Result<Duration> {
    let began = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let turns = (caller..calls).step_by(callers);
            tokio::spawn(one_caller(way.of_caller(caller), keys.clone(), call, turns))
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(began.elapsed())
}

async fn one_caller<W: Way>(
    mut way: W,
    keys: Arc<Keys>,
    call: Call,
    turns: impl Iterator<Item = usize> + Send,
) -> Result<()> {
    let many = if call == Call::GetMany { MANY } else { 1 };
    for turn in turns {
        // A prime, so that neighbours are apart and every key has its turn.
        let first = turn * 31 * many % keys.texts.len();
        way.call(call, &keys, first..first + many).await?;
    }
    Ok(())
}
