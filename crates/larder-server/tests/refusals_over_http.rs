//! Whatever a client sends gets a problem document that says what is wrong, and the server goes on.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that can't go on stops")]

mod support;

use support::{Answer, Server, run};

fn server(arguments: &[&str]) -> (tempfile::TempDir, Server) {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), arguments);
    (folder, server)
}

#[test]
fn unknown_paths_and_methods_are_problems_too() {
    let (_folder, server) = server(&[]);
    for path in ["/", "/v1", "/v2/cache/a/b", "/v1/cache", "/v1/nothing/a", "/favicon.ico", "/v1/cache/ns/"] {
        let problem = server.get(path).is(404).json();
        assert_eq!(problem["kind"], "no-such-route", "{path}");
    }
    assert!(server.get("/v1/cache/ns/").text().contains("?key="));
    for (method, path, allowed) in [
        ("POST", "/v1/cache/ns/k", "DELETE, GET, HEAD, PUT"),
        ("DELETE", "/healthz", "GET"),
        ("GET", "/v1/batch/ns", "POST"),
        ("PATCH", "/v1/stats", "GET"),
        ("BREW", "/v1/cache/ns?key=a", "DELETE, GET, HEAD, PUT"),
    ] {
        let answer = server.request(method, path, &[], b"").is(405);
        let mut given: Vec<&str> = answer.header("Allow").unwrap().split(", ").collect();
        given.sort_unstable();
        assert_eq!(given.join(", "), allowed, "{method} {path}");
    }
}

#[test]
fn malformed_requests_say_what_is_wrong() {
    let (_folder, server) = server(&[]);
    for path in [
        "/v1/cache/ns/%",
        "/v1/cache/ns/%zz",
        "/v1/cache/ns?key=%4",
        "/v1/cache/ns",
        "/v1/cache/ns?key64=a*",
        "/v1/cache/ns?key64=YQ==",
        "/v1/cache/ns?key=a&key=b",
        "/v1/cache/ns?key=a&other=b",
        "/v1/cache/n%20s/k",
        "/v1/cache/n%ffs/k",
        "/v1/explain/ns/k?format=xml",
    ] {
        let problem = server.get(path).is(400).json();
        assert_eq!(problem["kind"], "bad-request", "{path}");
    }
    let long_name = format!("/v1/cache/{}/k", "n".repeat(200));
    server.get(&long_name).is(400);
    for (name, value) in [
        ("Larder-TTL", "soon"),
        ("Larder-TTL", "-1"),
        ("Larder-TTL", ""),
        ("Cache-Control", "max-age=x"),
        ("Larder-Tags", "%zz"),
        ("Larder-Tags", "%ff"),
        ("If-Match", "unquoted"),
        ("Content-Range", "bytes 0-1/2"),
    ] {
        server.request("PUT", "/v1/cache/ns/k", &[(name, value)], b"v").is(400);
    }
    let tags: Vec<String> = (0..65).map(|tag| tag.to_string()).collect();
    server.request("PUT", "/v1/cache/ns/k", &[("Larder-Tags", &tags.join(","))], b"v").is(400);
    server.request("PUT", "/v1/cache/ns/k", &[("Larder-Tags", &"t".repeat(257))], b"v").is(400);
    server.request("PUT", "/v1/cache/ns/k", &[("Larder-TTL", "1"), ("Larder-TTL", "2")], b"v").is(400);
    server.request("PUT", "/v1/cache/ns/k", &[("Content-Encoding", "gzip")], b"v").is(415);
    server.get("/v1/cache/ns/k").is(404);
    for body in ["", "{", "[]", "{\"operations\": 1}", "{\"operations\": [{}]}", &"[".repeat(100_000)] {
        let json = [("Content-Type", "application/json")];
        server.request("POST", "/v1/batch/ns", &json, body.as_bytes()).is(400);
        server.request("POST", "/v1/invalidate/ns", &json, body.as_bytes()).is(400);
    }
}

