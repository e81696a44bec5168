//! Each of memcached's error replies has its kind, none of them quotes anything, and no reply goes to another
//! call than its own: whoever leaves, and whatever the server sends, however slowly.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(feature = "memcached")]

mod memcached_support;

use bytes::Bytes;
use larder::ErrorKind;
use larder::backend::{Backend, MemcachedBackend, MemcachedOptions, Ticket};
use larder::entry::EntryKind;
use memcached_support::{Server, key, put};
use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::task::Poll;
use std::time::Duration;

/// A server that greets as memcached does, and then does with each command what it was told.
fn fake(behave: impl Fn(&[String], &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let behave = Arc::new(behave);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, behave) = (stream.unwrap(), behave.clone());
            let mut requests = BufReader::new(stream.try_clone().unwrap());
            std::thread::spawn(move || {
                let mut line = String::new();
                while requests.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
                    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
                    line.clear();
                    if words[0] == "ms" {
                        let mut value = vec![0; words[2].parse::<usize>().unwrap() + 2];
                        requests.read_exact(&mut value).unwrap();
                    }
                    let done = match &words[0][..] {
                        "version" => stream.write_all(b"VERSION 1.6.40\r\n"),
                        "stats" if words.len() == 1 => stream.write_all(b"STAT time 1800000000\r\nEND\r\n"),
                        "stats" => {
                            stream.write_all(b"STAT cas_enabled yes\r\nSTAT item_size_max 9999\r\nEND\r\n")
                        }
                        _ => behave(&words, &mut stream),
                    };
                    if done.is_err() {
                        return;
                    }
                }
            });
        }
    });
    format!("memcached://{address}")
}

fn opaque(words: &[String]) -> &str {
    words.iter().rev().find(|word| word.starts_with('O')).unwrap()
}

fn backend(url: String) -> MemcachedBackend {
    let options =
        MemcachedOptions { response_timeout: Duration::from_millis(500), ..MemcachedOptions::new([url]) };
    MemcachedBackend::new(options).unwrap()
}

