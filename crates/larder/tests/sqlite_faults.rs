//! Damaged, foreign, deleted, full, read-only: the backend says so and goes on, or says so and stays away.
//!
//! The failure that this prevents: a cache file that is anything but healthy takes the service down, or
//! is deleted although it was somebody's data.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(feature = "sqlite")]

#[path = "sqlite_support/mod.rs"]
mod support;

use larder::ErrorKind;
use larder::backend::{Backend, Miss, PutOutcome, SqliteBackend, SqliteOptions};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::{key, open, store};

const ENTRIES: usize = 300;

async fn filled(path: &Path) {
    let backend = open(path).await.unwrap();
    for i in 0..ENTRIES {
        store(&backend, &format!("k{i}"), body(i)).await.unwrap();
    }
    backend.close().await.unwrap();
}

fn body(i: usize) -> Vec<u8> {
    format!("body {i} ").repeat(1 + i * 7 % 300).into_bytes()
}

/// Everything works, on whatever became of the file.
async fn works(backend: &SqliteBackend) {
    for i in 0..ENTRIES {
        backend.get(&key(&format!("k{i}"))).await.unwrap();
    }
    assert_eq!(store(backend, "new", "v").await.unwrap(), PutOutcome::Stored);
    assert_eq!(backend.get(&key("new")).await.unwrap().found.unwrap(), "v");
    for i in 0..ENTRIES {
        backend.remove(&key(&format!("k{i}"))).await.unwrap();
        assert_eq!(backend.get(&key(&format!("k{i}"))).await.unwrap().found, Err(Miss::Absent));
    }
    backend.sweep(1000).await.unwrap();
}

fn set_aside(path: &Path, word: &str) -> Vec<PathBuf> {
    let prefix = format!("{}.{word}-", path.file_name().unwrap().to_str().unwrap());
    let is_ours = |file: &PathBuf| {
        let name = file.file_name().unwrap().to_str().unwrap();
        name.starts_with(&prefix) && !name.ends_with("-wal") && !name.ends_with("-shm")
    };
    fs::read_dir(path.parent().unwrap()).unwrap().map(|file| file.unwrap().path()).filter(is_ours).collect()
}

#[tokio::test]
async fn damaged_files_are_set_aside_and_rebuilt() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 5] = [
        ("random bytes", |bytes| bytes.fill_with(|| fastrand::u8(..))),
        ("text", |bytes| *bytes = b"# not a database, but longer than its header is\n".repeat(100)),
        ("a header alone", |bytes| bytes.truncate(100)),
        ("half of it", |bytes| bytes.truncate(bytes.len() / 2)),
        // The first page after the header and the map of the pages.
        ("a page of zeros", |bytes| bytes[8192..12288].fill(0)),
    ];
    for (name, damage) in damages {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache.db");
        filled(&path).await;
        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes);
        fs::write(&path, &bytes).unwrap();
        let backend = open(&path).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        works(&backend).await;
        let incidents = backend.incidents();
        assert_eq!(incidents.len(), 1, "{name}: {incidents:?}");
        let moved_to = incidents[0].moved_to.as_ref().unwrap();
        assert_eq!(set_aside(&path, "corrupt"), std::slice::from_ref(moved_to), "{name}");
        backend.close().await.unwrap();
        open(&path).await.unwrap().close().await.unwrap();
        assert_eq!(set_aside(&path, "corrupt").len(), 1, "{name}: the new file is sound");
    }
}

#[tokio::test]
async fn an_empty_file_is_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.db");
    filled(&path).await;
    fs::write(&path, b"").unwrap();
    // What a killed process leaves behind must not be replayed into another file.
    fs::write(folder.path().join("cache.db-wal"), b"garbage").unwrap();
    let backend = open(&path).await.unwrap();
    assert!(backend.incidents().is_empty());
    works(&backend).await;
}

#[tokio::test]
async fn flipped_bytes_never_panic_or_hang() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.db");
    filled(&path).await;
    let sound = fs::read(&path).unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..40 {
        for companion in ["", "-wal", "-shm"] {
            drop(fs::remove_file(format!("{}{companion}", path.display())));
        }
        let mut bytes = sound.clone();
        for _ in 0..random.usize(1..200) {
            let at = random.usize(..bytes.len());
            bytes[at] ^= 1 << random.u32(..8);
        }
        fs::write(&path, &bytes).unwrap();
        match open(&path).await {
            Ok(backend) => {
                works(&backend).await;
                backend.close().await.unwrap();
            }
            // The flip made it a later version's.
            Err(error) => assert_eq!(error.kind(), ErrorKind::Config, "{error}"),
        }
    }
    assert!(set_aside(&path, "corrupt").len() <= 3, "three are kept");
}

