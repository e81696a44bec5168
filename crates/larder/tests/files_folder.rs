//! What happens to the folder from outside: a full disk, damage, restores, strange owners, orphans; and what is
//! evicted first.
//!
//! The failures that this prevents: a full disk that is reported as success and serves truncated values; an
//! eviction in the order of writing; a restored backup that brings back what was removed.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(all(feature = "files", target_os = "linux"))]

#[path = "files_support/mod.rs"]
mod support;

use larder::ErrorKind;
use larder::backend::{Backend, Durability, FilesBackend, FilesOptions, Mark, PutOutcome, Removed};
use larder::clock::ManualClock;
use larder::entry::EntryKind;
use larder::stamp::Stamp;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use support::{folder, key, namespace, open, put, store};

async fn is_there(backend: &FilesBackend, name: &str) -> bool {
    backend.get(&key(name)).await.unwrap().found.is_ok()
}

/// The files of entries below a folder.
fn files(root: &Path) -> Vec<PathBuf> {
    let shards = fs::read_dir(root).unwrap().map(|shard| shard.unwrap().path());
    shards
        .filter(|shard| shard.is_dir() && shard.file_name().unwrap().len() == 2)
        .flat_map(|shard| fs::read_dir(shard).unwrap().map(|file| file.unwrap().path()))
        .collect()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A file system of its own, unmounted at the end.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: PathBuf, size: &str) -> Option<Tmpfs> {
        fs::create_dir(&at).unwrap();
        let options = format!("size={size},mode=700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(&at).status();
        mounted.is_ok_and(|status| status.success()).then_some(Tmpfs(at))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[tokio::test]
async fn a_full_disk_is_an_error_and_no_value_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = Tmpfs::mount(folder.path().join("disk"), "1m") else {
        // Only where mounting is permitted; `backend/files/tests.rs` fails every step everywhere.
        return;
    };
    let backend = open(&disk.0.join("cache")).await.unwrap();
    let body = |i: usize| vec![i as u8; 30_000];
    let mut stored = Vec::new();
    let mut full = 0;
    for i in 0..60 {
        match store(&backend, &format!("k{i}"), body(i)).await {
            Ok(outcome) => {
                assert_eq!(outcome, PutOutcome::Stored);
                stored.push(i);
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Full, "{error}");
                full += 1;
            }
        }
    }
    assert!(full > 10 && stored.len() > 10, "{full} refused, {} stored", stored.len());
    for i in 0..60 {
        let found = backend.get(&key(&format!("k{i}"))).await.unwrap().found;
        assert_eq!(found.is_ok(), stored.contains(&i), "k{i}");
        assert!(found.is_err() || found.unwrap() == body(i), "a truncated hit");
    }
    // A removal needs no space, and gives some back.
    let name = format!("k{}", stored[0]);
    assert_eq!(backend.remove(&key(&name)).await.unwrap(), Removed::Existed);
    assert!(!is_there(&backend, &name).await);
    assert_eq!(store(&backend, &name, body(1)).await.unwrap(), PutOutcome::Stored);
    assert!(backend.notes().is_empty(), "{:?}", backend.notes());
}

#[tokio::test]
async fn the_least_recently_used_goes_first_and_not_the_least_recently_written() {
    let folder = folder();
    let clock = ManualClock::new();
    let options = FilesOptions {
        clock: clock.clone().into(),
        entries_max: Some(100),
        bytes_max: Some(100 * 8192),
        ..FilesOptions::new(folder.path().join("cache"))
    };
    let backend = FilesBackend::open(options.clone()).await.unwrap();
    for i in 0..80 {
        store(&backend, &format!("k{i}"), vec![1; 5000]).await.unwrap();
        clock.advance(Duration::from_secs(1));
    }
    // The oldest by their writing are used, half of them before a restart, so that files have to know it.
    clock.advance(Duration::from_secs(100));
    for i in 0..20 {
        assert!(is_there(&backend, &format!("k{i}")).await);
    }
    backend.close().await.unwrap();
    let backend = FilesBackend::open(options).await.unwrap();
    for i in 20..40 {
        assert!(is_there(&backend, &format!("k{i}")).await);
        clock.advance(Duration::from_millis(20));
    }
    for i in 80..96 {
        store(&backend, &format!("k{i}"), vec![1; 5000]).await.unwrap();
        clock.advance(Duration::from_secs(1));
    }
    // What is queued behind the eviction is answered after it.
    let mut used = backend.usage().await.unwrap();
    for _ in 0..2000 {
        if used.entries <= 76 {
            break;
        }
        backend.remove(&key("nothing")).await.unwrap();
        used = backend.usage().await.unwrap();
    }
    assert!((66..=76).contains(&used.entries), "{used:?} after an eviction to 70 of 100");
    for i in (0..40).chain(80..96) {
        assert!(is_there(&backend, &format!("k{i}")).await, "k{i} was used lately");
    }
    assert!(!is_there(&backend, "k40").await, "k40 was used by nobody and written before others");
}

