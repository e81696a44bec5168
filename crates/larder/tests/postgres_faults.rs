//! What a PostgreSQL server can do to a cache: freeze, die, come back with its tables empty, be promoted or restored,
//! cut connections off, refuse them, refuse writes. Whatever it does, what was removed stays removed, nobody gets a
//! wrong value, and the tier works again by itself afterwards.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(all(feature = "postgres", unix))]

mod postgres_support;

use bytes::Bytes;
use larder::ErrorKind;
use larder::backend::{
    Backend, Change, LogCursor, Mark, Miss, PostgresBackend, PostgresOptions, Put, PutOutcome, Removed,
    Ticket,
};
use larder::clock::{Clock, NEVER_MS};
use larder::entry::{EntryKind, Meta, Tags};
use larder::key::{EntryKey, Namespace, Pattern};
use larder::stamp::Stamp;
use postgres_support::{PATIENCE, Server};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

fn key(name: &str) -> EntryKey {
    EntryKey::new(&Namespace::default(), name).unwrap()
}

fn put(kind: EntryKind, name: &str, body: &str, ticket: Ticket) -> Put {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let wall_ms = Clock::system().wall_ms();
    let meta = Meta {
        kind,
        stamp: Stamp::new(wall_ms, COUNT.fetch_add(1, SeqCst) as u16, 1),
        created_ms: wall_ms,
        fresh_until_ms: NEVER_MS,
        revalidate_until_ms: NEVER_MS,
        gone_at_ms: NEVER_MS,
        load_ms: 0,
        is_negative: false,
        tags: Tags::NONE,
    };
    Put { key: key(name), meta, sealed: Bytes::copy_from_slice(body.as_bytes()), ticket }
}

async fn set(backend: &PostgresBackend, name: &str, body: &str) {
    let ticket = backend.ticket(&key(name)).await.unwrap();
    assert_eq!(backend.put(put(EntryKind::Set, name, body, ticket)).await.unwrap(), PutOutcome::Stored);
}

async fn read(backend: &PostgresBackend, name: &str) -> Result<Bytes, Miss> {
    backend.get(&key(name)).await.unwrap().found
}

fn text(body: &'static str) -> Result<Bytes, Miss> {
    Ok(Bytes::from_static(body.as_bytes()))
}

/// Repeats what the guard of a tier would repeat.
async fn until<T>(mut call: impl AsyncFnMut() -> larder::Result<T>) -> T {
    let began = Instant::now();
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(error) => {
                assert!(error.is_transient(), "{error}");
                assert!(began.elapsed() < PATIENCE, "{error}");
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn limited<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE * 2, test).await.expect("nobody hangs")
}

async fn with_a_removal(backend: &PostgresBackend) -> Ticket {
    set(backend, "kept", "old").await;
    set(backend, "removed", "old").await;
    let ticket = backend.ticket(&key("removed")).await.unwrap();
    assert_eq!(backend.remove(&key("removed")).await.unwrap(), Removed::Existed);
    ticket
}

/// What must hold after the server may have forgotten a removal: nothing of before is served, no write that
/// began before is let in, and new ones are.
async fn begins_anew(backend: &PostgresBackend, before: Ticket) {
    let found = until(async || backend.get(&key("kept")).await).await.found;
    assert_eq!(found, Err(Miss::Absent));
    assert_ne!(backend.ticket(&key("kept")).await.unwrap().inc, before.inc);
    for kind in [EntryKind::Load, EntryKind::Set] {
        let late = backend.put(put(kind, "removed", "late", before)).await.unwrap();
        assert_eq!(late, PutOutcome::Fenced);
        assert_eq!(read(backend, "removed").await, Err(Miss::Absent));
    }
    set(backend, "kept", "new").await;
    assert_eq!(read(backend, "kept").await, text("new"));
}

/// What must hold where nothing was forgotten.
async fn goes_on(backend: &PostgresBackend, before: Ticket) {
    assert_eq!(until(async || backend.get(&key("kept")).await).await.found, text("old"));
    assert_eq!(backend.ticket(&key("kept")).await.unwrap().inc, before.inc);
    let late = backend.put(put(EntryKind::Load, "removed", "late", before)).await.unwrap();
    assert_eq!(late, PutOutcome::Fenced);
    assert_eq!(read(backend, "removed").await, Err(Miss::Absent));
}

fn logged(server: &Server) -> PostgresBackend {
    let options = server.options(Clock::system());
    PostgresBackend::new(PostgresOptions { logged: true, schema: "logged".to_owned(), ..options }).unwrap()
}

