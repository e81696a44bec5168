//! What may be written: the rules of a store (A5, A6 of `DESIGN.md`), decided here and carried out by CAS.
//!
//! Positions are the server's CAS numbers. A write looks at the markers of its tags, at the record of the namespace,
//! and at what is there, judges, and writes if nothing came in between. With the ticket of a placeholder it
//! need not look: the CAS number says that nothing has happened since.

use super::fault::Failure;
use super::layout::{ENTRY_HEAD_BYTES_MAX, Entry, Position, Record, Standing, check_size, tag_key};
use super::options::LargeValues;
use super::wire::{Answer, Command, Condition, Payload};
use super::{MemcachedBackend, Place, ROUNDS_MAX, refused};
use crate::backend::{Put, PutOutcome};
use crate::entry::EntryKind;
use crate::error::Result;
use crate::stamp::Stamp;
use bytes::Bytes;

/// What an item of a server has beside its value: its key, memcached's head, and some to spare.
const ITEM_OVERHEAD_BYTES: usize = 512;

/// What was found before a write.
struct Found {
    /// The positions of the marks of its tags.
    markers: Vec<u64>,
    record: Option<Record>,
    item: Option<Answer>,
}

/// What the rules say.
enum Verdict {
    Write(Standing),
    Fenced,
    Older(Stamp),
}

impl MemcachedBackend {
    pub(super) async fn put_one(&self, place: &Place<'_>, put: &Put) -> Result<PutOutcome> {
        check_size(put, self.options.value_bytes_max, "value_bytes_max")?;
        // Until it is connected nobody knows; a ticket comes from a connection.
        let item_bytes_max = place.link.server().map_or(1 << 20, |server| server.item_bytes_max);
        let room = item_bytes_max.saturating_sub(ITEM_OVERHEAD_BYTES);
        let body_bytes_max = room.saturating_sub(ENTRY_HEAD_BYTES_MAX);
        if put.sealed.len() <= body_bytes_max {
            return place.fail(self.write(place, put, put.sealed.clone(), false).await, "put");
        }
        if self.options.large_values == LargeValues::Refuse || room < 2048 {
            check_size(put, body_bytes_max as u64, "the server's items, -I; large_values is \"refuse\"")?;
        }
        let pieces = place.fail(self.write_pieces(place, put, room - 64).await, "put")?;
        let outcome = self.write(place, put, pieces.encode(), true).await;
        if !matches!(outcome, Ok(PutOutcome::Stored)) {
            self.drop_pieces(place, pieces).await;
        }
        place.fail(outcome, "put")
    }

    async fn write(
        &self,
        place: &Place<'_>,
        put: &Put,
        body: Bytes,
        is_in_pieces: bool,
    ) -> Result<PutOutcome, Failure> {
        let wanted = Position::of(put.ticket);
        let is_tagged = !put.meta.tags.is_empty();
        let mut looks = wanted.looks_first;
        for _ in 0..ROUNDS_MAX {
            let found = match looks || is_tagged {
                true => Some(self.find(place, put, looks).await?),
                false => None,
            };
            let standing = match &found {
                Some(found) => match self.judge(place, put, wanted, found).await? {
                    Verdict::Write(standing) => standing,
                    Verdict::Older(stamp) => return Ok(PutOutcome::Older(stamp)),
                    // A later set that is there is asked for first.
                    Verdict::Fenced if !looks && put.meta.kind == EntryKind::Set => {
                        looks = true;
                        continue;
                    }
                    Verdict::Fenced => return self.refuse(place, put).await,
                },
                None => Standing::begun(wanted.at),
            };
            let markers = found.iter().flat_map(|found| found.markers.iter().copied());
            let tags = put.meta.tags.iter().map(|tag| Bytes::copy_from_slice(tag.as_bytes())).zip(markers);
            let entry = Entry {
                kind: Some(put.meta.kind),
                is_in_pieces,
                inc: put.ticket.inc,
                root: standing.root,
                changed: if put.meta.kind == EntryKind::Set { 0 } else { standing.changed },
                seen: wanted.at,
                stamp: put.meta.stamp,
                gone_at_ms: put.meta.gone_at_ms,
                tags: tags.collect(),
                body: body.clone(),
            };
            let store = Command::Store {
                key: place.item.clone(),
                head: entry.encode_head(place.key, place.is_hashed),
                body: entry.body.clone(),
                exptime: self.exptime(put.meta.gone_at_ms, place.link),
                only_if: Condition::Unchanged(standing.cas),
            };
            let record = Command::Get { key: place.record.clone(), value: Payload::Whole, vivify: None };
            let commands = if found.is_some() { vec![store] } else { vec![record, store] };
            let mut answers = place.link.run(commands).await?;
            match answers.pop() {
                Some(Answer::Done(_)) => {
                    let is_of_now = found.is_some()
                        || matches!(answers.pop(), Some(Answer::Done(item))
                            if Record::parse(&item.value, item.cas).is_some_and(|now| now.inc == put.ticket.inc));
                    if is_of_now {
                        return Ok(PutOutcome::Stored);
                    }
                    // Nobody is served it, whose incarnation is another; it goes all the same.
                    let delete = Command::Delete { key: place.item.clone() };
                    refused(&place.link.run(vec![delete]).await?)?;
                    return Ok(PutOutcome::Fenced);
                }
                Some(Answer::Changed) => looks = true,
                Some(Answer::Absent) => return self.refuse(place, put).await,
                Some(Answer::Refused(refusal)) => return Err(Failure::Refused(refusal)),
                _ => return Err(Failure::Nonsense("no answer to a write")),
            }
        }
        Err(Failure::Contended)
    }

