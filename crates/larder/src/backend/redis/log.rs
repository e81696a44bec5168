//! The log of a store, read by position, and what the server publishes of it meanwhile.

use super::RedisBackend;
use super::batch::{array, number, parse_ticket};
use super::fault::Failure;
use super::layout::{Store, parse_log_name};
use super::link::{Replies, Step};
use super::script::Script;
use crate::backend::{Change, Hint, LOG_PAGE_MAX, Log, LogCursor, LogPage, Record, Ticket};
use crate::error::Result;
use async_trait::async_trait;
use redis::{PushInfo, PushKind, Value};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::mpsc;

/// Most hints that wait to be taken; what comes beyond is dropped, and read from the log.
const HINTS_MAX: usize = 4096;
/// Most stores that share a pipeline: with a full page of each, an answer of a few megabytes.
const STORES_MAX: usize = 128;
/// How long nothing is tried after a subscription has failed.
const SUBSCRIBE_AGAIN: Duration = Duration::from_secs(1);

type Replied<'a> = Pin<Box<dyn Future<Output = Result<Replies, Failure>> + Send + 'a>>;

#[async_trait]
impl Log for RedisBackend {
    fn shards(&self) -> u32 {
        self.shards
    }

    fn origin(&self) -> u64 {
        self.origin
    }

    async fn read(&self, after: &[LogCursor]) -> Vec<Result<LogPage>> {
        let mut by_slot: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
        let stores: Vec<Store> =
            after.iter().map(|cursor| Store::new(&self.prefix, &cursor.namespace, cursor.shard)).collect();
        for (place, store) in stores.iter().enumerate() {
            // A single server has all slots.
            let slot = if self.router.is_cluster() { store.slot() } else { 0 };
            by_slot.entry(slot).or_default().push(place);
        }
        let mut places = Vec::new();
        let mut asked: Vec<Replied<'_>> = Vec::new();
        for (slot, of_slot) in &by_slot {
            for some in of_slot.chunks(STORES_MAX) {
                let steps = some.iter().flat_map(|place| look(&stores[*place], after[*place].at)).collect();
                places.push(some);
                asked.push(Box::pin(self.router.run_all(*slot, steps)));
            }
        }
        let mut pages: Vec<Option<Result<LogPage>>> = after.iter().map(|_| None).collect();
        for (some, replies) in places.into_iter().zip(all(asked).await) {
            let mut replies = replies.map(Vec::into_iter);
            for place in some {
                let page = match &mut replies {
                    Err(failure) => Err(failure.clone()),
                    Ok(replies) => {
                        let mut next =
                            || replies.next().ok_or(Failure::Nonsense("fewer answers than questions"));
                        next().and_then(|ticket| Ok((ticket, next()?))).and_then(|(ticket, records)| {
                            let records = records.map_err(Failure::Reply)?;
                            parse_page(&after[*place], &ticket.map_err(Failure::Reply)?, records)
                        })
                    }
                };
                pages[*place] = Some(page.map_err(|failure| failure.into_error("log")));
            }
        }
        pages.into_iter().map(|page| page.expect("every store was asked for")).collect()
    }

    fn hints(&self) -> Option<mpsc::Receiver<Hint>> {
        let (sender, hints) = mpsc::channel(HINTS_MAX);
        let (router, prefix) = (self.router.clone(), self.prefix.clone());
        crate::runtime::spawn(async move {
            let pattern = format!("{{{prefix}:*}}l");
            for turn in 0.. {
                let (hints, prefix) = (sender.clone(), prefix.clone());
                let take = move |push: PushInfo| {
                    if push.kind == PushKind::PMessage
                        && let Some(hint) = parse_hint(&prefix, &push.data)
                    {
                        // Without room it is dropped: the log has it.
                        drop(hints.try_send(hint));
                    }
                    Ok::<_, ()>(())
                };
                if router.is_closed() {
                    return;
                }
                let subscribed = async {
                    if let Ok(links) = router.links().await {
                        // In a cluster, every node publishes what any of them does.
                        links[turn % links.len()].subscribe(&pattern, take).await;
                    }
                    tokio::time::sleep(SUBSCRIBE_AGAIN).await;
                };
                let (mut closed, mut subscribed) = (pin!(sender.closed()), pin!(subscribed));
                let is_closed = std::future::poll_fn(|cx| match closed.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(true),
                    Poll::Pending => subscribed.as_mut().poll(cx).map(|()| false),
                });
                if is_closed.await {
                    return;
                }
            }
        });
        Some(hints)
    }
}

