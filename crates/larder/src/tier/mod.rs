//! A backend at a position in the stack: its counters, and what it was not told.
//!
//! A tier that fails is set aside: reads and sets pass it by, removals are kept and replayed before it is
//! read again, so that nothing that was removed meanwhile comes back. Every call passes the guard. It never
//! decides freshness.

mod options;
mod probe;
mod recovery;
mod undelivered;

pub use options::TierOptions;

use crate::backend::{Backend, Exchange, Mark, Miss, Page, Put, PutOutcome, Removed, Scan, Ticket};
use crate::bus::{Journal, Note};
use crate::clock::Clock;
use crate::entry::{EntryKind, Meta};
use crate::envelope::Envelope;
#[cfg(feature = "encryption")]
use crate::envelope::Keyring;
use crate::error::{Error, ErrorKind, Result};
use crate::guard::{BreakerMode, Call, Guard, Priority, Repeat, Side, Stopped};
use crate::key::{EntryKey, Namespace, Pattern};
use crate::report::{self, Past, Query, Report};
use crate::rules::{Rule, holds};
use crate::stamp::Stamp;
use crate::stats::TierStats;
use crate::sync::Mutex;
use bytes::Bytes;
use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;
use undelivered::Undelivered;

/// Failed reads in a row after which a tier is set aside: one is chance, three are a state.
const FAILURES_MAX: u64 = 3;
#[derive(Debug)]
pub(crate) struct Tier {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) options: TierOptions,
    clock: Clock,
    guard: Guard,
    state: Arc<Mutex<State>>,
    /// Where what it was not told outlives the process.
    journal: Option<Journal>,
    counters: TierCounters,
    refused: Mutex<HashMap<&'static str, u64>>,
    #[cfg(feature = "encryption")]
    hides_with: Option<Keyring>,
}

#[derive(Debug, Default)]
struct State {
    /// Set aside since this moment of the monotonic clock.
    aside_since_ms: Option<u64>,
    failures_in_row: u64,
    last_error: Option<Error>,
    undelivered: Undelivered,
    /// Since when the oldest of them may have waited.
    undelivered_since_ms: Option<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct TierCounters {
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    pub(crate) promotions: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) writes_fenced: AtomicU64,
    pub(crate) tampered: AtomicU64,
    errors: AtomicU64,
    bypassed: AtomicU64,
}

/// What a tier answered to a read of one key.
#[derive(Debug)]
pub(crate) enum TierRead {
    Found {
        ticket: Ticket,
        sealed: Bytes,
    },
    Missed {
        ticket: Ticket,
        why: Miss,
    },
    /// It is set aside or failed: no answer, and no write-back.
    Unavailable,
}

/// A removal of one or many entries.
#[derive(Clone, Debug)]
pub(crate) enum Removal<'a> {
    Keys(&'a [EntryKey]),
    Mark(&'a Namespace, &'a Mark),
    Matching(&'a Namespace, &'a Pattern),
}

/// What a tier did with a removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Delivered {
    /// How many entries were there: for each key, or for a mark or pattern in all.
    Now(Vec<u64>),
    /// Kept, to be replayed; durably, or for as long as the process lives.
    Later { is_durable: bool },
}

impl Tier {
    pub(crate) fn new(backend: Arc<dyn Backend>, options: TierOptions, clock: Clock) -> Self {
        let guard = options.guard.clone().unwrap_or_else(|| backend.guard());
        Tier {
            guard: Guard::new(&guard, clock.clone()),
            backend,
            options,
            clock,
            state: Arc::default(),
            journal: None,
            counters: TierCounters::default(),
            refused: Mutex::default(),
            #[cfg(feature = "encryption")]
            hides_with: None,
        }
    }

    /// With a journal for what it can't be told, and what is still in there. Until that was delivered, it is not read.
    pub(crate) fn with_journal(self, journal: Journal, notes: &[Note]) -> Self {
        let mut state = self.state.lock();
        for note in notes {
            let removal = match note {
                Note::Key(key) => Removal::Keys(std::slice::from_ref(key)),
                Note::Mark(namespace, mark) => Removal::Mark(namespace, mark),
                Note::Matching(namespace, pattern) => Removal::Matching(namespace, pattern),
            };
            state.keep(&removal, self.clock.mono_ms());
        }
        if !notes.is_empty() {
            let error = Error::new(ErrorKind::Unavailable, "build").backend(self.name().to_owned());
            let error = error.message("removals of an earlier process are still to be delivered");
            state.set_aside(self.clock.mono_ms(), error);
        }
        drop(state);
        Tier { journal: Some(journal), ..self }
    }