/// An orderly restart keeps both kinds of tables; the death of the first process, or of one that serves a
/// connection, is a crash: unlogged tables are empty afterwards, and everything of before is of another incarnation.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_empties_unlogged_tables_and_no_others() {
    limited(async {
        let mut server = Server::start(&[]);
        let (unlogged, logged) = (server.backend(), logged(&server));
        assert!(logged.capabilities().durable && !unlogged.capabilities().durable);
        let (before_unlogged, before_logged) =
            (with_a_removal(&unlogged).await, with_a_removal(&logged).await);
        server.stop();
        server.begin();
        goes_on(&unlogged, before_unlogged).await;
        goes_on(&logged, before_logged).await;
        server.kill();
        assert!(unlogged.get(&key("kept")).await.is_err(), "it is an error as long as there is no server");
        server.begin();
        begins_anew(&unlogged, before_unlogged).await;
        goes_on(&logged, before_logged).await;
        let again = with_a_removal(&unlogged).await;
        let served = server.larders()[0];
        // SAFETY: a signal to a process of the test's own server.
        assert_eq!(unsafe { libc::kill(served, libc::SIGKILL) }, 0);
        // The other connections go on until they are told.
        let began = Instant::now();
        while until(async || unlogged.ticket(&key("k")).await).await.inc == again.inc {
            assert!(began.elapsed() < PATIENCE);
        }
        begins_anew(&unlogged, again).await;
        goes_on(&logged, before_logged).await;
    })
    .await;
}

/// Tables that were moved to another cluster, a later timeline, or came out of a dump may lack a removal that was
/// acknowledged; the recorded identity says so.
#[tokio::test(flavor = "multi_thread")]
async fn tables_from_elsewhere_begin_anew() {
    limited(async {
        let mut server = Server::start(&["wal_level=replica"]);
        let before = with_a_removal(&logged(&server)).await;
        assert_eq!(logged(&server).ticket(&key("k")).await.unwrap().inc, before.inc, "the same place");
        // An old copy of the tables, under the same names.
        server.sql(
            "CREATE TABLE logged.copy (LIKE logged.ns INCLUDING ALL); \
             INSERT INTO logged.copy OVERRIDING SYSTEM VALUE SELECT * FROM logged.ns; \
             DROP FUNCTION logged.save_1, logged.lock_1; DROP TABLE logged.ns CASCADE; \
             ALTER TABLE logged.copy RENAME TO ns",
        );
        let identity = server.sql("SELECT identity FROM logged.meta");
        drop(logged(&server).ticket(&key("k")).await);
        assert_ne!(server.sql("SELECT identity FROM logged.meta"), identity);
        assert_eq!(server.sql("SELECT count(*) FROM logged.entry"), "0");
        server.sql("DROP SCHEMA logged CASCADE");
        // As after a promotion: the data directory goes on on another timeline.
        let backend = logged(&server);
        let before = with_a_removal(&backend).await;
        server.stop();
        std::fs::write(server.data().join("standby.signal"), "").unwrap();
        server.begin();
        let refused = backend.get(&key("kept")).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ReadOnly, "{refused}");
        assert!(refused.to_string().contains("replica"), "{refused}");
        server.sql("SELECT pg_promote()");
        let promoted = until(async || {
            backend.get(&key("kept")).await.map_err(|error| match error.kind() {
                ErrorKind::ReadOnly => larder::Error::new(ErrorKind::Unavailable, "get"),
                _ => error,
            })
        });
        promoted.await;
        begins_anew(&backend, before).await;
    })
    .await;
}

/// A frozen server hangs nobody for longer than the limit, and what it answers late goes to nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_hangs_nobody_and_mixes_no_answers() {
    limited(async {
        let server = Server::start(&[]);
        let options = server.options(Clock::system());
        let limit = Duration::from_millis(500);
        let options = PostgresOptions { response_timeout: limit, connect_timeout: limit, ..options };
        let backend = PostgresBackend::new(options).unwrap();
        for i in 0..8 {
            set(&backend, &format!("k{i}"), &format!("v{i}")).await;
        }
        let pids = server.larders();
        // SAFETY: signals to processes of the test's own server.
        let signal = |signal| pids.iter().for_each(|pid| assert_eq!(unsafe { libc::kill(*pid, signal) }, 0));
        server.signal(libc::SIGSTOP);
        signal(libc::SIGSTOP);
        let began = Instant::now();
        let reads = (0..8).map(|i| {
            let name = format!("k{i}");
            let backend = &backend;
            async move { backend.get(&key(&name)).await.unwrap_err().kind() }
        });
        for read in reads {
            assert_eq!(read.await, ErrorKind::Timeout);
        }
        assert!(began.elapsed() < limit * 8 * 4, "{:?}", began.elapsed());
        signal(libc::SIGCONT);
        server.signal(libc::SIGCONT);
        for i in 0..8 {
            let found = until(async || backend.get(&key(&format!("k{i}"))).await).await.found;
            assert_eq!(found.unwrap(), format!("v{i}"));
        }
    })
    .await;
}