/// What asks for a store's page. The ticket first: what is recorded in between is more than it tells, and not less.
fn look(store: &Store, at: Option<Ticket>) -> [Step; 2] {
    let ticket = Step::Script { script: Script::Ticket, store: store.clone(), key: None, args: Vec::new() };
    let mut range = redis::cmd("XRANGE");
    match at {
        Some(at) => range.arg(store.log()).arg(format!("0-{}", at.pos.saturating_add(1))).arg("+"),
        // Nothing but where it stands is asked for.
        None => range.arg(store.log()).arg("+").arg("-"),
    };
    range.arg("COUNT").arg(LOG_PAGE_MAX);
    [ticket, Step::Plain(range)]
}

fn parse_page(cursor: &LogCursor, ticket: &Value, records: Value) -> Result<LogPage, Failure> {
    let stands_at = parse_ticket(ticket)?;
    let records = array(records)?.into_iter().map(|entry| parse_record(cursor, entry));
    Ok(LogPage::new(cursor.at, stands_at, records.collect::<Result<_, _>>()?))
}

fn parse_record(cursor: &LogCursor, entry: Value) -> Result<Record, Failure> {
    let nonsense = Failure::Nonsense("an entry of the log has no position");
    let entry = array(entry)?;
    let [Value::BulkString(id), fields] = &entry[..] else { return Err(nonsense) };
    let pos = std::str::from_utf8(id).ok().and_then(|id| id.strip_prefix("0-")?.parse().ok());
    let pos = pos.ok_or(nonsense)?;
    let mut fields = array(fields.clone())?.into_iter();
    let (mut kind, mut name, mut origin, mut stamp) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    while let (Some(Value::BulkString(field)), Some(Value::BulkString(value))) =
        (fields.next(), fields.next())
    {
        match &field[..] {
            b"k" => kind = value,
            b"n" => name = value,
            b"o" => origin = value,
            b"s" => stamp = value,
            _ => {}
        }
    }
    let change = Change::parse(&cursor.namespace, &kind, &name, &stamp);
    Ok(Record { pos, origin: parse_origin(&origin).unwrap_or(0), change })
}

fn parse_origin(hex: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()
}

/// `<pos> <kind> <origin> <stamp> <name>` on the channel of a log. What is of another form is unreadable; what is on
/// no log's channel is none of ours.
fn parse_hint(prefix: &str, data: &[Value]) -> Option<Hint> {
    let [_, Value::BulkString(channel), Value::BulkString(text)] = data else { return None };
    let namespace = parse_log_name(prefix, channel)?;
    let mut words = text.splitn(5, |byte| *byte == b' ');
    let mut parsed = || {
        let (pos, kind, origin) = (words.next()?, words.next()?, words.next()?);
        let (stamp, name) = (words.next()?, words.next()?);
        let pos = number(&Value::BulkString(pos.to_vec()))?;
        let change = Change::parse(&namespace, kind, name, stamp);
        Some(Record { pos, origin: parse_origin(origin)?, change })
    };
    let record = parsed();
    let unreadable = Record { pos: 0, origin: 0, change: Change::Unreadable };
    Some(Hint { record: record.unwrap_or(unreadable), namespace })
}

/// Waits for all, at once.
async fn all(mut asked: Vec<Replied<'_>>) -> Vec<Result<Replies, Failure>> {
    let mut replied: Vec<Option<Result<Replies, Failure>>> = asked.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (one, reply) in asked.iter_mut().zip(&mut replied) {
            if reply.is_none()
                && let Poll::Ready(ready) = one.as_mut().poll(cx)
            {
                *reply = Some(ready);
            }
        }
        if replied.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    replied.into_iter().flatten().collect()
}

#[cfg(all(test, not(larder_shuttle)))]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::key::{EntryKey, Namespace};

    fn hint(channel: &str, text: &[u8]) -> Option<Hint> {
        let bulk = |bytes: &[u8]| Value::BulkString(bytes.to_vec());
        parse_hint("p", &[bulk(b"{p:*}l"), bulk(channel.as_bytes()), bulk(text)])
    }

    #[test]
    fn hints_are_parsed_and_nothing_else_is() {
        let namespace = Namespace::new("n").unwrap();
        let key = EntryKey::new(&namespace, &("a b", 1)).unwrap();
        let text = [b"17 r 00000000000000ff  ", &key.as_bytes()[..]].concat();
        let record = Record { pos: 17, origin: 255, change: Change::Removed(key) };
        assert_eq!(hint("{p:n:3}l", &text), Some(Hint { namespace, record }));
        for other in ["{q:n:3}l", "{p:n:3}m", "{p:n}l", "p:n:3l", "{p:n:03}l", "{p:n:x}l", "{p:!:3}l", ""] {
            assert_eq!(hint(other, &text), None, "{other}");
        }
        for broken in
            [&b""[..], b"17", b"x r ff  k", b"17 r ff ", b"17 r zz  k", b"17 x ff  k", b"17 s ff 00 k"]
        {
            assert_eq!(hint("{p:n:3}l", broken).unwrap().record.change, Change::Unreadable);
        }
    }
}
