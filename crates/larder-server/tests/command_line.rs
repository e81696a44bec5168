//! The commands do the same against a running server and against a folder that no server has, and end with
//! codes that a script can use.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that can't go on stops")]

mod support;

use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};
use support::{Server, larder, run};

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What every command does at a place that `at` names.
fn tour(at: &[&str]) {
    let run = |arguments: &[&str]| run(&[arguments, at].concat());
    let ok = |arguments: &[&str]| {
        let output = run(arguments);
        assert_eq!(code(&output), 0, "{arguments:?}: {}", error(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(
        ok(&["set", "user/1", "Ada", "--ttl", "never", "--tag", "users", "--content-type", "text/plain"]),
        ""
    );
    assert_eq!(ok(&["get", "user/1"]), "Ada");
    assert_eq!(ok(&["exists", "user/1"]), "");
    for absent in [&["get", "none"][..], &["exists", "none"], &["delete", "none"]] {
        let output = run(absent);
        assert_eq!((code(&output), output.stdout.len()), (1, 0), "{absent:?}: {}", error(&output));
    }
    // Bytes from the input come back as they were.
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let mut child =
        larder(&[&["set", "odd key\n?&=%+ü"], at].concat()).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(run(&["get", "odd key\n?&=%+ü"]).stdout == bytes);
    ok(&["set", "", "empty"]);
    assert_eq!(ok(&["get", ""]), "empty");

    ok(&["set", "user/2", "Grace", "--tag", "a,b c%"]);
    let listed = ok(&["keys", "--pattern", "user/*"]);
    let mut listed: Vec<&str> = listed.lines().collect();
    listed.sort_unstable();
    assert_eq!(listed, ["user/1", "user/2"]);
    let line = ok(&["keys", "--json", "--pattern", "user/1"]);
    let key: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&key["key"], &key["gone_in"]), (&"user/1".into(), &serde_json::Value::Null));
    let explained = ok(&["explain", "user/1"]);
    assert!(explained.contains("sqlite") && explained.contains("tags users"), "{explained}");
    let explained: serde_json::Value = serde_json::from_str(&ok(&["explain", "user/1", "--json"])).unwrap();
    assert_eq!(explained["tiers"][1]["tier"], "sqlite");
    let health = ok(&["health", "--level", "full"]);
    assert!(
        health.starts_with("larder  healthy") && health.contains("\nsqlite  healthy    ping "),
        "{health}"
    );

    // Two bad reports, a good one that begins the count anew, and three bad ones.
    let report =
        |verdict: &str| ok(&["report", "user/2", verdict, "--source", "list a&b", "--latency", "0.5"]);
    assert_eq!(
        [report("bad"), report("bad"), report("good")].concat(),
        "1 bad in a row\n2 bad in a row\n0 bad in a row\n"
    );
    ok(&["report", "user/1", "bad", "--note", "slow"]);
    let json = |text: &str| -> Vec<serde_json::Value> {
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let keys = |arguments: &[&str]| -> Vec<String> {
        json(&ok(arguments)).iter().map(|entry| entry["key"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(keys(&["reports", "--verdict", "bad"]), ["user/1"]);
    assert_eq!(keys(&["reports", "--source", "list a&b"]), ["user/2"]);
    assert_eq!(keys(&["reports"]).len(), 2);
    let history = json(&ok(&["reports", "user/2"]));
    let verdicts: Vec<&str> = history.iter().map(|past| past["verdict"].as_str().unwrap()).collect();
    assert_eq!((verdicts, &history[0]["latency"]), (vec!["good", "bad", "bad"], &0.5.into()));
    assert_eq!(json(&ok(&["reports", "user/1"]))[0]["note"], "slow");
    assert_eq!(ok(&["report", "none", "bad"]), "0 bad in a row\n");
    ok(&["set", "doomed", "x"]);
    let ends: Vec<String> = (0..3).map(|_| ok(&["report", "doomed", "bad"])).collect();
    assert_eq!(ends[2], "3 bad in a row; removed\n");
    assert_eq!(code(&run(&["exists", "doomed"])), 1);

    let stats = ok(&["stats"]);
    assert!(stats.contains("tiers.sqlite.hits"), "{stats}");
    let entries = stats.lines().find_map(|line| line.strip_prefix("database.entries")).unwrap();
    assert_eq!(entries.trim(), "4", "{stats}");
    assert!(
        serde_json::from_str::<serde_json::Value>(&ok(&["stats", "--json"])).unwrap()["tiers"].is_array()
    );

    assert_eq!(ok(&["flush", "--tag", "a,b c%"]), "");
    assert_eq!(ok(&["keys", "--pattern", "user/*"]), "user/1\n");
    ok(&["set", "user/3", "x", "--namespace", "other"]);
    let flushed = run(&["flush", "--force", "--pattern", "user/*"]);
    assert!(error(&flushed).contains("removed 1 entries"), "{}", error(&flushed));
    ok(&["flush", "--force"]);
    assert_eq!(ok(&["keys"]), "");
    assert_eq!(ok(&["keys", "--namespace", "other"]), "user/3\n");
    assert_eq!(code(&run(&["delete", "user/3", "--namespace", "other"])), 0);

    for wrong in [
        &["set", "k", "v", "--ttl", "soon"][..],
        &["set", "k", "v", "--file", "x"],
        &["set", "k", "--file", "/does/not/exist"],
        &["get", "k", "--namespace", "no blanks"],
        &["keys", "--pattern", "["],
        &["report", "user/1", "meh"],
        &["report", "user/1", "bad", "--source", &"s".repeat(129)],
        &["reports", "user/1", "--verdict", "bad"],
    ] {
        let output = run(wrong);
        assert_eq!(code(&output), 2, "{wrong:?}");
        assert!(!error(&output).is_empty());
    }
}

#[test]
fn commands_work_on_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    tour(&["--data", data]);
    let nowhere = run(&["get", "k", "--data", "/does/not/exist"]);
    assert_eq!(code(&nowhere), 2);
    assert!(error(&nowhere).contains("/does/not/exist"), "{}", error(&nowhere));
}

#[test]
fn commands_ask_the_server_that_has_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    tour(&["--data", folder.path().to_str().unwrap()]);
    server.put("/v1/cache/default/k", b"v").is(204);
    // What the server has in memory counts, not only what is in the folder.
    assert_eq!(code(&run(&["delete", "k", "--data", folder.path().to_str().unwrap()])), 0);
    server.get("/v1/cache/default/k").is(404);
    server.stop();
}

#[test]
fn commands_ask_a_server_by_its_url() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    tour(&["--server", &server.url()]);
    for url in ["https://localhost", "localhost:1", "http://127.0.0.1:1"] {
        let output = run(&["get", "k", "--server", url]);
        assert_eq!(code(&output), 2, "{url}");
    }
}

#[test]
fn a_token_comes_from_the_environment_or_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let token = "a-token-of-good-length";
    let server = Server::start_with(folder.path(), &[], &[("LARDER_TOKENS", token)]);
    let url = server.url();
    let refused = run(&["set", "k", "v", "--server", &url]);
    assert_eq!(code(&refused), 2);
    assert!(error(&refused).contains("A valid token is needed"), "{}", error(&refused));
    let mut set = larder(&["set", "k", "v", "--server", &url]);
    assert!(set.env("LARDER_TOKEN", token).status().unwrap().success());
    let file = folder.path().join("token");
    std::fs::write(&file, format!("{token}\n")).unwrap();
    let got = run(&["get", "k", "--server", &url, "--token-file", file.to_str().unwrap()]);
    assert_eq!(got.stdout, b"v");
}

#[test]
fn check_prints_what_counts_and_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| -> String {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let file =
        write("larder.yaml", "listen: 127.0.0.1:1\ntokens: [top-secret-token-1]\ndefaults: {ttl: never}\n");
    let output = larder(&["serve", "--check", "--config", &file, "--listen", "127.0.0.1:3"])
        .envs([("LARDER_LISTEN", "127.0.0.1:2"), ("LARDER_L1__BYTES_MAX", "1 GiB")])
        .output()
        .unwrap();
    assert_eq!(code(&output), 0, "{}", error(&output));
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["listen"], "127.0.0.1:3");
    assert_eq!(shown["l1"]["bytes_max"], "1 GiB");
    assert_eq!(shown["defaults"]["ttl"], "never");
    assert_eq!(shown["tokens"], serde_json::json!(["(secret)"]));
    // What is printed is a configuration itself, but for the secrets.
    let again = write(
        "again.json",
        &String::from_utf8_lossy(&output.stdout).replace("(secret)", "other-secret-token"),
    );
    let again = run(&["serve", "--check", "--config", &again]);
    assert_eq!(again.stdout, output.stdout, "{}", error(&again));

    for (name, text, message) in [
        ("a.toml", "lisen = 1", "a.toml:1:1: lisen: there is no such setting; did you mean listen?"),
        (
            "b.json",
            "{\"http\": {\"idle_timeout\": \"x\"}}",
            "http.idle_timeout: \"x\" was given; a number is allowed",
        ),
        (
            "c.toml",
            "tokens_file = \"/does/not/exist\"",
            "c.toml:1:15: tokens_file: /does/not/exist can't be read",
        ),
        ("d.toml", "[sqlite]\nreaders = 99", "d.toml:2:11: sqlite.readers: 99 was given; 1 to 64 is allowed"),
        ("e.toml", "[envelope]\ncodec = \"xml\"", "e.toml:2:9: envelope.codec: \"xml\" was given; "),
    ] {
        let output = run(&["serve", "--check", "--config", &write(name, text)]);
        assert_eq!(code(&output), 2, "{name}");
        assert!(error(&output).contains(message), "{name}: {}", error(&output));
    }
    let missing = run(&["serve", "--config", "/does/not/exist.toml"]);
    assert!(error(&missing).contains("/does/not/exist.toml: can't be read"), "{}", error(&missing));
    assert!(!Path::new("larder-data").exists());
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let at = ["--data", folder.path().to_str().unwrap()];
    assert_eq!(code(&run(&[&["set", "a", "b"][..], &at].concat())), 0);
    for command in [&["stats"][..], &["stats", "--json"], &["explain", "a"], &["get", "a"], &["keys"]] {
        let mut child =
            larder(&[command, &at].concat()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Gone before the command has opened its folder.
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((code(&output), error(&output)), (0, String::new()), "{command:?}");
    }
}
