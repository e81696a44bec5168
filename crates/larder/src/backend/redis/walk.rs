//! Walks over all entries by `SCAN`: listing, counting, removing by pattern, sweeping. Redis has no index by
//! namespace, so each costs a step over the whole keyspace, a thousand keys at a time, and never blocks the
//! server for longer than that takes.

use super::RedisBackend;
use super::batch::{array, number};
use super::fault::{Failure, NAME};
use super::layout::{HEAD_BYTES, Head, Meta, Store, decode_tags, entries_pattern, parse_entry_name};
use super::link::{Link, Step};
use super::script::Script;
use crate::backend::{Cursor, Listed, Page, Scan, Usage};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{EntryKey, Namespace, Pattern};
use redis::{Cmd, Value};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// How many keys one `SCAN` looks at.
const COUNT: usize = 1000;
/// How many `SCAN`s one page of a listing, or one sweep, may take.
const SCANS_MAX: usize = 32;
/// How many `SCAN`s counting may take; beyond, the rest is estimated.
const COUNTED_SCANS_MAX: usize = 200;

/// An entry that a walk met.
struct Met {
    store: Store,
    key: EntryKey,
    /// The name in Redis.
    name: Vec<u8>,
}

/// Where a walk stands: which server, and `SCAN`'s cursor there.
#[derive(Clone, Copy)]
struct Place {
    server: usize,
    cursor: u64,
}

/// What an entry is, as far as its head and the markers say.
struct Looked {
    met: Met,
    head: Head,
    head_bytes: Vec<u8>,
    is_valid: bool,
    sealed_bytes: u64,
}

impl RedisBackend {
    pub(super) async fn list(&self, scan: Scan<'_>) -> std::result::Result<Page, Error> {
        let fail = |failure: Failure| failure.into_error("scan");
        let (mut place, mut after) = parse_cursor(scan.after.as_ref())?;
        let limit = scan.limit.max(1);
        let links = self.router.links().await.map_err(fail)?;
        let mut page = Page::default();
        for _ in 0..SCANS_MAX {
            let Some(link) = links.get(place.server) else { return Ok(page) };
            // One step of SCAN is listed as a whole, over several pages if it has to be, by hash.
            let (met, next) = self.step(link, place.cursor, Some(scan.namespace)).await.map_err(fail)?;
            let wanted = met.into_iter().filter(|met| {
                after.is_none_or(|after| met.key.hash64() > after)
                    && scan.pattern.is_none_or(|pattern| pattern.matches(&met.key.text()))
            });
            let mut wanted: Vec<Met> = wanted.collect();
            wanted.sort_unstable_by_key(|met| met.key.hash64());
            let room = limit - page.entries.len();
            let is_cut = wanted.len() > room;
            wanted.truncate(room);
            let last = wanted.last().map(|met| met.key.hash64());
            for looked in self.look(link, wanted).await.map_err(fail)? {
                if looked.is_valid {
                    let Looked { met, head, sealed_bytes, .. } = looked;
                    page.entries.push(Listed { key: met.key, gone_at_ms: head.gone_at_ms, sealed_bytes });
                }
            }
            if is_cut {
                page.next = Some(cursor(place, last.or(after)));
                return Ok(page);
            }
            after = None;
            place = if next == 0 {
                Place { server: place.server + 1, cursor: 0 }
            } else {
                Place { cursor: next, ..place }
            };
            if page.entries.len() == limit {
                break;
            }
        }
        page.next = (place.server < links.len()).then(|| cursor(place, None));
        Ok(page)
    }

    /// Deletes what was written before `floor` and matches. How many of those were valid.
    pub(super) async fn delete_matching(
        &self,
        namespace: &Namespace,
        pattern: &Pattern,
        floors: &HashMap<Store, u64>,
    ) -> std::result::Result<u64, Failure> {
        let mut deleted = 0;
        for link in self.router.links().await? {
            let mut cursor = 0;
            loop {
                let (met, next) = self.step(&link, cursor, Some(namespace)).await?;
                let met = met.into_iter().filter(|met| pattern.matches(&met.key.text())).collect();
                let mut looked = self.look(&link, met).await?;
                looked.retain(|looked| {
                    floors.get(&looked.met.store).is_some_and(|floor| looked.head.seen < *floor)
                });
                let was_valid: Vec<bool> = looked.iter().map(|looked| looked.is_valid).collect();
                let dropped = self.drop_all(&link, looked).await?;
                deleted += was_valid
                    .iter()
                    .zip(&dropped)
                    .filter(|(was_valid, dropped)| **was_valid && **dropped)
                    .count();
                if next == 0 {
                    break;
                }
                cursor = next;
            }
        }
        Ok(deleted as u64)
    }

    pub(super) async fn namespaces_held(&self) -> std::result::Result<Vec<Namespace>, Failure> {
        let mut names = BTreeSet::new();
        for link in self.router.links().await? {
            let mut cursor = 0;
            loop {
                let (met, next) = self.step(&link, cursor, None).await?;
                names.extend(met.into_iter().map(|met| met.key.namespace().clone()));
                if next == 0 {
                    break;
                }
                cursor = next;
            }
        }
        Ok(names.into_iter().collect())
    }

