//! What each guard is good for: the promise is kept with it, and broken without.

use super::super::fault::Guard;
use super::*;
use std::fs;
use std::path::PathBuf;

fn open_without(path: &Path, guard: Option<Guard>) -> FilesBackend {
    let backend = open(path);
    if let Some(guard) = guard {
        backend.store.fence.folder.faults.switch_off(guard);
    }
    backend
}

/// The one entry's file.
fn entry(root: &Path) -> PathBuf {
    let shards = fs::read_dir(root).unwrap().map(|shard| shard.unwrap());
    let shard = shards.into_iter().find(|shard| shard.file_name().len() == 2).unwrap();
    fs::read_dir(shard.path()).unwrap().next().unwrap().unwrap().path()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fence_refuses_a_load_that_began_before_a_removal() {
    for guard in [None, Some(Guard::Fence)] {
        let folder = folder();
        let backend = open_without(&folder.path().join("cache"), guard);
        let ticket = backend.ticket(&key("a")).await.unwrap();
        backend.remove(&key("a")).await.unwrap();
        let outcome = backend.put(put("a", 1, EntryKind::Load, ticket, 1)).await.unwrap();
        let expected = if guard.is_none() { PutOutcome::Fenced } else { PutOutcome::Stored };
        assert_eq!(outcome, expected, "without {guard:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_checksum_keeps_a_changed_value_from_being_served() {
    for guard in [None, Some(Guard::Sum)] {
        let folder = folder();
        let root = folder.path().join("cache");
        let backend = open_without(&root, guard);
        set(&backend, "a", 1, 1).await.unwrap();
        let file = entry(&root);
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, bytes).unwrap();
        let is_served = backend.get(&key("a")).await.unwrap().found.is_ok();
        assert_eq!(is_served, guard.is_some(), "without {guard:?}");
    }
}

/// A process that has a folder open while it is restored from a copy, file by file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_identity_of_the_state_keeps_a_copy_from_bringing_removals_back() {
    for guard in [None, Some(Guard::Identity)] {
        let folder = folder();
        let root = folder.path().join("cache");
        let backend = open(&root);
        set(&backend, "a", 1, 1).await.unwrap();
        let (file, state) = (entry(&root), root.join("fences"));
        let (old_file, old_state) = (fs::read(&file).unwrap(), fs::read(&state).unwrap());
        let other = open_without(&root, guard);
        backend.remove(&key("a")).await.unwrap();
        backend.close().await.unwrap();
        let copy = folder.path().join("copy");
        fs::write(&copy, old_state).unwrap();
        fs::rename(&copy, &state).unwrap();
        fs::write(&file, old_file).unwrap();
        let is_back = other.get(&key("a")).await.unwrap().found.is_ok();
        assert_eq!(is_back, guard.is_some(), "without {guard:?}");
    }
}
