//! Redis, or Valkey, as a tier that nodes share: one server, a master behind sentinels, or a cluster.
//!
//! Callers meet a [`RedisBackend`]; what is no tier, as locks, uses the same connections by a [`client`]. A call goes to the server that has its store ([`route`]), into that
//! server's queue ([`link`]) and with what else has gathered there into one pipeline ([`batch`]); what changes
//! the store is a [`script`], one atomic step of the protocol each. [`layout`] has the names and bytes,
//! [`walk`] what needs a `SCAN`, [`fault`] what Redis' errors mean. Deadlines, retries and breakers are the
//! tier's guard's business.

mod batch;
mod client;
mod fault;
mod joined;
mod layout;
mod link;
mod log;
mod moving;
mod options;
mod route;
mod script;
mod walk;

pub(crate) use client::{RedisClient, RedisScript, nonsense};
pub use options::RedisOptions;

use super::{Backend, Capabilities, Log, Mark, Page, Put, PutOutcome, Read, Removed, Scan, Ticket, Usage};
use crate::clock::{Clock, NEVER_MS, millis};
use crate::entry::EntryKind;
use crate::error::{Error, ErrorKind, Result};
use crate::guard::GuardOptions;
use crate::key::{EntryKey, Namespace, Pattern};
use crate::stamp::Stamp;
use crate::tier::before;
use async_trait::async_trait;
use batch::{array, number, parse_ticket};
use bytes::Bytes;
use fault::{Failure, NAME};
use layout::{Store, encode_entry, stripe};
use link::Step;
use redis::Value;
use route::{Router, at_once};
use script::Script;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Largest envelope, in bytes: Redis' own limit of a string is 512 MiB.
const SEALED_BYTES_MAX: usize = 256 << 20;
/// Most writes or removals of one pipeline.
const STEPS_MAX: usize = 256;
/// From this TTL on an entry gets none in Redis: a century, beyond which its own arithmetic may overflow.
const TTL_MS_MAX: u64 = 100 * 365 * 24 * 60 * 60 * 1000;
/// How long a store stays known as registered. It is registered again then, in case the register was flushed.
const REGISTERED_MS: u64 = 60_000;
/// How long registering may hold a set up, and after how long it is tried again if it fails.
const REGISTERING_MAX: Duration = Duration::from_millis(250);
const REGISTER_AGAIN_MS: u64 = 1000;
/// Most stores known as registered; beyond, all are registered again.
const REGISTERED_MAX: usize = 65_536;

/// A tier in Redis, shared by all nodes that use the same server and prefix.
///
/// It connects with the first call, and again whenever it has to: a server that is down is an error of the
/// call, never of the start. What Redis keeps is a cache: after a restart of the server, with or without its
/// data, everything in it is invalid, because a removal may be missing. The connection lives on the runtime of
/// the first call, which needs I/O and time enabled, and moves to another when that one ends.
///
/// # Cancellation
/// A call whose future is dropped before it was sent is never sent. Later, a write takes effect whole or not
/// at all, and its reply goes to nobody.
pub struct RedisBackend {
    router: Arc<Router>,
    /// What log records of this backend's writes carry.
    origin: u64,
    prefix: String,
    shards: u32,
    expiry_slack_ms: u64,
    markers_max: u32,
    clock: Clock,
    /// Stores that are in the register, and until when that is believed.
    registered: Mutex<HashMap<Store, u64>>,
    /// Where the next sweep begins.
    sweep_server: AtomicUsize,
    sweep_cursor: AtomicU64,
}

impl RedisBackend {
    /// Checks the settings; doesn't connect.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], naming the setting and what is allowed.
    pub fn new(options: RedisOptions) -> Result<Self> {
        let router = Arc::new(Router::of(&options)?);
        let RedisOptions { prefix, shards, expiry_slack, markers_max, clock, .. } = options;
        Ok(RedisBackend {
            origin: router.origin(),
            router,
            prefix,
            shards,
            expiry_slack_ms: millis(expiry_slack),
            markers_max,
            clock,
            registered: Mutex::default(),
            sweep_server: AtomicUsize::new(0),
            sweep_cursor: AtomicU64::new(0),
        })
    }

