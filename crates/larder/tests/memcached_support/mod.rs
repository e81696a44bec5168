//! Memcached servers of a test's own: on a free port or a socket in a temporary folder, stopped at its end.

#![allow(dead_code, reason = "each test uses a part")]

use bytes::Bytes;
use larder::backend::{Backend, MemcachedBackend, MemcachedOptions, Miss, Put, PutOutcome, Ticket};
use larder::clock::{Clock, NEVER_MS};
use larder::entry::{EntryKind, Meta, Tags};
use larder::key::{EntryKey, Namespace};
use larder::stamp::Stamp;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tempfile::TempDir;

#[derive(Clone, Copy, PartialEq)]
enum Listens {
    Unix,
    Tcp,
    Tls,
}

pub(crate) struct Server {
    pub(crate) folder: TempDir,
    pub(crate) port: u16,
    listens: Listens,
    args: Vec<String>,
    child: Option<Child>,
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
    /// On a unix socket, with further arguments.
    pub(crate) fn start(args: &[&str]) -> Server {
        Server::on(Listens::Unix, args)
    }

    pub(crate) fn start_tcp(args: &[&str]) -> Server {
        Server::on(Listens::Tcp, args)
    }

    /// With a certificate of its own for `localhost` and 127.0.0.1.
    pub(crate) fn start_tls() -> Server {
        Server::on(Listens::Tls, &[])
    }

    fn on(listens: Listens, args: &[&str]) -> Server {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let folder = tempfile::tempdir().unwrap();
        // Memcached doesn't stay root; it has to reach its socket all the same.
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let mut server = Server { folder, port: free_port(), listens, args, child: None };
        if listens == Listens::Tls {
            server.make_certificate();
        }
        server.begin();
        server
    }

