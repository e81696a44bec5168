//! Reports about entries, in tables beside theirs. A foreign key ends them with the entry, whatever deletes
//! it: a removal, a sweep, an eviction, another process.

use super::store::{NamespaceRow, Place, Store, entry_row, key_at, statement, u64_at};
use crate::backend::Cursor;
use crate::error::{Error, ErrorKind};
use crate::key::{EntryKey, Namespace};
use crate::report::{Page, Past, Query, REPORTS_KEPT, Report, Standing, Verdict};
use rusqlite::types::Value;
use rusqlite::{Row, params, params_from_iter};
use std::time::Duration;

/// Most rows that one page looks at.
const SCANNED_MAX: usize = 1000;

impl Store<'_> {
    /// Keeps a report of a valid entry; its bad ones in a row.
    pub(super) fn report(&mut self, key: &EntryKey, report: &Report) -> rusqlite::Result<Option<u32>> {
        let Some((namespace, entry)) = self.valid_row(key)? else { return Ok(None) };
        let past = report.past(self.now_ms);
        let bad = i64::from(report.is_bad());
        let in_a_row = statement(
            self.db,
            "INSERT INTO standing (entry, ns, source, is_bad, bad_in_a_row, reports, accessed)
             VALUES (?1, ?2, ?3, ?4, ?4, 1, ?5)
             ON CONFLICT (entry) DO UPDATE SET source = ifnull(excluded.source, source), is_bad = excluded.is_bad,
                 bad_in_a_row = CASE excluded.is_bad WHEN 0 THEN 0 ELSE bad_in_a_row + 1 END,
                 reports = reports + 1, accessed = excluded.accessed
             RETURNING bad_in_a_row",
        )?
        .query_row(
            params![entry, namespace.id, report.named_source(), bad, past.wall_ms as i64],
            |row| u64_at(row, 0),
        )?;
        statement(
            self.db,
            "INSERT INTO history (entry, at, is_bad, latency_ms, note) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            entry,
            past.wall_ms as i64,
            bad,
            past.latency.map(|latency| latency.as_millis() as i64),
            past.note.as_deref(),
        ])?;
        statement(
            self.db,
            "DELETE FROM history WHERE entry = ?1 AND id <=
                 (SELECT id FROM history WHERE entry = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
        )?
        .execute(params![entry, REPORTS_KEPT as i64])?;
        Ok(Some(u32::try_from(in_a_row).unwrap_or(u32::MAX)))
    }

    /// Ends what is kept of an entry whose row a new one takes over.
    pub(super) fn forget_reports(&self, entry: i64) -> rusqlite::Result<()> {
        statement(self.db, "DELETE FROM standing WHERE entry = ?1")?.execute([entry]).map(|_| ())
    }

    /// The newest first.
    pub(super) fn history(&mut self, key: &EntryKey) -> rusqlite::Result<Vec<Past>> {
        let Some((_, entry)) = self.valid_row(key)? else { return Ok(Vec::new()) };
        statement(
            self.db,
            "SELECT at, is_bad, latency_ms, note FROM history WHERE entry = ?1 ORDER BY id DESC",
        )?
        .query_map([entry], |row| {
            Ok(Past {
                wall_ms: u64_at(row, 0)?,
                verdict: verdict(row, 1)?,
                latency: row.get::<_, Option<i64>>(2)?.map(|ms| Duration::from_millis(ms as u64)),
                note: row.get::<_, Option<Box<str>>>(3)?,
            })
        })?
        .collect()
    }

    /// One page, in the order of rows: an entry that is overwritten or reported on keeps its place.
    pub(super) fn standings(
        &mut self,
        name: &Namespace,
        query: &Query,
        after: i64,
    ) -> rusqlite::Result<Page> {
        let mut page = Page::default();
        let Some(namespace) = self.namespace(name)? else { return Ok(page) };
        // Only the conditions that there are, so that each query finds its index.
        let mut conditions = String::new();
        let mut values = vec![Value::from(namespace.id), Value::from(after)];
        let mut narrow = |condition: &str, value: Option<Value>| {
            if let Some(value) = value {
                values.push(value);
                conditions.push_str(&format!(" AND s.{condition} ?{}", values.len()));
            }
        };
        let time = |ms: Option<u64>| ms.map(|ms| Value::from(i64::try_from(ms).unwrap_or(i64::MAX)));
        narrow("source =", query.source.clone().map(Value::from));
        narrow("is_bad =", query.verdict.map(|verdict| Value::from(i64::from(verdict == Verdict::Bad))));
        narrow("accessed <", time(query.accessed_before_ms));
        narrow("accessed >=", time(query.accessed_from_ms));
        let mut select = statement(
            self.db,
            &format!(
                "SELECT e.id, e.seen, e.kind, e.gone_at, e.stamp, e.tags, e.key, s.source, s.is_bad,
                     s.bad_in_a_row, s.reports, s.accessed
                 FROM standing s CROSS JOIN entry e ON e.id = s.entry
                 WHERE s.ns = ?1 AND s.entry > ?2{conditions} ORDER BY s.entry LIMIT {SCANNED_MAX}"
            ),
        )?;
        let mut rows = select.query(params_from_iter(values))?;
        let mut looked_at = 0;
        while let Some(row) = rows.next()? {
            let entry = entry_row(row)?;
            looked_at += 1;
            if self.why_invalid(namespace, &entry)?.is_none() {
                page.entries.push(Standing {
                    key: key_at(name, row, 6)?,
                    source: row.get(7)?,
                    verdict: verdict(row, 8)?,
                    bad_in_a_row: u32::try_from(u64_at(row, 9)?).unwrap_or(u32::MAX),
                    reports: u64_at(row, 10)?,
                    accessed_ms: u64_at(row, 11)?,
                });
            }
            if page.entries.len() >= query.limit.max(1) || looked_at == SCANNED_MAX {
                page.next = Some(Cursor::from(Place { hash: 0, id: entry.id }).0);
                break;
            }
        }
        Ok(page)
    }

    fn valid_row(&mut self, key: &EntryKey) -> rusqlite::Result<Option<(NamespaceRow, i64)>> {
        let Some(namespace) = self.namespace(key.namespace())? else { return Ok(None) };
        let Some(row) = self.find_row(namespace, key)? else { return Ok(None) };
        let is_valid = self.why_invalid(namespace, &row)?.is_none();
        Ok(is_valid.then_some((namespace, row.id)))
    }
}

/// Where the page after `cursor` begins.
pub(super) fn parse_cursor(query: &Query) -> Result<i64, Error> {
    match &query.after {
        None => Ok(i64::MIN),
        Some(after) => Place::parse(Some(&Cursor(after.clone()))).map(|place| place.id).map_err(|_| {
            Error::new(ErrorKind::Config, "standings").message("the cursor is not one of this backend's")
        }),
    }
}

fn verdict(row: &Row<'_>, column: usize) -> rusqlite::Result<Verdict> {
    Ok(if row.get::<_, bool>(column)? { Verdict::Bad } else { Verdict::Good })
}