    fn store(&self, key: &EntryKey) -> Store {
        Store::of(&self.prefix, self.shards, key)
    }

    fn put_step(&self, put: &Put) -> Result<Step> {
        if put.sealed.len() > SEALED_BYTES_MAX {
            let message = format!(
                "the envelope has {} bytes; at most {SEALED_BYTES_MAX} are allowed",
                put.sealed.len()
            );
            return Err(Error::new(ErrorKind::TooLarge, "put")
                .backend(NAME)
                .key(&put.key.text())
                .message(message));
        }
        let args = vec![
            put.ticket.pos.to_string().into(),
            stripe(&put.key).to_string().into(),
            self.keep(put.meta.gone_at_ms).into(),
            put.meta.stamp.to_string().into(),
            encode_entry(put).into(),
        ];
        Ok(Step::Script {
            script: Script::Put,
            store: self.store(&put.key),
            key: Some(put.key.clone()),
            args,
        })
    }

    /// How long the server keeps an entry, as a duration: its clock need not be ours. Empty for ever, 0 for not
    /// at all.
    fn keep(&self, gone_at_ms: u64) -> String {
        let left = gone_at_ms.saturating_sub(self.clock.wall_ms());
        match left {
            _ if gone_at_ms == NEVER_MS => String::new(),
            0 => "0".to_owned(),
            TTL_MS_MAX.. => String::new(),
            left => left.saturating_add(self.expiry_slack_ms).min(TTL_MS_MAX).to_string(),
        }
    }

    fn remove_step(&self, key: &EntryKey) -> Step {
        let args = vec![stripe(key).to_string().into()];
        Step::Script { script: Script::Remove, store: self.store(key), key: Some(key.clone()), args }
    }

    /// Marks every shard of a namespace; the positions of the marks.
    async fn mark_shards(
        &self,
        namespace: &Namespace,
        kind: &str,
        name: &str,
    ) -> Result<HashMap<Store, u64>, Failure> {
        let marked = at_once((0..self.shards).map(async |shard| {
            let store = Store::new(&self.prefix, namespace, shard);
            let step = || Step::Script {
                script: Script::Mark,
                store: store.clone(),
                key: None,
                args: [kind, name, &self.markers_max.to_string()]
                    .map(|arg| Bytes::copy_from_slice(arg.as_bytes()))
                    .to_vec(),
            };
            let reply = self.router.run(store.slot(), step).await?;
            Ok((store, parse_ticket(&reply)?.pos))
        }));
        marked.await.into_iter().collect()
    }

    /// Writes a store that is about to hold a set into the register, unless it was lately. What fails is tried
    /// again a second later: the register may be on another node than the store, and only serves
    /// [`last_stamp`](Backend::last_stamp).
    async fn register(&self, store: &Store) {
        let now_ms = self.clock.mono_ms();
        {
            let registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
            if registered.get(store).is_some_and(|until| now_ms < *until) {
                return;
            }
        }
        let name = self.register_name();
        let step = || {
            let mut add = redis::cmd("SADD");
            add.arg(&name).arg(store.tag());
            Step::Plain(add)
        };
        let added = self.router.run(layout::slot(name.as_bytes()), step);
        let added = before(&Clock::system(), REGISTERING_MAX, added).await;
        let lasts_ms = if matches!(added, Some(Ok(_))) { REGISTERED_MS } else { REGISTER_AGAIN_MS };
        let mut registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        if registered.len() >= REGISTERED_MAX {
            registered.clear();
        }
        registered.insert(store.clone(), now_ms.saturating_add(lasts_ms));
    }

    fn register_name(&self) -> String {
        format!("{}:stores", self.prefix)
    }