/// Cut off in the middle of everything, again and again: each answer is the right one or a transient error.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn connections_that_are_cut_off_are_replaced() {
    limited(async {
        let server = Arc::new(Server::start(&[]));
        let backend = Arc::new(server.backend());
        for i in 0..8 {
            set(&backend, &format!("k{i}"), &format!("v{i}")).await;
        }
        let is_over = Arc::new(AtomicU64::new(0));
        let tasks: Vec<_> = (0..8)
            .map(|i| {
                let (backend, is_over) = (backend.clone(), is_over.clone());
                tokio::spawn(async move {
                    let (name, mut right) = (format!("k{i}"), 0);
                    // On a busy machine the cuts may be over before this has begun.
                    while is_over.load(SeqCst) == 0 || right <= 20 {
                        match backend.get(&key(&name)).await {
                            Ok(read) => assert_eq!(read.found.unwrap(), format!("v{i}")),
                            Err(error) => assert!(error.is_transient(), "{error}"),
                        }
                        right += 1;
                        let write = backend.ticket(&key(&name)).await;
                        let Ok(ticket) = write else { continue };
                        match backend.put(put(EntryKind::Load, &name, &format!("v{i}"), ticket)).await {
                            Ok(outcome) => {
                                assert!(matches!(outcome, PutOutcome::Stored | PutOutcome::Fenced));
                            }
                            Err(error) => assert!(error.is_transient(), "{error}"),
                        }
                    }
                })
            })
            .collect();
        for _ in 0..20 {
            server.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'larder'",
            );
        }
        is_over.store(1, SeqCst);
        for task in tasks {
            task.await.unwrap();
        }
        let open = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%'";
        assert_eq!(server.sql(open), "0", "no transaction stays open");
    })
    .await;
}

/// No place, no permission, no database, another program's schema, a newer larder: each is told by name, without the
/// password, and goes away with its cause.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_what_to_do() {
    limited(async {
        let server = Server::start(&["max_connections=10", "superuser_reserved_connections=3"]);
        let said = |options: PostgresOptions| async {
            let backend = PostgresBackend::new(options).unwrap();
            let error = backend.get(&key("k")).await.unwrap_err();
            assert!(!format!("{error} {error:?} {backend:?}").contains("secret"), "{error}");
            (error.kind(), error.to_string())
        };
        let options = || server.options(Clock::system());
        let (kind, why) = said(PostgresOptions { url: server.url() + "x", ..options() }).await;
        assert!(kind == ErrorKind::Config && why.contains("3D000"), "{why}");
        server.sql("CREATE ROLE guest LOGIN PASSWORD 'secret'");
        let guest = format!("postgres://guest:secret@127.0.0.1:{}/postgres", server.port);
        let (kind, why) = said(PostgresOptions { url: guest, ..options() }).await;
        assert!(kind == ErrorKind::Authentication && why.contains("42501"), "{why}");
        let tls = PostgresOptions { url: server.tcp() + "?sslmode=require", ..options() };
        #[cfg(feature = "postgres-tls")]
        assert_eq!(said(tls).await.0, ErrorKind::Config, "the server has none");
        #[cfg(not(feature = "postgres-tls"))]
        assert_eq!(PostgresBackend::new(tls).unwrap_err().kind(), ErrorKind::Config);
        server.sql("CREATE SCHEMA theirs; CREATE TABLE theirs.entry (id int)");
        let (kind, why) = said(PostgresOptions { schema: "theirs".to_owned(), ..options() }).await;
        assert!(kind == ErrorKind::Config && why.contains("another program"), "{why}");
        set(&server.backend(), "k", "v").await;
        let (kind, why) = said(PostgresOptions { logged: true, ..options() }).await;
        assert!(kind == ErrorKind::Config && why.contains("unlogged") && why.contains("logged"), "{why}");
        server.sql("UPDATE larder.meta SET version = 2");
        let (kind, why) = said(options()).await;
        assert!(kind == ErrorKind::Config && why.contains("version 2") && why.contains("Upgrade"), "{why}");
        server.sql("UPDATE larder.meta SET version = 1");
        let nowhere = "postgres://larder:secret@127.0.0.1:1/postgres".to_owned();
        assert_eq!(said(PostgresOptions { url: nowhere, ..options() }).await.0, ErrorKind::Unavailable);

        // Full: then there is room again.
        server.sql("GRANT ALL ON DATABASE postgres TO guest");
        let url = format!("postgres://guest@127.0.0.1:{}/postgres", server.port);
        let mut crowd = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let options = PostgresOptions { url: url.clone(), schema: "crowd".to_owned(), ..options() };
            let backend = PostgresBackend::new(options).unwrap();
            crowd.spawn(async move { (backend.mark(&Namespace::default(), &Mark::Clear).await, backend) });
        }
        let (mut full, mut last, mut kept) = (0, None, Vec::new());
        while let Some(done) = crowd.join_next().await {
            let (marked, backend) = done.unwrap();
            if let Err(error) = marked {
                assert!(error.is_transient(), "{error}");
                full += u32::from(error.to_string().contains("53300"));
                last = Some(backend);
            } else {
                kept.push(backend);
            }
        }
        drop(kept);
        let last = last.expect("not all found a place");
        until(async || last.mark(&Namespace::default(), &Mark::Clear).await).await;
        assert!(full > 0, "some found no place");
    })
    .await;
}

