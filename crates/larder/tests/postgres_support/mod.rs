//! A PostgreSQL server of a test's own: on a free port and a socket in a temporary folder, stopped at its end.

#![allow(dead_code, reason = "each test uses a part")]

use larder::backend::{PostgresBackend, PostgresOptions};
use larder::clock::Clock;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The longest that a test waits for anything: CI is slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    pub(crate) folder: TempDir,
    pub(crate) port: u16,
    args: Vec<String>,
    child: Option<Child>,
}

/// The newest server's programs.
pub(crate) fn program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|version| {
            let number = version.file_name().to_str()?.parse().ok()?;
            Some((number, version.path().join("bin").join(name)))
        })
        .filter(|(_, path)| path.exists())
        .collect();
    found.sort();
    found.pop().map_or_else(|| PathBuf::from(name), |(_, path)| path)
}

/// PostgreSQL refuses to run as root: the user to be then.
fn other_user() -> Option<(u32, u32)> {
    // SAFETY: asks for the process' own user.
    if unsafe { libc::geteuid() } != 0 {
        return None;
    }
    ["postgres", "nobody"].iter().find_map(|name| {
        let name = std::ffi::CString::new(*name).unwrap();
        // SAFETY: the name ends with a zero; what is returned is read before anybody asks again.
        let user = unsafe { libc::getpwnam(name.as_ptr()).as_ref() };
        user.map(|user| (user.pw_uid, user.pw_gid))
    })
}

fn command(path: &Path) -> Command {
    let mut command = Command::new(path);
    if let Some((uid, gid)) = other_user() {
        command.uid(uid).gid(gid);
    }
    command.current_dir("/").env("LC_ALL", "C").stdin(Stdio::null());
    command
}

impl Server {
    /// Starts one that never waits for the disk, with further settings (`name=value`).
    pub(crate) fn start(args: &[&str]) -> Server {
        let mut server = Server::new(args);
        server.begin();
        server
    }

    /// The folder of one, which doesn't run yet.
    pub(crate) fn new(args: &[&str]) -> Server {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let server = Server { folder: tempfile::tempdir().unwrap(), port, args, child: None };
        if let Some((uid, gid)) = other_user() {
            std::os::unix::fs::chown(server.folder.path(), Some(uid), Some(gid)).unwrap();
        }
        let made = command(&program("initdb"))
            .args(["--username=larder", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"])
            .args(["--no-instructions", "-D"])
            .arg(server.data())
            .output()
            .expect("postgresql is installed: see .ci/test");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        server
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Starts it again, on the same port and folder.
    pub(crate) fn begin(&mut self) {
        assert!(self.child.is_none());
        let began = Instant::now();
        while !self.answers() {
            assert!(began.elapsed() < PATIENCE, "postgres doesn't answer: {}", self.said());
            let is_gone = self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some());
            if is_gone {
                // The first time, or again while what it was before still holds its memory.
                self.child = Some(self.spawn());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn spawn(&self) -> Child {
        let said =
            std::fs::File::options().create(true).append(true).open(self.folder.path().join("said")).unwrap();
        let mut command = command(&program("postgres"));
        command.arg("-D").arg(self.data()).arg("-k").arg(self.folder.path());
        let mut settings = vec![
            format!("port={}", self.port),
            "listen_addresses=127.0.0.1".to_owned(),
            "fsync=off".to_owned(),
            "shared_buffers=32MB".to_owned(),
            "max_wal_size=256MB".to_owned(),
        ];
        settings.extend(self.args.iter().cloned());
        for setting in settings {
            command.arg("-c").arg(setting);
        }
        command.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap()
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("said")).unwrap_or_default()
    }

    fn answers(&self) -> bool {
        let asked = command(&program("pg_isready"))
            .args(["-q", "-t", "1", "-U", "larder", "-d", "postgres", "-p", &self.port.to_string(), "-h"])
            .arg(self.folder.path())
            .status();
        self.child.is_some() && asked.unwrap().success()
    }

    /// Through the socket.
    pub(crate) fn url(&self) -> String {
        format!("host={} port={} user=larder dbname=postgres", self.folder.path().display(), self.port)
    }

    pub(crate) fn tcp(&self) -> String {
        format!("postgres://larder@127.0.0.1:{}/postgres", self.port)
    }

    pub(crate) fn options(&self, clock: Clock) -> PostgresOptions {
        PostgresOptions { clock, ..PostgresOptions::new(self.url()) }
    }

    pub(crate) fn backend(&self) -> PostgresBackend {
        PostgresBackend::new(self.options(Clock::system())).unwrap()
    }

    /// Runs statements through a connection of their own; what came, line by line. Panics at an error.
    pub(crate) fn sql(&self, text: &str) -> String {
        self.try_sql(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    pub(crate) fn try_sql(&self, text: &str) -> Result<String, String> {
        let ran = command(&program("psql"))
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "larder", "-d", "postgres"])
            .args(["-p", &self.port.to_string(), "-c", text, "-h"])
            .arg(self.folder.path())
            .output()
            .unwrap();
        if ran.status.success() {
            Ok(String::from_utf8(ran.stdout).unwrap().trim().to_owned())
        } else {
            Err(String::from_utf8_lossy(&ran.stderr).into_owned())
        }
    }

    /// To the server's first process.
    pub(crate) fn signal(&self, signal: i32) {
        let pid = self.child.as_ref().unwrap().id();
        // SAFETY: a signal to a child that was not waited for.
        assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
    }

    /// The processes of all of larder's connections.
    pub(crate) fn larders(&self) -> Vec<i32> {
        let pids = self.sql("SELECT pid FROM pg_stat_activity WHERE application_name = 'larder'");
        pids.lines().map(|pid| pid.parse().unwrap()).collect()
    }

    /// Waits for the end of an orderly stop.
    pub(crate) fn stop(&mut self) {
        self.end(libc::SIGINT);
    }

    /// SIGKILL to the first process; the others end when they notice.
    pub(crate) fn kill(&mut self) {
        self.end(libc::SIGKILL);
    }

    fn end(&mut self, signal: i32) {
        if let Some(mut child) = self.child.take() {
            // SAFETY: as in `signal`.
            unsafe {
                libc::kill(child.id() as i32, signal);
                libc::kill(child.id() as i32, libc::SIGCONT);
            }
            child.wait().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end(libc::SIGQUIT);
    }
}