    /// With names that are hidden by the keyring's key for that, which it has.
    #[cfg(feature = "encryption")]
    pub(crate) fn hiding(self, keyring: Keyring) -> Self {
        Tier { hides_with: Some(keyring), ..self }
    }

    pub(crate) fn hides_keys(&self) -> bool {
        #[cfg(feature = "encryption")]
        return self.hides_with.is_some();
        #[cfg(not(feature = "encryption"))]
        return false;
    }

    /// The name of a key in this tier. All that it is told, and every envelope in it, is for this name.
    pub(crate) fn key(&self, key: &EntryKey) -> EntryKey {
        #[cfg(feature = "encryption")]
        if let Some(keyring) = &self.hides_with {
            return keyring.hidden(key).expect("a keyring keeps its key for names");
        }
        key.clone()
    }

    /// Whether keys can be listed, and patterns removed.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`], with the reason.
    pub(crate) fn check_scan(&self, operation: &'static str) -> Result<()> {
        let why = if self.hides_keys() {
            "keys are hidden from it, so that no pattern can be found in them; remove by key, tag or clear"
        } else if !self.backend.capabilities().scan {
            "it can't list its keys; remove by tag instead"
        } else {
            return Ok(());
        };
        let error = Error::new(ErrorKind::Unsupported, operation).backend(self.name().to_owned());
        Err(error.message(why))
    }

    pub(crate) fn name(&self) -> &str {
        self.options.name.as_deref().unwrap_or_else(|| self.backend.name())
    }

    pub(crate) fn counters(&self) -> &TierCounters {
        &self.counters
    }

    /// Counts an entry that could not be opened.
    pub(crate) fn count_refused(&self, reason: &'static str) {
        *self.refused.lock().entry(reason).or_default() += 1;
    }

    /// An entry's expiries as this tier keeps them.
    pub(crate) fn cap(&self, meta: &Meta) -> Meta {
        crate::cache::cap(meta.clone(), self.options.ttl_max, self.clock.wall_ms())
    }

    /// What a read answers that passes the tier by.
    pub(crate) fn pass_by(&self, keys: usize) -> Vec<TierRead> {
        self.counters.bypassed.fetch_add(keys as u64, Relaxed);
        (0..keys).map(|_| TierRead::Unavailable).collect()
    }

    pub(crate) async fn read(&self, keys: &[EntryKey]) -> Vec<TierRead> {
        if self.is_aside() {
            return self.pass_by(keys.len());
        }
        let attempt = || async {
            match keys {
                [key] => self.backend.get(key).await.map(|read| vec![Ok(read)]),
                _ => unless_all_failed(self.backend.get_many(keys).await),
            }
        };
        let answers = match self.note(self.guard.call(self.reading("get"), attempt).await) {
            Ok(answers) => answers,
            Err(_) => return keys.iter().map(|_| TierRead::Unavailable).collect(),
        };
        // A removal may have been kept for replay while the read was under way: its answer is too old.
        let is_aside = self.is_aside();
        answers
            .into_iter()
            .map(|answer| match answer {
                Ok(_) if is_aside => TierRead::Unavailable,
                Ok(read) => match read.found {
                    Ok(sealed) => TierRead::Found { ticket: read.ticket, sealed },
                    Err(why) => TierRead::Missed { ticket: read.ticket, why },
                },
                Err(_) => {
                    self.counters.errors.fetch_add(1, Relaxed);
                    TierRead::Unavailable
                }
            })
            .collect()
    }

    /// A ticket for a set that begins now; `None` while the tier is set aside.
    pub(crate) async fn ticket(&self, key: &EntryKey) -> Option<Ticket> {
        if self.is_aside() {
            return None;
        }
        self.note(self.guard.call(self.reading("ticket"), || self.backend.ticket(key)).await).ok()
    }

    /// Writes a loaded value; nothing depends on whether it arrives.
    pub(crate) async fn write_back(&self, puts: Vec<Put>) {
        if puts.is_empty() {
            return;
        }
        if self.is_aside() {
            self.counters.bypassed.fetch_add(puts.len() as u64, Relaxed);
            return;
        }
        self.write_many(puts).await;
    }