    pub(super) async fn sweep_some(&self, limit: usize) -> std::result::Result<u64, Failure> {
        let links = self.router.links().await?;
        let mut freed = 0;
        for _ in 0..SCANS_MAX {
            let left = limit - freed as usize;
            if left == 0 {
                break;
            }
            let server = self.sweep_server.load(Relaxed) % links.len();
            let cursor = self.sweep_cursor.load(Relaxed);
            let (met, next) = self.step(&links[server], cursor, None).await?;
            let mut looked = self.look(&links[server], met).await?;
            // A distrusted stamp may be trusted once the clock is set right.
            let now_ms = self.clock.wall_ms();
            looked.retain(|looked| !looked.is_valid && !looked.head.stamp.is_distrusted(now_ms));
            let is_all = looked.len() <= left;
            looked.truncate(left);
            let dropped = self.drop_all(&links[server], looked).await?;
            freed += dropped.into_iter().filter(|dropped| *dropped).count() as u64;
            if is_all {
                self.sweep_cursor.store(next, Relaxed);
                if next == 0 {
                    // Once round is enough for one call.
                    self.sweep_server.store((server + 1) % links.len(), Relaxed);
                    if server + 1 == links.len() {
                        break;
                    }
                }
            }
        }
        Ok(freed)
    }

    /// Exact up to 200,000 keys per server, entries of others included; beyond, from the share seen.
    pub(super) async fn count(&self) -> std::result::Result<Usage, Failure> {
        let mut usage = Usage::default();
        for link in self.router.links().await? {
            let mut here = Usage::default();
            let mut cursor = 0;
            let mut is_whole = false;
            for _ in 0..COUNTED_SCANS_MAX {
                let (met, next) = self.step(&link, cursor, None).await?;
                let sizes = met.iter().map(|met| plain("STRLEN", &met.name)).collect();
                let keys: u64 = met.iter().map(|met| met.name.len() as u64).sum();
                let bytes: u64 = self.run(&link, sizes).await?.iter().filter_map(number).sum();
                here.entries += met.len() as u64;
                here.bytes += keys + bytes;
                cursor = next;
                if next == 0 {
                    is_whole = true;
                    break;
                }
            }
            if !is_whole {
                let all = number(&link.command(redis::cmd("DBSIZE")).await?).unwrap_or(0);
                let seen = (COUNT * COUNTED_SCANS_MAX) as u64;
                let scale =
                    |part: u64| (u128::from(part) * u128::from(all.max(seen)) / u128::from(seen)) as u64;
                here = Usage { entries: scale(here.entries), bytes: scale(here.bytes) };
            }
            usage.entries += here.entries;
            usage.bytes += here.bytes;
        }
        Ok(usage)
    }

    /// One step of `SCAN`: the entries met, each once, and the next cursor.
    async fn step(
        &self,
        link: &Arc<Link>,
        cursor: u64,
        namespace: Option<&Namespace>,
    ) -> std::result::Result<(Vec<Met>, u64), Failure> {
        if self.router.is_closed() {
            return Err(Failure::Closed);
        }
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(entries_pattern(&self.prefix, namespace)).arg("COUNT").arg(COUNT);
        let reply = array(link.command(scan).await?)?;
        let [next, Value::Array(names)] = &reply[..] else {
            return Err(Failure::Nonsense("SCAN gave no page"));
        };
        let next = number(next).ok_or(Failure::Nonsense("SCAN gave no cursor"))?;
        let mut names: Vec<&Vec<u8>> = names
            .iter()
            .filter_map(|name| match name {
                Value::BulkString(name) => Some(name),
                _ => None,
            })
            .collect();
        names.sort_unstable();
        names.dedup();
        let met = names.into_iter().filter_map(|name| {
            let (store, key) = parse_entry_name(&self.prefix, name)?;
            let is_wanted = namespace.is_none_or(|namespace| namespace == key.namespace());
            is_wanted.then(|| Met { store, key, name: name.clone() })
        });
        Ok((met.collect(), next))
    }

    /// The heads of entries, judged. What is gone meanwhile, or isn't larder's, is left out.
    async fn look(&self, link: &Arc<Link>, met: Vec<Met>) -> std::result::Result<Vec<Looked>, Failure> {
        let mut found = Vec::with_capacity(met.len());
        let mut stores: HashMap<Store, Option<Meta>> = HashMap::new();
        for chunk in chunks(met, COUNT) {
            for met in &chunk {
                if !stores.contains_key(&met.store) {
                    // A reader's ticket begins the store anew where that is due.
                    link.read(&met.store, None).await?;
                    let fields = link.command(meta_command(&met.store)).await?;
                    stores.insert(met.store.clone(), parse_meta(&array(fields)?));
                }
            }
            let commands = chunk.iter().flat_map(|met| {
                let mut head = redis::cmd("GETRANGE");
                head.arg(&met.name).arg(0).arg(HEAD_BYTES - 1);
                [head, plain("STRLEN", &met.name)]
            });
            let replies = self.run(link, commands.collect()).await?;
            for (met, reply) in chunk.into_iter().zip(replies.chunks_exact(2)) {
                let [Value::BulkString(head_bytes), length] = reply else { continue };
                let (Some(head), Some(length)) = (Head::parse(head_bytes), number(length)) else { continue };
                let sealed_bytes = length.saturating_sub((HEAD_BYTES + head.tags_bytes) as u64);
                let head_bytes = head_bytes.clone();
                found.push(Looked { met, head, head_bytes, is_valid: false, sealed_bytes });
            }
        }
        self.judge(link, &stores, &mut found).await?;
        Ok(found)
    }

