//! Prevents: a value, a key or a secret key in an answer that is not its own, in the metrics or in the log; and an
//! alarm that nobody can switch off once it was looked at.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that can't go on stops")]

mod support;

use serde_json::json;
use std::fs;
use std::path::Path;
use support::{Server, run};

const VALUE: &str = "canary-value-5e21";
const NAME: &str = "canary-name-9c07";

fn ok(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn start(data: &Path, key_file: &str) -> Server {
    let variables = [("LARDER_ENCRYPTION__KEY_FILE", key_file), ("LARDER_LOG", "trace")];
    Server::start_with(data, &[], &variables)
}

#[test]
fn canaries_are_found_only_where_they_were_asked_for() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let (keys, data, lines) = (path("keys"), path("data"), path("lines"));
    ok(&["keys", "new", &keys]);
    let hex = fs::read_to_string(&keys).unwrap().lines().last().unwrap().to_owned();

    // An entry under another's name, as somebody who can write to the database plants it.
    let server = start(Path::new(&data), &keys);
    server.put(&format!("/v1/cache/default/{NAME}"), VALUE.as_bytes()).is(204);
    server.stop();
    let moved = ok(&["export", "--sealed", "--data", &data]).replace(NAME, &format!("{NAME}-planted"));
    fs::write(&lines, moved).unwrap();
    ok(&["import", &lines, "--to", &format!("sqlite:{data}/larder.sqlite")]);

    let server = start(Path::new(&data), &keys);
    let entry = format!("/v1/cache/default/{NAME}");
    assert_eq!(server.get(&entry).is(200).text(), VALUE, "the search finds what is there");
    let planted = server.get(&format!("{entry}-planted")).is(404);
    let mut shown = planted.text();
    // Every other answer, the refusals among them.
    for answer in [
        server.request("PUT", &entry, &[("Larder-Ttl", "nonsense")], VALUE.as_bytes()),
        server.request("PUT", &entry, &[("Larder-Tags", "%ff")], VALUE.as_bytes()),
        server.post("/v1/batch/default", &json!({ "nonsense": VALUE })),
        server.post("/v1/invalidate/default", &json!({ "pattern": 7, "value": VALUE })),
        server.get("/v1/explain/default/other"),
        server.get("/v1/stats"),
        server.get("/v1/namespaces"),
        server.get("/healthz"),
        server.get("/readyz"),
        server.get("/metrics"),
    ] {
        shown += &format!("{} {:?} {}\n", answer.status, answer.headers, answer.text());
    }
    // What names a key because it was asked to shows no value.
    let named =
        server.get(&format!("/v1/explain/default/{NAME}")).text() + &server.get("/v1/keys/default").text();
    assert!(named.contains(NAME));
    let metrics = server.get("/metrics").text();
    assert!(metrics.contains("larder_tier_tampered_total{tier=\"sqlite\"} 1"), "{metrics}");
    assert!(metrics.contains("larder_degraded 1"), "{metrics}");
    assert!(server.get("/healthz").text().contains("in quarantine"));
    let log = server.log();
    server.stop();
    assert!(!log.is_empty(), "a log that is empty shows nothing");
    for (what, text) in
        [("an answer", &shown), ("explain or keys", &named), ("the metrics", &metrics), ("the log", &log)]
    {
        assert!(!text.contains(VALUE), "a value is in {what}: {text}");
        assert!(!text.contains(&hex[..16]), "a secret key is in {what}");
    }
    for (what, text) in [("the metrics", &metrics), ("the log", &log)] {
        assert!(!text.contains(NAME), "a key is in {what}: {text}");
    }

    // Looked at and cleared, the alarm is over.
    assert!(ok(&["keys", "quarantine", "--data", &data]).contains(": tampered, "));
    assert!(ok(&["keys", "quarantine", "--clear", "--data", &data]).contains(": tampered, "));
    assert_eq!(ok(&["keys", "quarantine", "--data", &data]), "");
    let server = start(Path::new(&data), &keys);
    assert!(server.get("/metrics").text().contains("larder_degraded 0"));
    assert!(!server.get("/healthz").text().contains("quarantine"));
    assert_eq!(server.get(&entry).is(200).text(), VALUE);
    let refused = run(&["keys", "quarantine", "--data", &data]);
    assert_eq!(refused.status.code(), Some(2), "a server has the folder");
    server.stop();
}
