//! The settings, checked once; credentials never show.

use super::fault::NAME;
use super::wire::KEY_BYTES_MAX;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use serde::Deserialize;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Most servers: a key is hashed once for each.
const SERVERS_MAX: usize = 64;

/// What becomes of an envelope that is larger than the server's items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LargeValues {
    /// It is stored in pieces. It is there as long as all of them are.
    Chunk,
    /// It is refused with [`ErrorKind::TooLarge`].
    Refuse,
}

/// The settings of a [`MemcachedBackend`](super::MemcachedBackend).
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemcachedOptions {
    /// The servers, 1 to 64: `memcached://[user:password@]host[:port]`, `unix:///path/to/socket`, and
    /// `memcacheds://...` for TLS with the feature `memcached-tls`. User and password are for servers with an
    /// authentication file (`-Y`). A key belongs to one of them, by rendezvous hashing of these texts without
    /// user and password: their order doesn't matter, and all nodes have to agree. **Empty a server before it is
    /// added again**: it may still hold what was removed meanwhile.
    pub servers: Vec<String>,
    /// For `memcacheds://`: a PEM file of certificates to trust instead of the operating system's. `None` by default.
    #[serde(default)]
    pub tls_root: Option<PathBuf>,
    /// What all keys begin with, 1 to 64 of `A-Z a-z 0-9 _ - .`. `larder` by default.
    #[serde(default = "prefix")]
    pub prefix: String,
    /// Connections per server, 1 to 16. 1 by default: what is asked meanwhile gathers into larger batches, which
    /// is faster than more connections as long as the server is not on all of its threads. A key stays on one.
    #[serde(default = "connections")]
    pub connections: usize,
    /// Most calls that share one write, 1 to 4096. 256 by default: what is called within one scheduling tick, or
    /// while earlier calls are under way, goes together.
    #[serde(default = "batch_max")]
    pub batch_max: usize,
    /// How long connecting may take, handshake included. 2 seconds by default.
    #[serde(default = "connect_timeout", with = "crate::options::seconds")]
    pub connect_timeout: Duration,
    /// After how long without an answer a connection is given up. 10 seconds by default, longer than a tier's
    /// deadlines: they give up a call, this gives up everything that is under way.
    #[serde(default = "response_timeout", with = "crate::options::seconds")]
    pub response_timeout: Duration,
    /// How much longer than an entry lives the server keeps it. 2 seconds by default, since memcached counts whole
    /// seconds. This process' clock decides what is expired; the server only frees what nobody would be served.
    #[serde(default = "expiry_slack", with = "crate::options::seconds")]
    pub expiry_slack: Duration,
    /// How long a load of an absent key may take before its value is no longer taken, 1 second to 30 days. 60
    /// seconds by default, twice the default hard timeout of a load. So long an absent key that was asked for
    /// takes about 100 bytes of the server.
    #[serde(default = "ticket_lifetime", with = "crate::options::seconds")]
    pub ticket_lifetime: Duration,
    /// What becomes of envelopes that are larger than the server's items (`-I`, 1 MiB unless it is told
    /// otherwise). In pieces by default.
    #[serde(default = "large_values")]
    pub large_values: LargeValues,
    /// Largest envelope in bytes, up to 1 GiB. 64 MiB by default, all the memory that memcached has by default.
    #[serde(default = "value_bytes_max")]
    pub value_bytes_max: u64,
    /// Where the time comes from. The system by default.
    #[serde(skip)]
    pub clock: Clock,
}

fn prefix() -> String {
    "larder".to_owned()
}

fn connections() -> usize {
    1
}

fn batch_max() -> usize {
    256
}

fn connect_timeout() -> Duration {
    Duration::from_secs(2)
}

fn response_timeout() -> Duration {
    Duration::from_secs(10)
}

fn expiry_slack() -> Duration {
    Duration::from_secs(2)
}

fn ticket_lifetime() -> Duration {
    Duration::from_secs(60)
}

fn large_values() -> LargeValues {
    LargeValues::Chunk
}

fn value_bytes_max() -> u64 {
    64 << 20
}

