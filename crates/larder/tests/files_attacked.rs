//! Somebody who may write in the folder swaps links for its files and folders, and not a byte outside changes.
//!
//! The failure that this prevents: a path is checked and then used; in between it became a link, and the cache
//! writes to, deletes, or serves a file of somebody else.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(all(feature = "files", target_os = "linux"))]

#[path = "files_support/mod.rs"]
mod support;

use larder::backend::{Backend, Durability, FilesBackend, FilesOptions};
use larder::entry::EntryKind;
use larder::stamp::Stamp;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::{key, put};

/// Longer in a long run: `LARDER_TEST_ATTACK_SECONDS`.
const SECONDS: u64 = 3;
const SECRET: &[u8] = b"not the cache's";

/// Everything below a folder: bytes, permissions, times, number of names.
fn state(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, u32, i64, i64)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        let bytes = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        if meta.is_dir() {
            found.extend(state(&path));
        }
        found.insert(path, (bytes, meta.mode(), meta.mtime(), meta.mtime_nsec()));
    }
    found
}

fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}

/// Swaps one thing in the folder for a link, for a moment; how often it did.
fn attack(root: &Path, outside: &Path, stop: &AtomicBool) -> u64 {
    let mut random = fastrand::Rng::with_seed(5);
    let mut swaps = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut victims: Vec<PathBuf> = Vec::new();
        let Ok(found) = fs::read_dir(root) else { continue };
        for path in found.filter_map(|entry| Some(entry.ok()?.path())) {
            if is_folder(&path) && random.bool() {
                victims.extend(
                    fs::read_dir(&path).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())),
                );
            }
            victims.push(path);
        }
        for _ in 0..16 {
            let Some(victim) = random.choice(&victims) else { break };
            // Not through a link of its own: that would be the attacker's doing.
            if !victim.parent().is_some_and(is_folder) {
                continue;
            }
            let away = root.join(format!("away-{swaps}"));
            let is_folder = is_folder(victim);
            if fs::rename(victim, &away).is_err() {
                continue;
            }
            let linked = match (is_folder, random.u8(..3)) {
                (true, 0) => symlink("..", victim),
                (true, _) => symlink(outside, victim),
                (false, 0) => fs::hard_link(outside.join("file"), victim),
                (false, 1) => symlink("/dev/zero", victim),
                (false, _) => symlink(outside.join("file"), victim),
            };
            swaps += u64::from(linked.is_ok());
            for _ in 0..random.u32(..2000) {
                std::hint::spin_loop();
            }
            if random.u8(..4) > 0 {
                drop(fs::remove_file(victim));
                drop(fs::rename(&away, victim));
            }
            // What was not put back is lost to the cache.
            if fs::remove_file(&away).is_err() {
                drop(fs::remove_dir_all(&away));
            }
        }
    }
    swaps
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_outside_of_the_folder_is_read_or_written() {
    let folder = tempfile::tempdir().unwrap();
    let (root, outside) = (folder.path().join("cache"), folder.path().join("outside"));
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), SECRET).unwrap();
    // What a link to the folder would make reachable under names that the cache uses.
    for i in 0..20 {
        let name = format!("k{i}");
        fs::write(outside.join(&name), SECRET).unwrap();
    }
    for number in 0..2000 {
        fs::write(outside.join(number.to_string()), SECRET).unwrap();
    }
    fs::create_dir(outside.join("empty")).unwrap();
    let options = FilesOptions {
        durability: Durability::Process,
        bytes_max: Some(1 << 18),
        touch_after: Duration::ZERO,
        ..FilesOptions::new(&root)
    };
    let backend = Arc::new(FilesBackend::open(options).await.unwrap());
    let before = state(&outside);
    let stop = Arc::new(AtomicBool::new(false));
    let attacker = {
        let (root, outside, stop) = (root.clone(), outside.clone(), stop.clone());
        std::thread::spawn(move || attack(&root, &outside, &stop))
    };
    let seconds =
        std::env::var("LARDER_TEST_ATTACK_SECONDS").map_or(SECONDS, |seconds| seconds.parse().unwrap());
    let began = Instant::now();
    let (mut stored, mut hits, mut n) = (0u64, 0u64, 0u64);
    // On a busy machine it takes longer until enough has come through.
    while began.elapsed().as_secs() < seconds
        || ((stored <= 5 || hits == 0) && began.elapsed().as_secs() < seconds + 120)
    {
        n += 1;
        let name = format!("k{}", fastrand::u32(..40));
        let body = vec![b'v'; fastrand::usize(..20_000)];
        match n % 8 {
            0 => drop(backend.remove(&key(&name)).await),
            1 if n % 64 == 1 => drop(backend.sweep(50).await),
            2 if n % 64 == 2 => drop(backend.quarantine(&key(&name), &body.into(), "test").await),
            3..6 => {
                if let Ok(read) = backend.get(&key(&name)).await
                    && let Ok(found) = read.found
                {
                    hits += 1;
                    assert!(found.iter().all(|byte| *byte == b'v'), "a hit that nobody stored");
                }
            }
            _ => {
                let Ok(ticket) = backend.ticket(&key(&name)).await else { continue };
                let write = put(EntryKind::Load, &name, body, ticket, Stamp::MIN);
                stored += u64::from(backend.put(write).await.is_ok());
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    let swaps = attacker.join().unwrap();
    drop(backend.close().await);
    let after = state(&outside);
    for (path, is) in &before {
        // A second name is the attacker's doing, and no change of bytes, permissions or times.
        assert_eq!(after.get(path), Some(is), "{}", path.display());
    }
    assert_eq!(after.len(), before.len(), "something was made outside");
    assert!(swaps > 50 && stored > 5 && hits > 0, "{swaps} swaps, {stored} stored, {hits} hits: too few");
}