/// A server that turns read-only lets nobody write, and still serves.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_server_serves_and_says_so() {
    limited(async {
        let server = Server::start(&[]);
        let backend = server.backend();
        set(&backend, "k", "v").await;
        server.sql("ALTER SYSTEM SET default_transaction_read_only = on");
        server.sql("SELECT pg_reload_conf()");
        let began = Instant::now();
        loop {
            match backend.remove(&key("other")).await {
                Err(error) if error.kind() == ErrorKind::ReadOnly => break,
                answer => assert!(began.elapsed() < PATIENCE, "{answer:?}"),
            }
        }
        assert_eq!(read(&backend, "k").await, text("v"));
        server.sql("ALTER SYSTEM RESET default_transaction_read_only");
        server.sql("SELECT pg_reload_conf()");
        let began = Instant::now();
        while backend.remove(&key("k")).await.is_err() {
            assert!(began.elapsed() < PATIENCE);
        }
        assert_eq!(read(&backend, "k").await, Err(Miss::Absent));
    })
    .await;
}

/// Somebody's transaction that holds what larder needs costs a transient error, in time, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_of_somebody_elses_is_given_up() {
    limited(async {
        let server = Arc::new(Server::start(&[]));
        let options = server.options(Clock::system());
        let options = PostgresOptions { response_timeout: Duration::from_millis(1000), ..options };
        let backend = PostgresBackend::new(options).unwrap();
        set(&backend, "k", "v").await;
        let holder = {
            let server = server.clone();
            std::thread::spawn(move || server.sql("BEGIN; LOCK TABLE larder.fence; SELECT pg_sleep(3)"))
        };
        let mut refused = 0;
        while !holder.is_finished() {
            match backend.remove(&key("k")).await {
                Ok(_) => {}
                Err(error) => {
                    assert!(error.is_transient(), "{error}");
                    refused += 1;
                }
            }
            if refused > 0 && holder.is_finished() {
                break;
            }
        }
        holder.join().unwrap();
        assert!(refused > 0);
        until(async || backend.remove(&key("k")).await).await;
        assert_eq!(read(&backend, "k").await, Err(Miss::Absent));
    })
    .await;
}

