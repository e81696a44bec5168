//! What requests that share a statement become on the wire, and how its answer becomes theirs.

use super::fault::Failure;
use super::link::{Answer, Connected, Done, Op, Param, Request, Settings};
use super::sql::Sql;
use crate::backend::{Exchange, Miss, Put, PutOutcome, Read, Ticket};
use crate::clock::NEVER_MS;
use crate::entry::EntryKind;
use crate::key::EntryKey;
use crate::stamp::{STAMP_AHEAD_MAX_MS, Stamp};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::future::Future;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use xxhash_rust::xxh3::xxh3_64;

/// Answers requests of one kind by one statement; says whether the connection broke.
pub(super) async fn run(settings: &Settings, connected: &Connected, batch: Vec<Request>) -> bool {
    let wire = Wire { settings, connected };
    let (mut reads, mut writes, mut broken) = (Vec::new(), Vec::new(), false);
    for request in batch {
        match request {
            Request::Read { namespace, key, answer } => reads.push((namespace, key, answer)),
            Request::Write { ops, answer } => writes.push((ops, answer)),
            Request::Query { sql, params, answer } => {
                let rows = wire.query(sql, params).await;
                broken |= rows.as_ref().is_err_and(Failure::breaks);
                drop(answer.send(rows));
            }
        }
    }
    if !reads.is_empty() {
        broken |= wire.read(reads).await;
    }
    if !writes.is_empty() {
        broken |= wire.write(writes).await;
    }
    broken
}

type Reader = (crate::key::Namespace, Option<EntryKey>, Answer<Read>);
type Writer = (Vec<Op>, Answer<Vec<Result<Done, Failure>>>);

/// A connection for the time of a batch.
struct Wire<'a> {
    settings: &'a Settings,
    connected: &'a Connected,
}

