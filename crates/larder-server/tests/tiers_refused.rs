//! A configuration that would leave data open to others, or that contradicts itself, starts no server: the
//! error says in which line, which setting, and what to do.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that can't go on stops")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use support::larder;

fn check(folder: &Path, name: &str, text: &str, variables: &[(&str, &str)]) -> Output {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    check_file(&path, variables)
}

fn check_file(path: &Path, variables: &[(&str, &str)]) -> Output {
    let mut command = larder(&["serve", "--check", "--config", path.to_str().unwrap()]);
    command.current_dir(path.parent().unwrap()).envs(variables.iter().copied()).output().unwrap()
}

#[track_caller]
fn refused(name: &str, text: &str, variables: &[(&str, &str)], expected: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let output = check(folder.path(), name, text, variables);
    let error = String::from_utf8_lossy(&output.stderr);
    let error = error.replace(&format!("{}/", folder.path().display()), "");
    assert_eq!(output.status.code(), Some(2), "{text}\n{error}");
    for part in expected {
        assert!(error.contains(part), "{text}\ngave\n  {error}\nwithout\n  {part}");
    }
    assert!(!error.contains("hush"), "{error}");
}

#[track_caller]
fn accepted(text: &str, variables: &[(&str, &str)]) -> serde_json::Value {
    let folder = tempfile::tempdir().unwrap();
    let output = check(folder.path(), "a.yaml", text, variables);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(!shown.contains("hush"), "{shown}");
    serde_json::from_str(&shown).unwrap()
}

#[test]
fn settings_that_are_none() {
    for (text, expected) in [
        ("tiers: 5", &["a.yaml:1:8: tiers: a list of tables is allowed"][..]),
        ("tiers:\n  - 5", &["a.yaml:2:5: tiers[0]: a table is allowed"]),
        (
            "tiers:\n  - path: x",
            &["a.yaml:2:5: tiers[0]: backend is missing; one of files, jsonl, memcached, memory,"],
        ),
        (
            "tiers:\n  - backend: redys",
            &["a.yaml:2:14: tiers[0].backend: there is no backend \"redys\"; one of ", "redis, sqlite is"],
        ),
        (
            "tiers:\n  - backend: memory\n    entries: 5",
            &["a.yaml:3:5: tiers.memory.entries: there is no such setting; did you mean entries_max?"],
        ),
        (
            "tiers:\n  - backend: memory\n    read_timout: 5",
            &["a.yaml:3:5: tiers.memory.read_timout: there is no such setting; did you mean read_timeout?"],
        ),
        (
            "tiers:\n  - backend: memory\n    guard:\n      breaker:\n        windw: 5",
            &["a.yaml:5:9: tiers.memory.guard.breaker.windw: there is no such setting; did you mean window?"],
        ),
        (
            "tiers:\n  - backend: memory\n    entries_max: many",
            &["a.yaml:3:18: tiers.memory.entries_max: ", "\"many\""],
        ),
        ("tiers:\n  - backend: memory\n    entries_max: [5]", &["a.yaml:3:18: tiers.memory.entries_max: "]),
        ("tiers:\n  - backend: redis", &["a.yaml:2:5: tiers.redis: it needs the setting `url`"]),
        (
            "single_node: true\ntiers:\n  - backend: redis\n    url: redis://127.0.0.1\n    shards: 0",
            &["a.yaml:5:13: tiers.redis.shards: shards is 0; 1 to 256 are allowed"],
        ),
        (
            "single_node: true\ntiers:\n  - backend: redis\n    url: 127.0.0.1",
            &["a.yaml:4:10: tiers.redis.url: url is none of redis://"],
        ),
        (
            "tiers:\n  - backend: memory\n    read_timeout: 0",
            &["a.yaml:3:19: tiers.memory.read_timeout: read_timeout is 0; with it every call fails"],
        ),
        (
            "tiers:\n  - backend: memory\n    ttl_max: 0",
            &[
                "a.yaml:3:14: tiers.memory.ttl_max: 0 was given, with which it keeps nothing; leave the tier out",
            ],
        ),
        (
            "tiers:\n  - backend: memory\n    guard: {breaker: {calls_min: 0}}",
            &["a.yaml:3:12: tiers.memory.guard: ", "breaker.calls_min"],
        ),
        (
            "tiers:\n  - backend: memory\n    name: Bad Name",
            &["a.yaml:3:11: tiers[0].name: \"Bad Name\" was given; 1 to 32 of a-z 0-9 - _ are allowed"],
        ),
        (
            "tiers:\n  - backend: memory\n    hide_keys: true",
            &["a.yaml:3:16: tiers.memory.hide_keys: ", "set encryption.key_file"],
        ),
        (
            "health:\n  latency_unhealthy: 0.1",
            &["a.yaml:2:22: health.latency_unhealthy: ", "latency_degraded (250ms) or more is allowed"],
        ),
        ("health:\n  memory_degraded: 2", &["a.yaml:2:20: health.memory_degraded: ", "at most 1 is allowed"]),
        ("l1:\n  ttl_max: soon", &["a.yaml:2:12: l1.ttl_max: ", "or \"never\", is allowed"]),
    ] {
        refused("a.yaml", text, &[], expected);
    }
    refused(
        "a.toml",
        "[[tiers]]\nbackend = \"memory\"\n\n[[tiers]]\nbackend = \"sqlite\"\nreadrs = 1\n",
        &[],
        &["a.toml:6:1: tiers.sqlite.readrs: there is no such setting; did you mean readers?"],
    );
    refused(
        "a.json",
        "{\"tiers\": [\n {\"backend\": \"memory\",\n  \"bytes_mx\": 1}]}",
        &[],
        &["a.json:3:", "tiers.memory.bytes_mx: there is no such setting; did you mean bytes_max?"],
    );
}

