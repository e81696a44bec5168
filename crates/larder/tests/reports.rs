//! Prevents: an entry that everybody found dead and that is served on; one that a load puts back after that;
//! reports that outlive what they are about, or that are told to another tenant.

#![cfg(all(feature = "sqlite", feature = "jsonl", unix))]
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use larder::backend::{
    Backend, JsonlBackend, JsonlOptions, MemoryBackend, MemoryOptions, SqliteBackend, SqliteOptions,
};
use larder::clock::{Clock, ManualClock};
use larder::key::Pattern;
use larder::report::{NOTE_BYTES_MAX, Query, REPORTS_KEPT, Report, Reported, Verdict};
use larder::tenant::Tenant;
use larder::{Builder, Cache, EntryOptions, ErrorKind, EvictReason};
use rusqlite::Connection;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{Faulty, Mood};
use tokio::sync::oneshot;

type Texts = Cache<String, String>;

async fn sqlite(folder: &Path, clock: &ManualClock) -> Arc<SqliteBackend> {
    let options =
        SqliteOptions { clock: Clock::from(clock.clone()), ..SqliteOptions::new(folder.join("cache.db")) };
    Arc::new(SqliteBackend::open(options).await.unwrap())
}

async fn jsonl(folder: &Path, clock: &ManualClock) -> Arc<JsonlBackend> {
    let options =
        JsonlOptions { clock: Clock::from(clock.clone()), ..JsonlOptions::new(folder.join("lines")) };
    Arc::new(JsonlBackend::open(options).await.unwrap())
}

fn over(tiers: &[Arc<dyn Backend>], clock: &ManualClock) -> Builder<String, String> {
    let builder = Cache::builder()
        .clock(Clock::from(clock.clone()))
        .defaults(EntryOptions::default().ttl(Duration::from_secs(3600)));
    tiers.iter().fold(builder, |builder, tier| builder.tier(Arc::clone(tier)))
}

fn memory(clock: &ManualClock) -> Arc<MemoryBackend> {
    Arc::new(MemoryBackend::new(MemoryOptions {
        clock: Clock::from(clock.clone()),
        ..MemoryOptions::default()
    }))
}

async fn bad(cache: &Texts, key: &str) -> Reported {
    cache.report(key, Report::bad()).await.unwrap()
}

/// What the file holds: entries, standings, history, and rows that hang on nothing.
fn rows(folder: &Path) -> [i64; 4] {
    let db = Connection::open(folder.join("cache.db")).unwrap();
    [
        "SELECT count(*) FROM entry",
        "SELECT count(*) FROM standing",
        "SELECT count(*) FROM history",
        "SELECT (SELECT count(*) FROM standing WHERE entry NOT IN (SELECT id FROM entry))
              + (SELECT count(*) FROM history WHERE entry NOT IN (SELECT entry FROM standing))",
    ]
    .map(|sql| db.query_row(sql, [], |row| row.get(0)).unwrap())
}

#[tokio::test]
async fn the_third_bad_report_in_a_row_evicts_from_every_tier() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let (lines, file) = (jsonl(folder.path(), &clock).await, sqlite(folder.path(), &clock).await);
    let evicted = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&evicted);
    let cache = over(&[lines, file], &clock)
        .on_evict(move |key, _, reason| seen.lock().unwrap().push((key.clone(), reason)))
        .build()
        .unwrap();
    for key in ["a", "b"] {
        cache.set(key.into(), "value".into()).await.unwrap();
    }
    assert_eq!(bad(&cache, "a").await.in_a_row, 1);
    assert_eq!(bad(&cache, "a").await.in_a_row, 2);
    assert_eq!(cache.report("a", Report::good()).await.unwrap().in_a_row, 0, "a good one begins anew");
    for in_a_row in [1, 2] {
        let reported = bad(&cache, "a").await;
        assert_eq!((reported.in_a_row, reported.is_evicted), (in_a_row, false));
        // What is read again is not healthy by that.
        cache.set("a".into(), "value".into()).await.unwrap();
    }
    let third = bad(&cache, "a").await;
    assert_eq!((third.in_a_row, third.is_evicted), (3, true));
    let states: Vec<String> = cache.explain("a").await.tiers.into_iter().map(|tier| tier.state).collect();
    assert_eq!(states, ["absent", "absent", "absent"]);
    assert_eq!(cache.get("b").await.as_deref(), Some("value"), "its neighbour stays");
    assert!(evicted.lock().unwrap().contains(&("a".to_owned(), EvictReason::Health)));
    assert_eq!(cache.stats().evicted.health, 1);
    assert_eq!(rows(folder.path()), [1, 0, 0, 0]);
    // What comes too late counts for nothing.
    assert_eq!(bad(&cache, "a").await, Reported::default());
    assert_eq!(bad(&cache, "never there").await, Reported::default());
}