    /// Writes entries, with an answer for each.
    pub(crate) async fn write_many(&self, puts: Vec<Put>) -> Vec<Result<PutOutcome>> {
        let count = puts.len();
        let mut puts = Some(puts);
        let attempt = || {
            let puts = puts.take().expect("what is never repeated is called once");
            async { unless_all_failed(self.backend.put_many(puts).await) }
        };
        let call = Call { repeat: Repeat::Never, priority: Priority::Warm, ..self.writing("put") };
        let answers = match self.guard.call(call, attempt).await {
            Ok(answers) => answers,
            Err(stopped) => vec![Err(self.unwrap(stopped)); count],
        };
        answers.into_iter().map(|answer| self.count(answer)).collect()
    }

    /// Puts envelopes in the places of others that hold the same values, and says of each whether it was still
    /// there. Where the store can't, as loads: those yield to every set and removal since their tickets, and a
    /// set that meets one finds no set to compare with.
    pub(crate) async fn exchange_many(&self, exchanges: Vec<(Exchange, Ticket)>) -> Vec<Result<bool>> {
        let put = |(exchange, ticket): &(Exchange, Ticket)| {
            let meta = Envelope::header(&exchange.new).expect("it was sealed here").meta;
            let meta = Meta { kind: EntryKind::Load, ..meta };
            Put { key: exchange.key.clone(), meta, sealed: exchange.new.clone(), ticket: *ticket }
        };
        let attempt = || async {
            let parts = exchanges.iter().map(|(exchange, _)| exchange.clone()).collect();
            unless_all_failed(self.backend.exchange_many(parts).await)
        };
        let call = Call { priority: Priority::Warm, ..self.writing("exchange") };
        match self.guard.call(call, attempt).await {
            Ok(answers) => answers,
            Err(stopped) => match self.unwrap(stopped) {
                error if error.kind() == ErrorKind::Unsupported => {
                    let outcomes = self.write_many(exchanges.iter().map(put).collect()).await;
                    let is_stored = |outcome| outcome == PutOutcome::Stored;
                    outcomes.into_iter().map(|outcome| outcome.map(is_stored)).collect()
                }
                error => vec![Err(error); exchanges.len()],
            },
        }
    }

    /// Writes a set. If it fails, the key's removal takes its place: now, or kept for later.
    pub(crate) async fn set(&self, put: Put) -> Option<PutOutcome> {
        let key = put.key.clone();
        if !self.is_aside() {
            let stamp = put.meta.stamp;
            let answer = self.guard.call(self.writing("put"), || self.backend.put(put.clone())).await;
            let answer = answer.map_err(|stopped| self.unwrap(stopped)).map(|outcome| match outcome {
                // An attempt of this very set that was given up has arrived after all.
                PutOutcome::Older(there) if there == stamp => PutOutcome::Stored,
                outcome => outcome,
            });
            match self.count(answer) {
                Ok(outcome) => return Some(outcome),
                Err(error) => tracing::warn!(tier = self.name(), %error, "a set could not be stored"),
            }
        } else {
            self.counters.bypassed.fetch_add(1, Relaxed);
        }
        if holds(Rule::FailedSetRemoves) {
            self.remove(Removal::Keys(&[key])).await;
        }
        None
    }

    /// Carries out a removal, or keeps it and sets the tier aside until it is delivered.
    pub(crate) async fn remove(&self, removal: Removal<'_>) -> Delivered {
        // Checked under the lock that keeps the removal: a tier that comes back meanwhile has been
        // replayed without it.
        if self.keep_if_aside(&removal) {
            self.counters.bypassed.fetch_add(1, Relaxed);
            return self.keep_durably(&removal).await;
        }
        match self.deliver(&removal).await {
            Ok(existed) => Delivered::Now(existed),
            Err(error) => {
                tracing::warn!(tier = self.name(), %error, "a removal could not be delivered; the tier is set aside");
                {
                    let mut state = self.state.lock();
                    state.keep(&removal, self.clock.mono_ms());
                    state.set_aside(self.clock.mono_ms(), error);
                }
                self.keep_durably(&removal).await
            }
        }
    }