#[test]
fn what_contradicts_itself() {
    let shared = "  - backend: redis\n    url: redis://127.0.0.1:1\n";
    // Which can't tell what others remove.
    let mute = "  - backend: memcached\n    servers: [\"memcached://127.0.0.1:1\"]\n";
    for (text, expected) in [
        (
            "sqlite:\n  readers: 1\ntiers: []".to_owned(),
            &["a.yaml:2:3: sqlite: with tiers there is no database beside them"][..],
        ),
        (
            "tiers:\n  - backend: memory\n  - backend: sqlite\n    name: memory".to_owned(),
            &["a.yaml:4:11: tiers.memory.name: another tier, at a.yaml:2:5, is called memory, too"],
        ),
        (
            "tiers:\n  - backend: sqlite\n    path: x\n  - backend: files\n    path: ./x".to_owned(),
            &["a.yaml:5:11: tiers.files.path: the tier sqlite is at the same place"],
        ),
        (
            "tiers:\n  - backend: jsonl\n    path: a\n  - backend: files\n    path: a/b".to_owned(),
            &["a.yaml:5:11: tiers.files.path: the tier jsonl is at the same place"],
        ),
        (
            format!(
                "single_node: true\ntiers:\n{shared}  - backend: redis\n    name: two\n    url: redis://127.0.0.1:1/\n"
            ),
            &["a.yaml:7:10: tiers.two.url: the tier redis is at the same place"],
        ),
        (
            "tiers:\n  - backend: sqlite\n  - backend: memory".to_owned(),
            &["a.yaml:3:14: tiers.memory.backend: memory stands below sqlite", "put it first"],
        ),
        (
            format!("l1: {{ttl_max: 5}}\ntiers:\n{shared}  - backend: sqlite\n    ttl_max: 5"),
            &["a.yaml:5:14: tiers.sqlite.backend: this node's own tier stands below redis", "Put it above"],
        ),
        (
            format!("tiers:\n{mute}"),
            &["a.yaml:2:5: l1.ttl_max: memory keeps entries", "nobody tells this node", "single_node = true"],
        ),
        (
            format!("l1: {{ttl_max: 5}}\ntiers:\n  - backend: sqlite\n{mute}"),
            &["a.yaml:3:5: tiers.sqlite.ttl_max: it keeps entries", "and memcached below is shared"],
        ),
    ] {
        refused("a.yaml", &text, &[], expected);
    }
    accepted(&format!("l1: {{ttl_max: 5}}\ntiers:\n  - backend: sqlite\n    ttl_max: 5\n{mute}"), &[]);
    accepted(&format!("tiers:\n  - backend: sqlite\n{mute}{shared}"), &[]);
    let below = format!("single_node: true\ntiers:\n{shared}  - backend: sqlite");
    refused("a.yaml", &below, &[], &["this node's own tier stands below redis"]);
    accepted(&format!("single_node: true\ntiers:\n  - backend: sqlite\n{shared}"), &[]);
    accepted(&format!("single_node: true\ntiers:\n{shared}{shared}    name: two\n    prefix: other"), &[]);
}