/// Where a server is.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) place: Place,
    pub(super) credentials: Option<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Tcp { host: String, port: u16, is_tls: bool },
    Unix(PathBuf),
}

/// Without user and password; what its keys are chosen by.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Tcp { host, port, .. } => write!(f, "{host}:{port}"),
            Place::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl MemcachedOptions {
    /// The defaults, for these servers.
    pub fn new<S: Into<String>>(servers: impl IntoIterator<Item = S>) -> Self {
        MemcachedOptions {
            servers: servers.into_iter().map(Into::into).collect(),
            tls_root: None,
            prefix: prefix(),
            connections: connections(),
            batch_max: batch_max(),
            connect_timeout: connect_timeout(),
            response_timeout: response_timeout(),
            expiry_slack: expiry_slack(),
            ticket_lifetime: ticket_lifetime(),
            large_values: large_values(),
            value_bytes_max: value_bytes_max(),
            clock: Clock::system(),
        }
    }

    /// Checks everything; the servers' addresses.
    pub(super) fn parse(&self) -> Result<Vec<Address>> {
        if self.prefix.is_empty()
            || self.prefix.len() > 64
            || !self.prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
        {
            return refuse(format!(
                "prefix is \"{}\"; 1 to 64 of A-Z a-z 0-9 _ - . are allowed",
                self.prefix.escape_debug()
            ));
        }
        for (name, value, max) in [
            ("the number of servers", self.servers.len(), SERVERS_MAX),
            ("connections", self.connections, 16),
            ("batch_max", self.batch_max, 4096),
        ] {
            if !(1..=max).contains(&value) {
                return refuse(format!("{name} is {value}; 1 to {max} are allowed"));
            }
        }
        if !(1..=1 << 30).contains(&self.value_bytes_max) {
            return refuse(format!("value_bytes_max is {}; 1 to 1 GiB is allowed", self.value_bytes_max));
        }
        if self.connect_timeout.is_zero() || self.response_timeout.is_zero() {
            return refuse("connect_timeout and response_timeout have to be longer than 0".to_owned());
        }
        let month = Duration::from_secs(30 * 24 * 60 * 60);
        if self.ticket_lifetime < Duration::from_secs(1) || self.ticket_lifetime > month {
            return refuse(format!(
                "ticket_lifetime is {:?}; 1 second to 30 days is allowed",
                self.ticket_lifetime
            ));
        }
        let mut addresses: Vec<Address> = Vec::with_capacity(self.servers.len());
        for (number, url) in self.servers.iter().enumerate() {
            let address = parse_url(url).or_else(|why| {
                // The URL itself may have a password in it.
                refuse(format!("server number {}: {why}", number + 1))
            })?;
            if addresses.iter().any(|other| other.place == address.place) {
                return refuse(format!("the server {address} is named twice"));
            }
            addresses.push(address);
        }
        Ok(addresses)
    }
}

const FORMS: &str =
    "memcached://[user:password@]host[:port], memcacheds://... and unix:///path are the forms allowed";