#[tokio::test]
async fn a_limit_that_is_off_evicts_nothing() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let file = sqlite(folder.path(), &clock).await;
    let cache = over(&[file], &clock).evict_after_bad(None).build().unwrap();
    cache.set("a".into(), "value".into()).await.unwrap();
    for in_a_row in 1..=10 {
        assert_eq!(bad(&cache, "a").await.in_a_row, in_a_row);
    }
    assert!(cache.get("a").await.is_some());
    let error = over(&[], &clock).evict_after_bad(Some(0)).build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
}

/// A load that read its source before the eviction and comes back after it.
async fn load_over_three_reports(builder: Builder<String, String>, report: Report) -> Option<String> {
    let cache = builder.build().unwrap();
    cache.set("a".into(), "old".into()).await.unwrap();
    let (began, has_begun) = oneshot::channel();
    let (go, may_go) = oneshot::channel::<()>();
    let loading = tokio::spawn({
        let cache = cache.clone();
        let load = move |_| async move {
            began.send(()).unwrap();
            may_go.await.unwrap();
            Ok::<_, std::io::Error>("loaded".to_owned())
        };
        async move { cache.reload("a", &cache.options(), load).await }
    });
    has_begun.await.unwrap();
    for _ in 0..3 {
        cache.report("a", report.clone()).await.unwrap();
    }
    go.send(()).unwrap();
    loading.await.unwrap().unwrap();
    let found = cache.peek("a");
    // Its writes to the tiers go on after its answer.
    cache.close().await.unwrap();
    found
}

#[tokio::test]
async fn a_load_that_began_before_puts_nothing_back() {
    // Closing waits on the clock for what is under way.
    let tiers_of = async |folder: &Path| -> Vec<Arc<dyn Backend>> {
        let lines = JsonlBackend::open(JsonlOptions::new(folder.join("lines"))).await.unwrap();
        let file = SqliteBackend::open(SqliteOptions::new(folder.join("cache.db"))).await.unwrap();
        vec![Arc::new(lines) as Arc<dyn Backend>, Arc::new(file)]
    };
    let build = |tiers: &[Arc<dyn Backend>]| over(tiers, &ManualClock::new()).clock(Clock::system());
    for has_tiers in [true, false] {
        // The second time with good reports: the negative control.
        for (report, kept) in [(Report::bad(), 0), (Report::good(), 1)] {
            let folder = tempfile::tempdir().unwrap();
            let tiers: Vec<Arc<dyn Backend>> =
                if has_tiers { tiers_of(folder.path()).await } else { Vec::new() };
            let found = load_over_three_reports(build(&tiers), report).await;
            if has_tiers {
                assert_eq!(rows(folder.path())[0], kept, "{found:?}");
                let tiers = tiers_of(folder.path()).await;
                let cache = build(&tiers).build().unwrap();
                assert_eq!(cache.get("a").await.is_some(), kept == 1);
            } else {
                assert_eq!(found.is_some(), kept == 1);
            }
        }
    }
}

/// Every way in which an entry goes takes its reports along; the foreign keys do that, and nothing else.
#[tokio::test]
async fn no_report_outlives_its_entry() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let file = sqlite(folder.path(), &clock).await;
    let cache = over(&[Arc::clone(&file) as Arc<dyn Backend>], &clock).build().unwrap();
    let fill = async || {
        let tagged = cache.options().tags(larder::entry::Tags::new(["all"]).unwrap());
        for key in ["a", "b", "c"] {
            cache.set_with(key.into(), "value".into(), &tagged).await.unwrap();
            bad(&cache, key).await;
            bad(&cache, key).await;
        }
        assert_eq!(rows(folder.path()), [3, 3, 6, 0]);
    };
    let swept = async || {
        while file.sweep(100).await.unwrap() > 0 {}
        assert_eq!(rows(folder.path()), [0, 0, 0, 0]);
    };
    fill().await;
    for key in ["a", "b", "c"] {
        cache.remove(key).await.unwrap();
    }
    assert_eq!(rows(folder.path()), [0, 0, 0, 0], "removed");
    fill().await;
    cache.remove_tag("all").await.unwrap();
    assert_eq!(cache.by_health(&Query::default()).await.unwrap().entries, [], "before the sweep, too");
    assert_eq!(cache.history("a").await.unwrap(), []);
    swept().await;
    fill().await;
    cache.clear().await.unwrap();
    swept().await;
    fill().await;
    cache.remove_matching(&Pattern::new("*").unwrap()).await.unwrap();
    assert_eq!(rows(folder.path()), [0, 0, 0, 0], "by pattern");
    fill().await;
    clock.advance(Duration::from_secs(7200));
    swept().await;
    fill().await;
    bad(&cache, "a").await;
    assert_eq!(rows(folder.path()), [2, 2, 4, 0], "evicted by its third report");
    // The place of an entry that is gone, but not yet swept, is taken by one without a past.
    cache.remove_tag("all").await.unwrap();
    cache.set("b".into(), "new".into()).await.unwrap();
    assert_eq!(cache.history("b").await.unwrap(), []);
    assert_eq!(bad(&cache, "b").await.in_a_row, 1);
    // Negative control: without foreign keys the same deletion leaves orphans, and `rows` sees them.
    cache.close().await.unwrap();
    let db = Connection::open(folder.path().join("cache.db")).unwrap();
    db.pragma_update(None, "foreign_keys", false).unwrap();
    db.execute("DELETE FROM entry", []).unwrap();
    assert!(rows(folder.path())[3] > 0);
}

