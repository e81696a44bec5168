//! A proxy between a client and a real server that speaks TCP, with the faults of a network on command.
//!
//! It runs on threads of its own, so that neither a busy runtime nor a paused clock of the test changes what it
//! does. A fault holds for all connections, those that are there and those to come, until another takes its place.

#![allow(dead_code, reason = "each test uses a part")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What happens to the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// They are passed on.
    None,
    /// New connections are reset at once; those that are there stay.
    Refuse,
    /// Nothing is passed on in either direction. Once this ends, what was held back arrives: late.
    BlackHole,
    /// Requests arrive, replies are held back.
    Mute,
    /// Every piece waits so long, in both directions.
    Delay(Duration),
    /// Replies come a byte at a time, one in so long.
    Drip(Duration),
    /// After so many bytes of replies on a connection it ends, each one again.
    Cut { after: usize, end: End },
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By a reset in both directions.
    Reset,
    /// In order.
    Close,
    /// The client hears the end of the replies, while its requests still arrive.
    Half,
}

/// The proxy; it ends with its connections when it is dropped.
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
}

struct Shared {
    server: SocketAddr,
    now: Mutex<Now>,
    changed: Condvar,
    dials: AtomicU64,
    is_over: AtomicBool,
    pipes: Mutex<Vec<Weak<Pipe>>>,
}

#[derive(Clone, Copy)]
struct Now {
    fault: Fault,
    /// Counts faults: what is counted for one begins anew with the next.
    number: u64,
}

/// A connection, both its halves.
struct Pipe {
    shared: Arc<Shared>,
    client: TcpStream,
    server: TcpStream,
    is_over: AtomicBool,
    /// Nothing is passed on any more, and nobody is told.
    is_buried: AtomicBool,
}

impl Proxy {
    /// Starts one on a free port, before a server on this port of 127.0.0.1.
    pub(crate) fn start(server_port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            server: SocketAddr::from(([127, 0, 0, 1], server_port)),
            now: Mutex::new(Now { fault: Fault::None, number: 0 }),
            changed: Condvar::new(),
            dials: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            pipes: Mutex::default(),
        });
        let listening = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.listen(&listener)
        });
        Proxy { port, shared, listening: Some(listening) }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// From now on, on all connections.
    pub(crate) fn set(&self, fault: Fault) {
        let mut now = self.shared.now.lock().unwrap();
        *now = Now { fault, number: now.number + 1 };
        self.shared.changed.notify_all();
    }

    pub(crate) fn heal(&self) {
        self.set(Fault::None);
    }

    /// How many connections were accepted, or refused on command.
    pub(crate) fn dials(&self) -> u64 {
        self.shared.dials.load(SeqCst)
    }

    /// Resets the connections that are there.
    pub(crate) fn reset_all(&self) {
        self.shared.pipes().iter().for_each(|pipe| pipe.end(End::Reset));
    }

    /// The connections that are there pass nothing on, ever, and stay open: as when a firewall forgot them.
    pub(crate) fn bury_all(&self) {
        self.shared.pipes().iter().for_each(|pipe| pipe.is_buried.store(true, SeqCst));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, SeqCst);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        self.listening.take().map(JoinHandle::join);
        self.reset_all();
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn listen(self: &Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming().map_while(Result::ok) {
            if self.is_over.load(SeqCst) {
                return;
            }
            self.dials.fetch_add(1, SeqCst);
            if self.now().fault == Fault::Refuse {
                reset(&client);
                continue;
            }
            // As if nobody listened.
            let Ok(server) = TcpStream::connect(self.server) else {
                reset(&client);
                continue;
            };
            client.set_nodelay(true).unwrap();
            server.set_nodelay(true).unwrap();
            let (is_over, is_buried) = (AtomicBool::new(false), AtomicBool::new(false));
            let pipe = Arc::new(Pipe { shared: Arc::clone(self), client, server, is_over, is_buried });
            let mut pipes = self.pipes.lock().unwrap();
            pipes.retain(|pipe| pipe.strong_count() > 0);
            pipes.push(Arc::downgrade(&pipe));
            let other = Arc::clone(&pipe);
            std::thread::spawn(move || other.pass_requests());
            std::thread::spawn(move || pipe.pass_replies());
        }
    }

    fn now(&self) -> Now {
        *self.now.lock().unwrap()
    }

    fn pipes(&self) -> Vec<Arc<Pipe>> {
        self.pipes.lock().unwrap().iter().filter_map(Weak::upgrade).collect()
    }
}