    /// The markers of its tags, then the record, then what is there: in this order no mark slips through.
    async fn find(&self, place: &Place<'_>, put: &Put, looks: bool) -> Result<Found, Failure> {
        let mut commands = Vec::with_capacity(2 + put.meta.tags.iter().len());
        for tag in put.meta.tags.iter() {
            // One that is missing may have been forgotten: from now on it is another.
            let key = tag_key(&self.prefix, place.key.namespace(), tag);
            commands.push(Command::Get { key, value: Payload::Nothing, vivify: Some(0) });
        }
        let get = |key: &Bytes| Command::Get { key: key.clone(), value: Payload::Whole, vivify: None };
        commands.push(get(&place.record));
        if looks {
            commands.push(get(&place.item));
        }
        let mut answers = place.link.run(commands).await?;
        refused(&answers)?;
        let item = if looks { answers.pop() } else { None };
        let record = match answers.pop() {
            Some(Answer::Done(item)) => Record::parse(&item.value, item.cas),
            _ => None,
        };
        let marker = |answer| match answer {
            Answer::Done(marker) => Ok(marker.cas),
            _ => Err(Failure::Nonsense("the absence of what it was to put there")),
        };
        Ok(Found { markers: answers.into_iter().map(marker).collect::<Result<_, _>>()?, record, item })
    }

    async fn judge(
        &self,
        place: &Place<'_>,
        put: &Put,
        wanted: Position,
        found: &Found,
    ) -> Result<Verdict, Failure> {
        let Some(record) = found.record else { return Ok(Verdict::Fenced) };
        let is_unmarked =
            record.marked <= wanted.at || found.markers.iter().all(|marker| *marker <= wanted.at);
        let is_current = record.inc == put.ticket.inc && is_unmarked;
        let item = match &found.item {
            Some(Answer::Done(item)) => item,
            Some(_) => return Ok(Verdict::Fenced),
            None if is_current => return Ok(Verdict::Write(Standing::begun(wanted.at))),
            None => return Ok(Verdict::Fenced),
        };
        let entry = Entry::parse(&item.value, place.key, place.is_hashed);
        let standing =
            entry.as_ref().map_or(Standing::begun(item.cas), |entry| entry.standing(item.cas, record));
        let mut last = standing.changed;
        if put.meta.kind == EntryKind::Set
            && let Some(set) = entry.filter(|entry| entry.kind == Some(EntryKind::Set))
            && self.why_invalid(place, &set, record).await?.is_none()
        {
            if set.stamp >= put.meta.stamp {
                return Ok(Verdict::Older(set.stamp));
            }
            // There is a set to compare with, so only a removal is in the way.
            last = standing.root;
        }
        Ok(if is_current && last <= wanted.at { Verdict::Write(standing) } else { Verdict::Fenced })
    }

    /// A refused set must not leave an older value behind.
    async fn refuse(&self, place: &Place<'_>, put: &Put) -> Result<PutOutcome, Failure> {
        if put.meta.kind == EntryKind::Set {
            refused(&place.link.run(vec![Command::Delete { key: place.item.clone() }]).await?)?;
        }
        Ok(PutOutcome::Fenced)
    }
}
