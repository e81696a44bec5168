//! What a Memcached server can do to a cache: forget, evict, freeze, die, come back empty, run out of memory.
//! Whatever it does, what was removed stays removed, nobody gets a wrong value, and the tier works again by
//! itself afterwards.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(feature = "memcached")]

mod memcached_support;

use bytes::Bytes;
use larder::ErrorKind;
use larder::backend::{
    Backend, LargeValues, Mark, MemcachedBackend, MemcachedOptions, Miss, PutOutcome, Removed, Ticket,
};
use larder::clock::Clock;
use larder::entry::{EntryKind, Tags};
use larder::key::Namespace;
use memcached_support::{Server, key, put, read, set, until_read};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

async fn limited<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), test).await.expect("nobody hangs")
}

/// What must hold after the server may have forgotten a removal: nothing of before is served, no write that
/// began before is let in, and new ones are.
async fn begins_anew(backend: &MemcachedBackend, before: Ticket) {
    let found = until_read(backend, "kept").await;
    assert!(matches!(found, Err(Miss::Absent | Miss::Cleared)), "{found:?}");
    assert_ne!(backend.ticket(&key("kept")).await.unwrap().inc, before.inc);
    for kind in [EntryKind::Load, EntryKind::Set] {
        let late = backend.put(put(kind, "removed", "late", before)).await.unwrap();
        assert_eq!(late, PutOutcome::Fenced);
        assert!(read(backend, "removed").await.is_err());
    }
    set(backend, "kept", "new").await;
    assert_eq!(read(backend, "kept").await, Ok(Bytes::from_static(b"new")));
}

async fn with_a_removal(backend: &MemcachedBackend) -> Ticket {
    set(backend, "kept", "old").await;
    set(backend, "removed", "old").await;
    let ticket = backend.ticket(&key("removed")).await.unwrap();
    assert_eq!(backend.remove(&key("removed")).await.unwrap(), Removed::Existed);
    ticket
}

/// Its CAS numbers begin again, too: an old ticket's number is soon somebody else's.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_restarts_empty_begins_anew() {
    for mut server in [Server::start(&[]), Server::start_tcp(&[])] {
        let backend = server.backend();
        let before = with_a_removal(&backend).await;
        server.kill();
        let refused = limited(backend.get(&key("kept"))).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
        assert!(backend.notes()[0].contains("connect"), "{:?}", backend.notes());
        server.begin();
        // The other node comes first, and uses up the numbers.
        let other = server.backend();
        for i in 0..50 {
            other.ticket(&key(&format!("other {i}"))).await.unwrap();
            other.ticket(&key("removed")).await.unwrap();
        }
        limited(begins_anew(&backend, before)).await;
        assert!(backend.notes().is_empty(), "{:?}", backend.notes());
    }
}