impl Wire<'_> {
    async fn rows(&self, sql: Sql, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Failure> {
        let statement = self.connected.statement(self.settings, sql).await?;
        self.connected.client.query(statement, params).await.map_err(Failure::from)
    }

    async fn within<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let limit = self.settings.response_timeout;
        tokio::time::timeout(limit, work).await.unwrap_or(Err(Failure::TimedOut(limit)))
    }

    async fn query(&self, sql: Sql, params: Vec<Param>) -> Result<Vec<Row>, Failure> {
        let params: Vec<&(dyn ToSql + Sync)> = params.iter().map(|param| &**param as _).collect();
        self.within(self.rows(sql, &params)).await
    }

    async fn read(&self, readers: Vec<Reader>) -> bool {
        match self.within(self.read_all(&readers)).await {
            Ok(reads) => {
                for ((.., answer), read) in readers.into_iter().zip(reads) {
                    drop(answer.send(Ok(read)));
                }
                false
            }
            Err(failure) => {
                for (.., answer) in readers {
                    drop(answer.send(Err(failure.clone())));
                }
                failure.breaks()
            }
        }
    }

    async fn read_all(&self, readers: &[Reader]) -> Result<Vec<Read>, Failure> {
        let names: Vec<&str> = readers.iter().map(|(namespace, ..)| namespace.as_str()).collect();
        let hashes: Vec<i64> =
            readers.iter().map(|(_, key, _)| key.as_ref().map_or(0, |key| key.hash64() as i64)).collect();
        let keys: Vec<Option<&[u8]>> =
            readers.iter().map(|(_, key, _)| key.as_ref().map(|key| &key.as_bytes()[..])).collect();
        let now_ms = self.settings.clock.wall_ms();
        let now = ordered(now_ms);
        let rows = self.rows(Sql::Read, &[&names, &hashes, &keys, &now, &distrusted(now_ms)]).await?;
        let mut reads: Vec<Option<Read>> = vec![None; readers.len()];
        for row in &rows {
            let place = get::<i64>(row, 0)? as usize - 1;
            let Some(inc) = get::<Option<i64>>(row, 1)? else { continue };
            let ticket = Ticket { inc: inc as u64, pos: get::<i64>(row, 2)? as u64 };
            let found = match miss(get(row, 3)?) {
                Some(miss) => Err(miss),
                None => Ok(Bytes::copy_from_slice(get(row, 4)?)),
            };
            *reads.get_mut(place).ok_or(Failure::Nonsense("an answer to no question"))? =
                Some(Read { ticket, found });
        }
        self.begin(readers, &mut reads).await?;
        reads.into_iter().map(|read| read.ok_or(Failure::Nonsense("no answer to a read"))).collect()
    }

    /// Begins the namespaces that nobody has used yet.
    async fn begin(&self, readers: &[Reader], reads: &mut [Option<Read>]) -> Result<(), Failure> {
        let mut tickets: BTreeMap<&str, Option<Ticket>> = BTreeMap::new();
        for ((namespace, ..), _) in readers.iter().zip(&*reads).filter(|(_, read)| read.is_none()) {
            tickets.insert(namespace.as_str(), None);
        }
        if tickets.is_empty() {
            return Ok(());
        }
        // In order, so that two who begin the same ones don't wait for each other.
        let names: Vec<&str> = tickets.keys().copied().collect();
        let rows = self.rows(Sql::Begin, &[&names]).await?;
        for (ticket, row) in tickets.values_mut().zip(&rows) {
            *ticket = Some(Ticket { inc: get::<i64>(row, 0)? as u64, pos: get::<i64>(row, 1)? as u64 });
        }
        for ((namespace, ..), read) in readers.iter().zip(reads) {
            if read.is_none() {
                let ticket = tickets.get(namespace.as_str()).copied().flatten();
                *read = ticket.map(|ticket| Read { ticket, found: Err(Miss::Absent) });
            }
        }
        Ok(())
    }

    async fn write(&self, writers: Vec<Writer>) -> bool {
        let ops: Vec<&Op> = writers.iter().flat_map(|(ops, _)| ops).collect();
        let mut broken = false;
        let done = match self.within(self.apply(&ops)).await {
            Ok(done) => done.into_iter().map(Ok).collect(),
            // One that the server can't take must not fail the others; nothing was done so far.
            Err(failure) if failure.may_be_of_one() && ops.len() > 1 => {
                let mut done = Vec::with_capacity(ops.len());
                for op in &ops {
                    let alone = if broken {
                        Err(failure.clone())
                    } else {
                        self.within(self.apply(&[op])).await.map(|mut done| done.remove(0))
                    };
                    broken |= alone.as_ref().is_err_and(Failure::breaks);
                    done.push(alone);
                }
                done
            }
            Err(failure) => {
                broken = failure.breaks();
                ops.iter().map(|_| Err(failure.clone())).collect::<Vec<_>>()
            }
        };
        let mut done = done.into_iter();
        for (ops, answer) in writers {
            drop(answer.send(Ok(done.by_ref().take(ops.len()).collect())));
        }
        broken
    }

    /// All or none, in one transaction; what became of each, in their order.
    async fn apply(&self, ops: &[&Op]) -> Result<Vec<Done>, Failure> {
        // The order in which everybody locks: transactions never wait for each other in a circle. Operations on one
        // key keep theirs.
        let mut order: Vec<usize> = (0..ops.len()).collect();
        order.sort_by_key(|at| place_of(ops[*at].key()));
        let now_ms = self.settings.clock.wall_ms();
        let mut columns = Columns::default();
        for at in &order {
            columns.push(ops[*at]);
        }
        let (now, distrusted) = (ordered(now_ms), distrusted(now_ms));
        let origin = origin_text(self.settings.origin);
        let params: [&(dyn ToSql + Sync); 18] = [
            &columns.names,
            &columns.ends,
            &columns.exclusive,
            &origin,
            &now,
            &distrusted,
            &columns.is_lasting,
            &columns.kinds,
            &columns.hashes,
            &columns.keys,
            &columns.incs,
            &columns.began,
            &columns.stamps,
            &columns.gone_at,
            &columns.tags,
            &columns.tag_ends,
            &columns.bodies,
            &columns.others,
        ];
        let rows = self.rows(Sql::Apply, &params).await?;
        let row = rows.first().ok_or(Failure::Nonsense("no answer to a write"))?;
        let (outcomes, rivals) = (get::<Vec<i16>>(row, 0)?, get::<Vec<Option<&[u8]>>>(row, 1)?);
        if outcomes.len() != ops.len() || rivals.len() != ops.len() {
            return Err(Failure::Nonsense("another number of answers than of writes"));
        }
        let mut done = vec![Done::Met(false); ops.len()];
        for (at, (outcome, rival)) in order.iter().zip(outcomes.into_iter().zip(rivals)) {
            done[*at] = match (ops[*at], outcome) {
                (Op::Put(_), 0) => Done::Put(PutOutcome::Stored),
                (Op::Put(_), 1) => Done::Put(PutOutcome::Fenced),
                (Op::Put(_), _) => Done::Put(PutOutcome::Older(stamp(rival.unwrap_or_default())?)),
                (_, outcome) => Done::Met(outcome == 1),
            };
        }
        Ok(done)
    }
}

/// What a mutation is sorted by, as the server would sort it.
fn place_of(key: &EntryKey) -> (&str, i64, &[u8]) {
    (key.namespace().as_str(), key.hash64() as i64, &key.as_bytes()[..])
}

