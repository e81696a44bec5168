//! The numbered log, polled by one statement for all namespaces, and hints by `LISTEN`.
//!
//! A record's position is taken under the namespace's lock and published by the commit that releases it: whoever sees
//! a position sees all before it. A notification is sent by that commit, too, and so never before its record.

use super::PostgresBackend;
use super::batch::get;
use super::fault::Failure;
use super::link::{Connected, Heard, Param, Settings, connect};
use super::sql::Sql;
use crate::backend::{Change, Hint, LOG_PAGE_MAX, Log, LogCursor, LogPage, Record, Ticket};
use crate::error::Result;
use crate::key::Namespace;
use async_trait::async_trait;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_postgres::Row;

/// Most stores whose log one statement reads.
const STORES_MAX: usize = 256;
/// Hints that wait for their reader; more are dropped, and found by polling.
const HINTS_MAX: usize = 1024;
/// How long the hints' connection waits before it is tried again, at first and at last.
const AGAIN_MIN: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(5);

#[async_trait]
impl Log for PostgresBackend {
    fn shards(&self) -> u32 {
        1
    }

    fn origin(&self) -> u64 {
        self.settings.origin
    }

    async fn read(&self, after: &[LogCursor]) -> Vec<Result<LogPage>> {
        let mut pages = Vec::with_capacity(after.len());
        for cursors in after.chunks(STORES_MAX) {
            match self.read_some(cursors).await {
                Ok(some) => pages.extend(some.into_iter().map(Ok)),
                Err(failure) => {
                    pages.extend(cursors.iter().map(|_| Err(failure.clone().into_error("read the log"))));
                }
            }
        }
        pages
    }

    fn hints(&self) -> Option<mpsc::Receiver<Hint>> {
        let (hints, receiver) = mpsc::channel(HINTS_MAX);
        crate::runtime::spawn(listen(self.settings.clone(), hints));
        Some(receiver)
    }
}

impl PostgresBackend {
    async fn read_some(&self, cursors: &[LogCursor]) -> Result<Vec<LogPage>, Failure> {
        let names: Vec<String> = cursors.iter().map(|cursor| cursor.namespace.as_str().to_owned()).collect();
        let incs: Vec<Option<i64>> = cursors.iter().map(|cursor| cursor.at.map(|at| at.inc as i64)).collect();
        let known = |at: Ticket| i64::try_from(at.pos).unwrap_or(i64::MAX);
        let positions: Vec<Option<i64>> = cursors.iter().map(|cursor| cursor.at.map(known)).collect();
        let params: Vec<Param> =
            vec![Box::new(names), Box::new(incs), Box::new(positions), Box::new(LOG_PAGE_MAX as i64)];
        let rows = self.reads.query(Sql::Log, params).await?;
        let mut stores: Vec<(Option<Ticket>, Vec<Record>)> = vec![(None, Vec::new()); cursors.len()];
        for row in &rows {
            let place = get::<i64>(row, 0)? as usize - 1;
            let ((at, records), cursor) = stores
                .get_mut(place)
                .zip(cursors.get(place))
                .ok_or(Failure::Nonsense("an answer to no question"))?;
            let Some(inc) = get::<Option<i64>>(row, 1)? else { continue };
            *at = Some(Ticket { inc: inc as u64, pos: get::<i64>(row, 2)? as u64 });
            records.extend(parse_record(&cursor.namespace, row)?);
        }
        let mut pages = Vec::with_capacity(cursors.len());
        for ((at, mut records), cursor) in stores.into_iter().zip(cursors) {
            let at = match at {
                Some(at) => at,
                // Nobody has used it yet: begun.
                None => self.reads.read(&cursor.namespace, None).await?.ticket,
            };
            records.sort_unstable_by_key(|record| record.pos);
            pages.push(LogPage::new(cursor.at, at, records));
        }
        Ok(pages)
    }
}

