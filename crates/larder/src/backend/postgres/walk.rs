//! What takes longer than a call: listing, removing by pattern, sweeping. Each statement looks at a bounded number
//! of rows, in the order of the primary key, on a connection apart from those of reads and writes.

use super::PostgresBackend;
use super::batch::{distrusted, get, miss, ordered, unordered};
use super::fault::{Failure, NAME};
use super::link::Param;
use super::sql::Sql;
use crate::backend::{Cursor, Listed, Page, Scan};
use crate::clock::NEVER_MS;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{EntryKey, Namespace, Pattern};
use bytes::Bytes;
use std::fmt::Write as _;
use std::sync::PoisonError;
use tokio_postgres::Row;

/// Most rows that one statement looks at.
const ROWS_MAX: usize = 1000;
/// How many statements one page of a listing, or one sweep, may take.
const STATEMENTS_MAX: usize = 32;

/// Where a scan stands among the entries of a namespace.
#[derive(Clone)]
struct Place {
    hash: i64,
    key: Vec<u8>,
}

impl Place {
    const START: Place = Place { hash: i64::MIN, key: Vec::new() };
}

/// Where a sweep stands among all entries.
#[derive(Clone)]
pub(super) struct SweepPlace {
    namespace: i32,
    hash: i64,
    key: Vec<u8>,
}

impl SweepPlace {
    pub(super) const START: SweepPlace = SweepPlace { namespace: i32::MIN, hash: i64::MIN, key: Vec::new() };
}

/// An entry that a walk has come by.
struct Found {
    place: Place,
    key: EntryKey,
    gone_at_ms: u64,
    sealed_bytes: u64,
    is_valid: bool,
}

impl PostgresBackend {
    pub(super) async fn list(&self, scan: Scan<'_>) -> Result<Page> {
        let fail = |failure: Failure| failure.into_error("scan");
        let mut after = parse_cursor(scan.after.as_ref())?;
        let limit = scan.limit.max(1);
        // Without a pattern nearly every row is one of the page.
        let rows_max = if scan.pattern.is_none() { limit.min(ROWS_MAX) } else { ROWS_MAX };
        let mut page = Page::default();
        for _ in 0..STATEMENTS_MAX {
            let rows = self.some_after(scan.namespace, &after, rows_max).await.map_err(fail)?;
            let is_last = rows.len() < rows_max;
            for found in rows {
                let matches = scan.pattern.is_none_or(|pattern| pattern.matches(&found.key.text()));
                after = found.place;
                if found.is_valid && matches {
                    let Found { key, gone_at_ms, sealed_bytes, .. } = found;
                    page.entries.push(Listed { key, gone_at_ms, sealed_bytes });
                }
                if page.entries.len() == limit {
                    page.next = Some(cursor(&after));
                    return Ok(page);
                }
            }
            if is_last {
                return Ok(page);
            }
        }
        page.next = Some(cursor(&after));
        Ok(page)
    }

    /// Removes what matches and was written before a floor; how many there were.
    pub(super) async fn drop_matching(
        &self,
        namespace: &Namespace,
        pattern: &Pattern,
        floor: i64,
    ) -> Result<u64, Failure> {
        let (mut after, mut dropped) = (Place::START, 0);
        loop {
            let rows = self.some_after(namespace, &after, ROWS_MAX).await?;
            let is_last = rows.len() < ROWS_MAX;
            // What is expired or distrusted by this node's clock may be neither by another one's: it goes, uncounted.
            let (mut valid, mut invalid) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
            for found in rows {
                after = found.place;
                if pattern.matches(&found.key.text()) {
                    let (hashes, keys) = if found.is_valid { &mut valid } else { &mut invalid };
                    hashes.push(after.hash);
                    keys.push(after.key.clone());
                }
            }
            for ((hashes, keys), is_counted) in [(valid, true), (invalid, false)] {
                if hashes.is_empty() {
                    continue;
                }
                let name = namespace.as_str().to_owned();
                let params: Vec<Param> =
                    vec![Box::new(name), Box::new(hashes), Box::new(keys), Box::new(floor)];
                let gone = get::<i64>(first(&self.aside.query(Sql::Drop, params).await?)?, 0)? as u64;
                dropped += if is_counted { gone } else { 0 };
            }
            if is_last {
                return Ok(dropped);
            }
        }
    }

