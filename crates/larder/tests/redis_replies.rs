//! Each of Redis' error replies has its kind, and none of them quotes a value or a secret.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(feature = "redis")]

mod redis_support;

use bytes::Bytes;
use larder::ErrorKind;
use larder::backend::{Backend, Put, RedisBackend, RedisOptions, Ticket};
use larder::clock::NEVER_MS;
use larder::entry::{EntryKind, Meta, Tags};
use larder::key::{EntryKey, Namespace};
use larder::stamp::Stamp;
use redis_support::Server;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

fn key(name: &str) -> EntryKey {
    EntryKey::new(&Namespace::default(), name).unwrap()
}

fn put(kind: EntryKind, name: &str, body: &str, ticket: Ticket, stamp: Stamp) -> Put {
    let meta = Meta {
        kind,
        stamp,
        created_ms: 0,
        fresh_until_ms: NEVER_MS,
        revalidate_until_ms: NEVER_MS,
        gone_at_ms: NEVER_MS,
        load_ms: 0,
        is_negative: false,
        tags: Tags::NONE,
    };
    Put { key: key(name), meta, sealed: Bytes::copy_from_slice(body.as_bytes()), ticket }
}

/// A server that greets as a master does, and answers everything else with `reply`.
fn fake(reply: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut requests = BufReader::new(stream.try_clone().unwrap());
            std::thread::spawn(move || {
                while let Some(request) = read_request(&mut requests) {
                    let answer: &[u8] = match &request[0][..] {
                        b"CLIENT" => b"+OK\r\n",
                        b"INFO" if request[1] == b"server" => b"$14\r\nrun_id:abc\r\nx:\r\n",
                        b"INFO" => b"$30\r\nrole:master\r\nmaster_replid:def\r\n",
                        b"SETNX" => b":0\r\n",
                        b"GET" => b"$-1\r\n",
                        b"SCRIPT" => b"$1\r\nx\r\n",
                        _ => reply,
                    };
                    if stream.write_all(answer).is_err() {
                        return;
                    }
                }
            });
        }
    });
    format!("redis://{address}")
}