#[tokio::test]
async fn no_limit_is_ever_passed() {
    let folder = folder();
    let options = FilesOptions {
        durability: Durability::Process,
        entries_max: Some(10),
        bytes_max: Some(64 << 10),
        ..FilesOptions::new(folder.path().join("cache"))
    };
    let backend = FilesBackend::open(options).await.unwrap();
    for i in 0..100 {
        let ticket = backend.ticket(&key("k")).await.unwrap();
        let puts =
            (0..8).map(|j| put(EntryKind::Load, &format!("k{i}-{j}"), vec![1; 9000], ticket, Stamp::MIN));
        for outcome in backend.put_many(puts.collect()).await {
            assert_eq!(outcome.unwrap(), PutOutcome::Stored);
        }
        let on_disk = files(&folder.path().join("cache"));
        // Evicted meanwhile: takes nothing.
        let blocks = |file: &PathBuf| fs::metadata(file).map_or(0, |file| file.len().div_ceil(4096) * 4096);
        let blocks: u64 = on_disk.iter().map(blocks).sum();
        assert!(on_disk.len() <= 10 && blocks <= 64 << 10, "{} files, {blocks} bytes", on_disk.len());
    }
    let refused = store(&backend, "large", vec![1; 65 << 10]).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::TooLarge);
}

#[tokio::test]
async fn a_lost_damaged_or_restored_state_begins_anew_and_nothing_removed_comes_back() {
    let folder = folder();
    for how in
        ["removed", "flipped", "cut", "copied back", "went back in place", "marks cut", "marks removed"]
    {
        let root = folder.path().join(how);
        let fences = root.join("fences");
        let backend = open(&root).await.unwrap();
        store(&backend, "kept", "v").await.unwrap();
        store(&backend, "removed", "v").await.unwrap();
        let backup: Vec<(PathBuf, Vec<u8>)> =
            files(&root).into_iter().map(|file| (file.clone(), fs::read(file).unwrap())).collect();
        let old_state = fs::read(&fences).unwrap();
        let ticket = backend.ticket(&key("removed")).await.unwrap();
        backend.remove(&key("removed")).await.unwrap();
        backend.mark(&namespace(), &Mark::Tag("red".into())).await.unwrap();
        // Half of the cases meet a process that has it open.
        let is_open = how.len() % 2 == 0 || how == "went back in place";
        let open_backend =
            if is_open { Some(backend) } else { backend.close().await.map(|()| None).unwrap() };
        let marks = fs::read_dir(&root).unwrap().map(|file| file.unwrap().path());
        let marks = marks.into_iter().find(|path| path.to_string_lossy().contains("marks-")).unwrap();
        match how {
            "removed" => fs::remove_file(&fences).unwrap(),
            "flipped" => {
                let mut bytes = old_state.clone();
                bytes[20] ^= 1;
                fs::write(&fences, bytes).unwrap();
            }
            "cut" => fs::write(&fences, &old_state[..100]).unwrap(),
            "copied back" => {
                fs::write(root.join("copy"), &old_state).unwrap();
                fs::rename(root.join("copy"), &fences).unwrap();
            }
            "went back in place" => fs::write(&fences, &old_state).unwrap(),
            "marks cut" => fs::write(&marks, b"").unwrap(),
            _ => fs::remove_file(&marks).unwrap(),
        }
        for (file, bytes) in backup {
            fs::write(file, bytes).unwrap();
        }
        let backend = match open_backend {
            Some(backend) if !how.starts_with("marks") => backend,
            _ => open(&root).await.unwrap(),
        };
        for name in ["removed", "kept"] {
            assert!(!is_there(&backend, name).await, "{how}: {name}");
        }
        let late = backend.put(put(EntryKind::Load, "removed", "late", ticket, Stamp::MIN)).await.unwrap();
        assert_eq!(late, PutOutcome::Fenced, "{how}");
        assert!(!backend.notes().is_empty(), "{how}: an operator is told");
        store(&backend, "kept", "again").await.unwrap();
        assert!(is_there(&backend, "kept").await, "{how}");
        // Files of the old incarnation go, and the counts are right.
        for _ in 0..2000 {
            if files(&root).len() == 1 && backend.usage().await.unwrap().entries == 1 {
                break;
            }
            backend.remove(&key("nothing")).await.unwrap();
        }
        assert_eq!((files(&root).len(), backend.usage().await.unwrap().entries), (1, 1), "{how}");
    }
}