    /// Writes a removal that is kept into the journal, if there is one.
    async fn keep_durably(&self, removal: &Removal<'_>) -> Delivered {
        let notes: Vec<Note> = match *removal {
            Removal::Keys(keys) => keys.iter().cloned().map(Note::Key).collect(),
            Removal::Mark(namespace, mark) => vec![Note::Mark(namespace.clone(), mark.clone())],
            Removal::Matching(namespace, pattern) => vec![Note::Matching(namespace.clone(), pattern.clone())],
        };
        if self.journal.is_none() || !holds(Rule::JournalIsDurable) {
            return Delivered::Later { is_durable: false };
        }
        let keep = move |journal: &Journal, state: &Mutex<State>| {
            journal.keep(&notes, || state.lock().undelivered.notes())
        };
        Delivered::Later { is_durable: self.write_journal(keep).await }
    }

    /// Writes to the journal on a thread that may wait for the disk; says whether it is synced.
    async fn write_journal(
        &self,
        write: impl FnOnce(&Journal, &Mutex<State>) -> std::io::Result<()> + Send + 'static,
    ) -> bool {
        let Some(journal) = self.journal.clone() else { return false };
        let state = Arc::clone(&self.state);
        let written = crate::runtime::blocking(&self.clock, move || write(&journal, &state));
        match before(&self.clock, self.options.write_timeout, written).await {
            Some(Ok(Ok(()))) => return true,
            Some(Ok(Err(error))) => tracing::error!(%error, "the journal can't be written"),
            Some(Err(error)) => tracing::error!(%error, "the journal can't be written"),
            None => tracing::error!("the journal is not written in time"),
        }
        false
    }

    /// What is wrong with the journal.
    pub(crate) fn journal_failure(&self) -> Option<String> {
        self.journal.as_ref()?.failure()
    }

    pub(crate) fn has_journal(&self) -> bool {
        self.journal.is_some()
    }

    async fn deliver(&self, removal: &Removal<'_>) -> Result<Vec<u64>> {
        let attempt = || self.carry_out(removal);
        let call = Call { priority: Priority::Invalidate, ..self.writing("remove") };
        let call = match removal {
            Removal::Matching(..) => Call { deadline: self.scan_timeout(), repeat: Repeat::Never, ..call },
            _ => call,
        };
        let answer = self.guard.call(call, attempt).await.map_err(|stopped| self.unwrap(stopped));
        if answer.is_err() {
            self.counters.errors.fetch_add(1, Relaxed);
        }
        answer
    }

    async fn carry_out(&self, removal: &Removal<'_>) -> Result<Vec<u64>> {
        match removal {
            Removal::Keys(keys) => {
                let answers = match keys {
                    [key] => vec![self.backend.remove(key).await],
                    _ => self.backend.remove_many(keys).await,
                };
                answers.into_iter().map(|answer| Ok(u64::from(answer? == Removed::Existed))).collect()
            }
            Removal::Mark(namespace, mark) => self.backend.mark(namespace, mark).await.map(|()| vec![0]),
            Removal::Matching(namespace, pattern) => {
                self.backend.remove_matching(namespace, pattern).await.map(|count| vec![count])
            }
        }
    }

    /// Drops an entry that could not be opened.
    pub(crate) async fn discard(&self, key: &EntryKey, sealed: &Bytes) {
        let call = Call { priority: Priority::Warm, ..self.writing("discard") };
        if let Err(stopped) = self.guard.call(call, || self.backend.discard(key, sealed)).await {
            let error = self.unwrap(stopped);
            tracing::debug!(tier = self.name(), %error, "a refused entry could not be dropped");
        }
    }

    /// Sets an entry aside that was tampered with.
    pub(crate) async fn quarantine(&self, key: &EntryKey, sealed: &Bytes, why: &'static str) {
        self.counters.tampered.fetch_add(1, Relaxed);
        let call = self.backend.quarantine(key, sealed, why);
        if let Err(error) = self.within(self.options.write_timeout, "quarantine", call).await {
            tracing::warn!(tier = self.name(), %error, "an entry could not be quarantined");
        }
    }

    /// The latest stamp of a set that it accepted.
    pub(crate) async fn last_stamp(&self) -> Result<Option<Stamp>> {
        if self.is_aside() {
            return Err(Error::new(ErrorKind::Unavailable, "last_stamp").backend(self.name().to_owned()));
        }
        self.note(self.guard.call(self.reading("last_stamp"), || self.backend.last_stamp()).await)
    }