#[test]
fn what_others_could_read_or_change() {
    let redis = |url: &str, more: &str| {
        format!("single_node: true\ntiers:\n  - backend: redis\n    url: \"{url}\"\n{more}")
    };
    for (url, more, expected) in [
        ("redis://:hush@10.0.0.1", "", "a.yaml:4:10: tiers.redis.url: it goes to another host in plain text"),
        ("rediss://10.0.0.1", "", "a.yaml:4:10: tiers.redis.url: it has no password"),
        (
            "redis://10.0.0.1",
            "    allow_plaintext: true\n",
            "a.yaml:4:10: tiers.redis.url: it has no password",
        ),
        (
            "redis://127.0.0.1",
            "    more_urls: [\"redis://:hush@10.0.0.1\"]\n",
            "a.yaml:5:16: tiers.redis.more_urls: it goes to another host in plain text",
        ),
        ("rediss://:hush@10.0.0.1/#insecure", "", "url asks for TLS without checking certificates"),
    ] {
        refused("a.yaml", &redis(url, more), &[], &[expected]);
    }
    for (url, more) in [
        ("redis://127.0.0.1", ""),
        ("redis://:hush@localhost", ""),
        ("unix:///run/redis.sock?pass=hush", ""),
        ("rediss://:hush@10.0.0.1", ""),
        ("redis://:hush@10.0.0.1", "    allow_plaintext: true\n"),
        ("redis://10.0.0.1", "    allow_plaintext: true\n    allow_unauthenticated: true\n"),
    ] {
        let shown = accepted(&redis(url, more), &[]);
        assert_eq!(shown["tiers"][0]["name"], "redis");
    }
}

#[test]
fn a_password_in_a_file_that_everybody_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.yaml");
    std::fs::write(
        &path,
        "single_node: true\ntiers:\n  - backend: redis\n    url: redis://:hush@127.0.0.1\n",
    )
    .unwrap();
    for (mode, is_refused) in [(0o644, true), (0o640, false), (0o600, false)] {
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let output = check_file(&path, &[]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(if is_refused { 2 } else { 0 }), "{mode:o} {error}");
        for part in [
            "a.yaml:4:10: tiers.redis.url: it holds a password",
            "chmod o-r",
            "url_file",
            "LARDER_TIERS__REDIS__URL",
        ] {
            assert_eq!(error.contains(part), is_refused, "{mode:o} {error}");
        }
        assert!(!error.contains("hush"), "{error}");
    }
    // What comes from the environment, or from a file of its own, may stand beside a file that all can read.
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    let variables = [("LARDER_TIERS__REDIS__URL", "redis://:hush@127.0.0.1:2")];
    assert!(check_file(&path, &variables).status.success());
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "redis://:hush@127.0.0.1:3\n").unwrap();
    std::fs::write(&path, "single_node: true\ntiers:\n  - backend: redis\n    url_file: secret\n").unwrap();
    let output = check_file(&path, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["tiers"][0]["url"], "redis://127.0.0.1:3");
    let output = check_file(&path, &variables);
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["tiers"][0]["url"], "redis://127.0.0.1:2", "the variable wins over the file");
    for (text, part) in [
        ("\n", "a.yaml:4:15: tiers.redis.url_file: secret is empty"),
        ("redis://:hush@10.0.0.1", "a.yaml:4:15: tiers.redis.url: it goes to another host in plain text"),
    ] {
        std::fs::write(&secret, text).unwrap();
        let output = check_file(&path, &[]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(part) && !error.contains("hush"), "{error}");
    }
    std::fs::remove_file(&secret).unwrap();
    let error = String::from_utf8_lossy(&check_file(&path, &[]).stderr).into_owned();
    assert!(error.contains("tiers.redis.url_file: secret can't be read"), "{error}");
    let both = "single_node: true\ntiers:\n  - backend: redis\n    url: redis://127.0.0.1\n    url_file: x\n";
    refused(
        "a.yaml",
        both,
        &[],
        &["a.yaml:5:15: tiers.redis.url_file: url is set, too; one of them is allowed"],
    );
}

