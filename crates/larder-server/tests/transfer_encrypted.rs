//! Prevents: an export that shows what a folder encrypts to somebody without its keys; a copy that can't be
//! opened any more; an import that loses a thousand lines for a bad one.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that can't go on stops")]

mod support;

use std::fs;
use std::path::Path;
use support::run;

const ENTRIES: usize = 300;
const VALUE: &str = "canary-value-41d0";

/// Code, output, error output.
fn larder(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = run(arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn ok(arguments: &[&str]) -> String {
    let (code, output, error) = larder(arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {error}");
    output
}

fn sorted(lines: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = lines.lines().collect();
    lines.sort_unstable();
    lines
}

fn line(i: usize) -> String {
    format!(
        r#"{{"namespace":"n{}","key":"k{i}","tags":["t{}"],"stamp":"{i:024x}","created_ms":{i},"fresh_until_ms":4000000000000,"revalidate_until_ms":4000000000001,"gone_at_ms":4000000000002,"content_type":"text/plain","value":"{VALUE} {i}"}}"#,
        i % 3,
        i % 7
    )
}

#[test]
fn only_who_has_the_keys_sees_values_and_sealed_copies_keep_everything() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (keys, other, file, sealed, data) =
        (path("keys"), path("other"), path("lines"), path("sealed"), path("data"));
    ok(&["keys", "new", &keys]);
    ok(&["keys", "new", &other]);
    let lines: Vec<String> = (0..ENTRIES).map(line).collect();
    fs::write(&file, lines.join("\n")).unwrap();
    fs::create_dir(&data).unwrap();
    ok(&["import", &file, "--data", &data, "--key-file", &keys]);
    let plain = ok(&["export", "--plain", "--data", &data, "--key-file", &keys]);
    let mut expected = lines.clone();
    expected.sort_unstable();
    assert_eq!(sorted(&plain), expected, "what went in comes out");

    // Without the keys, or with others: nothing, and said so.
    for keys in [None, Some(&*other)] {
        let mut arguments = vec!["export", "--plain", "--data", &data];
        arguments.extend(keys.map(|keys| ["--key-file", keys]).into_iter().flatten());
        let (code, output, error) = larder(&arguments);
        assert_eq!((code, &*output), (Some(2), ""), "{error}");
        assert!(error.contains(&format!("{ENTRIES} entries were passed over")), "{error}");
        assert!(!error.contains("canary"), "{error}");
    }

    // As they are, without keys, by way of every kind of place.
    let lines = ok(&["export", "--sealed", "--data", &data]);
    assert!(!lines.contains("canary"));
    fs::write(&sealed, &lines).unwrap();
    for kind in ["sqlite", "files", "jsonl"] {
        let place = format!("{kind}:{}", path(kind));
        ok(&["import", &sealed, "--to", &place]);
        assert_eq!(sorted(&ok(&["export", "--sealed", "--from", &place])), sorted(&lines), "{kind}");
        let again = ok(&["export", "--plain", "--from", &place, "--key-file", &keys]);
        assert_eq!(sorted(&again), expected, "{kind}");
        assert!(!holds(Path::new(&path(kind)), b"canary"), "{kind}: a value is in a file");
    }

    // A copy under another key's name is refused where its key is known.
    let moved = lines.lines().find(|line| line.contains(r#""key":"k7","#)).unwrap();
    fs::write(&file, moved.replace(r#""key":"k7","#, r#""key":"k9999","#)).unwrap();
    let place = format!("sqlite:{}", path("moved"));
    let (code, _, error) = larder(&["import", &file, "--to", &place, "--key-file", &keys]);
    assert_eq!(code, Some(2));
    assert!(error.contains("line 1: sealed is damaged, or another key's"), "{error}");
}

/// Whether any file below holds it.
fn holds(path: &Path, needle: &[u8]) -> bool {
    if path.is_dir() {
        return fs::read_dir(path).unwrap().any(|file| holds(&file.unwrap().path(), needle));
    }
    fs::read(path).unwrap().windows(needle.len()).any(|window| window == needle)
}

type Damage = fn(&str) -> String;

#[test]
fn bad_lines_are_named_and_all_others_are_imported() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (source, file, place) = (path("source"), path("lines"), format!("jsonl:{}", path("to")));
    let lines: Vec<String> = (0..ENTRIES).map(line).collect();
    fs::write(&source, lines.join("\n")).unwrap();
    let damage: [(usize, Damage); 8] = [
        (0, |line| line[..line.len() / 2].to_owned()),
        (50, |line| line.replace("\"stamp\":\"", "\"stamp\":\"x")),
        (100, |line| line.replace(r#""tags":["#, &format!(r#""tags":"{VALUE}","other":["#))),
        (150, |_| "\u{0}\u{1}".to_owned()),
        (200, |line| line.replace("\"gone_at_ms\":4", "\"gone_at_ms\":3")),
        (255, |line| line.replace("\"value\":", "\"sealed\":")),
        (256, |line| line.replace("\"key\":", "\"key_base64\":\"AA==\",\"key\":")),
        (299, |line| line.replace("\"namespace\":\"n", "\"namespace\":\"n n")),
    ];
    let mut damaged = lines.clone();
    for (at, damage) in damage {
        damaged[at] = damage(&lines[at]);
        assert_ne!(damaged[at], lines[at]);
    }
    fs::write(&file, damaged.join("\n")).unwrap();
    let (code, _, error) = larder(&["import", &file, "--to", &place]);
    assert_eq!(code, Some(2), "{error}");
    for (at, _) in damage {
        assert!(error.contains(&format!("line {}: ", at + 1)), "line {}: {error}", at + 1);
    }
    assert!(error.contains("8 lines are not imported"), "{error}");
    assert!(!error.contains("canary"), "a value is in a message: {error}");
    let mut expected: Vec<&str> = lines.iter().map(String::as_str).collect();
    expected.retain(|line| !damage.iter().any(|(at, _)| lines[*at] == *line));
    expected.sort_unstable();
    assert_eq!(sorted(&ok(&["export", "--plain", "--from", &place])), expected);
    // Mended and run again, it is whole.
    ok(&["import", &source, "--to", &place]);
    assert_eq!(ok(&["export", "--plain", "--from", &place]).lines().count(), ENTRIES);
}
