//! What was answered with 204 is there after a kill, after a stop under load, and after a restart; what
//! can't be kept is never answered so, and a server without a disk goes on and says so.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that can't go on stops")]

mod support;

use std::io::{Read, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use support::{Answer, Server, eventually, run, send};

/// Puts keys from several connections until the server is gone; returns the keys that were acknowledged.
fn put_until_gone(server: &Server, clients: usize, act: impl FnOnce(usize)) -> Vec<String> {
    let acknowledged = Mutex::new(Vec::new());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for client in 0..clients {
            let (acknowledged, stop) = (&acknowledged, &stop);
            let mut stream = server.connect();
            scope.spawn(move || {
                for at in 0.. {
                    let key = format!("{client}-{at}");
                    let headers = [("Larder-TTL", "never")];
                    match send(&mut stream, "PUT", &format!("/v1/cache/ns/{key}"), &headers, key.as_bytes()) {
                        Ok(answer) if answer.status == 204 => {
                            assert_eq!(answer.header("Larder-Written"), Some("stored"));
                            acknowledged.lock().unwrap().push(key);
                            // The answer may say that it was the last on this connection.
                            if answer.header("Connection") == Some("close") || stop.load(Relaxed) {
                                return;
                            }
                        }
                        Ok(answer) => panic!("{answer:?}"),
                        Err(_) => return,
                    }
                }
            });
        }
        eventually("some sets are acknowledged", || acknowledged.lock().unwrap().len() > 200);
        act(clients);
        stop.store(true, Relaxed);
    });
    acknowledged.into_inner().unwrap()
}

fn assert_all_there(server: &Server, keys: &[String]) {
    let mut stream = server.connect();
    for key in keys {
        let answer = send(&mut stream, "GET", &format!("/v1/cache/ns/{key}"), &[], b"").unwrap();
        assert_eq!((answer.status, answer.text()), (200, key.clone()), "{key} was acknowledged");
    }
}

#[test]
fn kill_9_loses_no_acknowledged_set() {
    let folder = tempfile::tempdir().unwrap();
    let mut all = Vec::new();
    for round in 0..3 {
        let server = Server::start(folder.path(), &[]);
        assert_all_there(&server, &all);
        server.post("/v1/invalidate/ns", &serde_json::json!({"all": true})).is(200);
        let server = Mutex::new(Some(server));
        let keys = {
            let running = server.lock().unwrap();
            let running = running.as_ref().unwrap();
            put_until_gone(running, 4, |_| running.signal("-KILL"))
        };
        drop(server);
        assert!(keys.len() > 200, "round {round}");
        all = keys;
    }
    // The killed server left its announcement; the folder is free all the same.
    let server = Server::start(folder.path(), &[]);
    assert_all_there(&server, &all);
    assert!(
        all.iter()
            .all(|key| server.request("DELETE", &format!("/v1/cache/ns/{key}"), &[], b"").status == 204)
    );
    server.kill();
    let server = Server::start(folder.path(), &[]);
    assert!(all.iter().all(|key| server.get(&format!("/v1/cache/ns/{key}")).status == 404));
}

#[test]
fn a_stop_under_load_answers_what_it_took_and_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path(), &[]);
    // A request in the middle of its body when the signal comes.
    let mut halfway = server.connect();
    let head = "PUT /v1/cache/ns/halfway HTTP/1.1\r\nHost: localhost\r\nContent-Length: 7\r\n\r\nhal";
    halfway.write_all(head.as_bytes()).unwrap();
    let keys = put_until_gone(&server, 6, |_| {
        server.signal("-TERM");
        eventually("no connection is taken any more", || {
            std::net::TcpStream::connect(server.address).is_err()
        });
        halfway.write_all(b"fway").unwrap();
        Answer::read(&mut halfway, false).unwrap().is(204);
        assert_eq!(halfway.read(&mut [0]).unwrap_or(0), 0);
    });
    assert_eq!(server.ended(), Some(0), "{}", server.log());
    assert!(!folder.path().join("server.json").exists());
    let server = Server::start(folder.path(), &[]);
    assert_all_there(&server, &keys);
    assert_eq!(server.get("/v1/cache/ns/halfway").is(200).text(), "halfway");
    server.stop();
}