    /// Runs steps of keys, in their order, in as few pipelines as there are slots and limits.
    async fn run_all(&self, steps: Vec<Result<(u16, Step)>>, operation: &'static str) -> Vec<Result<Value>> {
        let mut results: Vec<Result<Value>> = Vec::with_capacity(steps.len());
        let mut by_slot: HashMap<u16, (Vec<usize>, Vec<Step>)> = HashMap::new();
        for (place, step) in steps.into_iter().enumerate() {
            match step {
                Err(error) => results.push(Err(error)),
                Ok((slot, step)) => {
                    results.push(Err(Failure::Ended.into_error(operation)));
                    let (places, steps) = by_slot.entry(slot).or_default();
                    places.push(place);
                    steps.push(step);
                }
            }
        }
        let ran = at_once(by_slot.into_iter().map(async |(slot, (places, steps))| {
            let mut steps = steps.into_iter();
            let mut ran = Vec::with_capacity(places.len());
            for places in places.chunks(STEPS_MAX) {
                let chunk = steps.by_ref().take(places.len()).collect();
                match self.router.run_all(slot, chunk).await {
                    Ok(replies) => {
                        let replies = replies.into_iter().map(|reply| reply.map_err(Failure::Reply));
                        ran.extend(places.iter().copied().zip(replies));
                    }
                    Err(failure) => {
                        ran.extend(places.iter().map(|place| (*place, Err(failure.clone()))));
                    }
                }
            }
            ran
        }));
        for (place, reply) in ran.await.into_iter().flatten() {
            results[place] = reply.map_err(|failure| failure.into_error(operation));
        }
        results
    }
}

fn put_outcome(reply: &Value) -> Result<PutOutcome> {
    match reply {
        Value::BulkString(word) if word == b"S" => return Ok(PutOutcome::Stored),
        Value::BulkString(word) if word == b"F" => return Ok(PutOutcome::Fenced),
        Value::Array(parts) => {
            if let [Value::BulkString(word), Value::BulkString(stamp)] = &parts[..]
                && word == b"O"
                && let Ok(stamp) = stamp[..].try_into()
            {
                return Ok(PutOutcome::Older(Stamp::from_bytes(stamp)));
            }
        }
        _ => {}
    }
    Err(Failure::Nonsense("the script's answer was not understood").into_error("put"))
}

fn removed(reply: &Value) -> Removed {
    if number(reply) == Some(1) { Removed::Existed } else { Removed::Absent }
}