impl Pipe {
    fn pass_requests(&self) {
        let mut buffer = [0; 16 << 10];
        while let Ok(length @ 1..) = (&self.client).read(&mut buffer) {
            let held = |fault| match fault {
                Fault::BlackHole => Some(None),
                Fault::Delay(time) => Some(Some(time)),
                _ => None,
            };
            if !self.hold(held) || (&self.server).write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        // The server may still have replies to what it was asked.
        drop(self.server.shutdown(Shutdown::Write));
    }

    fn pass_replies(&self) {
        let mut buffer = [0; 16 << 10];
        // Since which fault, and how many bytes since.
        let mut counted = (0, 0);
        'connection: while let Ok(length @ 1..) = (&self.server).read(&mut buffer) {
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                let held = |fault| match fault {
                    Fault::BlackHole | Fault::Mute => Some(None),
                    Fault::Delay(time) | Fault::Drip(time) => Some(Some(time)),
                    _ => None,
                };
                if !self.hold(held) {
                    break 'connection;
                }
                let now = self.shared.now();
                if counted.0 != now.number {
                    counted = (now.number, 0);
                }
                let (piece, end) = match now.fault {
                    Fault::Drip(_) => (1, None),
                    Fault::Cut { after, end } if counted.1 + rest.len() >= after => {
                        (after - counted.1, Some(end))
                    }
                    _ => (rest.len(), None),
                };
                if (&self.client).write_all(&rest[..piece]).is_err() {
                    break 'connection;
                }
                counted.1 += piece;
                rest = &rest[piece..];
                match end {
                    Some(End::Half) => {
                        drop(self.client.shutdown(Shutdown::Write));
                        // What the server still says goes nowhere.
                        while let Ok(1..) = (&self.server).read(&mut buffer) {}
                        return;
                    }
                    Some(end) => return self.end(end),
                    None => {}
                }
            }
        }
        self.end(End::Close);
    }

    /// Waits as long as the fault asks: `Some(None)` until it ends, `Some(time)` so long. Whether the connection
    /// goes on.
    fn hold(&self, held: impl Fn(Fault) -> Option<Option<Duration>>) -> bool {
        let began = Instant::now();
        let mut now = self.shared.now.lock().unwrap();
        loop {
            if self.is_over.load(SeqCst) || self.shared.is_over.load(SeqCst) {
                return false;
            }
            let patience = match held(now.fault) {
                _ if self.is_buried.load(SeqCst) => Duration::MAX,
                None => return true,
                Some(None) => Duration::MAX,
                Some(Some(time)) => time.saturating_sub(began.elapsed()),
            };
            if patience.is_zero() {
                return true;
            }
            // Not for ever: whoever ends a single connection wakes nobody.
            let patience = patience.min(Duration::from_millis(100));
            now = self.shared.changed.wait_timeout(now, patience).unwrap().0;
        }
    }

    fn end(&self, end: End) {
        self.is_over.store(true, SeqCst);
        if end == End::Reset {
            // The reset goes out when both threads have let go.
            reset(&self.client);
            drop(self.client.shutdown(Shutdown::Read));
        } else {
            drop(self.client.shutdown(Shutdown::Both));
        }
        drop(self.server.shutdown(Shutdown::Both));
    }
}

/// Closing it will be a reset instead of an orderly end.
fn reset(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let length = size_of::<libc::linger>() as libc::socklen_t;
    // SAFETY: an open socket, and an option of the type and length that `SO_LINGER` takes.
    let done = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            length,
        )
    };
    assert_eq!(done, 0);
}