/// A number of the old run may be that of a placeholder of the new one: only the incarnation tells them apart.
#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_whose_number_exists_again_is_refused() {
    let mut server = Server::start(&[]);
    let backend = server.backend();
    // The first call makes the record; only after that a ticket's number is a placeholder's.
    backend.ticket(&key("first")).await.unwrap();
    let before = backend.ticket(&key("k")).await.unwrap();
    server.kill();
    server.begin();
    assert_eq!(until_read(&backend, "first").await, Err(Miss::Absent));
    let now = backend.ticket(&key("k")).await.unwrap();
    assert_eq!(now.pos, before.pos, "the same number, or this test shows nothing");
    for kind in [EntryKind::Load, EntryKind::Set] {
        assert_eq!(backend.put(put(kind, "k", "late", before)).await.unwrap(), PutOutcome::Fenced);
        assert!(read(&backend, "k").await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_and_an_evicted_record_begin_anew() {
    for command in ["flush_all\r\n", "md larder:m:default\r\n", "ms larder:m:default 3\r\nfoo\r\n"] {
        let server = Server::start(&[]);
        let backend = server.backend();
        let before = with_a_removal(&backend).await;
        server.command(command);
        limited(begins_anew(&backend, before)).await;
    }
}

/// An evicted marker may have been a mark that nobody knows of any more.
#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_marker_invalidates_what_has_its_tag() {
    let server = Server::start(&[]);
    let backend = server.backend();
    let ticket = backend.ticket(&key("k")).await.unwrap();
    let tagged = |name: &str, ticket| {
        let mut tagged = put(EntryKind::Load, name, "v", ticket);
        tagged.meta.tags = Tags::new(["red"]).unwrap();
        tagged
    };
    assert_eq!(backend.put(tagged("k", ticket)).await.unwrap(), PutOutcome::Stored);
    assert_eq!(
        backend.put(tagged("late", ticket)).await.unwrap(),
        PutOutcome::Fenced,
        "another key's ticket"
    );
    let late = backend.ticket(&key("late")).await.unwrap();
    backend.mark(&Namespace::default(), &Mark::Tag("red".into())).await.unwrap();
    server.command("md larder:t:default/red\r\n");
    assert_eq!(read(&backend, "k").await, Err(Miss::Tag));
    assert_eq!(backend.put(tagged("late", late)).await.unwrap(), PutOutcome::Fenced);
    let now = backend.ticket(&key("late")).await.unwrap();
    assert_eq!(backend.put(tagged("late", now)).await.unwrap(), PutOutcome::Stored);
    assert_eq!(read(&backend, "late").await, Ok(Bytes::from_static(b"v")));
}

/// A frozen server keeps its connections open. Callers leave by their own deadlines; what they had asked for
/// may happen once the server thaws, and its late answers reach nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_hangs_nobody_and_mixes_no_answers() {
    let server = Server::start(&[]);
    let options = MemcachedOptions {
        response_timeout: Duration::from_millis(300),
        connect_timeout: Duration::from_millis(300),
        ..MemcachedOptions::new([server.url()])
    };
    let backend = MemcachedBackend::new(options).unwrap();
    let patient = server.backend();
    for i in 0..50 {
        set(&patient, &format!("k{i}"), format!("k{i}")).await;
    }
    for round in 0..3 {
        server.signal(libc::SIGSTOP);
        // Some give up before the connection does, some after.
        for i in 0..20 {
            let wait = Duration::from_millis(if i % 4 == 0 { 700 } else { 2 });
            let name = key(&format!("k{i}"));
            if let Ok(answer) = tokio::time::timeout(wait, backend.get(&name)).await {
                assert!(matches!(answer.unwrap_err().kind(), ErrorKind::Timeout | ErrorKind::Unavailable));
            }
        }
        let began = Instant::now();
        let overdue = limited(backend.get(&key("k0"))).await.unwrap_err();
        assert!(matches!(overdue.kind(), ErrorKind::Timeout | ErrorKind::Unavailable), "{overdue}");
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        server.signal(libc::SIGCONT);
        for i in 0..50 {
            let name = format!("k{i}");
            let found = until_read(&backend, &name).await;
            assert_eq!(found, Ok(Bytes::from(name)), "round {round}");
        }
    }
}