/// Calls that are given up at any point, beside others that are not: no answer reaches another key, and nothing stays
/// open. `LARDER_TEST_CANCELLATIONS=1000000` for a long run.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn calls_that_are_given_up_leave_nothing_behind() {
    let count: u64 =
        std::env::var("LARDER_TEST_CANCELLATIONS").map_or(100_000, |count| count.parse().unwrap());
    let server = Server::start(&[]);
    let backend = Arc::new(server.backend());
    for i in 0..64 {
        set(&backend, &format!("k{i}"), &format!("v{i}")).await;
    }
    let tasks: Vec<_> = (0..64)
        .map(|task| {
            let backend = backend.clone();
            tokio::spawn(async move {
                let mut random = fastrand::Rng::with_seed(task);
                for _ in 0..count / 64 {
                    let i = random.u64(..64);
                    let name = format!("k{i}");
                    let (is_read, polls) = (random.u8(..8) > 0, random.u32(..4));
                    let call = async {
                        if is_read {
                            let read = backend.get(&key(&name)).await.unwrap();
                            assert_eq!(read.found.unwrap(), format!("v{i}"));
                            return;
                        }
                        let ticket = backend.ticket(&key(&name)).await.unwrap();
                        let load = put(EntryKind::Load, &name, &format!("v{i}"), ticket);
                        assert_eq!(backend.put(load).await.unwrap(), PutOutcome::Stored);
                    };
                    give_up_after(polls, call).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    for i in 0..64 {
        assert_eq!(read(&backend, &format!("k{i}")).await.unwrap(), format!("v{i}"));
    }
    assert_eq!(server.sql("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%'"), "0");
    assert!(server.larders().len() <= 5, "{:?}", server.larders());
}

/// Polls a future so often, and drops it unless it is ready.
async fn give_up_after(polls: u32, call: impl Future<Output = ()>) {
    let mut call = std::pin::pin!(call);
    for _ in 0..=polls {
        let is_ready =
            std::future::poll_fn(|cx| std::task::Poll::Ready(call.as_mut().poll(cx).is_ready())).await;
        if is_ready {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// For the bus: exactly one record per position, whatever refuses or removes, and none missing while several write.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_position_has_one_log_record() {
    limited(async {
        let server = Server::start(&[]);
        let backend = server.backend();
        let log = backend.log().unwrap();
        let cursor = |at| LogCursor { namespace: Namespace::default(), shard: 0, at };
        let unknown = LogCursor { namespace: Namespace::new("unknown").unwrap(), shard: 0, at: None };
        let mut hints = log.hints().unwrap();
        let early = backend.ticket(&key("k")).await.unwrap();
        // Until the hints have arrived: they are told from here on.
        let began = Instant::now();
        loop {
            backend.remove(&key("k")).await.unwrap();
            if tokio::time::timeout(Duration::from_millis(100), hints.recv()).await.is_ok() {
                break;
            }
            assert!(began.elapsed() < PATIENCE);
        }
        let start = log.read(&[cursor(None), unknown]).await;
        assert!(
            start.iter().all(|page| page.as_ref().is_ok_and(|page| page.records.is_none() && page.is_last))
        );
        let at = start[0].as_ref().unwrap().at;
        set(&backend, "k", "v").await;
        backend.remove(&key("k")).await.unwrap();
        backend.mark(&Namespace::default(), &Mark::Tag("red".into())).await.unwrap();
        backend.mark(&Namespace::default(), &Mark::Clear).await.unwrap();
        backend.put(put(EntryKind::Load, "k", "l", backend.ticket(&key("k")).await.unwrap())).await.unwrap();
        assert_eq!(backend.put(put(EntryKind::Set, "k", "x", early)).await.unwrap(), PutOutcome::Fenced);
        assert_eq!(backend.put(put(EntryKind::Load, "k", "x", early)).await.unwrap(), PutOutcome::Fenced);
        backend.remove_matching(&Namespace::default(), &Pattern::new("k*").unwrap()).await.unwrap();
        let page = log.read(&[cursor(Some(at))]).await.remove(0).unwrap();
        assert!(page.is_last && page.at == backend.ticket(&key("k")).await.unwrap());
        let records = page.records.unwrap();
        assert!(records.iter().all(|record| record.origin == log.origin()));
        let changes: Vec<&Change> = records.iter().map(|record| &record.change).collect();
        let kinds = changes.iter().map(|change| match change {
            Change::Set(..) => 's',
            Change::Removed(_) => 'r',
            Change::Tag(_) => 't',
            Change::Cleared => 'c',
            Change::Floor => 'f',
            Change::Matching(_) => 'p',
            _ => '?',
        });
        assert_eq!(
            kinds.collect::<String>(),
            "srtcrfp",
            "set, removal, tag, clear, refused set, floor, pattern"
        );
        let mut heard = Vec::new();
        while heard.last().is_none_or(|(pos, _)| *pos < page.at.pos) {
            let hint = tokio::time::timeout(PATIENCE, hints.recv()).await.unwrap().unwrap();
            assert_eq!(hint.namespace, Namespace::default());
            heard.push((hint.record.pos, hint.record.change));
        }
        heard.retain(|(pos, _)| *pos > at.pos);
        let told: Vec<_> = records.iter().map(|record| (record.pos, record.change.clone())).collect();
        assert_eq!(heard, told, "hints say what the log says");

        // Four nodes write; a fifth follows, page by page, and finds no gap.
        let mut at = page.at;
        let nodes: Vec<_> = (0..4)
            .map(|node| {
                let backend = server.backend();
                tokio::spawn(async move {
                    for i in 0..300 {
                        let name = format!("n{}", (i * 7 + node) % 50);
                        let ticket = backend.ticket(&key(&name)).await.unwrap();
                        let many =
                            (0..4).map(|j| put(EntryKind::Set, &format!("{name}{j}"), "v", ticket)).collect();
                        drop(backend.put_many(many).await);
                        backend.remove(&key(&name)).await.unwrap();
                    }
                })
            })
            .collect();
        let mut pages = 0;
        loop {
            let are_done = nodes.iter().all(tokio::task::JoinHandle::is_finished);
            let page = log.read(&[cursor(Some(at))]).await.remove(0).unwrap();
            let records = page.records.expect("no hole, and not so far behind that it was cut");
            assert_eq!(records.len() as u64, page.at.pos - at.pos);
            at = page.at;
            pages += 1;
            if are_done && page.is_last {
                break;
            }
        }
        for node in nodes {
            node.await.unwrap();
        }
        assert!(pages > 10 && at.pos > 4 * 300, "{pages} pages up to {}", at.pos);
        // The log is bounded; who is too far behind is told so.
        let kept: u64 = server.sql("SELECT count(*) FROM larder.log").parse().unwrap();
        assert!(kept <= 10_300, "{kept}");
        server.sql("DELETE FROM larder.log WHERE pos < 100");
        let behind = Ticket { inc: at.inc, pos: 5 };
        assert_eq!(log.read(&[cursor(Some(behind))]).await.remove(0).unwrap().records, None);
    })
    .await;
}

/// The connection of the hints comes back by itself.
#[tokio::test(flavor = "multi_thread")]
async fn hints_go_on_after_a_restart() {
    limited(async {
        let mut server = Server::start(&[]);
        let backend = server.backend();
        let mut hints = backend.log().unwrap().hints().unwrap();
        for _ in 0..2 {
            let began = Instant::now();
            loop {
                drop(backend.remove(&key("k")).await);
                if tokio::time::timeout(Duration::from_millis(100), hints.recv()).await.is_ok() {
                    break;
                }
                assert!(began.elapsed() < PATIENCE);
            }
            server.stop();
            server.begin();
            while hints.try_recv().is_ok() {}
        }
        drop(hints);
        let began = Instant::now();
        let listeners = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'";
        while server.sql(listeners) != "0" {
            assert!(began.elapsed() < PATIENCE, "nobody listens for nobody");
        }
    })
    .await;
}

/// Many nodes meet an empty database at once, and some of them a namespace that nobody has used.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nodes_that_begin_at_once_agree() {
    limited(async {
        let server = Server::start(&[]);
        let nodes: Vec<_> = (0..16)
            .map(|_| {
                let backend = server.backend();
                tokio::spawn(async move { (backend.ticket(&key("k")).await.unwrap(), backend) })
            })
            .collect();
        let mut tickets = Vec::new();
        for node in nodes {
            tickets.push(node.await.unwrap());
        }
        assert!(tickets.iter().all(|(ticket, _)| *ticket == tickets[0].0), "{tickets:?}");
    })
    .await;
}

/// Batches that meet each other in every order wait for nobody in a circle.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn crossing_batches_do_not_deadlock() {
    limited(async {
        let server = Server::start(&["deadlock_timeout=100ms", "log_lock_waits=on"]);
        let spaces: Vec<Namespace> = (0..3).map(|i| Namespace::new(&format!("n{i}")).unwrap()).collect();
        let nodes: Vec<_> = (0..4_u64)
            .map(|node| {
                let (backend, spaces) = (server.backend(), spaces.clone());
                tokio::spawn(async move {
                    let mut random = fastrand::Rng::with_seed(node);
                    for _ in 0..60 {
                        let mut keys: Vec<EntryKey> = (0..40)
                            .map(|i| EntryKey::new(&spaces[i % 3], &format!("k{i}")).unwrap())
                            .collect();
                        random.shuffle(&mut keys);
                        let reads = backend.get_many(&keys).await;
                        let kind =
                            |i: usize| if i.is_multiple_of(5) { EntryKind::Set } else { EntryKind::Load };
                        let puts = keys.iter().zip(&reads).enumerate().map(|(i, (key, read))| Put {
                            key: key.clone(),
                            ..put(kind(i + node as usize), "k", "v", read.as_ref().unwrap().ticket)
                        });
                        for outcome in backend.put_many(puts.collect()).await {
                            outcome.unwrap();
                        }
                        for removed in backend.remove_many(&keys[..5]).await {
                            removed.unwrap();
                        }
                        let pattern = Pattern::new("k1*").unwrap();
                        backend.remove_matching(&spaces[random.usize(..3)], &pattern).await.unwrap();
                        backend.sweep(100).await.unwrap();
                    }
                })
            })
            .collect();
        for node in nodes {
            node.await.unwrap();
        }
    })
    .await;
}

/// No removal is decided by comparing clocks: the node that removes is ahead of one that still serves the entries,
/// or behind one whose stamps it does not trust.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_by_pattern_takes_what_other_clocks_find_valid() {
    let server = Server::start(&[]);
    let now_ms = Clock::system().wall_ms();
    let node = |wall_ms| {
        let clock = larder::clock::ManualClock::new();
        clock.set_wall_ms(wall_ms);
        PostgresBackend::new(server.options(clock.into())).unwrap()
    };
    let (other, remover) = (node(now_ms), node(now_ms + 2000));
    let ticket = other.ticket(&key("k1")).await.unwrap();
    let mut short = put(EntryKind::Set, "k1", "old", ticket);
    short.meta.gone_at_ms = now_ms + 1000;
    assert_eq!(other.put(short).await.unwrap(), PutOutcome::Stored);
    let ahead = node(now_ms + 3 * 24 * 60 * 60 * 1000);
    let ticket = ahead.ticket(&key("k2")).await.unwrap();
    let mut early = put(EntryKind::Set, "k2", "old", ticket);
    early.meta.stamp = Stamp::new(now_ms + 3 * 24 * 60 * 60 * 1000, 0, 1);
    assert_eq!(ahead.put(early).await.unwrap(), PutOutcome::Stored);
    set(&other, "k3", "old").await;
    assert_eq!((read(&other, "k1").await, read(&ahead, "k2").await), (text("old"), text("old")));
    let removed = remover.remove_matching(&Namespace::default(), &Pattern::new("k*").unwrap()).await.unwrap();
    assert_eq!(removed, 1, "what was valid here is counted");
    assert_eq!((read(&other, "k1").await, read(&ahead, "k2").await), (Err(Miss::Absent), Err(Miss::Absent)));
}

/// Two nodes: one loads what the other changes and removes. Nobody reads a value from before a removal that
/// was acknowledged before the read began.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_nodes_race_removals_against_loads() {
    let server = Server::start(&[]);
    let nodes = [Arc::new(server.backend()), Arc::new(server.backend())];
    // The source of truth, and what was acknowledged as removed.
    let source: Arc<Vec<AtomicU64>> = Arc::new((0..8).map(|_| AtomicU64::new(0)).collect());
    let removed: Arc<Vec<AtomicU64>> = Arc::new((0..8).map(|_| AtomicU64::new(0)).collect());
    let mut tasks = Vec::new();
    for task in 0..6_u64 {
        let backend = nodes[task as usize % 2].clone();
        let (source, removed) = (source.clone(), removed.clone());
        tasks.push(tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(task);
            let mut hits = 0;
            for _ in 0..1000 {
                let i = random.usize(..8);
                let name = format!("k{i}");
                if task % 3 == 0 && random.u8(..4) == 0 {
                    let version = source[i].fetch_add(1, SeqCst) + 1;
                    if random.u8(..8) == 0 {
                        backend.mark(&Namespace::default(), &Mark::Clear).await.unwrap();
                    } else {
                        backend.remove(&key(&name)).await.unwrap();
                    }
                    removed[i].fetch_max(version, SeqCst);
                    continue;
                }
                let at_least = removed[i].load(SeqCst);
                let found = backend.get(&key(&name)).await.unwrap();
                if let Ok(body) = found.found {
                    hits += 1;
                    let version: u64 = std::str::from_utf8(&body).unwrap().parse().unwrap();
                    assert!(version >= at_least, "{name}: version {version} after the removal of {at_least}");
                    continue;
                }
                let version = source[i].load(SeqCst);
                for _ in 0..random.u8(..16) {
                    tokio::task::yield_now().await;
                }
                backend.put(put(EntryKind::Load, &name, &version.to_string(), found.ticket)).await.unwrap();
            }
            hits
        }));
    }
    let mut hits = 0;
    for task in tasks {
        hits += task.await.unwrap();
    }
    assert!(hits > 200, "{hits}: the race is worth something only if values are found");
}