    fn make_certificate(&mut self) {
        let (certificate, key) = (self.certificate(), self.folder.path().join("key.pem"));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", "2", "-subj", "/CN=localhost"])
            .args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .stderr(Stdio::null())
            .status();
        assert!(made.expect("openssl is installed: see .ci/test").success());
        for file in [&certificate, &key] {
            std::fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        }
        self.args.push("-Z".to_owned());
        let files = format!("ssl_chain_cert={},ssl_key={}", certificate.display(), key.display());
        self.args.extend(["-o".to_owned(), files]);
    }

    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }

    /// Starts it, again on the same port or socket, and always empty.
    pub(crate) fn begin(&mut self) {
        assert!(self.child.is_none());
        let mut command = Command::new("memcached");
        command
            .args(["-u", "nobody", "-t", "2"])
            .args(&self.args)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        match self.listens {
            Listens::Unix => command.arg("-s").arg(self.socket()).args(["-a", "777"]),
            _ => command.args(["-l", "127.0.0.1", "-U", "0", "-p"]).arg(self.port.to_string()),
        };
        self.child = Some(command.spawn().expect("memcached is installed: see .ci/test"));
        let began = Instant::now();
        while !self.answers() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && began.elapsed() < Duration::from_secs(20), "memcached doesn't answer");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn answers(&self) -> bool {
        if self.listens == Listens::Tls {
            return TcpStream::connect(("127.0.0.1", self.port)).is_ok();
        }
        let Ok(mut stream) = self.connect() else { return false };
        let mut reply = [0; 64];
        stream.write_all(b"version\r\n").is_ok() && stream.read(&mut reply).is_ok_and(|n| n > 0)
    }

    fn connect(&self) -> std::io::Result<Box<dyn ReadWrite>> {
        let limit = Some(Duration::from_secs(20));
        Ok(match self.listens {
            Listens::Unix => {
                let stream = UnixStream::connect(self.socket())?;
                stream.set_read_timeout(limit)?;
                Box::new(stream)
            }
            _ => {
                let stream = TcpStream::connect(("127.0.0.1", self.port))?;
                stream.set_read_timeout(limit)?;
                Box::new(stream)
            }
        })
    }

    /// Sends lines, each of which is answered in one line, through a connection of its own; the answers.
    pub(crate) fn command(&self, lines: &str) -> String {
        self.ask(&format!("{lines}mn\r\n"), "MN\r\n")
    }

    /// The names of all items, as the server writes them.
    pub(crate) fn names(&self) -> Vec<String> {
        // While it dumps it looks at nothing that follows.
        let dump = self.ask("lru_crawler metadump all\r\n", "END\r\n");
        let names = dump.lines().filter_map(|line| line.strip_prefix("key=")?.split(' ').next());
        names.map(|name| name.replace("%3A", ":")).collect()
    }

    fn ask(&self, lines: &str, end: &str) -> String {
        let mut stream = self.connect().unwrap();
        stream.write_all(lines.as_bytes()).unwrap();
        let mut reply = Vec::new();
        let mut part = [0; 4096];
        while !reply.ends_with(end.as_bytes()) {
            match stream.read(&mut part).unwrap() {
                0 => break,
                n => reply.extend_from_slice(&part[..n]),
            }
        }
        String::from_utf8_lossy(&reply).into_owned()
    }

    pub(crate) fn stat(&self, name: &str) -> u64 {
        let line = format!("STAT {name} ");
        let stats = self.command("stats\r\n");
        let value = stats.lines().find_map(|found| found.strip_prefix(&line));
        value.unwrap_or_else(|| panic!("no {name}")).trim().parse().unwrap()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("memcached.sock")
    }

    pub(crate) fn url(&self) -> String {
        match self.listens {
            Listens::Unix => format!("unix://{}", self.socket().display()),
            Listens::Tcp => format!("memcached://127.0.0.1:{}", self.port),
            Listens::Tls => format!("memcacheds://localhost:{}", self.port),
        }
    }

    pub(crate) fn backend(&self) -> MemcachedBackend {
        MemcachedBackend::new(MemcachedOptions::new([self.url()])).unwrap()
    }

    pub(crate) fn signal(&self, signal: i32) {
        let pid = self.child.as_ref().unwrap().id();
        // SAFETY: a signal to a child that was not waited for.
        assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
        // Each thread stops at its own next moment.
        let is_stopped = || {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            tasks.flatten().all(|task| {
                std::fs::read_to_string(task.path().join("stat")).is_ok_and(|stat| stat.contains(") T "))
            })
        };
        let began = Instant::now();
        while signal == libc::SIGSTOP && !is_stopped() {
            assert!(began.elapsed() < Duration::from_secs(20), "it doesn't stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // SIGKILL.
            drop(child.kill());
            child.wait().unwrap();
            drop(std::fs::remove_file(self.socket()));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

trait ReadWrite: Read + Write {}

impl<T: Read + Write> ReadWrite for T {}

/// For the suite, whose clock stands still while the server's goes on. Each backend has names of its own, so that
/// one server will do.
pub(crate) fn suite_options(servers: &[Server], clock: Clock) -> MemcachedOptions {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    MemcachedOptions {
        clock,
        prefix: format!("case{}", COUNT.fetch_add(1, SeqCst)),
        expiry_slack: Duration::from_secs(600),
        ticket_lifetime: Duration::from_secs(600),
        ..MemcachedOptions::new(servers.iter().map(Server::url))
    }
}

pub(crate) fn key(name: &str) -> EntryKey {
    EntryKey::new(&Namespace::default(), name).unwrap()
}

pub(crate) fn put(kind: EntryKind, name: &str, body: impl Into<Bytes>, ticket: Ticket) -> Put {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let wall_ms = Clock::system().wall_ms();
    let meta = Meta {
        kind,
        stamp: Stamp::new(wall_ms, COUNT.fetch_add(1, SeqCst) as u16, 1),
        created_ms: wall_ms,
        fresh_until_ms: NEVER_MS,
        revalidate_until_ms: NEVER_MS,
        gone_at_ms: NEVER_MS,
        load_ms: 0,
        is_negative: false,
        tags: Tags::NONE,
    };
    Put { key: key(name), meta, sealed: body.into(), ticket }
}

pub(crate) async fn set(backend: &MemcachedBackend, name: &str, body: impl Into<Bytes>) {
    let ticket = backend.ticket(&key(name)).await.unwrap();
    assert_eq!(backend.put(put(EntryKind::Set, name, body, ticket)).await.unwrap(), PutOutcome::Stored);
}

pub(crate) async fn read(backend: &MemcachedBackend, name: &str) -> Result<Bytes, Miss> {
    backend.get(&key(name)).await.unwrap().found
}

/// Repeats what the guard of a tier would repeat.
pub(crate) async fn until_read(backend: &MemcachedBackend, name: &str) -> Result<Bytes, Miss> {
    let began = Instant::now();
    loop {
        match backend.get(&key(name)).await {
            Ok(read) => return read.found,
            Err(error) => assert!(began.elapsed() < Duration::from_secs(20), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