    async fn judge(
        &self,
        link: &Arc<Link>,
        stores: &HashMap<Store, Option<Meta>>,
        found: &mut [Looked],
    ) -> std::result::Result<(), Failure> {
        let now_ms = self.clock.wall_ms();
        for looked in found {
            let Some(Some(meta)) = stores.get(&looked.met.store) else { continue };
            looked.is_valid = looked.head.why_invalid(meta, now_ms).is_none();
            if !looked.is_valid || !looked.head.needs_markers(meta) {
                continue;
            }
            let mut tags = redis::cmd("GETRANGE");
            tags.arg(&looked.met.name).arg(HEAD_BYTES).arg(HEAD_BYTES + looked.head.tags_bytes - 1);
            let Value::BulkString(tags) = link.command(tags).await? else { continue };
            let tags = decode_tags(&tags);
            if tags.is_empty() {
                // Gone meanwhile.
                looked.is_valid = false;
                continue;
            }
            let mut markers = redis::cmd("HMGET");
            markers.arg(looked.met.store.meta());
            for tag in tags {
                markers.arg([b"t", tag].concat());
            }
            let markers = array(link.command(markers).await?)?;
            looked.is_valid = !markers.iter().filter_map(number).any(|marker| marker > looked.head.seen);
        }
        Ok(())
    }

    /// Deletes entries that still have the head they were judged by; which of them had.
    async fn drop_all(
        &self,
        link: &Arc<Link>,
        looked: Vec<Looked>,
    ) -> std::result::Result<Vec<bool>, Failure> {
        let mut dropped = Vec::with_capacity(looked.len());
        for chunk in chunks(looked, COUNT) {
            let steps = chunk.into_iter().map(|looked| Step::Script {
                script: Script::Drop,
                store: looked.met.store,
                key: Some(looked.met.key),
                args: vec![looked.head_bytes.into()],
            });
            for reply in link.run(steps.collect()).await? {
                dropped.push(number(&reply.map_err(Failure::Reply)?) == Some(1));
            }
        }
        Ok(dropped)
    }

    async fn run(&self, link: &Arc<Link>, commands: Vec<Cmd>) -> std::result::Result<Vec<Value>, Failure> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let replies = link.run(commands.into_iter().map(Step::Plain).collect()).await?;
        // Somebody else's type at a key of larder's is as good as nothing.
        Ok(replies.into_iter().map(|reply| reply.unwrap_or(Value::Nil)).collect())
    }
}

fn plain(name: &str, key: &[u8]) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(key);
    command
}

fn meta_command(store: &Store) -> Cmd {
    let mut command = redis::cmd("HMGET");
    command.arg(store.meta()).arg("inc").arg("pos").arg("c").arg("mp");
    command
}

fn parse_meta(fields: &[Value]) -> Option<Meta> {
    let [Value::BulkString(inc), pos, clear, marked] = fields else { return None };
    Some(Meta {
        inc: u64::from_be_bytes(inc[..].try_into().ok()?),
        pos: number(pos)?,
        clear: number(clear).unwrap_or(0),
        marked: number(marked).unwrap_or(0),
    })
}

fn chunks<T>(items: Vec<T>, size: usize) -> impl Iterator<Item = Vec<T>> {
    let mut items = items.into_iter();
    std::iter::from_fn(move || {
        Some(items.by_ref().take(size).collect()).filter(|chunk: &Vec<T>| !chunk.is_empty())
    })
}

/// Server, SCAN's cursor there and the last hash that was listed, in hex.
fn cursor(place: Place, after: Option<u64>) -> Cursor {
    let after = after.map_or(String::new(), |after| format!("{after:x}"));
    Cursor(format!("{:x}-{:x}-{after}", place.server, place.cursor))
}

fn parse_cursor(cursor: Option<&Cursor>) -> Result<(Place, Option<u64>)> {
    let Some(Cursor(text)) = cursor else { return Ok((Place { server: 0, cursor: 0 }, None)) };
    let parse = || {
        let mut parts = text.split('-');
        let server = usize::from_str_radix(parts.next()?, 16).ok()?;
        let cursor = u64::from_str_radix(parts.next()?, 16).ok()?;
        let after = match parts.next()? {
            "" => None,
            after => Some(u64::from_str_radix(after, 16).ok()?),
        };
        parts.next().is_none().then_some((Place { server, cursor }, after))
    };
    parse().ok_or_else(|| {
        Error::new(ErrorKind::Config, "scan").backend(NAME).message("the cursor is not one of this backend's")
    })
}