/// With one write that was under way when the server froze: it happens or not, and a removal after it wins.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_thaws_late_does_not_undo_a_removal() {
    let server = Server::start(&[]);
    let options = MemcachedOptions {
        response_timeout: Duration::from_millis(200),
        ..MemcachedOptions::new([server.url()])
    };
    let (backend, other) = (Arc::new(MemcachedBackend::new(options).unwrap()), server.backend());
    for round in 0..5 {
        let name = format!("k{round}");
        let ticket = other.ticket(&key(&name)).await.unwrap();
        // So that it is connected, and what follows is sent.
        assert_eq!(until_read(&backend, &name).await, Err(Miss::Absent));
        server.signal(libc::SIGSTOP);
        let late = put(EntryKind::Load, &name, "late", ticket);
        // A signal takes its time: the server may have answered before.
        if let Err(refused) = limited(backend.put(late)).await {
            assert_eq!(refused.kind(), ErrorKind::Timeout, "{refused}");
        }
        server.signal(libc::SIGCONT);
        limited(other.remove(&key(&name))).await.unwrap();
        // It happened before the removal, or is refused by it.
        for _ in 0..20 {
            assert_eq!(until_read(&other, &name).await, Err(Miss::Absent));
        }
        assert_eq!(until_read(&backend, &name).await, Err(Miss::Absent));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_that_may_not_evict_still_removes() {
    let server = Server::start(&["-M", "-m", "2"]);
    let backend = server.backend();
    set(&backend, "small", "v").await;
    let mut tagged = put(EntryKind::Set, "tagged", "v", backend.ticket(&key("tagged")).await.unwrap());
    tagged.meta.tags = Tags::new(["red"]).unwrap();
    assert_eq!(backend.put(tagged).await.unwrap(), PutOutcome::Stored);
    let body = "x".repeat(20_000);
    let mut refused = None;
    for i in 0..20_000 {
        let name = format!("large {i}");
        let answer = async {
            let ticket = backend.ticket(&key(&name)).await?;
            backend.put(put(EntryKind::Load, &name, body.clone(), ticket)).await
        };
        if let Err(error) = answer.await {
            refused = Some(error);
            break;
        }
    }
    assert_eq!(refused.expect("it fills up").kind(), ErrorKind::Full);
    // The last bytes of small items, too.
    let mut i = 0;
    while backend.ticket(&key(&format!("filler {i}"))).await.is_ok() {
        i += 1;
        assert!(i < 200_000);
    }
    assert_eq!(read(&backend, "small").await, Ok(Bytes::from_static(b"v")));
    assert_eq!(backend.remove(&key("small")).await.unwrap(), Removed::Existed);
    backend.mark(&Namespace::default(), &Mark::Tag("red".into())).await.unwrap();
    let tagged = backend.get(&key("tagged")).await;
    assert!(tagged.map_or(true, |read| read.found.is_err()), "a marked entry is served");
    backend.mark(&Namespace::default(), &Mark::Clear).await.unwrap();
    assert!(backend.get(&key("large 0")).await.map_or(true, |read| read.found.is_err()));
}

/// Tiny memory: entries, records, markers and pieces go at any time. Nobody reads anything but what was last set.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn evictions_lose_values_and_nothing_else() {
    let server = Server::start(&["-m", "2", "-I", "32k", "-o", "slab_chunk_max=16384"]);
    let backend = Arc::new(server.backend());
    let tasks: Vec<_> = (0..6_u64)
        .map(|task| {
            let backend = backend.clone();
            tokio::spawn(async move {
                let mut random = xorshift(task);
                let (mut hits, mut full) = (0, 0);
                for n in 0..1500 {
                    // Each task has keys of its own, so that it knows what was set last.
                    let name = format!("k{task} {}", random() % 40);
                    let size = [10, 500, 5_000, 60_000][(random() % 4) as usize];
                    let word = format!("{name} {n} ");
                    let body = Bytes::from(word.repeat(size / word.len() + 1));
                    let stored = async {
                        let ticket = backend.ticket(&key(&name)).await?;
                        backend.put(put(EntryKind::Set, &name, body.clone(), ticket)).await
                    };
                    match stored.await {
                        Ok(PutOutcome::Stored) => {}
                        // The placeholder was evicted before the write came.
                        Ok(PutOutcome::Fenced) => {
                            assert!(backend.get(&key(&name)).await.map_or(true, |read| read.found.is_err()));
                            continue;
                        }
                        Err(error) if error.kind() == ErrorKind::Full => {
                            full += 1;
                            continue;
                        }
                        other => panic!("{other:?}"),
                    }
                    match backend.get(&key(&name)).await {
                        Ok(read) => {
                            if let Ok(found) = read.found {
                                assert!(found == body, "{name}: another value than the last one set");
                                hits += 1;
                            }
                        }
                        Err(error) => assert_eq!(error.kind(), ErrorKind::Full, "{error}"),
                    }
                    if n % 50 == 0 {
                        backend.remove(&key(&name)).await.unwrap();
                        let after = backend.get(&key(&name)).await;
                        assert!(after.map_or(true, |read| read.found.is_err()));
                    }
                }
                (hits, full)
            })
        })
        .collect();
    let (mut hits, mut refused) = (0, 0);
    for task in tasks {
        let (hit, full) = task.await.unwrap();
        hits += hit;
        refused += full;
    }
    assert!(server.stat("evictions") > 100, "{}", server.stat("evictions"));
    assert!(hits > 1000, "{hits} hits, {refused} refused");
}