#[test]
fn variables_set_what_a_tier_of_that_name_has() {
    let text = "single_node: true\ntiers:\n  - backend: sqlite\n    name: local-disk\n    bytes_max: 1 MiB\n  \
                - backend: redis\n    url: redis://127.0.0.1\n    prefix: file\n";
    let shown = accepted(
        text,
        &[
            ("LARDER_TIERS__LOCAL_DISK__READERS", "7"),
            ("LARDER_TIERS__LOCAL_DISK__TTL_MAX", "90"),
            ("LARDER_TIERS__LOCAL_DISK__BYTES_MAX", "2 GiB"),
            ("LARDER_TIERS__REDIS__PREFIX", "12"),
            ("LARDER_TIERS__REDIS__CLUSTER", "true"),
            ("LARDER_TIERS__REDIS__MORE_URLS", "redis://127.0.0.2, redis://127.0.0.3"),
            ("LARDER_TIERS__REDIS__GUARD__BREAKER__OPEN_FOR", "9"),
        ],
    );
    let [disk, redis] = [&shown["tiers"][0], &shown["tiers"][1]];
    assert_eq!(
        (&disk["readers"], &disk["ttl_max"], &disk["bytes_max"]),
        (&7.into(), &90.0.into(), &(2_u64 << 30).into())
    );
    assert_eq!(
        (&redis["prefix"], &redis["cluster"]),
        (&"12".into(), &true.into()),
        "as the backend takes it"
    );
    assert_eq!(redis["more_urls"], serde_json::json!(["redis://127.0.0.2", "redis://127.0.0.3"]));
    assert_eq!(redis["guard"]["breaker"]["open_for"], 9.0);
    for (variable, value, expected) in [
        ("LARDER_TIERS__OTHER__URL", "x", "there is no tier \"other\" in the file; it has local-disk, redis"),
        ("LARDER_TIERS__REDIS__SHARDZ", "1", "did you mean shards?"),
        ("LARDER_TIERS__REDIS__SHARDS", "few", "tiers.redis.shards: "),
        ("LARDER_TIERS__REDIS__URL", "redis://:hush@10.0.0.1", "it goes to another host in plain text"),
        ("LARDER_TIERS", "redis", "tiers are listed in a file"),
        ("LARDER_TIERS__REDIS", "redis", "it has to name a setting"),
    ] {
        refused(
            "a.yaml",
            text,
            &[(variable, value)],
            &[&format!("environment variable {variable}: "), expected],
        );
    }
    refused("a.yaml", "", &[("LARDER_TIERS__REDIS__URL", "x")], &["it has none"]);
}

/// What the documents show works.
#[test]
fn the_examples_are_accepted() {
    let readme = include_str!("../../../README.md");
    let yaml = readme.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let shown = accepted(yaml, &[]);
    assert_eq!(shown["tiers"][1]["guard"]["breaker"]["open_for"], 3.0);
    let example = include_str!("../larder.example.toml");
    let tiers = &example[example.find("# [[tiers]]").unwrap()..];
    let tiers: String =
        tiers.lines().map(|line| format!("{}\n", line.trim_start_matches(['#', ' ']))).collect();
    let folder = tempfile::tempdir().unwrap();
    let variables =
        [("LARDER_TIERS__SHARED__URL", "rediss://:hush@cache.example"), ("LARDER_SINGLE_NODE", "true")];
    let output = check(folder.path(), "a.toml", &tiers, &variables);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