#[tokio::test]
async fn damage_while_it_is_open_is_survived() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.db");
    filled(&path).await;
    let backend = open(&path).await.unwrap();
    let length = fs::metadata(&path).unwrap().len() as usize;
    // The same file, not a new one: everybody has it open.
    let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::io::Write::write_all(&mut file, &vec![0x5a; length]).unwrap();
    works(&backend).await;
    assert_eq!(backend.incidents().len(), 1, "{:?}", backend.incidents());
    backend.close().await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_deleted_or_replaced_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.db");
    filled(&path).await;
    let backend = open(&path).await.unwrap();
    assert!(backend.get(&key("k1")).await.unwrap().found.is_ok());
    let old = backend.ticket(&key("k1")).await.unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(backend.get(&key("k1")).await.unwrap().found, Err(Miss::Absent));
    let ticket = backend.ticket(&key("k1")).await.unwrap();
    assert_ne!(old.inc, ticket.inc, "tickets of the old file are worth nothing");
    works(&backend).await;
    backend.close().await.unwrap();
    let again = open(&path).await.unwrap();
    assert!(again.get(&key("new")).await.unwrap().found.is_ok());
}

#[tokio::test]
async fn another_programs_database_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.db");
    let theirs = rusqlite::Connection::open(&path).unwrap();
    theirs.execute_batch("CREATE TABLE invoice (total INTEGER); INSERT INTO invoice VALUES (42)").unwrap();
    drop(theirs);
    let backend = open(&path).await.unwrap();
    works(&backend).await;
    let kept = set_aside(&path, "foreign");
    assert_eq!(backend.incidents()[0].moved_to.as_ref(), kept.first());
    let theirs = rusqlite::Connection::open(&kept[0]).unwrap();
    let total: i64 = theirs.query_row("SELECT total FROM invoice", [], |row| row.get(0)).unwrap();
    assert_eq!(total, 42);
}

#[tokio::test]
async fn a_newer_version_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.db");
    filled(&path).await;
    let db = rusqlite::Connection::open(&path).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    db.pragma_update(None, "journal_mode", "delete").unwrap();
    drop(db);
    let before = fs::read(&path).unwrap();
    let error = open(&path).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("99") && error.to_string().contains("Upgrade"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
    assert!(set_aside(&path, "corrupt").is_empty() && set_aside(&path, "foreign").is_empty());
}

#[tokio::test]
async fn paths_that_are_no_file_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let error = open(folder.path()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("folder"), "{error}");
    let file = folder.path().join("file");
    fs::write(&file, b"x").unwrap();
    let error = open(&file.join("cache.db")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    let readers = SqliteOptions { readers: 0, ..SqliteOptions::new(folder.path().join("x.db")) };
    let error = SqliteBackend::open(readers).await.unwrap_err();
    assert!(error.to_string().contains("readers is 0; 1 to 64"), "{error}");
}

#[tokio::test]
async fn a_locked_file_is_an_error_in_time_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.db");
    let options =
        SqliteOptions { busy_timeout: std::time::Duration::from_millis(50), ..SqliteOptions::new(&path) };
    let backend = SqliteBackend::open(options).await.unwrap();
    store(&backend, "k", "v").await.unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(store(&backend, "k", "w").await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(backend.remove(&key("k")).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(backend.get(&key("k")).await.unwrap().found.unwrap(), "v", "readers go on");
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(store(&backend, "k", "w").await.unwrap(), PutOutcome::Stored);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_may_make_the_file_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new").join("cache.db");
    let opening: Vec<_> = (0..8)
        .map(|i| {
            let path = path.clone();
            tokio::spawn(async move {
                let backend = open(&path).await.unwrap();
                store(&backend, &format!("k{i}"), "v").await.unwrap();
                backend
            })
        })
        .collect();
    let mut backends = Vec::new();
    for opened in opening {
        backends.push(Arc::new(opened.await.unwrap()));
    }
    for (i, backend) in backends.iter().enumerate() {
        assert!(backend.incidents().is_empty());
        assert!(backend.get(&key(&format!("k{}", 7 - i))).await.unwrap().found.is_ok());
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(&path.with_extension("db-wal")), 0o600);
    }
}

/// A file system of its own, as small as it takes; `None` where this process may not mount one.
#[cfg(target_os = "linux")]
struct Mounted(tempfile::TempDir);

#[cfg(target_os = "linux")]
impl Mounted {
    fn new(options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let is_mounted =
            run("mount", &["-t", "tmpfs", "-o", options, "tmpfs", folder.path().to_str().unwrap()]);
        is_mounted.then_some(Mounted(folder))
    }

    fn remount(&self, options: &str) {
        assert!(run("mount", &["-o", &format!("remount,{options}"), self.0.path().to_str().unwrap()]));
    }
}

#[cfg(target_os = "linux")]
impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &["-l", self.0.path().to_str().unwrap()]);
    }
}