#[async_trait]
impl Backend for RedisBackend {
    fn name(&self) -> &str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        // What it holds outlives this process, but not the server's.
        Capabilities { durable: false, scan: true }
    }

    fn guard(&self) -> GuardOptions {
        GuardOptions::remote()
    }

    async fn get(&self, key: &EntryKey) -> Result<Read> {
        let store = self.store(key);
        self.router.read(&store, Some(key)).await.map_err(|failure| failure.into_error("get"))
    }

    async fn get_many(&self, keys: &[EntryKey]) -> Vec<Result<Read>> {
        let wanted: Vec<(Store, &EntryKey)> = keys.iter().map(|key| (self.store(key), key)).collect();
        let reads = self.router.read_all(&wanted).await;
        reads.into_iter().map(|read| read.map_err(|failure| failure.into_error("get"))).collect()
    }

    async fn ticket(&self, key: &EntryKey) -> Result<Ticket> {
        let store = self.store(key);
        let read = self.router.read(&store, None).await;
        read.map(|read| read.ticket).map_err(|failure| failure.into_error("ticket"))
    }

    async fn put(&self, put: Put) -> Result<PutOutcome> {
        let fail = |failure: Failure| failure.into_error("put");
        let store = self.store(&put.key);
        if put.meta.kind == EntryKind::Set {
            self.register(&store).await;
        }
        let step = self.put_step(&put)?;
        put_outcome(&self.router.run(store.slot(), || step.clone()).await.map_err(fail)?)
    }

    async fn put_many(&self, puts: Vec<Put>) -> Vec<Result<PutOutcome>> {
        let mut steps = Vec::with_capacity(puts.len());
        for put in &puts {
            let store = self.store(&put.key);
            if put.meta.kind == EntryKind::Set {
                self.register(&store).await;
            }
            steps.push(self.put_step(put).map(|step| (store.slot(), step)));
        }
        let results = self.run_all(steps, "put").await;
        results.into_iter().map(|reply| put_outcome(&reply?)).collect()
    }

    async fn remove(&self, key: &EntryKey) -> Result<Removed> {
        let slot = self.store(key).slot();
        let reply = self.router.run(slot, || self.remove_step(key)).await;
        reply.map(|reply| removed(&reply)).map_err(|failure| failure.into_error("remove"))
    }

    async fn remove_many(&self, keys: &[EntryKey]) -> Vec<Result<Removed>> {
        let steps = keys.iter().map(|key| Ok((self.store(key).slot(), self.remove_step(key)))).collect();
        let results = self.run_all(steps, "remove").await;
        results.into_iter().map(|reply| reply.map(|reply| removed(&reply))).collect()
    }

    async fn discard(&self, key: &EntryKey, sealed: &Bytes) -> Result<()> {
        let store = self.store(key);
        let step = || Step::Script {
            script: Script::Discard,
            store: store.clone(),
            key: Some(key.clone()),
            args: vec![sealed.clone()],
        };
        let reply = self.router.run(store.slot(), step).await;
        reply.map(drop).map_err(|failure| failure.into_error("discard"))
    }

    async fn mark(&self, namespace: &Namespace, mark: &Mark) -> Result<()> {
        let (kind, name) = match mark {
            Mark::Tag(tag) => ("t", &**tag),
            Mark::Clear => ("c", ""),
        };
        let marked = self.mark_shards(namespace, kind, name).await;
        marked.map(drop).map_err(|failure| failure.into_error("mark"))
    }

    async fn remove_matching(&self, namespace: &Namespace, pattern: &Pattern) -> Result<u64> {
        let fail = |failure: Failure| failure.into_error("remove_matching");
        // Before anything is deleted: what a load in flight writes after the scan has passed is refused.
        let floors = self.mark_shards(namespace, "f", "").await.map_err(fail)?;
        let deleted = self.delete_matching(namespace, pattern, &floors).await.map_err(fail)?;
        // After everything is deleted: whoever follows the log may have read it until now.
        self.mark_shards(namespace, "p", pattern.as_str()).await.map_err(fail)?;
        Ok(deleted)
    }

    async fn scan(&self, scan: Scan<'_>) -> Result<Page> {
        self.list(scan).await
    }

    async fn namespaces(&self) -> Result<Vec<Namespace>> {
        self.namespaces_held().await.map_err(|failure| failure.into_error("scan"))
    }

    async fn sweep(&self, limit: usize) -> Result<u64> {
        self.sweep_some(limit).await.map_err(|failure| failure.into_error("sweep"))
    }

    async fn usage(&self) -> Result<Usage> {
        self.count().await.map_err(|failure| failure.into_error("usage"))
    }

    fn log(&self) -> Option<&dyn Log> {
        Some(self)
    }

    async fn last_stamp(&self) -> Result<Option<Stamp>> {
        let fail = |failure: Failure| failure.into_error("last_stamp");
        let name = self.register_name();
        let members = || {
            let mut members = redis::cmd("SMEMBERS");
            members.arg(&name);
            Step::Plain(members)
        };
        let stores = self.router.run(layout::slot(name.as_bytes()), members).await.map_err(fail)?;
        let stores = match stores {
            Value::Set(stores) => stores,
            stores => array(stores).map_err(fail)?,
        };
        let mut last = None;
        for store in stores {
            let Value::BulkString(tag) = store else { continue };
            let meta = [&tag[..], b"m"].concat();
            let read = || {
                let mut read = redis::cmd("HGET");
                read.arg(&meta).arg("ls");
                Step::Plain(read)
            };
            let stamp = self.router.run(layout::slot(&tag), read).await.map_err(fail)?;
            if let Value::BulkString(stamp) = stamp
                && let Ok(stamp) = <[u8; 12]>::try_from(stamp)
            {
                last = last.max(Some(Stamp::from_bytes(stamp)));
            }
        }
        Ok(last)
    }

    async fn ping(&self) -> Result<()> {
        let fail = |failure: Failure| failure.into_error("ping");
        for link in self.router.links().await.map_err(fail)? {
            link.command(redis::cmd("PING")).await.map_err(fail)?;
        }
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        self.router.close();
        Ok(())
    }
}

/// Without credentials.
impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBackend")
            .field("server", &self.router)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
