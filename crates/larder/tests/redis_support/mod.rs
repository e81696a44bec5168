//! A Redis server of a test's own: on a free port and a socket in a temporary folder, stopped at its end.

#![allow(dead_code, reason = "each test uses a part")]

pub(crate) mod topologies;

use larder::backend::{RedisBackend, RedisOptions};
use larder::clock::Clock;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(crate) struct Server {
    pub(crate) folder: TempDir,
    pub(crate) port: u16,
    args: Vec<String>,
    child: Mutex<Option<Child>>,
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
    /// Starts one without persistence, with further settings.
    pub(crate) fn start(args: &[&str]) -> Server {
        let mut args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        args.extend(["--appendonly", "no"].map(str::to_owned));
        let folder = tempfile::tempdir().unwrap();
        let server = Server { folder, port: free_port(), args, child: Mutex::default() };
        server.begin();
        server
    }

    /// Starts it again, on the same port and folder, with whatever `dump.rdb` lies there.
    pub(crate) fn begin(&self) {
        self.spawn();
        let began = Instant::now();
        while !self.answers() {
            assert!(began.elapsed() < Duration::from_secs(20), "redis-server doesn't answer");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// As [`begin`](Self::begin), and waits for nothing.
    pub(crate) fn spawn(&self) {
        let mut child = self.child.lock().unwrap();
        assert!(child.is_none());
        let mut command = Command::new("redis-server");
        command
            .args(["--port", &self.port.to_string(), "--save", "", "--daemonize", "no"])
            .args(["--dir", self.folder.path().to_str().unwrap()])
            .args(["--unixsocket", self.socket().to_str().unwrap()])
            .args(&self.args)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        *child = Some(command.spawn().expect("redis-server is installed: see .ci/test"));
    }

    fn answers(&self) -> bool {
        self.first_word(&[b"PING"]).is_some_and(|word| word != "-LOADING")
    }

    /// The first word of the reply to a command, an error's too; `None` while nobody replies.
    pub(crate) fn first_word(&self, args: &[&[u8]]) -> Option<String> {
        let mut stream = UnixStream::connect(self.socket()).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        send(&mut stream, args).ok()?;
        let mut reply = [0; 64];
        let length = stream.read(&mut reply).ok().filter(|length| *length > 0)?;
        String::from_utf8_lossy(&reply[..length]).split_whitespace().next().map(str::to_owned)
    }

    /// Sends a command and waits for no reply. The connection stays open until the server closes it.
    pub(crate) fn say(&self, args: &[&[u8]]) {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        send(&mut stream, args).unwrap();
        std::thread::spawn(move || while let Ok(1..) = stream.read(&mut [0; 64]) {});
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }

    pub(crate) fn tcp(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn unix(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub(crate) fn backend(&self) -> RedisBackend {
        RedisBackend::new(RedisOptions::new(self.unix())).unwrap()
    }

    pub(crate) fn options(&self, clock: Clock) -> RedisOptions {
        // The suite's clock stands still while the server's goes on.
        RedisOptions { clock, expiry_slack: Duration::from_secs(600), ..RedisOptions::new(self.unix()) }
    }

    pub(crate) fn signal(&self, signal: i32) {
        let pid = self.child.lock().unwrap().as_ref().unwrap().id();
        // SAFETY: a signal to a child that was not waited for.
        assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
    }

    pub(crate) fn kill(&self) {
        if let Some(mut child) = self.child.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // SIGKILL.
            drop(child.kill());
            child.wait().unwrap();
            drop(std::fs::remove_file(self.socket()));
        }
    }

    /// Runs a command through a connection of its own; panics at an error reply.
    pub(crate) fn command(&self, args: &[&[u8]]) -> String {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        // A busy machine is slow.
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let reply = ask(&mut stream, args).unwrap();
        assert!(!reply.starts_with('-'), "{reply}");
        reply
    }
}

/// Runs a command at an address, while somebody answers there.
pub(crate) fn command_at(address: (&str, u16), args: &[&[u8]]) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    ask(&mut stream, args)
}

/// A reply that ends with its first piece, or comes in several of which none ends a line.
fn ask(stream: &mut (impl Read + Write), args: &[&[u8]]) -> std::io::Result<String> {
    send(stream, args)?;
    let mut reply = vec![0; 1 << 20];
    let mut length = 0;
    while !reply[..length].ends_with(b"\r\n") {
        match stream.read(&mut reply[length..])? {
            0 => break,
            n => length += n,
        }
    }
    Ok(String::from_utf8_lossy(&reply[..length]).into_owned())
}

pub(crate) fn send(stream: &mut impl Write, args: &[&[u8]]) -> std::io::Result<()> {
    let mut request = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        request.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        request.extend_from_slice(arg);
        request.extend_from_slice(b"\r\n");
    }
    stream.write_all(&request)
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
