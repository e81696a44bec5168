//! A server on configured tiers goes on when one of them is gone, says so to probes, and uses it again when
//! it is back; commands find the same tiers.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that can't go on stops")]

#[path = "../../larder/tests/redis_support/mod.rs"]
mod redis_support;
mod support;

use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};
use support::{Answer, Server, eventually, larder, send};

struct World {
    folder: tempfile::TempDir,
    redis: redis_support::Server,
}

impl World {
    fn new() -> Self {
        World { folder: tempfile::tempdir().unwrap(), redis: redis_support::Server::start(&[]) }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Memory, SQLite and Redis, in YAML.
    fn config(&self, more: &str) -> PathBuf {
        let path = self.folder.path().join("larder.yaml");
        let text = format!(
            "single_node: true\nhealth:\n  cached_for: 0.05\n{more}\ntiers:\n  - backend: memory\n    entries_max: 1000\n  \
             - backend: sqlite\n    name: disk\n    durability: process\n  - backend: redis\n    name: shared\n    url: {}\n    \
             read_timeout: 0.3\n    write_timeout: 0.3\n",
            self.redis.tcp()
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    fn server(&self, config: &Path, variables: &[(&str, &str)]) -> Server {
        Server::start_with(&self.data(), &["--config", config.to_str().unwrap()], variables)
    }
}

fn command(arguments: &[&str], folder: &Path) -> Output {
    larder(arguments).current_dir(folder).output().unwrap()
}

#[track_caller]
fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// State, and kinds of all reasons with their tiers.
fn summary(health: &Value) -> (String, Vec<String>) {
    let kinds = |part: &Value| -> Vec<String> {
        let reasons = part["reasons"].as_array().into_iter().flatten();
        reasons
            .map(|reason| {
                format!("{} {}", part["name"].as_str().unwrap_or("-"), reason["kind"].as_str().unwrap())
            })
            .collect()
    };
    let tiers = health["tiers"].as_array().unwrap().iter().flat_map(kinds);
    (health["state"].as_str().unwrap().to_owned(), kinds(health).into_iter().chain(tiers).collect())
}

fn ready(server: &Server) -> (String, Vec<String>) {
    summary(&server.get("/readyz").is(200).json())
}

fn is_healthy(server: &Server) -> bool {
    ready(server).0 == "healthy"
}

#[test]
fn a_tier_that_stops_takes_nothing_with_it() {
    let world = World::new();
    let config = world.config("");
    let server = world.server(&config, &[]);
    assert!(server.banner.contains("tiers memory, disk, shared"), "{}", server.banner);
    server.put("/v1/cache/ns/removed", b"old").is(204);
    server.put("/v1/cache/ns/kept", b"kept").is(204);
    let full = server.get("/healthz?level=full").is(200).json();
    for tier in full["tiers"].as_array().unwrap() {
        assert!(tier["round_trip_us"].is_u64() && tier["usage"]["entries"] == 2, "{full}");
    }
    assert_eq!(full["state"], "healthy");
    let shown = ok(&command(
        &[
            "health",
            "--level",
            "full",
            "--config",
            config.to_str().unwrap(),
            "--data",
            world.data().to_str().unwrap(),
        ],
        world.folder.path(),
    ));
    assert!(shown.starts_with("larder  healthy") && shown.contains("\nshared  healthy    ping "), "{shown}");

    let of_removed = || world.redis.command(&[b"KEYS", b"*removed*"]);
    assert!(of_removed().starts_with("*1"));

    // It hangs: the address answers, and nothing comes.
    world.redis.signal(libc::SIGSTOP);
    let began = Instant::now();
    assert_eq!(server.request("DELETE", "/v1/cache/ns/removed", &[], b"").status, 202);
    assert_eq!(server.put("/v1/cache/ns/new", b"new").status, 202);
    assert_eq!(server.get("/v1/cache/ns/kept").is(200).text(), "kept");
    server.get("/v1/cache/ns/removed").is(404);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    let (state, kinds) = ready(&server);
    assert_eq!(state, "degraded");
    assert!(
        kinds.contains(&"shared aside".into()) && kinds.contains(&"shared undelivered".into()),
        "{kinds:?}"
    );
    assert!(kinds.iter().all(|kind| kind.starts_with("shared ")), "{kinds:?}");
    // Liveness waits for nobody.
    for _ in 0..20 {
        let began = Instant::now();
        server.get("/healthz").is(200);
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
    let (config, data) = (config.to_str().unwrap(), world.data());
    let health = |more: &[&str]| {
        let place = ["health", "--config", config, "--data", data.to_str().unwrap()];
        command(&[&place[..], more].concat(), world.folder.path())
    };
    let shown = ok(&health(&[]));
    assert!(shown.starts_with("larder  degraded") && shown.contains("\nshared  degraded"), "{shown}");
    assert!(shown.contains("\n          aside: set aside for "), "{shown}");
    assert_eq!(health(&["--strict"]).status.code(), Some(1));
    let document: Value = serde_json::from_str(&ok(&health(&["--json"]))).unwrap();
    assert_eq!(summary(&document).0, "degraded");

    world.redis.signal(libc::SIGCONT);
    eventually("it is healthy again", || is_healthy(&server));
    assert_eq!(of_removed().trim(), "*0", "the removal was delivered");
    server.put("/v1/cache/ns/again", b"again").is(204);
    server.stop();

    // It dies, and comes back empty.
    let server = world.server(Path::new(config), &[]);
    assert_eq!(server.get("/v1/cache/ns/again").is(200).text(), "again");
    world.redis.kill();
    eventually("its death shows", || ready(&server).0 == "degraded");
    server.put("/v1/cache/ns/dead", b"dead").is(202);
    assert_eq!(server.get("/v1/cache/ns/dead").is(200).text(), "dead");
    world.redis.begin();
    eventually("it is healthy again", || is_healthy(&server));
    server.put("/v1/cache/ns/back", b"back").is(204);
    server.stop();
}

#[test]
fn readiness_is_as_it_is_set_and_liveness_is_not() {
    let world = World::new();
    let config = world.config("  tiers_aside_unhealthy: 1");
    let server = world.server(&config, &[]);
    assert!(is_healthy(&server));
    world.redis.kill();
    server.put("/v1/cache/ns/k", b"v").is(202);
    let problem = server.get("/readyz").is(503).json();
    assert!(problem["detail"].as_str().unwrap().starts_with("unhealthy: tiers_aside, shared "), "{problem}");
    assert_eq!(summary(&server.get("/healthz").is(200).json()).0, "unhealthy");
    assert!(server.get("/metrics").text().contains("\nlarder_unhealthy 1\n"));
    assert_eq!(server.get("/v1/cache/ns/k").is(200).text(), "v", "it serves all the same");
    let output = command(&["health", "--data", world.data().to_str().unwrap()], world.folder.path());
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    world.redis.begin();
    eventually("it is ready again", || server.get("/readyz").status == 200);
    // What the variable says counts.
    drop(server);
    let server = world.server(&config, &[("LARDER_HEALTH__TIERS_ASIDE_UNHEALTHY", "2")]);
    world.redis.kill();
    server.put("/v1/cache/ns/k", b"v").is(202);
    assert_eq!(ready(&server).0, "degraded");
}

/// A probe that waits for a tier is given up, and the process restarted or left without requests.
#[test]
fn probes_wait_for_no_tier() {
    let world = World::new();
    let patient = [
        ("LARDER_TIERS__SHARED__READ_TIMEOUT", "120"),
        ("LARDER_TIERS__SHARED__WRITE_TIMEOUT", "120"),
        ("LARDER_HEALTH__TIMEOUT", "120"),
    ];
    let server = world.server(&world.config(""), &patient);
    assert!(is_healthy(&server));
    world.redis.signal(libc::SIGSTOP);
    // The client gives up long before the tier.
    eventually("the last answer is too old, and a new one does not come", || {
        server.get("/readyz").is(200).json()["level"] == "ping"
    });
    for path in ["/healthz", "/readyz", "/metrics", "/healthz?level=ping"] {
        server.get(path).is(200);
    }
    world.redis.signal(libc::SIGCONT);
    eventually("the check that nobody waited for is over", || is_healthy(&server));
}

#[test]
fn a_server_that_stops_is_not_ready() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path(), &[]);
    let mut upload = server.connect();
    upload.write_all(b"PUT /v1/cache/ns/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n").unwrap();
    let mut probe = server.connect();
    probe.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n").unwrap();
    eventually("the upload is under way", || {
        server.get("/metrics").text().contains("larder_http_requests_in_flight 2")
    });
    server.signal("-TERM");
    eventually("the signal was seen", || server.log().contains("stopping"));
    probe.write_all(b"\r\n").unwrap();
    let problem = Answer::read(&mut probe, false).unwrap().is(503).json();
    assert_eq!(problem["detail"], "unhealthy: stopping");
    upload.write_all(b"x").unwrap();
    Answer::read(&mut upload, false).unwrap().is(204);
    assert_eq!(server.ended(), Some(0));
}

#[test]
fn who_has_no_token_sees_no_details() {
    let world = World::new();
    let config = world.config("");
    let server = world.server(&config, &[("LARDER_TOKENS", "0123456789abcdef")]);
    world.redis.kill();
    let authorized = [("Authorization", "Bearer 0123456789abcdef")];
    server.request("PUT", "/v1/cache/ns/k", &authorized, b"v").is(202);
    for path in ["/healthz", "/readyz", "/healthz?level=basic", "/readyz?level=ping"] {
        let text = server.get(path).is(200).text();
        assert!(text.contains("\"name\":\"shared\"") && text.contains("\"aside\""), "{text}");
        for hidden in ["detail", "127.0.0.1", "refused", "ping_us", "undelivered\":1", "memory_share"] {
            assert!(!text.contains(hidden), "{path} shows {hidden}: {text}");
        }
    }
    server.get("/healthz?level=full").is(401);
    server.get("/readyz?level=full").is(401);
    server.get("/healthz?level=deep").is(400);
    server.get("/healthz?levels=full").is(400);
    let health = server.request("GET", "/healthz?level=full", &authorized, b"").is(200).json();
    assert!(health["tiers"][2]["reasons"][0]["detail"].is_string(), "{health}");
    let shown = larder(&["health", "--server", &server.url()])
        .env("LARDER_TOKEN", "0123456789abcdef")
        .output()
        .unwrap();
    assert!(ok(&shown).contains("aside: "), "{shown:?}");
}

#[test]
fn commands_work_on_the_tiers_of_a_configuration_or_of_the_folder() {
    let world = World::new();
    let config = world.config("");
    let (config, data) = (config.to_str().unwrap(), world.data());
    let (data, folder) = (data.to_str().unwrap(), world.folder.path());
    let server = world.server(Path::new(config), &[]);
    server.put("/v1/cache/default/a", b"1").is(204);
    let at_server = ["--config", config, "--data", data];
    assert_eq!(ok(&command(&[&["get", "a"], &at_server[..]].concat(), folder)), "1");
    server.stop();
    // Without a server: by the configuration, and by what the folder was served with last.
    for place in [&["--config", config, "--data", data][..], &["--data", data]] {
        let run = |arguments: &[&str]| command(&[arguments, place].concat(), folder);
        assert_eq!(ok(&run(&["get", "a"])), "1", "{place:?}");
        ok(&run(&["set", "b", "2", "--ttl", "never"]));
        assert_eq!(ok(&run(&["keys"])), "a\nb\n");
        let stats: Value = serde_json::from_str(&ok(&run(&["stats", "--json"]))).unwrap();
        let names: Vec<&str> =
            stats["tiers"].as_array().unwrap().iter().map(|tier| tier["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["memory", "disk", "shared"]);
        assert!(ok(&run(&["explain", "b"])).contains("\nshared     fresh"));
        let health: Value =
            serde_json::from_str(&ok(&run(&["health", "--level", "full", "--json"]))).unwrap();
        assert_eq!(summary(&health), ("healthy".into(), vec![]));
        assert_eq!(ok(&run(&["export", "--plain"])).lines().count(), 2);
        // A removal reaches every tier.
        assert!(world.redis.command(&[b"KEYS", b"*e:*b"]).starts_with("*1"));
        ok(&run(&["delete", "b"]));
        assert_eq!(world.redis.command(&[b"KEYS", b"*e:*b"]).trim(), "*0");
    }
    let mut import = larder(&["import", "-", "--data", data]);
    let mut import = import.stdin(std::process::Stdio::piped()).spawn().unwrap();
    let exported = ok(&command(&["export", "--plain", "--data", data], folder));
    import.stdin.take().unwrap().write_all(exported.replace("\"a\"", "\"c\"").as_bytes()).unwrap();
    assert!(import.wait().unwrap().success());
    assert!(ok(&command(&["explain", "c", "--data", data], folder)).contains("\ndisk       fresh"));
    // Another place into a tier, by its name.
    ok(&command(&["migrate", "tier:disk", "jsonl:copy", "--config", config], folder));
    assert!(folder.join("copy").is_dir());
    let wrong = command(&["migrate", "tier:dsk", "jsonl:copy", "--config", config], folder);
    assert!(
        String::from_utf8_lossy(&wrong.stderr)
            .contains("there is no tier \"dsk\"; there are: memory, disk, shared")
    );
    // A configuration that went away must not become an empty cache.
    std::fs::remove_file(config).unwrap();
    let lost = command(&["get", "a", "--data", data], folder);
    assert_eq!(lost.status.code(), Some(2), "{lost:?}");
    assert!(String::from_utf8_lossy(&lost.stderr).contains("larder.yaml: can't be read"), "{lost:?}");
    // A server without tiers takes the folder over.
    Server::start(Path::new(data), &[]).stop();
    assert_eq!(ok(&command(&["get", "a", "--data", data], folder)), "1");
}

#[test]
fn a_tier_that_can_t_be_opened_is_left_out_loudly() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "no folder").unwrap();
    let config = folder.path().join("a.toml");
    let text = format!(
        "[[tiers]]\nbackend = \"memory\"\n[[tiers]]\nbackend = \"files\"\npath = {:?}\n",
        folder.path().join("cache")
    );
    std::fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    // Without the folder's lock another server may be at these files, too.
    let data = folder.path().join("file").join("data");
    let server = Server::start(&data, &["--config", config]);
    let (state, kinds) = ready(&server);
    assert_eq!((state.as_str(), kinds.len()), ("degraded", 2), "{kinds:?}");
    assert!(kinds.iter().all(|kind| kind == "- not_opened"), "{kinds:?}");
    server.put("/v1/cache/ns/k", b"v").is(202);
    assert_eq!(server.get("/v1/cache/ns/k").is(200).text(), "v");
    assert!(!folder.path().join("cache").exists());
    server.stop();
    let data = data.to_str().unwrap();
    let refused = command(
        &["serve", "--require-data", "--listen", "127.0.0.1:0", "--config", config, "--data", data],
        folder.path(),
    );
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(error.contains("a tier can't be opened, and require_data is set: "), "{error}");
    assert!(error.contains("files: it is not opened without the data folder"), "{error}");
}

#[test]
fn every_kind_of_tier_takes_its_place() {
    let world = World::new();
    let config = world.folder.path().join("all.json");
    let tiers = json!({
        "single_node": true,
        "tiers": [
            {"backend": "memory", "bytes_max": "8 MiB"},
            {"backend": "sqlite"},
            {"backend": "jsonl", "ttl_max": 60},
            {"backend": "files", "guard": {"retry": {"attempts_max": 2}}},
            {"backend": "redis", "url": world.redis.unix(), "prefix": "top"},
            {"backend": "redis", "name": "low", "url": world.redis.tcp(), "prefix": "low"},
        ],
    });
    std::fs::write(&config, tiers.to_string()).unwrap();
    let server = world.server(&config, &[]);
    server.put("/v1/cache/ns/k", b"v").is(204);
    let full = server.get("/healthz?level=full").is(200).json();
    assert_eq!(summary(&full), ("healthy".into(), vec![]), "{full}");
    assert_eq!(full["tiers"].as_array().unwrap().len(), 6);
    for tier in full["tiers"].as_array().unwrap() {
        assert!(tier["round_trip_us"].is_u64() && tier["usage"]["entries"] == 1, "{tier}");
    }
    let explained = server.get("/v1/explain/ns/k?format=text").is(200).text();
    for tier in ["memory", "redis", "jsonl", "files", "low", "sqlite"] {
        assert!(explained.contains(&format!("\n{tier:<10} fresh")), "{explained}");
    }
    server.request("DELETE", "/v1/cache/ns/k", &[], b"").is(204);
    let mut stream = server.connect();
    assert_eq!(send(&mut stream, "GET", "/v1/cache/ns/k", &[], b"").unwrap().status, 404);
    // Nothing of the checks is listed.
    assert_eq!(server.get("/v1/namespaces").is(200).json()["namespaces"], json!(["default", "ns"]));
    server.stop();
}