#[test]
fn bytes_that_are_no_http_end_the_connection_and_nothing_else() {
    let (_folder, server) = server(&[]);
    for bytes in [
        &b"\x16\x03\x01\x00\xa5\x01\x00\x00"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n",
        b"PUT /v1/cache/ns/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"PUT /v1/cache/ns/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ] {
        use std::io::{Read, Write};
        let mut stream = server.connect();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(
            answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    let many: String = (0..200).map(|at| format!("X-{at}: y\r\n")).collect();
    let answer = server.raw(format!("GET /healthz HTTP/1.1\r\n{many}\r\n").as_bytes());
    assert_eq!(answer.status, 431);
    // A malformed chunk and a body that breaks off are no values.
    let head = "PUT /v1/cache/ns/k HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    server.raw(format!("{head}zz\r\n").as_bytes()).is(400);
    server.get("/v1/cache/ns/k").is(404);
    server.get("/healthz").is(200);
}

#[test]
fn a_chunked_body_is_one_value() {
    let (_folder, server) = server(&[]);
    let head = "PUT /v1/cache/ns/k HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    server.raw(format!("{head}3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").as_bytes()).is(204);
    assert_eq!(server.get("/v1/cache/ns/k").is(200).text(), "abcde");
}

#[test]
fn a_foreign_host_is_refused_without_a_token() {
    let (_folder, server) = server(&[]);
    server.request("GET", "/v1/stats", &[("Host", "evil.example:7070")], b"").is(421);
    server.request("GET", "/healthz", &[("Host", "evil.example:7070")], b"").is(200);
    server.request("GET", "/v1/stats", &[("Host", "localhost:7070")], b"").is(200);
}

#[test]
fn with_tokens_only_their_holders_get_in() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens");
    std::fs::write(&file, "the-first-token-of-two\n\nthe-second-token-of-two\n").unwrap();
    let file = file.to_str().unwrap();
    let data = folder.path().join("data");
    let variables = [("LARDER_TOKENS", "one-from-the-environment"), ("LARDER_LOG", "trace")];
    let server = Server::start_with(&data, &["--tokens-file", file], &variables);
    assert!(server.banner.contains("token needed"));
    let get = |path: &str, token: &str| -> Answer {
        server.request("GET", path, &[("Authorization", &format!("Bearer {token}"))], b"")
    };
    let refused = server.get("/v1/stats").is(401);
    assert_eq!(refused.header("WWW-Authenticate"), Some("Bearer realm=\"larder\""));
    get("/v1/stats", "wrong").is(401);
    get("/metrics", "the-first-token-of-tw").is(401);
    get("/nowhere", "wrong").is(401);
    for token in ["the-first-token-of-two", "the-second-token-of-two", "one-from-the-environment"] {
        get("/v1/stats", token).is(200);
    }
    server.get("/healthz").is(200);
    server.get("/readyz").is(200);
    server.get("/v1/openapi.json").is(200);
    assert!(!server.log().contains("token-of"), "{}", server.log());
    assert!(!server.log().contains("from-the-env"), "{}", server.log());
}

#[test]
fn an_address_for_others_needs_a_token() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let output = run(&["serve", "--listen", "0.0.0.0:0", "--data", data.to_str().unwrap()]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(error.contains("--listen: listen: 0.0.0.0:0 can be reached from other hosts"), "{error}");
    assert!(error.contains("tokens"), "{error}");
    assert!(!data.exists());
    let tokens = [("LARDER_TOKENS", "0123456789abcdef")];
    let server = Server::start_with(&data, &["--listen", "0.0.0.0:0"], &tokens);
    server.stop();
}

#[test]
fn request_ids_are_given_back_and_keys_stay_out_of_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_with(folder.path(), &[], &[("LARDER_LOG", "debug")]);
    let answer =
        server.request("PUT", "/v1/cache/ns/private-key", &[("X-Request-Id", "mine-1")], b"private-value");
    assert_eq!(answer.header("X-Request-Id"), Some("mine-1"));
    let answer = server.request("GET", "/v1/cache/ns/private-key", &[("X-Request-Id", "a b\"c")], b"");
    assert_ne!(answer.header("X-Request-Id"), Some("a b\"c"));
    support::eventually("the request is in the log", || server.log().contains("mine-1"));
    let metrics = server.get("/metrics").is(200).text();
    assert!(
        metrics.contains("larder_http_requests_total{operation=\"putEntry\",status=\"204\"} 1"),
        "{metrics}"
    );
    for text in [server.log(), metrics] {
        assert!(!text.contains("private"), "{text}");
    }
}