    /// Keeps a report. Never repeated: an attempt that was given up may have counted.
    pub(crate) async fn report(&self, key: &EntryKey, report: &Report) -> Result<Option<u32>> {
        self.check_not_aside("report")?;
        let call = Call { repeat: Repeat::Never, ..self.writing("report") };
        let answer = self.guard.call(call, || self.backend.report(key, report)).await;
        if answer.is_err() {
            self.counters.errors.fetch_add(1, Relaxed);
        }
        answer.map_err(|stopped| self.unwrap(stopped))
    }

    pub(crate) async fn history(&self, key: &EntryKey) -> Result<Vec<Past>> {
        self.check_not_aside("history")?;
        self.note(self.guard.call(self.reading("history"), || self.backend.history(key)).await)
    }

    pub(crate) async fn standings(&self, namespace: &Namespace, query: &Query) -> Result<report::Page> {
        self.check_not_aside("standings")?;
        let attempt = || self.backend.standings(namespace, query);
        let answer = self.guard.call(self.scanning("standings"), attempt).await;
        answer.map_err(|stopped| self.unwrap(stopped))
    }

    /// The guard, for what nodes tell each other of its breakers.
    pub(crate) fn guard(&self) -> &Guard {
        &self.guard
    }

    fn check_not_aside(&self, operation: &'static str) -> Result<()> {
        if self.is_aside() {
            return Err(Error::new(ErrorKind::Unavailable, operation)
                .backend(self.name().to_owned())
                .message("it is set aside"));
        }
        Ok(())
    }

    /// Frees some of what is expired or invalidated.
    pub(crate) async fn sweep(&self, limit: usize) -> Result<u64> {
        let call = Call { side: Side::Write, ..self.scanning("sweep") };
        let answer = self.guard.call(call, || self.backend.sweep(limit)).await;
        answer.map_err(|stopped| self.unwrap(stopped))
    }

    pub(crate) async fn scan(&self, scan: Scan<'_>) -> Result<Page> {
        let answer = self.guard.call(self.scanning("scan"), || self.backend.scan(scan.clone())).await;
        answer.map_err(|stopped| self.unwrap(stopped))
    }

    pub(crate) async fn namespaces(&self) -> Result<Vec<Namespace>> {
        let answer = self.guard.call(self.scanning("scan"), || self.backend.namespaces()).await;
        answer.map_err(|stopped| self.unwrap(stopped))
    }

    /// A scan takes as long as the tier is large.
    fn scan_timeout(&self) -> Duration {
        self.options.write_timeout.saturating_mul(60)
    }

    /// Takes an operator's word on the breakers.
    pub(crate) fn set_breaker_mode(&self, mode: BreakerMode) {
        self.guard.set_breaker_mode(mode);
    }

    /// Asks for a sign of life past the guard, set aside or not.
    pub(crate) async fn ping(&self) -> Result<()> {
        self.within(self.options.read_timeout, "ping", self.backend.ping()).await
    }

    pub(crate) fn is_aside(&self) -> bool {
        holds(Rule::AsideIsNotRead) && self.state.lock().aside_since_ms.is_some()
    }

    /// For how long it has been set aside, and why.
    pub(crate) fn aside(&self) -> Option<(Duration, Option<Error>)> {
        let state = self.state.lock();
        let since = state.aside_since_ms?;
        let lasting = Duration::from_millis(self.clock.mono_ms().saturating_sub(since));
        Some((lasting, state.last_error.clone()))
    }

    pub(crate) fn stats(&self) -> TierStats {
        let load = |counter: &AtomicU64| counter.load(Relaxed);
        let (is_aside, undelivered) = {
            let state = self.state.lock();
            (state.aside_since_ms.is_some(), state.undelivered.len() as u64)
        };
        let mut refused: Vec<_> =
            self.refused.lock().iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect();
        refused.sort();
        TierStats {
            name: self.name().to_owned(),
            hits: load(&self.counters.hits),
            misses: load(&self.counters.misses),
            refused,
            promotions: load(&self.counters.promotions),
            writes: load(&self.counters.writes),
            writes_fenced: load(&self.counters.writes_fenced),
            tampered: load(&self.counters.tampered),
            errors: load(&self.counters.errors),
            bypassed: load(&self.counters.bypassed),
            undelivered,
            is_aside,
            guard: self.guard.stats(),
        }
    }