fn parse_url(url: &str) -> Result<Address, String> {
    if let Some(path) = url.strip_prefix("unix://") {
        if !path.starts_with('/') {
            return Err(format!("the path of its socket has to begin with a /; {FORMS}"));
        }
        if !cfg!(unix) {
            return Err("this system has no unix sockets".to_owned());
        }
        return Ok(Address { place: Place::Unix(PathBuf::from(path)), credentials: None });
    }
    let (is_tls, rest) = match (url.strip_prefix("memcached://"), url.strip_prefix("memcacheds://")) {
        (Some(rest), _) => (false, rest),
        (_, Some(rest)) => (true, rest),
        _ => return Err(FORMS.to_owned()),
    };
    if is_tls && !cfg!(feature = "memcached-tls") {
        return Err("TLS needs the feature memcached-tls".to_owned());
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (credentials, place) = match rest.rsplit_once('@') {
        Some((credentials, place)) => (Some(credentials), place),
        None => (None, rest),
    };
    let credentials = match credentials.map(|both| both.split_once(':')) {
        None => None,
        Some(Some((user, password))) if !user.is_empty() && !password.is_empty() => {
            // They are sent in one line.
            let is_allowed =
                |text: &str| text.len() <= 200 && text.bytes().all(|byte| byte.is_ascii_graphic());
            if !is_allowed(user) || !is_allowed(password) {
                return Err("user and password have at most 200 visible ASCII characters each".to_owned());
            }
            Some((user.to_owned(), password.to_owned()))
        }
        Some(_) => return Err(format!("a user needs a password; {FORMS}")),
    };
    let (host, port) = match place.rsplit_once(':') {
        // The colons of an IPv6 address are inside of brackets.
        Some((host, port)) if !port.ends_with(']') => {
            (host, port.parse().map_err(|_| format!("the port is no number up to 65535; {FORMS}"))?)
        }
        _ => (place, 11211),
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:%".contains(&byte);
    if host.is_empty() || host.len() > KEY_BYTES_MAX || !host.bytes().all(is_name) {
        return Err(format!("it names no host; {FORMS}"));
    }
    Ok(Address { place: Place::Tcp { host: host.to_owned(), port, is_tls }, credentials })
}

pub(super) fn refuse<T>(message: String) -> Result<T> {
    Err(Error::new(ErrorKind::Config, "open").backend(NAME).message(message))
}

/// Without the servers' users and passwords.
impl fmt::Debug for MemcachedOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address =
            |url: &String| parse_url(url).map_or_else(|_| "?".to_owned(), |found| found.to_string());
        f.debug_struct("MemcachedOptions")
            .field("servers", &self.servers.iter().map(address).collect::<Vec<_>>())
            .field("prefix", &self.prefix)
            .field("connections", &self.connections)
            .field("batch_max", &self.batch_max)
            .field("large_values", &self.large_values)
            .field("value_bytes_max", &self.value_bytes_max)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(larder_shuttle)))]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn urls_are_understood_or_refused_without_their_password() {
        let shown = |url: &str| MemcachedOptions::new([url]).parse().unwrap()[0].to_string();
        assert_eq!(shown("memcached://h"), "h:11211");
        assert_eq!(shown("memcached://u:p@ss:w@h:1/"), "h:1");
        assert_eq!(shown("memcached://[::1]"), "::1:11211");
        assert_eq!(shown("memcached://[::1]:7"), "::1:7");
        assert_eq!(shown("unix:///run/m.sock"), "unix:/run/m.sock");
        let refused = [
            "",
            "h:1",
            "http://secret@h",
            "memcached://",
            "memcached://secret@h",
            "memcached://u:@h:1",
            "memcached://:secret@h",
            "memcached://u:sec ret@h",
            "memcached://u:secret@h:port",
            "memcached://u:secret@h:99999",
            "memcached://a b",
            "unix://relative",
        ];
        for url in refused {
            let error = MemcachedOptions::new([url]).parse().err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Config, "{url}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        let twice = MemcachedOptions::new(["memcached://h", "memcached://u:p@h:11211"]);
        assert!(twice.parse().err().unwrap().to_string().contains("named twice"));
        let shown = format!("{:?}", MemcachedOptions::new(["memcached://user:hunter2@h"]));
        assert!(
            shown.contains("h:11211") && !shown.contains("hunter2") && !shown.contains("user"),
            "{shown}"
        );
    }

    #[test]
    fn settings_are_named_with_what_is_allowed() {
        let check = |change: fn(&mut MemcachedOptions), words: &str| {
            let mut options = MemcachedOptions::new(["memcached://h"]);
            change(&mut options);
            let error = options.parse().err().unwrap().to_string();
            assert!(error.contains(words), "{error}");
        };
        check(|options| options.servers.clear(), "the number of servers is 0; 1 to 64");
        check(|options| options.connections = 17, "connections is 17; 1 to 16");
        check(|options| options.batch_max = 0, "batch_max is 0; 1 to 4096");
        check(|options| options.prefix = "a b".to_owned(), "prefix is \"a b\"");
        check(|options| options.value_bytes_max = 0, "value_bytes_max is 0");
        check(|options| options.ticket_lifetime = Duration::ZERO, "ticket_lifetime is 0ns");
        check(|options| options.response_timeout = Duration::ZERO, "response_timeout");
    }
}