/// What is stored belongs to the server, not the process; and sizes have a limit that is told.
#[tokio::test(flavor = "multi_thread")]
async fn entries_outlive_the_process_and_quarantine_is_kept() {
    limited(async {
        let server = Server::start(&[]);
        let backend = server.backend();
        let before = with_a_removal(&backend).await;
        let last = backend.last_stamp().await.unwrap();
        let bad = Bytes::from_static(b"old");
        backend.quarantine(&key("kept"), &bad, "tampered").await.unwrap();
        backend.close().await.unwrap();
        assert_eq!(backend.get(&key("k")).await.unwrap_err().kind(), ErrorKind::Closed);
        let again = server.backend();
        assert_eq!(read(&again, "kept").await, Err(Miss::Absent));
        let quarantined = again.quarantined().await.unwrap();
        assert_eq!(quarantined.len(), 1);
        assert_eq!((&quarantined[0].key, &*quarantined[0].reason), (&key("kept"), "tampered"));
        assert!(quarantined[0].wall_ms.abs_diff(Clock::system().wall_ms()) < 600_000);
        again.forget_quarantined().await.unwrap();
        assert!(again.quarantined().await.unwrap().is_empty());
        assert_eq!(again.last_stamp().await.unwrap(), last);
        let late = again.put(put(EntryKind::Load, "removed", "late", before)).await.unwrap();
        assert_eq!(late, PutOutcome::Fenced);
        let huge = Put { sealed: vec![0; (128 << 20) + 1].into(), ..put(EntryKind::Load, "k", "", before) };
        assert_eq!(again.put(huge).await.unwrap_err().kind(), ErrorKind::TooLarge);
    })
    .await;
}