async fn limited<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), test).await.expect("nobody hangs")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_error_reply_has_its_kind_and_quotes_nothing() {
    use ErrorKind::{Authentication, Full, TooLarge, Unavailable, Unknown};
    let replies: [(&'static str, ErrorKind); 13] = [
        ("SERVER_ERROR out of memory storing object", Full),
        ("SERVER_ERROR out of memory writing get response", Full),
        ("SERVER_ERROR object too large for cache", TooLarge),
        ("SERVER_ERROR busy", Unavailable),
        ("BUSY currently processing crawler request", Unavailable),
        ("ERROR Too many open connections", Unavailable),
        ("SERVER_ERROR backend failure secret", Unavailable),
        ("SERVER_ERROR secret", Unknown),
        ("CLIENT_ERROR unauthenticated", Authentication),
        ("CLIENT_ERROR bad command line format secret", Unknown),
        ("CLIENT_ERROR bad data chunk", Unknown),
        ("ERROR", Unknown),
        ("ERROR secret", Unknown),
    ];
    for (text, kind) in replies {
        let url = fake(move |_, stream| stream.write_all(format!("{text}\r\n").as_bytes()));
        let (name, ticket) = (key("k"), Ticket { inc: 1, pos: 2 });
        let errors = [
            limited(backend(url.clone()).get(&name)).await.unwrap_err(),
            limited(backend(url.clone()).ticket(&name)).await.unwrap_err(),
            limited(backend(url.clone()).put(put(EntryKind::Load, "k", "secret", ticket))).await.unwrap_err(),
            limited(backend(url.clone()).remove(&name)).await.unwrap_err(),
            limited(backend(url).get_many(&[name])).await.pop().unwrap().unwrap_err(),
        ];
        for error in errors {
            // What follows a reply like "ERROR" is not looked at: the connection is over.
            assert!(error.kind() == kind, "{text}: {error}");
            assert_eq!(error.backend_name(), Some("memcached"));
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}

/// Answers that memcached doesn't give: an error of the call, never a value, a panic or a wait without end.
#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_an_error() {
    let replies: [&'static str; 14] = [
        "\r\n",
        "OK\r\n",
        "HD\r\n",
        "VA\r\n",
        "VA 5 c1 O0\r\nabcde\r\n",
        "VA 99999999 c1 #\r\n",
        "VA 18446744073709551615 c1 #\r\n",
        "VA 3 c1 #\r\nabcde\r\n",
        "HD c99999999999999999999 #\r\n",
        "NF #\r\n",
        "NS #\r\n",
        "\0\0\0\0\r\n",
        "HD #\n",
        "VA 0 c1 #\r\n\r\nVA 0 c1 #\r\n\r\nVA 0 c1 #\r\n\r\nVA 0 c1 #\r\n\r\n",
    ];
    for reply in replies {
        let url = fake(move |words, stream| stream.write_all(reply.replace('#', opaque(words)).as_bytes()));
        let read = limited(backend(url).get(&key("k"))).await;
        assert!(read.is_err(), "{reply:?}: {read:?}");
    }
    // A line, and one without end.
    for endless in ["x", "VA 10 c1 f0"] {
        let url = fake(move |_, stream| {
            loop {
                stream.write_all(endless.as_bytes())?;
            }
        });
        assert!(limited(backend(url).get(&key("k"))).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn greetings_that_are_none() {
    let greetings: [&'static [u8]; 7] = [
        b"",
        b"VERSION 1.4.15\r\n",
        b"VERSION 1.6.40\r\nSTAT a b\r\n",
        b"VERSION 1.6.40\r\nEND\r\nEND\r\nEND\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"ERROR\r\n",
        b"CLIENT_ERROR unauthenticated\r\n",
    ];
    for greeting in greetings {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("memcached://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut asked = [0; 100];
                let _ = stream.read(&mut asked);
                let _ = stream.write_all(greeting);
                // Neither more nor an end.
                std::mem::forget(stream);
            }
        });
        let options =
            MemcachedOptions { connect_timeout: Duration::from_millis(300), ..MemcachedOptions::new([url]) };
        let error = limited(MemcachedBackend::new(options).unwrap().get(&key("k"))).await.unwrap_err();
        let is_old = greeting.starts_with(b"VERSION 1.4");
        assert_eq!(error.kind() == ErrorKind::Config, is_old, "{error}");
        assert!(!is_old || error.to_string().contains("1.4.15; at least 1.6.12"), "{error}");
    }
}

/// A read whose replies come in the wrong order, twice, or from an earlier call ends the connection; nobody gets
/// another key's value. Without the numbers in the replies this would be two wrong values.
#[tokio::test(flavor = "multi_thread")]
async fn replies_of_other_commands_reach_nobody() {
    for trick in ["swap", "twice", "lag"] {
        let held = Arc::new(std::sync::Mutex::new(Vec::<String>::new()));
        let url = fake(move |words, stream| {
            let value = if words[1].contains(":m:") { "7".to_owned() } else { String::new() };
            let reply = format!("VA {} c5 f0 {}\r\n{value}\r\n", value.len(), opaque(words));
            if value == "7" {
                return stream.write_all(reply.as_bytes());
            }
            let mut held = held.lock().unwrap();
            match trick {
                "swap" => {
                    held.push(reply);
                    if held.len() == 2 {
                        let swapped: Vec<String> = held.drain(..).rev().collect();
                        return stream.write_all(swapped.concat().as_bytes());
                    }
                    Ok(())
                }
                "twice" => stream.write_all(reply.repeat(2).as_bytes()),
                _ => {
                    held.push(reply);
                    if held.len() < 2 {
                        return Ok(());
                    }
                    stream.write_all(held.remove(0).as_bytes())
                }
            }
        });
        let backend = backend(url);
        let reads = limited(backend.get_many(&[key("a"), key("b"), key("c")])).await;
        assert!(reads.iter().any(Result::is_err), "{trick}: {reads:?}");
    }
}

/// One byte at a time, and a reset in the middle of a reply.
#[tokio::test(flavor = "multi_thread")]
async fn slow_replies_arrive_and_broken_ones_fail() {
    let drip = |reset_after: Option<usize>| {
        fake(move |words, stream| {
            let value = if words[1].contains(":m:") { "7" } else { "" };
            let reply = format!("VA {} c5 f0 {}\r\n{value}\r\n", value.len(), opaque(words));
            stream.set_nodelay(true)?;
            for (at, byte) in reply.bytes().enumerate() {
                if reset_after == Some(at) {
                    stream.shutdown(std::net::Shutdown::Both)?;
                    return Err(std::io::ErrorKind::ConnectionReset.into());
                }
                stream.write_all(&[byte])?;
                std::thread::sleep(Duration::from_micros(200));
            }
            Ok(())
        })
    };
    let whole = limited(backend(drip(None)).get(&key("k"))).await.unwrap();
    assert_eq!(whole.ticket, Ticket { inc: 7, pos: 5 << 1 });
    for at in [0, 1, 5, 12, 20] {
        let error = limited(backend(drip(Some(at))).get(&key("k"))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{at}: {error}");
    }
    // So slowly that it never ends: the connection is given up.
    let url = fake(|_, stream| {
        loop {
            stream.write_all(b"H")?;
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let error = limited(backend(url).get(&key("k"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
}

/// Polls a future a few times, then drops it.
async fn abandon<T>(future: impl Future<Output = T>, polls: u64) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}

async fn cancel_at_random(batch_max: usize, wanted: u64) {
    const TASKS: u64 = 16;
    let server = Server::start(&[]);
    let options = MemcachedOptions { batch_max, ..MemcachedOptions::new([server.url()]) };
    let backend = Arc::new(MemcachedBackend::new(options).unwrap());
    let abandoned = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (backend, abandoned) = (backend.clone(), abandoned.clone());
            tokio::spawn(async move {
                let mut state = task.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
                let mut random = move || {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state >> 11
                };
                let check = |name: &str, body: &Bytes| {
                    assert!(body.starts_with(format!("{name} ").as_bytes()), "a read of {name}: {body:?}");
                };
                let (mut stored, mut n) = (0, 0);
                while abandoned.load(SeqCst) < wanted {
                    n += 1;
                    let name = format!("k{}", random() % 64);
                    let polls = random() % 6;
                    let is_left = match random() % 8 {
                        0 => {
                            let ticket = backend.ticket(&key(&name)).await.unwrap();
                            let body = format!("{name} {task} {n}");
                            stored += 1;
                            let put = put(EntryKind::Load, &name, body, ticket);
                            abandon(backend.put(put), polls).await.is_none()
                        }
                        1 => abandon(backend.remove(&key(&name)), polls).await.is_none(),
                        2 => {
                            let found = backend.get(&key(&name)).await.unwrap().found;
                            found.is_ok_and(|body| {
                                check(&name, &body);
                                false
                            })
                        }
                        _ => match abandon(backend.get(&key(&name)), polls).await {
                            None => true,
                            Some(read) => read.unwrap().found.is_ok_and(|body| {
                                check(&name, &body);
                                false
                            }),
                        },
                    };
                    abandoned.fetch_add(u64::from(is_left), SeqCst);
                }
                stored
            })
        })
        .collect();
    for task in tasks {
        assert!(task.await.unwrap() > 0);
    }
}

/// `LARDER_TEST_CANCELLATIONS=1000000` for the long run.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_thousand_callers_leave_and_no_reply_goes_astray() {
    let wanted = std::env::var("LARDER_TEST_CANCELLATIONS").ok().and_then(|text| text.parse().ok());
    cancel_at_random(256, wanted.unwrap_or(100_000)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nor_without_batches() {
    cancel_at_random(1, 20_000).await;
}