#[cfg(target_os = "linux")]
fn run(program: &str, args: &[&str]) -> bool {
    std::process::Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_refuses_writes_serves_reads_and_comes_back() {
    let Some(disk) = Mounted::new("size=1m") else {
        return eprintln!("skipped: mounting needs root");
    };
    let backend = open(&disk.0.path().join("cache.db")).await.unwrap();
    let mut stored = Vec::new();
    let error = loop {
        let name = format!("k{}", stored.len());
        match store(&backend, &name, vec![7; 20_000]).await {
            Ok(outcome) => {
                assert_eq!(outcome, PutOutcome::Stored);
                stored.push(name);
            }
            Err(error) => break error,
        }
        assert!(stored.len() < 100, "a megabyte is never full");
    };
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    for name in &stored {
        assert_eq!(backend.get(&key(name)).await.unwrap().found.unwrap().len(), 20_000, "reads go on");
    }
    for name in &stored[..4] {
        // Done, or reported as failed; never acknowledged and forgotten.
        let removed = backend.remove(&key(name)).await;
        let found = backend.get(&key(name)).await.unwrap().found;
        match removed {
            Ok(_) => assert_eq!(found, Err(Miss::Absent)),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Full, "{error}");
                assert!(found.is_ok());
            }
        }
    }
    disk.remount("size=16m");
    for name in &stored {
        backend.remove(&key(name)).await.unwrap();
        assert_eq!(store(&backend, name, vec![8; 20_000]).await.unwrap(), PutOutcome::Stored);
    }
    assert!(backend.incidents().is_empty(), "{:?}", backend.incidents());
    backend.close().await.unwrap();
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_disk_with_no_space_at_all_is_full_at_open() {
    let Some(disk) = Mounted::new("size=16k") else {
        return eprintln!("skipped: mounting needs root");
    };
    let error = open(&disk.0.path().join("cache.db")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    disk.remount("size=16m");
    works(&open(&disk.0.path().join("cache.db")).await.unwrap()).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_read_only_folder_is_named_at_open() {
    let Some(disk) = Mounted::new("size=16m") else {
        return eprintln!("skipped: mounting needs root");
    };
    let path = disk.0.path().join("cache.db");
    filled(&path).await;
    disk.remount("ro");
    let error = open(&path).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
    let error = open(&disk.0.path().join("new").join("cache.db")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
    disk.remount("rw");
    let backend = open(&path).await.unwrap();
    assert!(backend.get(&key("k1")).await.unwrap().found.is_ok(), "nothing was lost");
}

/// What this thread alone may do is that of a stranger, until it ends. `None` where it may not change that.
#[cfg(target_os = "linux")]
fn as_a_stranger<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    const NOBODY: libc::c_int = 65_534;
    std::thread::spawn(move || {
        // SAFETY: the bare system call takes three numbers, and changes the ids of the calling thread only.
        (unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) } == 0).then(run)
    })
    .join()
    .unwrap()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_folder_or_file_of_somebody_else_is_named_at_open() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.db");
    filled(&path).await;
    let before = fs::read(&path).unwrap();
    for mode in [0o700, 0o755, 0o777] {
        use std::os::unix::fs::PermissionsExt;
        // Closed, open for reading, open for new files: the file stays the owner's.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
        let path = path.clone();
        let opened = as_a_stranger(move || SqliteBackend::open_blocking(SqliteOptions::new(path)));
        let Some(opened) = opened else { return eprintln!("skipped: needs root, to be somebody else") };
        let error = opened.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Authentication, "{mode:o}: {error}");
        assert!(error.to_string().contains("cache.db"), "{error}");
    }
    assert_eq!(fs::read(&path).unwrap(), before);
    assert!(set_aside(&path, "corrupt").is_empty());
}

/// An ext4 of its own, which turns read-only at its first error.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_disk_that_turns_read_only_refuses_writes_and_serves_reads() {
    let images = tempfile::tempdir().unwrap();
    let (image, folder) = (images.path().join("image"), tempfile::tempdir().unwrap());
    fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
    let (image, mounted) = (image.to_str().unwrap(), folder.path().to_str().unwrap());
    let is_mounted = run("mkfs.ext4", &["-q", "-F", image])
        && run("mount", &["-o", "loop,errors=remount-ro", image, mounted]);
    if !is_mounted {
        return eprintln!("skipped: needs root, mkfs.ext4 and a loop device");
    }
    let disk = Mounted(folder);
    let backend = open(&disk.0.path().join("cache.db")).await.unwrap();
    store(&backend, "k", "v").await.unwrap();
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let line = mounts.lines().find(|line| line.contains(disk.0.path().to_str().unwrap())).unwrap();
    let device = line.split(' ').next().unwrap().trim_start_matches("/dev/");
    fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "as the test wants it").unwrap();
    for _ in 0..3 {
        let error = store(&backend, "k", "w").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
        let error = backend.remove(&key("k")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
        assert_eq!(backend.get(&key("k")).await.unwrap().found.unwrap(), "v", "reads go on");
    }
    assert!(backend.incidents().is_empty(), "{:?}", backend.incidents());
    // Not marked clean, and it says so; it ends all the same.
    backend.close().await.unwrap_err();
}