/// A CA and a certificate for 127.0.0.1 in `folder`.
#[cfg(feature = "postgres-tls")]
fn certificates(folder: &std::path::Path) {
    let openssl = |args: &[&str]| {
        let made = std::process::Command::new("openssl").args(args).current_dir(folder).output();
        assert!(made.expect("openssl is installed").status.success(), "{args:?}");
    };
    std::fs::write(folder.join("ext"), "subjectAltName=IP:127.0.0.1").unwrap();
    let new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let ca = ["-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca"];
    openssl(&[&["req", "-x509"], &new[..], &ca[..]].concat());
    openssl(
        &[&["req"], &new[..], &["-keyout", "tls.key", "-out", "tls.csr", "-subj", "/CN=server"]].concat(),
    );
    let sign = ["x509", "-req", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"];
    openssl(&[&sign[..], &["-out", "tls.crt", "-extfile", "ext"]].concat());
}

#[cfg(feature = "postgres-tls")]
#[tokio::test(flavor = "multi_thread")]
async fn tls_checks_the_servers_certificate() {
    limited(async {
        let mut server = Server::new(&["ssl=on", "ssl_cert_file=tls.crt", "ssl_key_file=tls.key"]);
        let folder = tempfile::tempdir().unwrap();
        certificates(folder.path());
        for file in ["tls.crt", "tls.key"] {
            server.give(&folder.path().join(file));
        }
        server.begin();
        let open = |root: Option<&str>| {
            let tls_root = root.map(|root| folder.path().join(root));
            let url = server.tcp() + "?sslmode=require";
            PostgresBackend::new(PostgresOptions { tls_root, ..PostgresOptions::new(url) })
        };
        let backend = open(Some("ca.crt")).unwrap();
        set(&backend, "k", "v").await;
        assert_eq!(read(&backend, "k").await, text("v"));
        let ssl = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                   WHERE application_name = 'larder'";
        assert_eq!(server.sql(ssl), "t");
        let unknown = open(None).unwrap().get(&key("k")).await.unwrap_err();
        assert_eq!(unknown.kind(), ErrorKind::Authentication, "{unknown}");
        assert_eq!(open(Some("ca.key")).unwrap_err().kind(), ErrorKind::Config);
        assert_eq!(open(Some("none")).unwrap_err().kind(), ErrorKind::Config);
    })
    .await;
}
