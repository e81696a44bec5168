//! The OpenAPI document says what the server does: every operation in it answers as promised to requests
//! made from the document itself, and every status that a client can provoke is listed.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that can't go on stops")]

mod support;

use serde_json::{Value, json};
use support::document::{DOCUMENT, operations, resolve};
use support::{Answer, Server};

/// Values for the parameters of an operation, made from their schemas; odd `seed`s leave out what is optional.
fn request_of(path: &str, operation: &Value, seed: usize) -> (String, Vec<(String, String)>) {
    let (mut path, mut query, mut headers) = (path.to_owned(), Vec::new(), Vec::new());
    let keys = ["user/42", "a b", "ü", "%", "?x=y&z", "\u{1}\n", "..%2f", "+"];
    for (at, parameter) in operation["parameters"].as_array().into_iter().flatten().enumerate() {
        let parameter = resolve(parameter);
        let name = parameter["name"].as_str().unwrap();
        let key = keys[seed % keys.len()];
        let encoded: String = key.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let value = match (name, parameter["in"].as_str().unwrap()) {
            ("key", "path") => encoded,
            ("key", "query") => encoded,
            // One of the two keys is the one that is given.
            ("key64", _) => continue,
            ("after", _) => continue,
            ("limit", _) => "5".to_owned(),
            ("format", _) => ["json", "text"][seed % 2].to_owned(),
            ("If-Match" | "If-None-Match", _) if (seed + at).is_multiple_of(3) => "*".to_owned(),
            ("If-Match" | "If-None-Match", _) => continue,
            _ => parameter["example"].as_str().unwrap_or_else(|| panic!("{name} has no example")).to_owned(),
        };
        match parameter["in"].as_str().unwrap() {
            "path" => path = path.replace(&format!("{{{name}}}"), &value),
            "query" => query.push(format!("{name}={value}")),
            "header" if seed.is_multiple_of(2) => headers.push((name.to_owned(), value)),
            _ => {}
        }
    }
    if !query.is_empty() {
        path = format!("{path}?{}", query.join("&"));
    }
    (path, headers)
}

/// A body that the document allows.
fn body_of(operation: &Value, seed: usize) -> Option<(&'static str, Vec<u8>)> {
    let content = operation["requestBody"]["content"].as_object()?;
    if content.contains_key("*/*") {
        return Some(("application/octet-stream", vec![seed as u8; seed * 7]));
    }
    let schema = content["application/json"]["schema"]["$ref"].as_str()?;
    let value = match (schema.rsplit('/').next()?, seed % 3) {
        ("Batch", _) => json!({"operations": [
            {"op": "set", "key": "k", "value": "v", "ttl": 5, "tags": ["t"]},
            {"op": "get", "key": "k"}, {"op": "exists", "key64": "aw"}, {"op": "delete", "key": "k"},
        ]}),
        ("Report", 0) => json!({"verdict": "good"}),
        ("Report", _) => json!({"verdict": "bad", "latency": 0.5, "source": "list-a", "note": "slow"}),
        ("Selection", 0) => json!({"tags": ["t"]}),
        ("Selection", 1) => json!({"pattern": "none/*"}),
        ("Selection", _) => json!({"all": true}),
        other => panic!("no body for {other:?}"),
    };
    Some(("application/json", value.to_string().into_bytes()))
}

fn ask(server: &Server, method: &str, path: &str, operation: &Value, seed: usize) -> Answer {
    let (path, mut headers) = request_of(path, operation, seed);
    let (content_type, body) = body_of(operation, seed).unwrap_or_default();
    if !content_type.is_empty() {
        headers.push(("Content-Type".to_owned(), content_type.to_owned()));
    }
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
    // `request` holds the answer against the document.
    server.request(&method.to_ascii_uppercase(), &path, &headers, &body)
}

#[test]
fn every_operation_answers_as_promised() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    assert_eq!(server.get("/v1/openapi.json").is(200).json(), *DOCUMENT);
    assert_eq!(operations().len(), 22);
    for (path, method, operation) in operations() {
        let mut has_succeeded = false;
        for seed in 0..24 {
            let answer = ask(&server, method, path, operation, seed);
            assert!(answer.status != 500 && answer.status != 400, "{method} {path}: {}", answer.text());
            has_succeeded |= answer.status < 300;
        }
        let is_read =
            operation["operationId"].as_str().unwrap().contains("Entry") && matches!(method, "get" | "head");
        assert!(has_succeeded || is_read, "{method} {path} never succeeded");
    }
    // Reads once more, now of entries that are there.
    for (path, method, operation) in operations() {
        if operation["operationId"].as_str().unwrap().starts_with("putEntry") {
            assert_eq!(ask(&server, method, path, operation, 4).status, 204);
            for read in ["get", "head"] {
                let answer = ask(&server, read, path, &DOCUMENT["paths"][path][read], 4);
                assert!(matches!(answer.status, 200 | 304), "{read} {path}: {}", answer.status);
            }
        }
    }
}

/// Odd inputs of every kind: whatever comes back is in the document.
#[test]
fn odd_inputs_get_promised_answers() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_with(folder.path(), &[], &[("LARDER_HTTP__BODY_BYTES_MAX", "64 KiB")]);
    let namespaces = ["ns", "n%20s", "%ff", "%", &"n".repeat(129)];
    let tails = ["", "/k", "/%", "?key=a", "?key64=!", "?key=a&key64=YQ", "?x=1", "?limit=0"];
    let headers: [&[(&str, &str)]; 7] = [
        &[],
        &[("Content-Type", "application/json")],
        &[("Larder-TTL", "x")],
        &[("Host", "evil.example")],
        &[("If-None-Match", "*")],
        &[("Cache-Control", "max-age=x")],
        &[("Content-Encoding", "br")],
    ];
    let bodies: [&[u8]; 5] = [b"", b"{}", b"\xff", b"{\"all\":true,\"x\":1}", &[b' '; 70_000]];
    let mut statuses = std::collections::BTreeSet::new();
    for word in ["cache", "keys", "explain", "batch", "invalidate", "reports", "standings"] {
        for (at, namespace) in namespaces.iter().enumerate() {
            for (also, tail) in tails.iter().enumerate() {
                for (third, headers) in headers.iter().enumerate() {
                    for method in ["GET", "HEAD", "PUT", "POST", "DELETE"] {
                        let body = if matches!(method, "PUT" | "POST") {
                            bodies[(at + also + third) % 5]
                        } else {
                            b""
                        };
                        let path = format!("/v1/{word}/{namespace}{tail}");
                        statuses.insert(server.request(method, &path, headers, body).status);
                    }
                }
            }
        }
    }
    for expected in [200, 204, 400, 404, 405, 412, 413, 415, 421] {
        assert!(statuses.contains(&expected), "{expected} not in {statuses:?}");
    }
    assert!(!statuses.contains(&500), "{statuses:?}");
}
