//! How a tier is: what is known of it, and what it answers to one who asks. Past the guard, which would count
//! a check as a call and refuse it where it matters.

use super::Tier;
use crate::backend::{Put, PutOutcome, Usage};
use crate::entry::Meta;
use crate::error::{Error, ErrorKind, Result};
use crate::health::Known;
use crate::key::EntryKey;
use bytes::Bytes;
use std::time::Duration;

impl Tier {
    /// What is known without asking.
    pub(crate) fn known(&self) -> Known {
        let now_ms = self.clock.mono_ms();
        let (undelivered, since_ms) = {
            let state = self.state.lock();
            (state.undelivered.len() as u64, state.undelivered_since_ms)
        };
        let (calls, failed) = self.guard.recent();
        let guard = self.guard.stats();
        let mut notes = self.backend.notes();
        notes.extend(self.journal_failure());
        if undelivered > 0 && self.backend.log().is_some() && !self.has_journal() {
            let why =
                "removals that it was not told are kept in memory only; bus.journal names a file for them";
            notes.push(why.to_owned());
        }
        Known {
            name: self.name().to_owned(),
            aside: self.aside(),
            undelivered,
            undelivered_for: since_ms.map(|since_ms| Duration::from_millis(now_ms.saturating_sub(since_ms))),
            calls,
            failed,
            read_breaker: guard.read_breaker,
            write_breaker: guard.write_breaker,
            notes,
        }
    }

    /// What a sign of life took.
    pub(crate) async fn sign_of_life(&self, timeout: Duration) -> Result<Duration> {
        let began_us = self.clock.mono_us();
        self.within(timeout.min(self.options.read_timeout), "ping", self.backend.ping()).await?;
        Ok(self.since(began_us))
    }

    /// What it took to write an entry, read it and remove it, each within `timeout`.
    ///
    /// # Errors
    /// Those of the backend; [`ErrorKind::Corrupt`] when what is read is not what was written, or still there
    /// after it was removed.
    pub(crate) async fn round_trip(
        &self,
        key: &EntryKey,
        meta: Meta,
        sealed: Bytes,
        timeout: Duration,
    ) -> Result<Duration> {
        let began_us = self.clock.mono_us();
        let ticket = self.within(timeout, "ticket", self.backend.ticket(key)).await?;
        let put = Put { key: key.clone(), meta, sealed: sealed.clone(), ticket };
        let outcome = self.within(timeout, "put", self.backend.put(put)).await?;
        let found = self.within(timeout, "get", self.backend.get(key)).await?.found;
        let removed = self.within(timeout, "remove", self.backend.remove(key)).await;
        let corrupt = |what: &'static str| {
            Err(Error::new(ErrorKind::Corrupt, "check").backend(self.name().to_owned()).message(what))
        };
        // A removal of others' may have fenced it, or an eviction taken it.
        if outcome == PutOutcome::Stored && found.is_ok_and(|found| found != sealed) {
            return corrupt("it gave back other bytes than were written");
        }
        removed?;
        if self.within(timeout, "get", self.backend.get(key)).await?.found.is_ok() {
            return corrupt("what was removed is still there");
        }
        Ok(self.since(began_us))
    }

    /// How much it holds.
    pub(crate) async fn usage(&self, timeout: Duration) -> Option<Usage> {
        self.within(timeout, "usage", self.backend.usage()).await.ok()
    }

    fn since(&self, began_us: u64) -> Duration {
        Duration::from_micros(self.clock.mono_us().saturating_sub(began_us))
    }
}