/// The parameters of [`Sql::Apply`].
#[derive(Default)]
struct Columns<'a> {
    names: Vec<&'a str>,
    /// Per name, how many operations end with it.
    ends: Vec<i32>,
    /// Per name, whether its position moves.
    exclusive: Vec<bool>,
    /// Whether a crash may not take it back.
    is_lasting: bool,
    kinds: Vec<i16>,
    hashes: Vec<i64>,
    keys: Vec<&'a [u8]>,
    incs: Vec<i64>,
    began: Vec<i64>,
    stamps: Vec<Option<Vec<u8>>>,
    gone_at: Vec<Option<i64>>,
    tags: Vec<i64>,
    tag_ends: Vec<i32>,
    bodies: Vec<Option<&'a [u8]>>,
    others: Vec<Option<&'a [u8]>>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, op: &'a Op) {
        let key = op.key();
        if self.names.last() != Some(&key.namespace().as_str()) {
            self.names.push(key.namespace().as_str());
            self.ends.push(0);
            self.exclusive.push(false);
        }
        let (kind, body, other) = match op {
            Op::Put(put) if put.meta.kind == EntryKind::Load => (0, Some(&put.sealed[..]), None),
            Op::Put(put) => (1, Some(&put.sealed[..]), None),
            Op::Remove(_) => (2, None, None),
            Op::Discard(_, sealed) => (3, Some(&sealed[..]), None),
            Op::Exchange(Exchange { old, new, .. }) => (4, Some(&old[..]), Some(&new[..])),
            Op::Quarantine(_, sealed, why) => (5, Some(&sealed[..]), Some(why.as_bytes())),
        };
        self.is_lasting |= !matches!(kind, 0 | 3);
        self.kinds.push(kind);
        self.hashes.push(key.hash64() as i64);
        self.keys.push(&key.as_bytes()[..]);
        self.bodies.push(body);
        self.others.push(other);
        let put = match op {
            Op::Put(put) => Some(put),
            _ => None,
        };
        self.incs.push(put.map_or(0, |put| put.ticket.inc as i64));
        // A position beyond all that can be is as good as the last one.
        self.began.push(put.map_or(0, |put| i64::try_from(put.ticket.pos).unwrap_or(i64::MAX)));
        self.stamps.push(put.map(|put| put.meta.stamp.to_bytes().to_vec()));
        self.gone_at.push(put.and_then(|put| gone_at(put)));
        self.tags.extend(put.iter().flat_map(|put| put.meta.tags.iter().map(tag_hash)));
        self.tag_ends.push(self.tags.len() as i32);
        let count = self.kinds.len() as i32;
        if let (Some(end), Some(exclusive)) = (self.ends.last_mut(), self.exclusive.last_mut()) {
            *end = count;
            *exclusive |= matches!(kind, 1 | 2);
        }
    }
}

/// A tag as the tables name it. Two tags of one hash are removed together, which costs misses and nothing else.
pub(super) fn tag_hash(tag: &str) -> i64 {
    xxh3_64(tag.as_bytes()) as i64
}

/// How log records name who wrote them.
pub(super) fn origin_text(origin: u64) -> String {
    format!("{origin:016x}")
}

/// A number whose order among `int8` is that of all of `u64`.
pub(super) fn ordered(value: u64) -> i64 {
    (value as i64) ^ i64::MIN
}

pub(super) fn unordered(value: i64) -> u64 {
    (value ^ i64::MIN) as u64
}

fn gone_at(put: &Put) -> Option<i64> {
    (put.meta.gone_at_ms != NEVER_MS).then(|| ordered(put.meta.gone_at_ms))
}

/// The first stamp that is not trusted.
pub(super) fn distrusted(now_ms: u64) -> Vec<u8> {
    match now_ms.saturating_add(STAMP_AHEAD_MAX_MS).saturating_add(1) {
        wall_ms if wall_ms < 1 << 48 => Stamp::new(wall_ms, 0, 0).to_bytes().to_vec(),
        // Beyond all stamps.
        _ => vec![0xff; 13],
    }
}

pub(super) fn stamp(bytes: &[u8]) -> Result<Stamp, Failure> {
    bytes.try_into().map(Stamp::from_bytes).map_err(|_| Failure::Nonsense("a stamp has not 12 bytes"))
}

/// Why an entry is none, in the numbers of the statements.
pub(super) fn miss(code: i32) -> Option<Miss> {
    match code {
        0 => None,
        2 => Some(Miss::Expired),
        3 => Some(Miss::Cleared),
        4 => Some(Miss::Tag),
        5 => Some(Miss::Clock),
        _ => Some(Miss::Absent),
    }
}

/// A column, which has the type that the statement says.
pub(super) fn get<'r, T: tokio_postgres::types::FromSql<'r>>(
    row: &'r Row,
    column: usize,
) -> Result<T, Failure> {
    row.try_get(column).map_err(|_| Failure::Nonsense("an answer has another type than asked for"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_keep_their_order_over_all_of_u64() {
        let moments = [0, 1, (1 << 63) - 1, 1 << 63, u64::MAX - 1, u64::MAX];
        assert!(moments.windows(2).all(|pair| ordered(pair[0]) < ordered(pair[1])));
        assert!(moments.iter().all(|moment| unordered(ordered(*moment)) == *moment));
    }

    #[test]
    fn the_bound_of_trust_is_that_of_stamps() {
        for now_ms in [0, 1_000_000, (1 << 48) - STAMP_AHEAD_MAX_MS - 2, (1 << 48) - 1, u64::MAX] {
            for wall_ms in
                [0, 1_000_000, 1_000_000 + STAMP_AHEAD_MAX_MS, 1_000_001 + STAMP_AHEAD_MAX_MS, u64::MAX]
            {
                let stamp = Stamp::new(wall_ms, u16::MAX, u32::MAX);
                let beyond = stamp.to_bytes()[..] >= distrusted(now_ms)[..];
                assert_eq!(beyond, stamp.is_distrusted(now_ms), "{wall_ms} at {now_ms}");
            }
        }
    }
}
