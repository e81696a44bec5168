//! Faults at every step of the disk, truncation at every offset, a flipped byte in every line.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "controls.rs"]
mod controls;

use super::disk::{Disk, Guard, Torn};
use super::{JsonlBackend, JsonlOptions};
use crate::backend::{Backend, Durability, Mark, Miss, Put, PutOutcome, Removed};
use crate::clock::NEVER_MS;
use crate::entry::{EntryKind, Meta, Tags};
use crate::key::{EntryKey, Namespace, Pattern};
use crate::stamp::Stamp;
use crate::{ErrorKind, Result};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// What the disk is told to refuse.
#[derive(Clone, Default)]
pub(super) struct Faults(Arc<Mutex<Plan>>, Arc<Mutex<Option<Guard>>>);

#[derive(Default)]
struct Plan {
    steps: u64,
    /// The step that fails, counted from now on; and with what.
    at: Option<(u64, Fault)>,
    is_lasting: bool,
    hits: u64,
    /// Whether a hit was a sync.
    hit_sync: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Errno(i32),
    /// Half of what is written arrives.
    Short,
}

impl Faults {
    fn plan(&self, at: u64, fault: Fault, is_lasting: bool) {
        *self.0.lock().unwrap() =
            Plan { steps: 0, at: Some((at, fault)), is_lasting, hits: 0, hit_sync: false };
    }

    /// How often it hit.
    fn heal(&self) -> u64 {
        std::mem::take(&mut *self.0.lock().unwrap()).hits
    }

    fn next(&self) -> Option<Fault> {
        let mut plan = self.0.lock().unwrap();
        plan.steps += 1;
        let (at, fault) = plan.at?;
        let is_hit = plan.steps == at || plan.is_lasting && plan.steps > at;
        plan.hits += u64::from(is_hit);
        is_hit.then_some(fault)
    }

    fn switch_off(&self, guard: Option<Guard>) {
        *self.1.lock().unwrap() = guard;
    }

    pub(super) fn holds(&self, guard: Guard) -> bool {
        *self.1.lock().unwrap() != Some(guard)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.step().inspect_err(|_| self.0.lock().unwrap().hit_sync = true)
    }

    pub(super) fn step(&self) -> io::Result<()> {
        match self.next() {
            None => Ok(()),
            Some(Fault::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Short) => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
        }
    }

    pub(super) fn write(&self, file: &File, bytes: &[u8], offset: u64) -> Result<(), Torn> {
        let torn = |written, errno| Torn { written, error: io::Error::from_raw_os_error(errno) };
        match self.next() {
            None => Ok(()),
            Some(Fault::Errno(errno)) => Err(torn(0, errno)),
            Some(Fault::Short) => {
                let half = bytes.len() / 2;
                file.write_all_at(&bytes[..half], offset).unwrap();
                Err(torn(half, libc::ENOSPC))
            }
        }
    }
}

fn namespace() -> Namespace {
    Namespace::new("n").unwrap()
}

fn key(name: &str) -> EntryKey {
    EntryKey::new(&namespace(), name).unwrap()
}

fn options(path: &Path) -> JsonlOptions {
    JsonlOptions { shards: 1, readers: 1, ..JsonlOptions::new(path) }
}

fn open(path: &Path) -> JsonlBackend {
    JsonlBackend::open_blocking(options(path)).unwrap()
}

fn put(kind: EntryKind, name: &str, body: &str, ticket: super::Ticket, n: u64) -> Put {
    let meta = Meta {
        kind,
        stamp: Stamp::new(n, 0, 1),
        created_ms: 0,
        fresh_until_ms: NEVER_MS,
        revalidate_until_ms: NEVER_MS,
        gone_at_ms: NEVER_MS,
        load_ms: 0,
        is_negative: false,
        tags: Tags::new([format!("tag of {name}")]).unwrap(),
    };
    Put { key: key(name), meta, sealed: Bytes::copy_from_slice(body.as_bytes()), ticket }
}

