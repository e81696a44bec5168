//! Prevents: a migration that was killed leaves half of the entries, and nobody dares to run it again. Killed at
//! any point and run to the end, the new place has what the old one has, byte for byte.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that can't go on stops")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;
use support::{larder, run};

const ENTRIES: usize = 1200;
/// Kills of each migration before it may end.
const KILLS: u32 = 4;

fn ok(arguments: &[&str]) -> (String, String) {
    let output = run(arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {error}");
    (String::from_utf8(output.stdout).unwrap(), error)
}

/// In memory where that is to be had: syncs are many, and a killed process loses none.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn lines() -> String {
    let line = |i: usize| {
        let times = match i % 3 {
            0 => String::new(),
            _ => {
                let until = 4_000_000_000_000_u64 + i as u64;
                format!(
                    r#""fresh_until_ms":{until},"revalidate_until_ms":{until},"gone_at_ms":{},"#,
                    until + 7
                )
            }
        };
        let (namespace, body) = (if i.is_multiple_of(5) { "other" } else { "default" }, "v".repeat(i % 97));
        format!(
            r#"{{"namespace":"{namespace}","key":"k{i}","tags":["t{}","all"],"is_load":{},"stamp":"{i:024x}","created_ms":{i},{times}"value":"{body}{i}"}}"#,
            i % 7,
            i.is_multiple_of(4),
        ) + "\n"
    };
    (0..ENTRIES).map(line).collect()
}

/// All that a place has, in an order of its own.
fn contents(place: &str) -> Vec<String> {
    let mut lines: Vec<_> =
        ok(&["export", "--sealed", "--from", place]).0.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

struct Tour {
    folder: tempfile::TempDir,
    kills: u32,
    /// Kills that came while it was at work.
    interrupted: u32,
}

impl Tour {
    fn place(&self, kind: &str, name: &str) -> String {
        let path: PathBuf = self.folder.path().join(name);
        format!("{kind}:{}", path.to_str().unwrap())
    }

    fn migrate(&mut self, from: &str, kind: &str, name: &str) -> String {
        let whole = self.place(kind, &format!("{name}-whole"));
        let began = Instant::now();
        ok(&["migrate", from, &whole]);
        let takes = began.elapsed();
        let to = self.place(kind, name);
        for _ in 0..KILLS {
            let mut child =
                larder(&["migrate", from, &to]).stderr(std::process::Stdio::null()).spawn().unwrap();
            // Multiples of the golden ratio come evenly, and to no step of the work.
            self.kills += 1;
            std::thread::sleep(takes.mul_f64((f64::from(self.kills) * 0.618_034).fract()));
            let was_running = child.try_wait().unwrap().is_none();
            child.kill().unwrap();
            child.wait().unwrap();
            self.interrupted += u32::from(was_running);
        }
        let (_, told) = ok(&["migrate", from, &to]);
        assert!(told.contains(&format!("{ENTRIES} verified")), "{from} to {to}: {told}");
        let (_, told) = ok(&["migrate", from, &to]);
        let nothing_new = format!("0 entries stored, {ENTRIES} were there already, {ENTRIES} verified");
        assert!(told.contains(&nothing_new), "{from} to {to}: {told}");
        to
    }
}

#[test]
fn killed_anywhere_and_run_again_it_ends_the_same() {
    let folder = folder();
    let file = folder.path().join("lines");
    fs::write(&file, lines()).unwrap();
    let mut tour = Tour { folder, kills: 0, interrupted: 0 };
    let first = tour.place("sqlite", "first");
    ok(&["import", file.to_str().unwrap(), "--to", &first]);
    let expected = contents(&first);
    assert_eq!(expected.len(), ENTRIES);
    // Each kind of place from each other.
    let mut from = first;
    let tours =
        [("jsonl", "a"), ("files", "b"), ("sqlite", "c"), ("files", "d"), ("jsonl", "e"), ("sqlite", "f")];
    for (kind, name) in tours {
        from = tour.migrate(&from, kind, name);
        assert!(contents(&from) == expected, "{from} has other entries, stamps, times or tags");
    }
    assert!(tour.interrupted > 6, "only {} kills came in time", tour.interrupted);
}
