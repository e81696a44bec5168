//! Entries move between places, out into lines and back in, with tags and expiries, and twice is once.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that can't go on stops")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Output;
use support::{Server, run};

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn ok(arguments: &[&str]) -> (String, String) {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", error(&output));
    (String::from_utf8_lossy(&output.stdout).into_owned(), error(&output))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn filled(data: &Path) {
    let data = text(data);
    fs::create_dir_all(data).unwrap();
    for i in 0..20 {
        ok(&["set", &format!("k{i}"), &format!("v{i}"), "--ttl", "3000", "--tag", "red", "--data", data]);
    }
    ok(&["set", "ever", "v", "--ttl", "never", "--content-type", "text/plain", "--data", data]);
    ok(&["set", "there", "v", "--namespace", "other", "--data", data]);
}

#[test]
fn entries_move_to_jsonl_and_back_and_doing_it_again_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (data, back) = (folder.path().join("data"), folder.path().join("back"));
    filled(&data);
    let sqlite = format!("sqlite:{}", text(&data.join("larder.sqlite")));
    let jsonl = format!("jsonl:{}", text(&folder.path().join("lines")));
    let (_, told) = ok(&["migrate", &sqlite, &jsonl]);
    assert!(told.contains("22 entries stored, 0 were there already, 22 verified"), "{told}");
    let (_, told) = ok(&["migrate", &sqlite, &jsonl]);
    assert!(told.contains("0 entries stored, 22 were there already, 22 verified"), "{told}");
    fs::create_dir(&back).unwrap();
    ok(&["migrate", &jsonl, &format!("sqlite:{}", text(&back.join("larder.sqlite")))]);
    let plain = |data: &Path| {
        let mut lines: Vec<String> =
            ok(&["export", "--plain", "--data", text(data)]).0.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(plain(&data), plain(&back), "stamps, tags, expiries and values are the same");
    assert_eq!(plain(&back).len(), 22);
    // A tag still removes what carries it.
    ok(&["flush", "--tag", "red", "--data", text(&back)]);
    assert_eq!(ok(&["keys", "--data", text(&back)]).0, "ever\n");
    let nowhere = run(&["migrate", "sqlite:/does/not/exist", &jsonl]);
    assert_eq!(nowhere.status.code(), Some(2));
    assert!(error(&nowhere).contains("there is no /does/not/exist"), "{}", error(&nowhere));
    let unknown = run(&["migrate", "sqlight:x", &jsonl]);
    assert_eq!(unknown.status.code(), Some(2));
}

#[test]
fn what_is_exported_is_imported_and_what_expired_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    filled(&data);
    for form in ["--plain", "--sealed"] {
        let (lines, _) = ok(&["export", form, "--data", text(&data)]);
        assert_eq!(lines.lines().count(), 22);
        assert_eq!(lines.contains("\"v7\""), form == "--plain");
        let file = folder.path().join(form);
        fs::write(&file, &lines).unwrap();
        let into = folder.path().join(format!("into{form}"));
        fs::create_dir(&into).unwrap();
        let (_, told) = ok(&["import", text(&file), "--data", text(&into)]);
        assert!(told.contains("22 entries imported, 0 were there already, 0 have expired"), "{told}");
        assert_eq!(ok(&["get", "k7", "--data", text(&into)]).0, "v7");
        assert_eq!(ok(&["get", "there", "--namespace", "other", "--data", text(&into)]).0, "v");
        let (_, told) = ok(&["import", text(&file), "--data", text(&into)]);
        assert!(told.contains("0 entries imported, 22 were there already"), "{told}");
        ok(&["flush", "--tag", "red", "--data", text(&into)]);
        assert_eq!(run(&["get", "k7", "--data", text(&into)]).status.code(), Some(1));
        assert_eq!(ok(&["get", "ever", "--data", text(&into)]).0, "v");
    }
    let line =
        r#"{"namespace":"default","key":"old","tags":[],"stamp":"000000000000000000000000","created_ms":1,
        "fresh_until_ms":2,"revalidate_until_ms":2,"gone_at_ms":2,"value":"v"}"#
            .replace('\n', " ");
    let file = folder.path().join("lines");
    fs::write(&file, format!("{line}\n\n{{\"namespace\":1}}\n")).unwrap();
    let output = run(&["import", text(&file), "--data", text(&data)]);
    assert_eq!(output.status.code(), Some(2));
    assert!(error(&output).contains("line 3:"), "{}", error(&output));
    fs::write(&file, format!("{line}\n")).unwrap();
    let (_, told) = ok(&["import", text(&file), "--data", text(&data)]);
    assert!(told.contains("1 have expired"), "{told}");
    assert_eq!(run(&["export", "--data", text(&data)]).status.code(), Some(2), "the form is not guessed");
}

#[test]
fn a_running_server_is_told_of_plain_lines() {
    let folder = tempfile::tempdir().unwrap();
    let (data, into) = (folder.path().join("data"), folder.path().join("into"));
    filled(&data);
    let server = Server::start(&into, &[]);
    server.put("/v1/cache/default/k7", b"older").is(204);
    let file = folder.path().join("lines");
    fs::write(&file, ok(&["export", "--plain", "--data", text(&data)]).0).unwrap();
    ok(&["import", text(&file), "--data", text(&into)]);
    assert_eq!(server.get("/v1/cache/default/k7").text(), "v7");
    fs::write(&file, ok(&["export", "--sealed", "--data", text(&data)]).0).unwrap();
    let output = run(&["import", text(&file), "--data", text(&into)]);
    assert!(error(&output).contains("line 1: a running server takes plain lines only"), "{}", error(&output));
    server.stop();
}