#[tokio::test]
async fn what_the_file_has_no_room_for_goes_with_its_reports() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let options = SqliteOptions {
        clock: Clock::from(clock.clone()),
        entries_max: Some(20),
        ..SqliteOptions::new(folder.path().join("cache.db"))
    };
    let file = Arc::new(SqliteBackend::open(options).await.unwrap());
    let cache = over(&[Arc::clone(&file) as Arc<dyn Backend>], &clock).build().unwrap();
    for at in 0..100 {
        let key = format!("key {at}");
        cache.set(key.clone(), "value".into()).await.unwrap();
        bad(&cache, &key).await;
    }
    cache.close().await.unwrap();
    let [entries, standings, history, orphans] = rows(folder.path());
    assert!(entries <= 20 && orphans == 0, "{entries} entries, {orphans} orphans");
    assert_eq!((standings, history), (entries, entries));
}

#[tokio::test]
async fn history_survives_a_restart_and_is_bounded() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let cache = over(&[sqlite(folder.path(), &clock).await], &clock).build().unwrap();
    cache.set("a".into(), "value".into()).await.unwrap();
    for at in 0..REPORTS_KEPT as u64 + 10 {
        let report = Report::good().latency(Duration::from_millis(at)).note(&"ö".repeat(300));
        cache.report("a", report).await.unwrap();
        clock.advance(Duration::from_secs(1));
    }
    cache.report("a", Report::bad().source("list-a")).await.unwrap();
    cache.close().await.unwrap();
    let cache = over(&[sqlite(folder.path(), &clock).await], &clock).build().unwrap();
    let history = cache.history("a").await.unwrap();
    assert_eq!(history.len(), REPORTS_KEPT);
    assert_eq!((history[0].verdict, history[0].latency), (Verdict::Bad, None));
    assert_eq!(history[1].latency, Some(Duration::from_millis(REPORTS_KEPT as u64 + 9)));
    assert_eq!(history[1].note.as_ref().unwrap().len(), NOTE_BYTES_MAX);
    assert!(history.windows(2).all(|pair| pair[0].wall_ms > pair[1].wall_ms || pair[1].latency.is_none()));
    let found = &cache.by_health(&Query::default()).await.unwrap().entries[0];
    assert_eq!((found.reports, found.bad_in_a_row), (REPORTS_KEPT as u64 + 11, 1));
    assert_eq!(found.source.as_deref(), Some("list-a"));
    assert_eq!(bad(&cache, "a").await.in_a_row, 2, "the count goes on");
    let error = cache.report("a", Report::bad().source(&"x".repeat(129))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
}

