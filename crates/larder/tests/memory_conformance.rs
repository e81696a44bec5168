//! The memory backend keeps every promise of the suite; and the suite notices backends that don't.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(feature = "conformance")]

use async_trait::async_trait;
use bytes::Bytes;
use larder::Result;
use larder::backend::conformance::{Subject, cases, check_all};
use larder::backend::{
    Backend, Capabilities, Mark, MemoryBackend, MemoryOptions, Page, Put, PutOutcome, Read, Removed, Scan,
    Ticket, Usage,
};
use larder::clock::Clock;
use larder::key::{EntryKey, Namespace, Pattern};
use larder::stamp::Stamp;
use std::sync::Arc;

struct Memory;

#[async_trait]
impl Subject for Memory {
    async fn fresh(&self, clock: Clock) -> Arc<dyn Backend> {
        Arc::new(MemoryBackend::new(MemoryOptions { clock, ..Default::default() }))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_passes() {
    check_all(&Memory).await;
}

/// The ways in which a wrapper is broken on purpose.
#[derive(Clone, Copy, Debug)]
enum Defect {
    /// Every write gets a fresh ticket.
    IgnoresTickets,
    /// A tag's removal is acknowledged and forgotten.
    ForgetsMarks,
    /// A removal deletes but fences nothing.
    DeletesOnly,
    /// Answers of a batch come in the wrong order.
    MixesBatches,
    /// Nothing expires.
    NeverExpires,
    /// Every page of a scan begins at the start.
    ForgetsCursors,
    /// Answers go on after the end.
    NeverCloses,
}

#[derive(Debug)]
struct Broken {
    inner: MemoryBackend,
    defect: Defect,
}

#[async_trait]
impl Backend for Broken {
    fn name(&self) -> &str {
        "broken"
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn get(&self, key: &EntryKey) -> Result<Read> {
        self.inner.get(key).await
    }
    async fn get_many(&self, keys: &[EntryKey]) -> Vec<Result<Read>> {
        let mut reads = self.inner.get_many(keys).await;
        if matches!(self.defect, Defect::MixesBatches) {
            reads.reverse();
        }
        reads
    }
    async fn ticket(&self, key: &EntryKey) -> Result<Ticket> {
        self.inner.ticket(key).await
    }
    async fn put(&self, mut put: Put) -> Result<PutOutcome> {
        match self.defect {
            Defect::IgnoresTickets => put.ticket = self.inner.ticket(&put.key).await?,
            Defect::NeverExpires => put.meta.gone_at_ms = u64::MAX,
            _ => {}
        }
        self.inner.put(put).await
    }
    async fn remove(&self, key: &EntryKey) -> Result<Removed> {
        if matches!(self.defect, Defect::DeletesOnly) {
            return Ok(match self.inner.get(key).await?.found {
                Ok(sealed) => {
                    self.inner.discard(key, &sealed).await?;
                    Removed::Existed
                }
                Err(_) => Removed::Absent,
            });
        }
        self.inner.remove(key).await
    }
    async fn discard(&self, key: &EntryKey, sealed: &Bytes) -> Result<()> {
        self.inner.discard(key, sealed).await
    }
    async fn mark(&self, namespace: &Namespace, mark: &Mark) -> Result<()> {
        if matches!(self.defect, Defect::ForgetsMarks) {
            return Ok(());
        }
        self.inner.mark(namespace, mark).await
    }
    async fn remove_matching(&self, namespace: &Namespace, pattern: &Pattern) -> Result<u64> {
        self.inner.remove_matching(namespace, pattern).await
    }
    async fn scan(&self, mut scan: Scan<'_>) -> Result<Page> {
        if matches!(self.defect, Defect::ForgetsCursors) {
            scan.after = None;
        }
        self.inner.scan(scan).await
    }
    async fn namespaces(&self) -> Result<Vec<Namespace>> {
        self.inner.namespaces().await
    }
    async fn sweep(&self, limit: usize) -> Result<u64> {
        self.inner.sweep(limit).await
    }
    async fn usage(&self) -> Result<Usage> {
        self.inner.usage().await
    }
    async fn last_stamp(&self) -> Result<Option<Stamp>> {
        self.inner.last_stamp().await
    }
    async fn ping(&self) -> Result<()> {
        self.inner.ping().await
    }
    async fn close(&self) -> Result<()> {
        if matches!(self.defect, Defect::NeverCloses) { Ok(()) } else { self.inner.close().await }
    }
}

#[async_trait]
impl Subject for Defect {
    async fn fresh(&self, clock: Clock) -> Arc<dyn Backend> {
        let inner = MemoryBackend::new(MemoryOptions { clock, ..Default::default() });
        Arc::new(Broken { inner, defect: *self })
    }
}

async fn failures(defect: Defect) -> Vec<&'static str> {
    let mut failed = Vec::new();
    for case in cases() {
        if case.check(&defect).await.is_err() {
            failed.push(case.name);
        }
    }
    failed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_defect_fails_the_cases_that_are_about_it() {
    let expected: [(Defect, &[&str]); 7] = [
        (
            Defect::IgnoresTickets,
            &[
                "removal_refuses_earlier_writes",
                "tag_refuses_earlier_writes",
                "clear_refuses_earlier_writes",
                "pattern_refuses_earlier_writes",
                "set_refuses_earlier_loads",
                "refused_set_removes",
                "another_incarnation_is_refused",
                "evicted_set_is_not_overtaken",
                "promotion",
                "no_value_outlives_its_removal",
            ],
        ),
        (
            Defect::ForgetsMarks,
            &["tags", "clear", "tag_refuses_earlier_writes", "no_value_outlives_its_removal"],
        ),
        (Defect::DeletesOnly, &["removal_refuses_earlier_writes", "refused_set_removes"]),
        (Defect::MixesBatches, &["batches_keep_their_order"]),
        (Defect::NeverExpires, &["expiry_over_all_of_u64", "expiry_as_time_passes", "sweep_frees_and_keeps"]),
        (Defect::ForgetsCursors, &["scan_is_complete", "scan_refuses_a_strange_cursor"]),
        (Defect::NeverCloses, &["closed_means_closed"]),
    ];
    for (defect, names) in expected {
        let mut failed = failures(defect).await;
        for name in names {
            // What needs a race may need more than one try.
            for case in cases().iter().filter(|case| case.name == *name) {
                for _ in 0..20 {
                    if !failed.contains(name) && case.check(&defect).await.is_err() {
                        failed.push(name);
                    }
                }
            }
            assert!(failed.contains(name), "{defect:?} should fail {name}; failed: {failed:?}");
        }
        let tolerable = cases().len() / 2;
        assert!(failed.len() <= tolerable, "{defect:?} should not fail everything: {failed:?}");
    }
}

#[tokio::test]
async fn limits_hold_and_what_is_read_stays() {
    use larder::clock::{ManualClock, NEVER_MS};
    use larder::entry::{EntryKind, Meta, Tags};

    let options =
        MemoryOptions { clock: ManualClock::new().into(), entries_max: Some(160), ..Default::default() };
    let backend = MemoryBackend::new(options);
    let namespace = Namespace::new("n").unwrap();
    let key = |i: u32| EntryKey::new(&namespace, &i).unwrap();
    for i in 0..10_000 {
        let ticket = backend.get(&key(0)).await.unwrap().ticket;
        let stamp = Stamp::new(1_767_225_600_000, 0, i);
        let meta = Meta {
            kind: EntryKind::Load,
            stamp,
            created_ms: 0,
            fresh_until_ms: NEVER_MS,
            revalidate_until_ms: NEVER_MS,
            gone_at_ms: NEVER_MS,
            load_ms: 0,
            is_negative: false,
            tags: Tags::NONE,
        };
        backend.put(Put { key: key(i), meta, sealed: Bytes::from_static(b"v"), ticket }).await.unwrap();
        assert!(backend.usage().await.unwrap().entries <= 160);
    }
    assert!(backend.usage().await.unwrap().entries > 140);
    assert!(backend.get(&key(0)).await.unwrap().found.is_ok(), "what is read all the time is not evicted");
}