/// More than 30 days are a moment since 1970 to memcached, which would be long ago.
#[tokio::test(flavor = "multi_thread")]
async fn long_lives_are_not_short() {
    let server = Server::start(&[]);
    let backend = server.backend();
    let day_ms = 24 * 60 * 60 * 1000;
    let year_s = 365 * 24 * 60 * 60;
    let cases = [
        ("second", 1000, 1..10),
        ("30 days", 30 * day_ms, 30 * 86_400 - 60..30 * 86_400 + 60),
        ("31 days", 31 * day_ms, 31 * 86_400 - 60..31 * 86_400 + 60),
        ("a year", 365 * day_ms, year_s - 60..year_s + 60),
        ("a century", 36_500 * day_ms, -1..0),
        ("just not for ever", u64::MAX - Clock::system().wall_ms() - 1, -1..0),
    ];
    for (name, ttl_ms, seconds) in cases {
        let name = name.replace(' ', "_");
        let mut long = put(EntryKind::Set, &name, "v", backend.ticket(&key(&name)).await.unwrap());
        long.meta.gone_at_ms = Clock::system().wall_ms().saturating_add(ttl_ms);
        assert_eq!(backend.put(long).await.unwrap(), PutOutcome::Stored);
        assert_eq!(read(&backend, &name).await, Ok(Bytes::from_static(b"v")), "{name}");
        let shown = server.command(&format!("mg larder:e:default/{name} t\r\n"));
        let left: i64 = shown.split_whitespace().nth(1).unwrap()[1..].parse().unwrap();
        assert!(seconds.contains(&left), "{name}: {left} s");
    }
}

