//! No client can take more than its share: of memory by large bodies, of connections by being slow.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that can't go on stops")]

mod support;

use std::io::{Read, Write};
use std::time::{Duration, Instant};
use support::{Answer, Server, eventually, send};

fn server(variables: &[(&str, &str)]) -> (tempfile::TempDir, Server) {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_with(&folder.path().join("data"), &[], variables);
    (folder, server)
}

#[test]
fn a_body_over_the_limit_is_refused_however_it_is_announced() {
    let (_folder, server) = server(&[("LARDER_HTTP__BODY_BYTES_MAX", "1 MiB")]);
    let exact = vec![7; 1 << 20];
    server.put("/v1/cache/ns/k", &exact).is(204);
    assert_eq!(server.get("/v1/cache/ns/k").is(200).body, exact);
    let more = vec![7; (1 << 20) + 1];
    let refused = server.put("/v1/cache/ns/k", &more).is(413);
    assert!(refused.text().contains("http.body_bytes_max, 1048576 bytes"), "{}", refused.text());
    server.put("/v1/cache/ns/k", &vec![7; 8 << 20]).is(413);
    // Announced only, never sent: the answer comes without waiting for it.
    let head = "PUT /v1/cache/ns/k HTTP/1.1\r\nHost: localhost\r\n";
    server
        .raw(format!("{head}Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n").as_bytes())
        .is(413);
    // Not announced.
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, "x".repeat(1 << 20));
    server
        .raw(format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunk}1\r\nx\r\n0\r\n\r\n").as_bytes())
        .is(413);
    assert_eq!(server.get("/v1/cache/ns/k").is(200).body, exact);
}

#[test]
fn a_large_value_is_kept_whole() {
    let (_folder, server) = server(&[]);
    let large: Vec<u8> = (0..(64 << 20)).map(|at: u32| (at ^ (at >> 11)) as u8).collect();
    server.put("/v1/cache/ns/large", &large).is(204);
    assert!(server.get("/v1/cache/ns/large").is(200).body == large);
}

#[test]
fn bodies_together_have_a_limit_and_give_their_share_back() {
    let limits = [("LARDER_HTTP__BODY_BYTES_MAX", "1 MiB"), ("LARDER_HTTP__BODIES_BYTES_MAX", "1 MiB")];
    let (_folder, server) = server(&limits);
    let mut slow = server.connect();
    let head = "PUT /v1/cache/ns/slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000001\r\n\r\n";
    slow.write_all(head.as_bytes()).unwrap();
    slow.write_all(&vec![7; 1_000_000]).unwrap();
    eventually("the slow body has its share", || {
        server.get("/metrics").text().contains("\nlarder_http_body_bytes 1000000\n")
    });
    let refused = server.put("/v1/cache/ns/k", &vec![7; 100_000]).is(503);
    assert_eq!(refused.header("Retry-After"), Some("1"));
    slow.write_all(b"7").unwrap();
    Answer::read(&mut slow, false).unwrap().is(204);
    server.put("/v1/cache/ns/k", &vec![7; 100_000]).is(204);
}

/// A client that sends a byte now and then would hold its connection for ever.
#[test]
fn a_slow_head_is_cut() {
    let (_folder, server) = server(&[("LARDER_HTTP__HEADER_TIMEOUT", "0.3")]);
    let mut stream = server.connect();
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let start = Instant::now();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nX-Slow: ").unwrap();
    let mut byte = [0];
    eventually("the connection is cut", || {
        let _ = stream.write_all(b"x");
        match stream.read(&mut byte) {
            Ok(0) => true,
            Ok(_) => panic!("an answer to half a request"),
            Err(error) => {
                !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
            }
        }
    });
    assert!(start.elapsed() >= Duration::from_millis(250), "{:?}", start.elapsed());
}

#[test]
fn a_silent_connection_is_cut_and_a_busy_one_is_not() {
    let limits = [("LARDER_HTTP__IDLE_TIMEOUT", "0.5"), ("LARDER_HTTP__HEADER_TIMEOUT", "0.2")];
    let (_folder, server) = server(&limits);
    let mut busy = server.connect();
    let mut silent = server.connect();
    send(&mut silent, "GET", "/readyz", &[], b"").unwrap().is(200);
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1200) {
        send(&mut busy, "GET", "/readyz", &[], b"").unwrap().is(200);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(silent.read(&mut [0]).unwrap_or(0), 0);
    let mut never_spoke = server.connect();
    assert_eq!(never_spoke.read(&mut [0]).unwrap_or(0), 0);
}

/// Sends the head of its next request early and takes a large answer slowly: neither may cut it.
#[test]
fn a_slow_reader_gets_its_answer_and_one_that_stops_is_cut() {
    let limits = [("LARDER_HTTP__IDLE_TIMEOUT", "1"), ("LARDER_HTTP__HEADER_TIMEOUT", "0.2")];
    let (_folder, server) = server(&limits);
    let large = vec![7; 32 << 20];
    server.put("/v1/cache/ns/k", &large).is(204);
    let ask = b"GET /v1/cache/ns/k HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut slow = server.connect();
    slow.write_all(ask).unwrap();
    slow.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n").unwrap();
    let mut taken = Vec::new();
    let mut piece = vec![0; 1 << 20];
    // About two seconds for 10 MiB, then the rest at once.
    while taken.len() < 10 << 20 {
        let read = slow.read(&mut piece).unwrap();
        assert_ne!(read, 0, "cut after {} bytes", taken.len());
        taken.extend_from_slice(&piece[..read]);
        std::thread::sleep(Duration::from_micros(read as u64 / 5));
    }
    slow.write_all(b"\r\n").unwrap();
    while !taken.ends_with(b"}\n") {
        let read = slow.read(&mut piece).unwrap();
        assert_ne!(read, 0, "cut after {} bytes", taken.len());
        taken.extend_from_slice(&piece[..read]);
    }

    let mut stopped = server.connect();
    stopped.write_all(ask).unwrap();
    eventually("the connection of a reader that stopped is closed", || {
        server.get("/metrics").text().contains("\nlarder_http_connections 1\n")
    });
}

#[test]
fn a_body_that_stalls_times_out() {
    let (_folder, server) = server(&[("LARDER_HTTP__REQUEST_TIMEOUT", "0.3")]);
    let answer =
        server.raw(b"PUT /v1/cache/ns/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc");
    assert_eq!(answer.is(408).header("Connection"), Some("close"));
    server.get("/v1/cache/ns/k").is(404);
}

#[test]
fn more_connections_than_allowed_wait_for_their_turn() {
    let (_folder, server) = server(&[("LARDER_HTTP__CONNECTIONS_MAX", "2")]);
    let (mut first, mut second) = (server.connect(), server.connect());
    for stream in [&mut first, &mut second] {
        send(stream, "GET", "/readyz", &[], b"").unwrap().is(200);
    }
    let mut third = server.connect();
    third.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(send(&mut third, "GET", "/readyz", &[], b"").is_err());
    drop(first);
    third.set_read_timeout(Some(support::DEADLINE)).unwrap();
    Answer::read(&mut third, false).unwrap().is(200);
}
