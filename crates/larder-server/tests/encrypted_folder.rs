//! The keys never show, the folder is never mixed with plain text, and rotation works on what is there.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that can't go on stops")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use support::{Server, larder, run};

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn ok(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn fails(arguments: &[&str], why: &str) {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    assert!(text(&output).contains(why), "{arguments:?}: {}", text(&output));
}

fn files_hold(folder: &Path, needle: &[u8]) -> bool {
    std::fs::read_dir(folder).unwrap().any(|file| {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        bytes.windows(needle.len()).any(|window| window == needle)
    })
}

#[test]
fn a_folder_is_encrypted_and_its_keys_are_rotated() {
    let place = tempfile::tempdir().unwrap();
    let (keys, data) = (place.path().join("keys"), place.path().join("data"));
    let (key_file, folder) = (keys.to_str().unwrap(), data.to_str().unwrap());
    ok(&["keys", "new", key_file]);
    fails(&["keys", "new", key_file], "--add");
    assert_eq!(keys.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let first = std::fs::read_to_string(&keys).unwrap();
    let hex = first.lines().last().unwrap().to_owned();

    let server = Server::start_with(&data, &[], &[("LARDER_ENCRYPTION__KEY_FILE", key_file)]);
    server.request("PUT", "/v1/cache/default/a", &[], b"canary-value").is(204);
    server.get("/v1/cache/default/a").is(200);
    assert!(server.get("/metrics").is(200).text().contains("larder_tier_tampered_total{tier=\"sqlite\"} 0"));
    fails(&["keys", "status", "--data", folder], "no server has");
    server.stop();
    assert!(!files_hold(&data, b"canary-value") && !files_hold(&data, hex.as_bytes()));

    // Commands use what the server used; nothing goes on in plain text.
    assert_eq!(ok(&["get", "a", "--data", folder]), "canary-value");
    ok(&["set", "b", "canary-too", "--data", folder]);
    assert!(!files_hold(&data, b"canary-too"));
    fails(&["serve", "--data", folder, "--listen", "127.0.0.1:0"], "there is no key");
    std::fs::rename(&keys, place.path().join("moved")).unwrap();
    fails(&["set", "c", "x", "--data", folder], "can't be read");
    assert_eq!(
        ok(&["get", "a", "--data", folder, "--key-file", place.path().join("moved").to_str().unwrap()]),
        "canary-value"
    );
    std::fs::rename(place.path().join("moved"), &keys).unwrap();

    ok(&["keys", "new", "--add", key_file]);
    assert_eq!(keys.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let status = ok(&["keys", "status", "--data", folder]);
    let lines: Vec<&str> = status.lines().collect();
    assert!(lines[0].contains(" 0 entries  current") && lines[1].contains(" 2 entries  old"), "{status}");
    let rotated = ok(&["keys", "rotate", "--data", folder]);
    assert!(rotated.contains("2 entries seen, 2 sealed anew"), "{rotated}");
    assert!(ok(&["keys", "rotate", "--data", folder]).contains("2 entries seen, 0 sealed anew"));
    assert!(ok(&["keys", "status", "--data", folder]).contains("no longer needed"));
    let both = std::fs::read_to_string(&keys).unwrap();
    let current: String = both.lines().take(2).map(|line| format!("{line}\n")).collect();
    std::fs::write(&keys, current).unwrap();
    assert_eq!(ok(&["get", "a", "--data", folder]), "canary-value");
    // The key that is gone, with entries under it.
    std::fs::write(&keys, first).unwrap();
    assert_eq!(run(&["get", "a", "--data", folder]).status.code(), Some(1));
    assert!(ok(&["keys", "status", "--data", folder]).contains("UNKNOWN KEY"));
}

#[test]
fn check_names_what_is_wrong_with_the_keys_and_shows_none() {
    let place = tempfile::tempdir().unwrap();
    let keys = place.path().join("keys");
    let key_file = keys.to_str().unwrap();
    ok(&["keys", "new", key_file]);
    let hex = std::fs::read_to_string(&keys).unwrap().lines().last().unwrap().to_owned();
    let check = |variables: &[(&str, &str)]| {
        let output = larder(&["serve", "--check"]).envs(variables.iter().copied()).output().unwrap();
        assert!(!text(&output).contains(&hex[..16]), "{}", text(&output));
        (output.status.success(), text(&output))
    };
    let file = ("LARDER_ENCRYPTION__KEY_FILE", key_file);
    let (is_ok, shown) = check(&[file]);
    assert!(is_ok && shown.contains(key_file), "{shown}");
    let (is_ok, shown) = check(&[("LARDER_ENCRYPTION__KEY_VARIABLE", "LARDER_KEYS"), ("LARDER_KEYS", &hex)]);
    assert!(is_ok, "{shown}");
    let (is_ok, shown) = check(&[("LARDER_ENCRYPTION__KEY_VARIABLE", "LARDER_KEYS")]);
    assert!(!is_ok && shown.contains("LARDER_KEYS holds no keys"), "{shown}");
    let (is_ok, shown) = check(&[("LARDER_ENCRYPTION__KEY_VARIABLE", "LARDER_KEYS"), file]);
    assert!(!is_ok && shown.contains("one of them is allowed"), "{shown}");
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (is_ok, shown) = check(&[file]);
    assert!(!is_ok && shown.contains("chmod 600") && shown.contains("encryption.key_file"), "{shown}");
}