#[tokio::test]
async fn a_damaged_entry_is_a_miss_at_every_byte_and_every_length() {
    let folder = folder();
    let root = folder.path().join("cache");
    let backend = open(&root).await.unwrap();
    store(&backend, "k", "a body").await.unwrap();
    let file = files(&root).remove(0);
    let sound = fs::read(&file).unwrap();
    for at in 0..sound.len() {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x10;
        fs::write(&file, &bytes).unwrap();
        assert!(!is_there(&backend, "k").await, "byte {at}");
        fs::write(&file, &sound[..at]).unwrap();
        assert!(!is_there(&backend, "k").await, "cut at {at}");
    }
    fs::write(&file, &sound).unwrap();
    assert!(is_there(&backend, "k").await);
    // A sound file of another key, or of the same key in another place, is none of this key's.
    store(&backend, "other", "another body").await.unwrap();
    let other = files(&root).into_iter().find(|path| *path != file).unwrap();
    fs::copy(&other, &file).unwrap();
    assert!(!is_there(&backend, "k").await);
}

#[tokio::test]
async fn the_folder_is_private_and_orphans_are_cleaned() {
    let folder = folder();
    let root = folder.path().join("made").join("cache");
    let backend = open(&root).await.unwrap();
    store(&backend, "k", "v").await.unwrap();
    backend.quarantine(&key("k"), &"v".into(), "auth").await.unwrap();
    assert!(!is_there(&backend, "k").await);
    assert_eq!(backend.usage().await.unwrap().entries, 0);
    for i in 0..20 {
        let name = format!("k{i}");
        store(&backend, &name, "v").await.unwrap();
        backend.quarantine(&key(&name), &"v".into(), "auth").await.unwrap();
    }
    assert_eq!(fs::read_dir(root.join("quarantine")).unwrap().count(), 16);
    store(&backend, "k", "v").await.unwrap();
    let file = files(&root).remove(0);
    for private in [&root, &root.join("tmp"), &root.join("quarantine"), file.parent().unwrap()] {
        assert_eq!(mode(private), 0o700, "{}", private.display());
    }
    assert_eq!((mode(&file), mode(&root.join("fences"))), (0o600, 0o600));
    // One of a process that is gone, one of this living one.
    let orphan = root.join("tmp").join("0123456789abcdef");
    fs::create_dir(&orphan).unwrap();
    fs::write(orphan.join("7"), "half").unwrap();
    let second = open(&root).await.unwrap();
    assert!(!orphan.exists());
    store(&backend, "l", "v").await.unwrap();
    assert!(is_there(&second, "l").await);
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    open(&root).await.unwrap();
    assert_eq!(mode(&root), 0o700);
}

#[tokio::test]
async fn a_folder_with_other_files_is_refused_and_left_alone() {
    let folder = folder();
    fs::write(folder.path().join("thesis.txt"), "mine").unwrap();
    let refused = open(folder.path()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config);
    assert!(refused.to_string().contains("thesis.txt"), "{refused}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let file = folder.path().join("thesis.txt");
    assert_eq!(open(&file).await.unwrap_err().kind(), ErrorKind::Config);
}