async fn set(backend: &JsonlBackend, name: &str, body: &str, n: u64) -> Result<PutOutcome> {
    let ticket = backend.ticket(&key(name)).await?;
    backend.put(put(EntryKind::Set, name, body, ticket, n)).await
}

async fn read(backend: &JsonlBackend, name: &str) -> Result<Option<String>> {
    let found = backend.get(&key(name)).await?.found;
    Ok(found.ok().map(|sealed| String::from_utf8(sealed.to_vec()).unwrap()))
}

/// What a key may hold: everything that an operation of unknown outcome could have left, and what was
/// acknowledged.
type Allowed = BTreeMap<String, Vec<Option<String>>>;

/// Get, set, delete, batch, tag, pattern: each may fail; what it says must be true.
async fn tour(backend: &JsonlBackend, n: &mut u64, allowed: &mut Allowed) {
    let is_unknown = |kind| matches!(kind, ErrorKind::Unavailable | ErrorKind::Timeout);
    for round in 0..2 {
        for name in ["a", "b", "c"] {
            *n += 1;
            let body = format!("{name} {n} ").repeat(20);
            let outcome = match backend.ticket(&key(name)).await {
                Ok(ticket) => backend.put(put(EntryKind::Set, name, &body, ticket, *n)).await,
                Err(_) => continue,
            };
            let states = allowed.get_mut(name).unwrap();
            match outcome {
                Ok(PutOutcome::Stored) => *states = vec![Some(body)],
                Ok(PutOutcome::Fenced) => *states = vec![None],
                Ok(PutOutcome::Older(_)) => {}
                Err(error) if is_unknown(error.kind()) => states.extend([Some(body), None]),
                Err(_) => {}
            }
            if let Ok(found) = read(backend, name).await {
                assert!(allowed[name].contains(&found), "{name}: {found:?} of {:?}", allowed[name]);
            }
        }
        match backend.remove(&key("b")).await {
            Ok(_) => allowed.insert("b".into(), vec![None]),
            Err(error) if is_unknown(error.kind()) => {
                allowed.get_mut("b").unwrap().push(None);
                None
            }
            Err(_) => None,
        };
        if round == 0 {
            let removed = backend.remove_many(&[key("a"), key("b")]).await;
            for (name, result) in ["a", "b"].into_iter().zip(removed) {
                match result {
                    Ok(_) => drop(allowed.insert(name.into(), vec![None])),
                    Err(error) if is_unknown(error.kind()) => allowed.get_mut(name).unwrap().push(None),
                    Err(_) => {}
                }
            }
            let is_done = backend.mark(&namespace(), &Mark::Tag("tag of c".into())).await.is_ok();
            let c = allowed.get_mut("c").unwrap();
            if is_done {
                *c = vec![None];
            } else {
                c.push(None);
            }
            let is_done = backend.remove_matching(&namespace(), &Pattern::new("a*").unwrap()).await.is_ok();
            let a = allowed.get_mut("a").unwrap();
            if is_done { *a = vec![None] } else { a.push(None) }
        }
        for read in backend.get_many(&[key("a"), key("b"), key("c")]).await.into_iter().zip(["a", "b", "c"]) {
            if let (Ok(read), name) = read {
                let found = read.found.ok().map(|sealed| String::from_utf8(sealed.to_vec()).unwrap());
                assert!(allowed[name].contains(&found), "{name}: {found:?} of {:?}", allowed[name]);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_at_any_step_makes_a_lie() {
    let faults =
        [Fault::Errno(libc::ENOSPC), Fault::Errno(libc::EIO), Fault::Errno(libc::EACCES), Fault::Short];
    // What is unsynced differs only in who syncs when: one kind of error shows that.
    let runs = faults.map(|fault| (Durability::Power, fault)).into_iter();
    for (durability, fault) in runs.chain([(Durability::Process, Fault::Errno(libc::EIO))]) {
        {
            for is_lasting in [false, true] {
                let mut at = 1;
                loop {
                    let folder = tempfile::tempdir().unwrap();
                    let disk = Disk::default();
                    let plan = disk.faults.clone();
                    let opened = || JsonlOptions { durability, ..options(folder.path()) };
                    let backend = JsonlBackend::open_on(opened(), disk).unwrap();
                    let (mut n, mut allowed) = (0, Allowed::new());
                    for name in ["a", "b", "c"] {
                        allowed.insert(name.into(), vec![None]);
                    }
                    plan.plan(at, fault, is_lasting);
                    tour(&backend, &mut n, &mut allowed).await;
                    let hits = plan.heal();
                    // With the disk well again everything works, and nothing that was removed is back.
                    tour(&backend, &mut n, &mut allowed).await;
                    assert_eq!(set(&backend, "after", "well", n + 1).await.unwrap(), PutOutcome::Stored);
                    drop(backend.close().await);
                    let again = JsonlBackend::open_blocking(opened()).unwrap();
                    for (name, states) in &allowed {
                        let found = read(&again, name).await.unwrap();
                        assert!(
                            states.contains(&found),
                            "{fault:?} at {at}: {name}: {found:?} of {states:?}"
                        );
                    }
                    assert_eq!(read(&again, "after").await.unwrap().unwrap(), "well", "{fault:?} at {at}");
                    again.close().await.unwrap();
                    if hits == 0 {
                        assert!(at > 40, "{at} steps are too few to mean anything");
                        break;
                    }
                    at += 1;
                }
            }
        }
    }
}

/// A shard with a history, and what each of its lines left behind: the state after the first `n` lines.
async fn history(path: &Path) -> (PathBuf, Vec<u8>, Vec<BTreeMap<String, String>>) {
    let backend = open(path);
    let file = super::shard_path(path, 0, 1);
    let mut states = vec![BTreeMap::new()];
    let mut now = BTreeMap::new();
    for n in 0..24_u64 {
        let name = format!("k{}", n % 5);
        match n % 8 {
            3 => {
                assert_ne!(backend.remove(&key(&name)).await.ok(), None);
                now.remove(&name);
            }
            6 => {
                backend.mark(&namespace(), &Mark::Tag(format!("tag of {name}").into())).await.unwrap();
                now.remove(&name);
            }
            kind => {
                let body = format!("{name} is {n} ").repeat(1 + n as usize % 4);
                let kind = if kind % 2 == 0 { EntryKind::Load } else { EntryKind::Set };
                let ticket = backend.ticket(&key(&name)).await.unwrap();
                let put = put(kind, &name, &body, ticket, n + 1);
                assert_eq!(backend.put(put).await.unwrap(), PutOutcome::Stored);
                now.insert(name, body);
            }
        }
        states.push(now.clone());
    }
    backend.close().await.unwrap();
    let bytes = fs::read(&file).unwrap();
    assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), states.len(), "a header and a line each");
    (file, bytes, states)
}

async fn contents(backend: &JsonlBackend) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for n in 0..5 {
        let name = format!("k{n}");
        if let Some(body) = read(backend, &name).await.unwrap() {
            found.insert(name, body);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_cut_anywhere_holds_what_was_acknowledged_before_the_cut() {
    let folder = tempfile::tempdir().unwrap();
    let (file, bytes, states) = history(folder.path()).await;
    let first = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for cut in first..=bytes.len() {
        fs::write(&file, &bytes[..cut]).unwrap();
        let whole = bytes[..cut].iter().filter(|byte| **byte == b'\n').count();
        let backend = open(folder.path());
        assert_eq!(contents(&backend).await, states[whole - 1], "cut at {cut}");
        assert!(backend.notes().is_empty(), "cut at {cut}: {:?}", backend.notes());
        let end = bytes[..cut].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
        assert_eq!(fs::metadata(&file).unwrap().len(), end as u64, "the tail is cut");
        assert_eq!(set(&backend, "k0", "after", 100).await.unwrap(), PutOutcome::Stored);
        drop(backend.close().await);
        let again = open(folder.path());
        assert_eq!(read(&again, "k0").await.unwrap().unwrap(), "after");
        drop(again.close().await);
    }
    for cut in 0..first {
        fs::write(&file, &bytes[..cut]).unwrap();
        let backend = open(folder.path());
        assert_eq!(contents(&backend).await, BTreeMap::new(), "cut at {cut}, in the first line");
        assert_eq!(set(&backend, "k0", "after", 100).await.unwrap(), PutOutcome::Stored);
        drop(backend.close().await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_brings_nothing_back_and_is_quarantined_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let (file, bytes, states) = history(folder.path()).await;
    let last = states.last().unwrap();
    let quarantine = folder.path().join("quarantine.jsonl");
    let mut kept = 0;
    let starts: Vec<usize> = std::iter::once(0)
        .chain(bytes.iter().enumerate().filter(|b| *b.1 == b'\n').map(|b| b.0 + 1))
        .collect();
    for (number, line) in starts.windows(2).enumerate() {
        // Every byte of the prefix, each seventh of the rest, and the newline.
        for at in (line[0]..line[1]).filter(|at| at - line[0] < 44 || at % 7 == 0 || *at == line[1] - 1) {
            drop(fs::remove_file(&quarantine));
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 7);
            fs::write(&file, &damaged).unwrap();
            let backend = open(folder.path());
            let found = contents(&backend).await;
            for (name, body) in &found {
                // A load whose line is damaged may leave the older value, which nothing removed.
                let was_there = last.get(name) == Some(body);
                let is_of_load = number > 0 && matches!((number - 1) % 8, 0 | 2 | 4);
                let is_older_load =
                    is_of_load && last.contains_key(name) && states[number - 1].get(name) == Some(body);
                assert!(was_there || is_older_load, "byte {at} of line {}: {name} = {body}", number + 1);
            }
            kept += usize::from(found.len() + 1 >= last.len());
            if number > 0 {
                let text = fs::read_to_string(&quarantine).unwrap_or_default();
                let is_last = number + 2 == starts.len();
                assert!(
                    text.contains(&format!("\"line\":{},", number + 1)) || is_last && found.is_empty(),
                    "byte {at} of line {}: {text}",
                    number + 1
                );
            }
            assert_eq!(set(&backend, "k0", "after", 100).await.unwrap(), PutOutcome::Stored);
            drop(backend.close().await);
            let again = open(folder.path());
            assert_eq!(read(&again, "k0").await.unwrap().unwrap(), "after");
            assert!(again.notes().is_empty(), "mended once: {:?}", again.notes());
            drop(again.close().await);
            for entry in fs::read_dir(folder.path()).unwrap() {
                let path = entry.unwrap().path();
                if path.display().to_string().contains(".aside-") {
                    fs::remove_file(path).unwrap();
                }
            }
        }
    }
    assert!(kept > 300, "one damaged line leaves the others: {kept}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_takes_over_what_was_rewritten_and_its_old_tickets_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (open(folder.path()), open(folder.path()));
    let early = two.ticket(&key("k")).await.unwrap();
    set(&one, "kept", "kept", 1).await.unwrap();
    assert_eq!(one.remove(&key("k")).await.unwrap(), Removed::Absent);
    let body = "x".repeat(10_000);
    for n in 0..200 {
        set(&one, "k", &body, 2 + n).await.unwrap();
    }
    one.remove(&key("k")).await.unwrap();
    let bytes = fs::metadata(super::shard_path(folder.path(), 0, 1)).unwrap().len();
    assert!(bytes < 1 << 20, "2 MB were written, and {bytes} bytes are left");
    assert_eq!(read(&two, "kept").await.unwrap().unwrap(), "kept");
    assert_eq!(two.get(&key("k")).await.unwrap().found, Err(Miss::Absent));
    let late = two.put(put(EntryKind::Load, "k", "old", early, 1)).await.unwrap();
    assert_eq!(late, PutOutcome::Fenced);
    assert_eq!(set(&two, "k", "new", 1000).await.unwrap(), PutOutcome::Stored);
    assert_eq!(read(&one, "k").await.unwrap().unwrap(), "new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_is_held_is_an_error_and_never_an_empty_shard() {
    let folder = tempfile::tempdir().unwrap();
    let options =
        JsonlOptions { busy_timeout: std::time::Duration::from_millis(50), ..options(folder.path()) };
    let backend = JsonlBackend::open_blocking(options).unwrap();
    set(&backend, "k", "v", 1).await.unwrap();
    let lock = File::open(super::shard_path(folder.path(), 0, 1).with_extension("lock")).unwrap();
    lock.lock().unwrap();
    assert_eq!(set(&backend, "k", "w", 2).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(read(&backend, "k").await.unwrap().unwrap(), "v", "reads need no lock");
    drop(lock);
    assert_eq!(set(&backend, "k", "w", 2).await.unwrap(), PutOutcome::Stored);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold_and_what_is_read_stays() {
    let folder = tempfile::tempdir().unwrap();
    let options = JsonlOptions { entries_max: Some(100), ..options(folder.path()) };
    let backend = JsonlBackend::open_blocking(options).unwrap();
    for n in 0..1000 {
        set(&backend, &format!("k{n}"), "v", n + 1).await.unwrap();
        if n > 0 {
            backend.get(&key("k0")).await.unwrap();
        }
    }
    assert!(backend.usage().await.unwrap().entries <= 100);
    assert_eq!(read(&backend, "k0").await.unwrap().as_deref(), Some("v"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsynced_lines_of_another_boot_are_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let opened = || JsonlOptions { durability: Durability::Process, ..options(folder.path()) };
    let backend = JsonlBackend::open_blocking(opened()).unwrap();
    set(&backend, "k", "v", 1).await.unwrap();
    let file = super::shard_path(folder.path(), 0, 1);
    let killed = fs::read(&file).unwrap();
    backend.close().await.unwrap();
    let closed = JsonlBackend::open_blocking(opened()).unwrap();
    assert_eq!(read(&closed, "k").await.unwrap().as_deref(), Some("v"), "a clean end syncs");
    closed.close().await.unwrap();
    // The same lines, as another boot of the machine left them.
    let boot = super::super::durability::boot_id().unwrap();
    let other = "x".repeat(boot.len());
    let mut lines = Vec::new();
    for line in String::from_utf8(killed).unwrap().split_inclusive('\n') {
        match super::line::Line::read(line.as_bytes()).unwrap() {
            mut line if line.boot.is_some() => {
                line.boot = Some(other.clone().into());
                line.write(&mut lines);
            }
            _ => lines.extend_from_slice(line.as_bytes()),
        }
    }
    fs::write(&file, lines).unwrap();
    let backend = JsonlBackend::open_blocking(opened()).unwrap();
    assert_eq!(read(&backend, "k").await.unwrap(), None);
    assert!(backend.notes()[0].contains("not synced"), "{:?}", backend.notes());
}

/// Lines that a killed process left unsynced must not cost, after a power loss, what was acknowledged as safe
/// from one since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_durable_write_after_an_unsynced_one_makes_the_file_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let hasty = JsonlOptions { durability: Durability::Process, ..options(folder.path()) };
    let killed = JsonlBackend::open_blocking(hasty).unwrap();
    set(&killed, "a", "v", 1).await.unwrap();
    let file = super::shard_path(folder.path(), 0, 1);
    let is_unsynced = || {
        let (opened, stat) = Disk::default().open(&file).unwrap();
        match super::log::Log::read(&Disk::default(), opened, stat, 0).unwrap() {
            super::log::Reading::Sound(log) => log.unsynced.is_some(),
            _ => panic!("damaged"),
        }
    };
    assert!(is_unsynced());
    // What a closing would do is not done by who was killed.
    std::mem::forget(killed);
    let durable = open(folder.path());
    set(&durable, "b", "w", 2).await.unwrap();
    assert!(!is_unsynced(), "a power loss would take what was acknowledged as safe from it");
    assert_eq!(read(&durable, "a").await.unwrap().as_deref(), Some("v"));
}

fn rewrite(backend: &JsonlBackend) {
    let shard = &backend.shards[0];
    let _lock = shard.lock("put").unwrap();
    let mut state = shard.state();
    shard.rewrite(&mut state, "put").unwrap();
}

/// A file that was rewritten with two entries, of which the first was removed then; and where the entries end.
async fn removed_after_rewriting(folder: &Path) -> (PathBuf, Vec<u8>, usize) {
    let backend = open(folder);
    set(&backend, "a", &"removed ".repeat(20), 1).await.unwrap();
    set(&backend, "b", &"kept ".repeat(20), 2).await.unwrap();
    rewrite(&backend);
    let file = super::shard_path(folder, 0, 1);
    let kept_end = fs::metadata(&file).unwrap().len() as usize;
    backend.remove(&key("a")).await.unwrap();
    backend.close().await.unwrap();
    let bytes = fs::read(&file).unwrap();
    (file, bytes, kept_end)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_is_damaged_along_with_a_kept_entry_stays_done() {
    let folder = tempfile::tempdir().unwrap();
    let (file, sound, kept_end) = removed_after_rewriting(folder.path()).await;
    for before in 1..30 {
        let mut bytes = sound.clone();
        bytes[kept_end - before..kept_end + 60].fill(0);
        fs::write(&file, bytes).unwrap();
        let backend = open(folder.path());
        assert_eq!(read(&backend, "a").await.unwrap(), None, "{before} bytes before the removal");
        backend.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_was_cut_within_what_was_kept_brings_nothing_back() {
    let folder = tempfile::tempdir().unwrap();
    let (file, sound, kept_end) = removed_after_rewriting(folder.path()).await;
    for cut in [kept_end - 1, kept_end - 50] {
        fs::write(&file, &sound[..cut]).unwrap();
        let backend = open(folder.path());
        assert_eq!(read(&backend, "a").await.unwrap(), None, "cut at {cut} of {kept_end}");
        assert!(backend.notes().iter().any(|note| note.contains("cut short")), "{:?}", backend.notes());
        backend.close().await.unwrap();
    }
}

/// The rename is there and its sync failed: the name may not be on the disk, so nothing is acknowledged behind it
/// before it was written anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewriting_whose_name_could_not_be_synced_is_done_again() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let faults = Faults::default();
    let disk = Disk { faults: faults.clone() };
    let backend = JsonlBackend::open_on(options(folder.path()), disk).unwrap();
    set(&backend, "a", "v", 1).await.unwrap();
    let file = super::shard_path(folder.path(), 0, 1);
    let inode = || fs::metadata(&file).unwrap().ino();
    let mut met = 0;
    for step in 1..20 {
        let before = inode();
        let failed = {
            let shard = &backend.shards[0];
            let _lock = shard.lock("put").unwrap();
            let mut state = shard.state();
            shard.follow_locked(&mut state, "put").unwrap();
            faults.plan(step, Fault::Errno(libc::EIO), false);
            shard.rewrite(&mut state, "put").is_err()
        };
        faults.heal();
        let renamed = inode();
        set(&backend, "a", "v", 1 + step).await.unwrap();
        if failed && renamed != before {
            assert_ne!(inode(), renamed, "step {step}");
            met += 1;
        }
    }
    assert_eq!(met, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_timeout_may_be_never() {
    let folder = tempfile::tempdir().unwrap();
    let options = JsonlOptions { busy_timeout: std::time::Duration::MAX, ..options(folder.path()) };
    let backend = JsonlBackend::open_blocking(options).unwrap();
    assert_eq!(set(&backend, "a", "v", 1).await.unwrap(), PutOutcome::Stored);
}
