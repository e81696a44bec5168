//! What each guard is good for: the promise is kept with it, and broken without.

use super::*;
use std::time::Duration;

fn open_without(path: &Path, guard: Option<Guard>) -> (JsonlBackend, Faults) {
    let disk = Disk::default();
    let faults = disk.faults.clone();
    faults.switch_off(guard);
    let options = JsonlOptions { busy_timeout: Duration::from_millis(50), ..options(path) };
    (JsonlBackend::open_on(options, disk).unwrap(), faults)
}

/// Set "k1" and "k2", remove "k1", set "k3"; then `damage` the lines, and look whether "k1" is there again.
async fn is_removed_back(guard: Option<Guard>, damage: fn(Vec<String>) -> String) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let backend = open(folder.path());
    set(&backend, "k1", "removed", 1).await.unwrap();
    set(&backend, "k2", "kept", 2).await.unwrap();
    backend.remove(&key("k1")).await.unwrap();
    set(&backend, "k3", "kept", 3).await.unwrap();
    backend.close().await.unwrap();
    let file = super::super::shard_path(folder.path(), 0, 1);
    let lines = fs::read_to_string(&file).unwrap().split_inclusive('\n').map(str::to_owned).collect();
    fs::write(&file, damage(lines)).unwrap();
    let (backend, _) = open_without(folder.path(), guard);
    let is_back = read(&backend, "k1").await.unwrap().is_some();
    drop(backend.close().await);
    is_back
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sum_keeps_a_changed_removal_from_removing_another_key() {
    let damage = |mut lines: Vec<String>| {
        let changed = lines[3].replace("\"k1\"", "\"k9\"");
        assert_ne!(changed, lines[3], "the fourth line is the removal");
        lines[3] = changed;
        lines.concat()
    };
    assert!(!is_removed_back(None, damage).await);
    assert!(is_removed_back(Some(Guard::Sum), damage).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_chain_notices_a_removal_that_is_missing() {
    let damage = |mut lines: Vec<String>| {
        lines.remove(3);
        lines.concat()
    };
    assert!(!is_removed_back(None, damage).await);
    assert!(is_removed_back(Some(Guard::Chain), damage).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_not_be_synced_is_not_acknowledged() {
    for guard in [None, Some(Guard::Sync)] {
        let folder = tempfile::tempdir().unwrap();
        let (backend, faults) = open_without(folder.path(), guard);
        let mut syncs = 0;
        for at in 1..12 {
            // Whatever the last fault left is mended first, so that each set takes the same steps.
            set(&backend, "k", "well", 2 * at).await.unwrap();
            faults.plan(at, Fault::Errno(libc::EIO), false);
            let outcome = set(&backend, "k", "v", 2 * at + 1).await;
            let hit_sync = faults.0.lock().unwrap().hit_sync;
            faults.heal();
            if hit_sync {
                syncs += 1;
                assert_eq!(outcome.is_err(), guard.is_none(), "step {at} without {guard:?}: {outcome:?}");
            }
        }
        assert!(syncs > 0, "no fault met a sync");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lock_keeps_other_writers_out() {
    for guard in [None, Some(Guard::Lock)] {
        let folder = tempfile::tempdir().unwrap();
        let (backend, _) = open_without(folder.path(), guard);
        set(&backend, "k", "v", 1).await.unwrap();
        let lock = File::open(super::super::shard_path(folder.path(), 0, 1).with_extension("lock")).unwrap();
        lock.lock().unwrap();
        assert_eq!(set(&backend, "k", "w", 2).await.is_err(), guard.is_none(), "without {guard:?}");
    }
}