#[tokio::test]
async fn entries_are_found_by_source_health_and_last_use_page_by_page() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let tiers: [Arc<dyn Backend>; 2] = [sqlite(folder.path(), &clock).await, memory(&clock)];
    for tier in tiers {
        let cache = over(&[tier], &clock).build().unwrap();
        let mut times = Vec::new();
        for at in 0..30 {
            let key = format!("key {at:02}");
            cache.set(key.clone(), "value".into()).await.unwrap();
            let report = if at % 3 == 0 { Report::bad() } else { Report::good() };
            let source = if at % 2 == 0 { "even" } else { "odd" };
            cache.report(key.as_str(), report.source(source)).await.unwrap();
            times.push(Clock::from(clock.clone()).wall_ms());
            clock.advance(Duration::from_secs(1));
        }
        let all = async |query: Query| {
            let mut query = Query { limit: 4, ..query };
            let mut found = Vec::new();
            loop {
                let page = cache.by_health(&query).await.unwrap();
                assert!(page.entries.len() <= 4);
                found.extend(page.entries.iter().map(|standing| standing.key.text().into_owned()));
                query.after = page.next;
                if query.after.is_none() {
                    break;
                }
            }
            found.sort();
            found
        };
        let expected = |wanted: &dyn Fn(usize) -> bool| -> Vec<String> {
            (0..30).filter(|at| wanted(*at)).map(|at| format!("key {at:02}")).collect()
        };
        assert_eq!(all(Query::default()).await, expected(&|_| true));
        let source = Some("odd".to_owned());
        let query = Query { source: source.clone(), ..Query::default() };
        assert_eq!(all(query).await, expected(&|at| at % 2 == 1));
        let query = Query { verdict: Some(Verdict::Bad), ..Query::default() };
        assert_eq!(all(query).await, expected(&|at| at % 3 == 0));
        let query = Query {
            source,
            verdict: Some(Verdict::Good),
            accessed_from_ms: Some(times[5]),
            accessed_before_ms: Some(times[20]),
            ..Query::default()
        };
        assert_eq!(all(query).await, expected(&|at| at % 2 == 1 && at % 3 > 0 && (5..20).contains(&at)));
        let query = Query { accessed_from_ms: Some(times[28]), ..Query::default() };
        assert_eq!(all(query).await, expected(&|at| at >= 28));
        for query in [
            Query { limit: 0, ..Query::default() },
            Query { after: Some("no cursor".into()), ..Query::default() },
        ] {
            assert_eq!(cache.by_health(&query).await.unwrap_err().kind(), ErrorKind::Config);
        }
    }
}

#[tokio::test]
async fn another_tenant_sees_and_counts_nothing() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let tiers: [Arc<dyn Backend>; 2] = [sqlite(folder.path(), &clock).await, memory(&clock)];
    for tier in tiers {
        let cache = over(&[tier], &clock).build().unwrap();
        let [ours, theirs] = ["ours", "theirs"].map(|name| cache.tenant(&Tenant::new(name).unwrap()));
        for view in [&ours, &theirs] {
            view.set("a".into(), "value".into()).await.unwrap();
        }
        bad(&ours, "a").await;
        bad(&ours, "a").await;
        assert_eq!(theirs.history("a").await.unwrap(), []);
        assert_eq!(theirs.by_health(&Query::default()).await.unwrap().entries, []);
        assert_eq!(bad(&theirs, "a").await.in_a_row, 1);
        assert!(bad(&ours, "a").await.is_evicted);
        assert_eq!(theirs.get("a").await.as_deref(), Some("value"));
        assert_eq!(ours.get("a").await, None);
    }
}

#[tokio::test]
async fn memory_alone_counts_and_begins_anew_with_the_entry() {
    let clock = ManualClock::new();
    let cache = over(&[], &clock).build().unwrap();
    cache.set("a".into(), "value".into()).await.unwrap();
    bad(&cache, "a").await;
    assert_eq!(bad(&cache, "a").await.in_a_row, 2);
    for way in 0..3 {
        match way {
            0 => drop(cache.remove("a").await.unwrap()),
            1 => drop(cache.clear().await.unwrap()),
            _ => drop(cache.report("a", Report::good()).await.unwrap()),
        }
        cache.set("a".into(), "value".into()).await.unwrap();
        assert_eq!(bad(&cache, "a").await.in_a_row, 1);
        assert_eq!(bad(&cache, "a").await.in_a_row, 2);
    }
    let third = bad(&cache, "a").await;
    assert!(third.is_evicted && cache.peek("a").is_none());
    assert_eq!(bad(&cache, "a").await, Reported::default());
    assert_eq!(cache.history("a").await.unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(cache.by_health(&Query::default()).await.unwrap_err().kind(), ErrorKind::Unsupported);
}

/// A tier that fails stops no report, and is told of the eviction before it is read again.
#[tokio::test(start_paused = true)]
async fn a_bad_entry_goes_while_the_tier_is_down() {
    let tier = Faulty::new(Arc::new(MemoryBackend::new(MemoryOptions::default())));
    let cache: Texts = Cache::builder().tier(Arc::clone(&tier) as Arc<dyn Backend>).build().unwrap();
    cache.set("a".into(), "value".into()).await.unwrap();
    tier.feel(Mood::Down);
    bad(&cache, "a").await;
    bad(&cache, "a").await;
    assert!(bad(&cache, "a").await.is_evicted);
    assert_eq!(cache.get("a").await, None);
    tier.feel(Mood::Well);
    cache.recover().await;
    assert_eq!(cache.get("a").await, None);
}