fn parse_record(namespace: &Namespace, row: &Row) -> Result<Option<Record>, Failure> {
    let Some(pos) = get::<Option<i64>>(row, 3)? else { return Ok(None) };
    let (kind, name, origin) = (get::<&str>(row, 4)?, get::<&[u8]>(row, 5)?, get::<&str>(row, 6)?);
    let stamp = get::<Option<&str>>(row, 7)?.unwrap_or_default();
    let change = Change::parse(namespace, kind.as_bytes(), name, stamp.as_bytes());
    Ok(Some(Record { pos: pos as u64, origin: parse_origin(origin), change }))
}

/// Of what can't be parsed nobody is the origin.
fn parse_origin(origin: &str) -> u64 {
    u64::from_str_radix(origin, 16).unwrap_or(0)
}

/// Keeps a connection that listens, as long as somebody wants to hear.
async fn listen(settings: Arc<Settings>, hints: mpsc::Sender<Hint>) {
    let mut again = AGAIN_MIN;
    let listening = async {
        loop {
            if let Ok(mut connected) = subscribe(&settings, hints.clone()).await {
                again = AGAIN_MIN;
                // Ends with the connection.
                drop((&mut connected.driver).await);
            }
            tokio::time::sleep(again).await;
            again = (again * 2).min(AGAIN_MAX);
        }
    };
    let (mut listening, mut closed) = (pin!(listening), pin!(hints.closed()));
    poll_fn(|cx| match closed.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => listening.as_mut().poll(cx),
    })
    .await;
}

async fn subscribe(settings: &Settings, hints: mpsc::Sender<Hint>) -> Result<Connected, Failure> {
    let channel = settings.schema.clone();
    let heard: Heard = Box::new(move |notification| {
        if notification.channel() == channel
            && let Some(hint) = parse_hint(notification.payload())
        {
            // Full: whoever reads is behind anyway, and polls.
            drop(hints.try_send(hint));
        }
    });
    let connected = connect(settings, Some(heard)).await?;
    let listen = format!("LISTEN {}", settings.schema);
    let listen = connected.client.batch_execute(&listen);
    let limit = settings.response_timeout;
    tokio::time::timeout(limit, listen).await.map_err(|_| Failure::TimedOut(limit))??;
    Ok(connected)
}

/// A notification: position, kind, origin, stamp in hex, name in hex, namespace. Without a namespace it is of nobody.
fn parse_hint(payload: &str) -> Option<Hint> {
    let mut parts = payload.split(' ');
    let (pos, kind, origin, stamp, name) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let namespace = Namespace::new(parts.next()?).ok()?;
    let parsed = || {
        let digits = name.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
        let name = digits.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect::<Option<Vec<u8>>>()?;
        Some((pos.parse().ok()?, Change::parse(&namespace, kind.as_bytes(), &name, stamp.as_bytes())))
    };
    let (pos, change) = parsed().unwrap_or((0, Change::Unreadable));
    let record = Record { pos, origin: parse_origin(origin), change };
    Some(Hint { namespace, record })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::EntryKey;

    #[test]
    fn what_is_no_hint_is_unreadable_or_nothing() {
        let namespace = Namespace::new("n").unwrap();
        let key = EntryKey::new(&namespace, "k").unwrap();
        let name: String = key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let hint = parse_hint(&format!("7 r 00000000000000ff  {name} n")).unwrap();
        assert_eq!(hint.record, Record { pos: 7, origin: 255, change: Change::Removed(key) });
        for payload in ["", "7", "7 r", "7 r x  00", "7 r x  00 ", "7 r x  00 name with"] {
            assert!(parse_hint(payload).is_none() || payload.ends_with("with"), "{payload}");
        }
        for payload in ["x r 1  00 n", "7 r 1  zz n", "7 r 1  0 n", "7 q 1  00 n", "7 é 1 é é n"] {
            assert_eq!(parse_hint(payload).unwrap().record.change, Change::Unreadable, "{payload}");
        }
    }
}