    fn keep_if_aside(&self, removal: &Removal<'_>) -> bool {
        let mut state = self.state.lock();
        let is_aside = state.aside_since_ms.is_some();
        if is_aside {
            state.keep(removal, self.clock.mono_ms());
        }
        is_aside
    }

    fn count(&self, answer: Result<PutOutcome>) -> Result<PutOutcome> {
        match &answer {
            Ok(PutOutcome::Stored) => self.counters.writes.fetch_add(1, Relaxed),
            Ok(_) => self.counters.writes_fenced.fetch_add(1, Relaxed),
            Err(_) => self.counters.errors.fetch_add(1, Relaxed),
        };
        answer
    }

    /// Counts failed reads in a row, and sets the tier aside at the third. What the guard refused is not a
    /// failure of the backend's.
    fn note<T>(&self, answer: Result<T, Stopped>) -> Result<T> {
        match answer {
            Ok(value) => {
                self.state.lock().failures_in_row = 0;
                Ok(value)
            }
            Err(stopped @ Stopped::Refused(_)) => {
                self.counters.bypassed.fetch_add(1, Relaxed);
                Err(self.unwrap(stopped))
            }
            Err(stopped @ Stopped::Failed(_)) => {
                let error = self.unwrap(stopped);
                self.counters.errors.fetch_add(1, Relaxed);
                let mut state = self.state.lock();
                state.failures_in_row += 1;
                if state.failures_in_row >= FAILURES_MAX && state.aside_since_ms.is_none() {
                    tracing::warn!(tier = self.name(), %error, "the tier is set aside");
                    state.set_aside(self.clock.mono_ms(), error.clone());
                }
                Err(error)
            }
        }
    }

    fn unwrap(&self, stopped: Stopped) -> Error {
        let error = stopped.into_error();
        if error.backend_name().is_none() { error.backend(self.name().to_owned()) } else { error }
    }

    fn reading(&self, operation: &'static str) -> Call {
        Call {
            operation,
            side: Side::Read,
            priority: Priority::Read,
            deadline: self.options.read_timeout,
            repeat: Repeat::Safe,
        }
    }

    fn writing(&self, operation: &'static str) -> Call {
        Call {
            operation,
            side: Side::Write,
            priority: Priority::Set,
            deadline: self.options.write_timeout,
            repeat: Repeat::Safe,
        }
    }

    fn scanning(&self, operation: &'static str) -> Call {
        Call {
            priority: Priority::Warm,
            deadline: self.scan_timeout(),
            repeat: Repeat::Never,
            ..self.reading(operation)
        }
    }

    async fn within<T>(
        &self,
        timeout: Duration,
        operation: &'static str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        if let Some(answer) = before(&self.clock, timeout, call).await {
            return answer;
        }
        Err(Error::new(ErrorKind::Timeout, operation)
            .backend(self.name().to_owned())
            .message(format!("no answer within {timeout:?}")))
    }
}

/// A batch has failed when all of it has; one of its errors stands for the others.
fn unless_all_failed<T>(answers: Vec<Result<T>>) -> Result<Vec<Result<T>>> {
    match answers.iter().all(Result::is_err) {
        true => answers.into_iter().next().map_or(Ok(Vec::new()), |first| first.map(|_| Vec::new())),
        false => Ok(answers),
    }
}

/// The output of `future`, or `None` when `timeout` passes first. The timer is only made when the future
/// is not ready at once.
pub(crate) async fn before<F: Future>(clock: &Clock, timeout: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut timer = None;
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        if timeout == Duration::MAX {
            return Poll::Pending;
        }
        pin!(timer.get_or_insert_with(|| clock.sleep(timeout))).poll(cx).map(|()| None)
    })
    .await
}

impl State {
    fn keep(&mut self, removal: &Removal<'_>, now_ms: u64) {
        self.undelivered.keep(removal);
        self.undelivered_since_ms.get_or_insert(now_ms);
    }

    fn set_aside(&mut self, now_ms: u64, error: Error) {
        self.aside_since_ms.get_or_insert(now_ms);
        self.last_error = Some(error);
    }

    fn to_deliver(&self) -> Option<Undelivered> {
        self.aside_since_ms.map(|_| self.undelivered.clone())
    }
}