#[test]
fn a_request_that_never_ends_is_cut_off_and_a_second_signal_waits_for_nobody() {
    for (timeout, signals, code) in [("0.3", 1, 0), ("3600", 2, 2)] {
        let folder = tempfile::tempdir().unwrap();
        let variables = [("LARDER_HTTP__SHUTDOWN_TIMEOUT", timeout)];
        let mut server = Server::start_with(folder.path(), &[], &variables);
        let mut endless = server.connect();
        endless
            .write_all(b"PUT /v1/cache/ns/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 7\r\n\r\n")
            .unwrap();
        eventually("the request is under way", || {
            server.get("/metrics").text().contains("larder_http_requests_in_flight 2")
        });
        for _ in 0..signals {
            server.signal("-TERM");
            eventually("the signal was seen", || server.log().contains("stopping"));
        }
        assert_eq!(server.ended(), Some(code), "{}", server.log());
    }
}

#[test]
fn two_servers_don_t_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let output = run(&["serve", "--listen", "127.0.0.1:0", "--data", folder.path().to_str().unwrap()]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(error.contains("is in use by the server at http://127.0.0.1:"), "{error}");
    server.get("/readyz").is(200);
}

#[test]
fn without_a_disk_memory_serves_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "not a folder").unwrap();
    let data = file.join("data");
    let server = Server::start(&data, &[]);
    assert!(server.banner.contains("NO DATA FOLDER"), "{}", server.banner);
    eventually("the log says so", || server.log().contains("THE DATABASE CAN'T BE OPENED"));
    let health = server.get("/healthz").is(200).json();
    assert_eq!(health["state"], "degraded");
    assert!(health["reasons"][0]["detail"].as_str().unwrap().starts_with("memory only: "), "{health}");
    assert!(server.get("/metrics").is(200).text().contains("\nlarder_degraded 1\n"));
    let put = server.put("/v1/cache/ns/k", b"v").is(202);
    assert_eq!(put.header("Larder-Written"), Some("local"));
    assert_eq!(server.get("/v1/cache/ns/k").is(200).text(), "v");
    assert_eq!(server.get("/v1/keys/ns").is(200).json()["keys"][0]["key"], "k");
    server.post("/v1/invalidate/ns", &serde_json::json!({"pattern": "k"})).is(200);
    server.get("/v1/cache/ns/k").is(404);
    server.stop();
    let output =
        run(&["serve", "--listen", "127.0.0.1:0", "--require-data", "--data", data.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("require_data is set"));
}

#[test]
fn on_a_full_disk_memory_goes_on_and_what_was_durable_stays_so() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_on_a_small_disk(folder.path(), 4096);
    let value = vec![7; 100_000];
    let mut durable = Vec::new();
    let mut local = Vec::new();
    for at in 0..100 {
        let path = format!("/v1/cache/ns/{at}");
        let put = server.request("PUT", &path, &[("Larder-TTL", "never")], &value);
        match put.status {
            204 => durable.push(path),
            202 => local.push(path),
            _ => panic!("{put:?} {}", put.text()),
        }
    }
    assert!(durable.len() > 5 && local.len() > 5, "{} {}", durable.len(), local.len());
    for path in durable.iter().chain(&local) {
        assert!(server.get(path).is(200).body == value, "{path}");
    }
    let health = server.get("/healthz").is(200).json();
    assert_eq!(health["state"], "degraded", "{health}");
    assert!(server.get("/metrics").text().contains("\nlarder_degraded 1\n"));
    server.get("/readyz").is(200);
    server.kill();
    let server = Server::start(folder.path(), &[]);
    for path in durable {
        assert!(server.get(&path).is(200).body == value, "{path}");
    }
}

#[test]
fn a_corrupt_database_is_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("larder.sqlite");
    std::fs::write(&database, [b'x'; 10_000]).unwrap();
    let server = Server::start(folder.path(), &[]);
    server.put("/v1/cache/ns/k", b"v").is(204);
    let health = server.get("/healthz").is(200).json();
    assert_eq!(health["state"], "degraded", "{health}");
    assert!(
        health["tiers"][0]["reasons"][0]["detail"].as_str().unwrap().contains("set aside as"),
        "{health}"
    );
    server.stop();
    let server = Server::start(folder.path(), &[]);
    assert_eq!(server.get("/v1/cache/ns/k").is(200).text(), "v");
}