    /// Frees what is expired, then goes on with the walk over all entries for what was invalidated. What another
    /// transaction works on is left to the next sweep.
    pub(super) async fn sweep_some(&self, limit: usize) -> Result<u64, Failure> {
        if limit == 0 {
            return Ok(0);
        }
        let now_ms = self.clock.wall_ms();
        let mut freed = 0;
        while freed < limit as u64 {
            let most = ROWS_MAX.min(limit - freed as usize) as i64;
            let expired: Vec<Param> = vec![Box::new(ordered(now_ms)), Box::new(most)];
            let some = get::<i64>(first(&self.aside.query(Sql::Expired, expired).await?)?, 0)? as u64;
            freed += some;
            if some < most as u64 {
                break;
            }
        }
        for _ in 0..STATEMENTS_MAX {
            if freed >= limit as u64 {
                break;
            }
            let after = self.sweep_place.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let walk: Vec<Param> = vec![
                Box::new(after.namespace),
                Box::new(after.hash),
                Box::new(after.key),
                Box::new(ordered(now_ms)),
                Box::new(ROWS_MAX as i64),
            ];
            let rows = self.aside.query(Sql::Walk, walk).await?;
            let mut place = SweepPlace::START;
            let (mut spaces, mut hashes, mut keys, mut seen) =
                (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            let mut is_cut = false;
            for row in &rows {
                if hashes.len() as u64 + freed >= limit as u64 {
                    is_cut = true;
                    break;
                }
                place = SweepPlace { namespace: get(row, 0)?, hash: get(row, 1)?, key: get(row, 2)? };
                if get::<i32>(row, 4)? != 0 {
                    spaces.push(place.namespace);
                    hashes.push(place.hash);
                    keys.push(place.key.clone());
                    seen.push(get::<i64>(row, 3)?);
                }
            }
            let is_last = !is_cut && rows.len() < ROWS_MAX;
            if !hashes.is_empty() {
                let free: Vec<Param> =
                    vec![Box::new(spaces), Box::new(hashes), Box::new(keys), Box::new(seen)];
                freed += get::<i64>(first(&self.aside.query(Sql::Free, free).await?)?, 0)? as u64;
            }
            // At the end the next sweep begins anew.
            *self.sweep_place.lock().unwrap_or_else(PoisonError::into_inner) =
                if is_last { SweepPlace::START } else { place };
            if is_last {
                break;
            }
        }
        Ok(freed)
    }

    async fn some_after(
        &self,
        namespace: &Namespace,
        after: &Place,
        rows_max: usize,
    ) -> Result<Vec<Found>, Failure> {
        let now_ms = self.clock.wall_ms();
        let params: Vec<Param> = vec![
            Box::new(namespace.as_str().to_owned()),
            Box::new(after.hash),
            Box::new(after.key.clone()),
            Box::new(rows_max as i64),
            Box::new(ordered(now_ms)),
            Box::new(distrusted(now_ms)),
        ];
        let rows = self.aside.query(Sql::Scan, params).await?;
        rows.iter().map(|row| parse_row(namespace, row)).collect()
    }
}

fn parse_row(namespace: &Namespace, row: &Row) -> Result<Found, Failure> {
    let place = Place { hash: get(row, 0)?, key: get(row, 1)? };
    let key = EntryKey::from_bytes(namespace, Bytes::copy_from_slice(&place.key))
        .map_err(|_| Failure::Nonsense("an entry has an impossible key"))?;
    Ok(Found {
        key,
        place,
        gone_at_ms: get::<Option<i64>>(row, 2)?.map_or(NEVER_MS, unordered),
        sealed_bytes: get::<i64>(row, 3)? as u64,
        is_valid: miss(get(row, 4)?).is_none(),
    })
}

pub(super) fn first(rows: &[Row]) -> Result<&Row, Failure> {
    rows.first().ok_or(Failure::Nonsense("an answer without a row"))
}

/// The hash, and the key in hex: both are needed where two keys share a hash.
fn cursor(place: &Place) -> Cursor {
    let mut text = format!("{:x}-", place.hash as u64);
    for byte in &place.key {
        write!(text, "{byte:02x}").expect("writing to a string can't fail");
    }
    Cursor(text)
}

fn parse_cursor(cursor: Option<&Cursor>) -> Result<Place> {
    let Some(Cursor(text)) = cursor else { return Ok(Place::START) };
    let parse = || {
        let (hash, key) = text.split_once('-')?;
        let digits = key.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
        let key = digits.map(|pair| u8::from_str_radix(pair.filter(|pair| pair.len() == 2)?, 16).ok());
        Some(Place { hash: u64::from_str_radix(hash, 16).ok()? as i64, key: key.collect::<Option<_>>()? })
    };
    parse().ok_or_else(|| {
        Error::new(ErrorKind::Config, "scan").backend(NAME).message("the cursor is not one of this backend's")
    })
}