/// This process' clock may be wrong by years: how long the server keeps an entry is still right.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_here_does_not_shorten_lives_there() {
    let server = Server::start(&[]);
    let manual = larder::clock::ManualClock::new();
    manual.set_wall_ms(1_000_000);
    let clock = Clock::from(manual);
    let options = MemcachedOptions { clock: clock.clone(), ..MemcachedOptions::new([server.url()]) };
    let backend = MemcachedBackend::new(options).unwrap();
    for (name, days) in [("short", 20), ("long", 40)] {
        let mut long = put(EntryKind::Load, name, "v", backend.ticket(&key(name)).await.unwrap());
        long.meta.stamp = larder::stamp::Stamp::new(clock.wall_ms(), 0, 1);
        long.meta.gone_at_ms = clock.wall_ms() + days * 86_400_000;
        assert_eq!(backend.put(long).await.unwrap(), PutOutcome::Stored);
        assert_eq!(read(&backend, name).await, Ok(Bytes::from_static(b"v")));
        let shown = server.command(&format!("mg larder:e:default/{name} t\r\n"));
        let left: u64 = shown.split_whitespace().nth(1).unwrap()[1..].parse().unwrap();
        assert!((days * 86_400 - 60..days * 86_400 + 60).contains(&left), "{name}: {left} s");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_values_come_back_whole_or_not_at_all() {
    let server = Server::start(&["-m", "256"]);
    let backend = server.backend();
    let body: Bytes = (0..10_000_000_u32).map(|i| (i ^ (i >> 11)) as u8).collect();
    set(&backend, "huge", body.clone()).await;
    assert!(read(&backend, "huge").await.unwrap() == body);
    let before = server.stat("curr_items");
    assert!(before > 10, "{before}");
    // One piece is evicted: find it by trying, since its name is random.
    let dump = pieces(&server, 10);
    server.command(&format!("md {}\r\n", dump[3]));
    assert_eq!(read(&backend, "huge").await, Err(Miss::Absent));
    set(&backend, "huge", body.clone()).await;
    assert!(read(&backend, "huge").await.unwrap() == body);
    // One piece is another write's, of the same length.
    let fresh =
        pieces(&server, 19).into_iter().find(|name| !dump.contains(name) && name.ends_with(":4")).unwrap();
    let old = dump.iter().find(|name| name.ends_with(":5")).unwrap();
    let stored = server.command(&format!("mg {old} v\r\n"));
    assert!(stored.starts_with("VA "));
    let length = stored.split_whitespace().nth(1).unwrap().to_owned();
    let foreign = "z".repeat(length.parse().unwrap());
    server.command(&format!("ms {fresh} {length}\r\n{foreign}\r\n"));
    assert_eq!(read(&backend, "huge").await, Err(Miss::Absent));
    // A write that is refused leaves no pieces behind.
    let count = server.stat("curr_items");
    let ticket = backend.ticket(&key("other")).await.unwrap();
    backend.remove(&key("other")).await.unwrap();
    let refused = backend.put(put(EntryKind::Load, "other", body, ticket)).await.unwrap();
    assert_eq!((refused, server.stat("curr_items")), (PutOutcome::Fenced, count));
}

/// The names of so many pieces. One dump may miss an item that moves meanwhile.
fn pieces(server: &Server, count: usize) -> Vec<String> {
    let began = Instant::now();
    loop {
        let mut found = server.names();
        found.retain(|name| name.starts_with("larder:c:"));
        if found.len() == count {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{} pieces, not {count}", found.len());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_values_are_refused_where_the_settings_say_so() {
    let server = Server::start(&["-I", "64k", "-o", "slab_chunk_max=16384"]);
    let refuse =
        MemcachedOptions { large_values: LargeValues::Refuse, ..MemcachedOptions::new([server.url()]) };
    let bounded = MemcachedOptions { value_bytes_max: 100_000, ..MemcachedOptions::new([server.url()]) };
    for (options, bytes, words) in [(refuse, 65_000, "large_values"), (bounded, 100_001, "value_bytes_max")] {
        let backend = MemcachedBackend::new(options).unwrap();
        set(&backend, "k", vec![1; 30_000]).await;
        let ticket = backend.ticket(&key("k")).await.unwrap();
        let error = backend.put(put(EntryKind::Set, "k", vec![2; bytes], ticket)).await.unwrap_err();
        assert!(error.kind() == ErrorKind::TooLarge && error.to_string().contains(words), "{error}");
        assert_eq!(read(&backend, "k").await.unwrap().len(), 30_000, "nothing was written");
    }
}

/// A dead server's keys are errors, and never another server's; the other keys don't notice.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_server_keeps_its_keys() {
    let mut servers: Vec<Server> = (0..3).map(|_| Server::start(&[])).collect();
    let options = MemcachedOptions::new(servers.iter().map(Server::url));
    let backend = MemcachedBackend::new(options).unwrap();
    let names: Vec<String> = (0..60).map(|i| format!("k{i}")).collect();
    for name in &names {
        set(&backend, name, name.clone()).await;
    }
    let of_first: Vec<&String> = names
        .iter()
        .filter(|name| servers[0].command(&format!("mg larder:e:default/{name} s\r\n")).starts_with("HD"))
        .collect();
    assert!((5..40).contains(&of_first.len()), "{}", of_first.len());
    let ticket = backend.ticket(&key(of_first[0])).await.unwrap();
    servers[0].kill();
    for name in &names {
        let found = limited(backend.get(&key(name))).await;
        assert_eq!(found.is_err(), of_first.contains(&name), "{name}: {found:?}");
    }
    let reads = limited(backend.get_many(&names.iter().map(|name| key(name)).collect::<Vec<_>>())).await;
    assert_eq!(reads.iter().filter(|read| read.is_err()).count(), of_first.len());
    for other in &servers[1..] {
        for name in &of_first {
            assert!(other.command(&format!("mg larder:e:default/{name} s\r\n")).starts_with("EN"));
        }
    }
    // A mark that one server was not told of is not done.
    let mark = backend.mark(&Namespace::default(), &Mark::Clear).await.unwrap_err();
    assert_eq!(mark.kind(), ErrorKind::Unavailable);
    assert!(backend.ping().await.is_ok() && backend.notes().len() == 1, "{:?}", backend.notes());
    servers[0].begin();
    for name in &of_first {
        assert!(until_read(&backend, name).await.is_err());
    }
    let late = backend.put(put(EntryKind::Load, of_first[0], "late", ticket)).await.unwrap();
    assert_eq!(late, PutOutcome::Fenced);
    backend.mark(&Namespace::default(), &Mark::Clear).await.unwrap();
    for name in &names {
        assert!(read(&backend, name).await.is_err(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_and_passwords() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("users");
    std::fs::write(&file, "user:hunter2\n").unwrap();
    for path in [folder.path(), &file] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let server = Server::start_tcp(&["-Y", file.to_str().unwrap()]);
    let url = |credentials: &str| format!("memcached://{credentials}127.0.0.1:{}", server.port);
    for (credentials, is_right) in [("", false), ("user:wrong@", false), ("user:hunter2@", true)] {
        let backend = MemcachedBackend::new(MemcachedOptions::new([url(credentials)])).unwrap();
        let answer = limited(backend.ping()).await;
        let shown = format!("{backend:?} {answer:?} {:?}", backend.notes());
        assert!(!shown.contains("hunter2") && !shown.contains("wrong"), "{shown}");
        assert_eq!(
            answer.map_err(|error| error.kind()).err(),
            (!is_right).then_some(ErrorKind::Authentication)
        );
    }
}

#[cfg(feature = "memcached-tls")]
#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_checked() {
    let (server, plain) = (Server::start_tls(), Server::start_tcp(&[]));
    let trusting = |url: String| MemcachedOptions {
        tls_root: Some(server.certificate()),
        ..MemcachedOptions::new([url])
    };
    let kind = async |options| {
        let backend = MemcachedBackend::new(options).unwrap();
        limited(backend.ping()).await.map_err(|error| error.kind()).err()
    };
    assert_eq!(kind(trusting(server.url())).await, None);
    assert_eq!(kind(MemcachedOptions::new([server.url()])).await, Some(ErrorKind::Authentication));
    let not_tls = kind(trusting(format!("memcacheds://localhost:{}", plain.port))).await;
    assert!(not_tls.is_some());
    // Plain text to a TLS port: an error, and no wait without end.
    assert!(kind(MemcachedOptions::new([format!("memcached://127.0.0.1:{}", server.port)])).await.is_some());
    let no_pem = MemcachedOptions { tls_root: Some("/dev/null".into()), ..trusting(server.url()) };
    assert_eq!(MemcachedBackend::new(no_pem).unwrap_err().kind(), ErrorKind::Config);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_cas_is_refused() {
    let server = Server::start(&["-C"]);
    let error = server.backend().get(&key("k")).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("-C"), "{error}");
}

/// Foreign bytes at larder's keys cost what was there, and never a removal.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_bytes_at_its_keys_stop_nothing() {
    let server = Server::start(&[]);
    let backend = server.backend();
    set(&backend, "k", "v").await;
    for foreign in ["x", "\x01s\0", &"\x01l\0".repeat(60)] {
        server.command(&format!("ms larder:e:default/k {}\r\n{foreign}\r\n", foreign.len()));
        assert_eq!(read(&backend, "k").await, Err(Miss::Absent));
        assert_eq!(backend.remove(&key("k")).await.unwrap(), Removed::Absent);
        server.command(&format!("ms larder:e:default/k {}\r\n{foreign}\r\n", foreign.len()));
        set(&backend, "k", "w").await;
        assert_eq!(read(&backend, "k").await, Ok(Bytes::from_static(b"w")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_and_fences_outlive_the_process() {
    let server = Server::start(&[]);
    let backend = server.backend();
    let before = with_a_removal(&backend).await;
    backend.close().await.unwrap();
    let again = server.backend();
    assert_eq!(read(&again, "kept").await, Ok(Bytes::from_static(b"old")));
    let late = again.put(put(EntryKind::Load, "removed", "late", before)).await.unwrap();
    assert_eq!(late, PutOutcome::Fenced);
}

/// While a server is away, callers by the thousand dial it a few times a second.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_dialled_seldom() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("memcached://{}", listener.local_addr().unwrap());
    let dials = Arc::new(AtomicU64::new(0));
    let counted = dials.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            counted.fetch_add(1, SeqCst);
            drop(stream);
        }
    });
    let backend = Arc::new(MemcachedBackend::new(MemcachedOptions::new([url])).unwrap());
    let began = Instant::now();
    let mut failed = 0;
    while began.elapsed() < Duration::from_secs(2) {
        assert_eq!(backend.get(&key("k")).await.unwrap_err().kind(), ErrorKind::Unavailable);
        failed += 1;
    }
    let dials = dials.load(SeqCst);
    assert!(failed > 500 && (3..20).contains(&dials), "{failed} calls, {dials} dials");
}

/// Two nodes: one loads what the other changes and removes. Nobody reads a value from before a removal that
/// was acknowledged before the read began.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_nodes_race_removals_against_loads() {
    let servers = [Server::start(&[]), Server::start(&[])];
    let node = || {
        let options = MemcachedOptions::new(servers.iter().map(Server::url));
        Arc::new(MemcachedBackend::new(options).unwrap())
    };
    let (loader, remover) = (node(), node());
    // The source of truth, and what was acknowledged as removed.
    let source: Arc<Vec<AtomicU64>> = Arc::new((0..8).map(|_| AtomicU64::new(0)).collect());
    let removed: Arc<Vec<AtomicU64>> = Arc::new((0..8).map(|_| AtomicU64::new(0)).collect());
    let mut tasks = Vec::new();
    for task in 0..6_u64 {
        let backend = if task % 2 == 0 { loader.clone() } else { remover.clone() };
        let (source, removed) = (source.clone(), removed.clone());
        tasks.push(tokio::spawn(async move {
            let mut random = xorshift(task);
            let mut hits = 0;
            for _ in 0..3000 {
                let i = (random() % 8) as usize;
                let name = format!("k{i}");
                if task % 3 == 0 && random() & 3 == 0 {
                    let version = source[i].fetch_add(1, SeqCst) + 1;
                    match random() & 15 {
                        0 => backend.mark(&Namespace::default(), &Mark::Clear).await.unwrap(),
                        1..8 => {
                            let tag = Mark::Tag(format!("tag {i}").into());
                            backend.mark(&Namespace::default(), &tag).await.unwrap();
                        }
                        _ => drop(backend.remove(&key(&name)).await.unwrap()),
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
                for _ in 0..random() % 16 {
                    tokio::task::yield_now().await;
                }
                let mut load = put(EntryKind::Load, &name, version.to_string(), found.ticket);
                load.meta.tags = Tags::new([format!("tag {i}")]).unwrap();
                backend.put(load).await.unwrap();
            }
            hits
        }));
    }
    let mut hits = 0;
    for task in tasks {
        hits += task.await.unwrap();
    }
    assert!(hits > 500, "{hits}: the race is worth something only if values are found");
}

fn xorshift(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 11
    }
}