fn read_request(requests: &mut impl BufRead) -> Option<Vec<Vec<u8>>> {
    let mut line = String::new();
    let mut number = |requests: &mut dyn BufRead| {
        line.clear();
        requests.read_line(&mut line).ok()?;
        line.get(1..)?.trim().parse::<usize>().ok()
    };
    let count = number(requests)?;
    let mut parts = Vec::new();
    for _ in 0..count {
        let mut part = vec![0; number(requests)? + 2];
        requests.read_exact(&mut part).ok()?;
        part.truncate(part.len() - 2);
        parts.push(part);
    }
    Some(parts)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_error_reply_has_its_kind_and_quotes_nothing() {
    use ErrorKind::{Authentication, Config, Corrupt, Full, ReadOnly, Unavailable, Unknown};
    let replies: [(&'static str, ErrorKind); 20] = [
        ("-LOADING Redis is loading the dataset in memory", Unavailable),
        ("-BUSY Redis is busy running a script. secret", Unavailable),
        ("-TRYAGAIN Multiple keys request during rehashing of slot", Unavailable),
        ("-CLUSTERDOWN Hash slot not served", Unavailable),
        ("-MASTERDOWN Link with MASTER is down", Unavailable),
        ("-NOREPLICAS Not enough good replicas to write.", Unavailable),
        ("-MOVED 3999 127.0.0.1:6381", Unavailable),
        ("-ASK 3999 127.0.0.1:6381", Unavailable),
        ("-NOSCRIPT No matching script.", Unavailable),
        ("-READONLY You can't write against a read only replica.", ReadOnly),
        ("-MISCONF Redis is configured to save RDB snapshots", ReadOnly),
        ("-OOM command not allowed when used memory > 'maxmemory'.", Full),
        ("-WRONGTYPE Operation against a key holding the wrong kind of value", Corrupt),
        ("-NOPERM this user has no permissions to access 'secret'", Authentication),
        ("-NOAUTH Authentication required.", Authentication),
        ("-WRONGPASS invalid username-password pair", Authentication),
        ("-CROSSSLOT Keys in request don't hash to the same slot", Config),
        ("-ERR unknown command 'EVALSHA', with args beginning with: 'secret'", Unknown),
        ("-SECRET secret", Unknown),
        ("-secret", Unknown),
    ];
    for (text, kind) in replies {
        let reply: &'static [u8] = format!("{text}\r\n").leak().as_bytes();
        let backend = RedisBackend::new(RedisOptions::new(fake(reply))).unwrap();
        let (name, ticket) = (key("k"), Ticket { inc: 1, pos: 1 });
        let errors = [
            backend.get(&name).await.unwrap_err(),
            backend.ticket(&name).await.unwrap_err(),
            backend.put(put(EntryKind::Load, "k", "secret", ticket, Stamp::MIN)).await.unwrap_err(),
            backend.remove(&name).await.unwrap_err(),
            backend.get_many(std::slice::from_ref(&name)).await.pop().unwrap().unwrap_err(),
            backend.remove_many(&[name]).await.pop().unwrap().unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), kind, "{text}: {error}");
            assert_eq!(error.backend_name(), Some("redis"));
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}

/// Answers that Redis doesn't give: an error of the call, never a value, a panic or a wait without end.
#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_an_error() {
    let replies: [&'static [u8]; 9] = [
        b"+OK\r\n",
        b"*0\r\n",
        b"*-1\r\n",
        b":5\r\n",
        b"*2\r\n$1\r\na\r\n$1\r\nb\r\n",
        b"*5\r\n$3\r\nabc\r\n$1\r\nx\r\n$1\r\n1\r\n$-1\r\n$-1\r\n",
        b"*5\r\n$3\r\nabc\r\n$8\r\n12345678\r\n$1\r\n1\r\n$-1\r\n$-1\r\n",
        b"?what\r\n",
        b"\0\0\0\0\r\n",
    ];
    for reply in replies {
        let backend = RedisBackend::new(RedisOptions::new(fake(reply))).unwrap();
        let read = backend.get(&key("k")).await;
        assert!(read.is_err(), "{reply:?}: {read:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_and_permissions() {
    let server = Server::start(&["--requirepass", "hunter2"]);
    let address = format!("127.0.0.1:{}", server.port);
    let failed = |url: String| async move {
        let options = RedisOptions::new(url);
        let shown = format!("{options:?}");
        let backend = RedisBackend::new(options).unwrap();
        let shown = format!("{shown} {backend:?}");
        let error = backend.get(&key("k")).await.map(|read| read.ticket);
        let shown = format!("{shown} {error:?}");
        assert!(!shown.contains("hunter") && !shown.contains("wrong"), "{shown}");
        error.err().map(|error| error.kind())
    };
    assert_eq!(failed(format!("redis://{address}")).await, Some(ErrorKind::Authentication));
    assert_eq!(failed(format!("redis://:wrong@{address}")).await, Some(ErrorKind::Authentication));
    assert_eq!(failed(format!("redis://:hunter2@{address}")).await, None);
    assert_eq!(failed(format!("redis://default:hunter2@{address}/3")).await, None);
    // Without INFO there is no telling one run of the server from another.
    let admin = redis_cli(&server, "hunter2");
    admin(&[
        b"ACL",
        b"SETUSER",
        b"u",
        b"on",
        b">hunter3",
        b"~larder*",
        b"~{larder*",
        b"&*",
        b"+@all",
        b"-info",
    ]);
    assert_eq!(failed(format!("redis://u:hunter3@{address}")).await, Some(ErrorKind::Authentication));
    admin(&[b"ACL", b"SETUSER", b"u", b"+info"]);
    assert_eq!(failed(format!("redis://u:hunter3@{address}")).await, None);
    // Channels are a hint: larder works without.
    admin(&[b"ACL", b"SETUSER", b"u", b"resetchannels"]);
    let backend = RedisBackend::new(RedisOptions::new(format!("redis://u:hunter3@{address}"))).unwrap();
    backend.remove(&key("k")).await.unwrap();
    for url in ["http://hunter2@h", "redis://:hunter2@h:port", "hunter2", "rediss://:hunter2@h/#insecure"] {
        let error = RedisBackend::new(RedisOptions::new(url)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(!error.to_string().contains("hunter"), "{error}");
    }
}

fn redis_cli<'a>(server: &'a Server, password: &'a str) -> impl Fn(&[&[u8]]) + 'a {
    move |args| {
        let mut stream = std::os::unix::net::UnixStream::connect(server.socket()).unwrap();
        redis_support::send(&mut stream, &[b"AUTH", password.as_bytes()]).unwrap();
        redis_support::send(&mut stream, args).unwrap();
        let mut lines = BufReader::new(stream).lines();
        for _ in 0..2 {
            let line = lines.next().unwrap().unwrap();
            assert_eq!(line, "+OK");
        }
    }
}
