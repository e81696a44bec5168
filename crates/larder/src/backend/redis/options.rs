//! The settings, checked once; credentials never show.

use super::fault::NAME;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use redis::{ConnectionInfo, IntoConnectionInfo};
use serde::Deserialize;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The settings of a [`RedisBackend`](super::RedisBackend).
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedisOptions {
    /// The server: `redis://[user][:password@]host[:port][/db]` or
    /// `unix:///path/to/socket[?db=0&user=u&pass=p]`, and `rediss://...` for TLS with the feature `redis-tls`.
    /// With [`cluster`](Self::cluster), any of its nodes; with [`sentinel_master`](Self::sentinel_master), a
    /// sentinel, and user, password and database are those of the server behind it.
    pub url: String,
    /// Further nodes of the cluster, or sentinels, to ask when `url` doesn't answer. None by default.
    #[serde(default)]
    pub more_urls: Vec<String>,
    /// Whether the server is a cluster. Off by default. Use more than one [shard](Self::shards) then.
    #[serde(default)]
    pub cluster: bool,
    /// The name under which sentinels know the master. `None`, the default: `url` is the server itself.
    #[serde(default)]
    pub sentinel_master: Option<String>,
    /// For `rediss://`: a PEM file of certificates to trust instead of the operating system's. `None` by default.
    #[serde(default)]
    pub tls_root: Option<PathBuf>,
    /// What all keys begin with, 1 to 64 of `A-Z a-z 0-9 _ - .`. `larder` by default.
    #[serde(default = "prefix")]
    pub prefix: String,
    /// Over how many slots a namespace is spread, 1 to 256. 1 by default, which is right for a single server;
    /// in a cluster about four per node. A tag, clear or pattern costs a step on each. All nodes have to agree,
    /// and the server remembers: another number is refused until its keys are gone.
    #[serde(default = "shards")]
    pub shards: u32,
    /// Most keys or writes that share one round trip, 1 to 1024. 256 by default: calls that are made within one
    /// scheduling tick, or while earlier ones are under way, go together, and reads become one `MGET`. 1 sends
    /// each call by itself.
    #[serde(default = "batch_max")]
    pub batch_max: usize,
    /// How long connecting may take, handshake included. 2 seconds by default.
    #[serde(default = "connect_timeout", with = "crate::options::seconds")]
    pub connect_timeout: Duration,
    /// After how long without an answer a connection is given up, with everything that is under way on it. 3
    /// seconds by default: a connection that a network has silently forgotten must not keep a healthy server away
    /// for longer than five. Single calls have the tier's deadlines.
    #[serde(default = "response_timeout", with = "crate::options::seconds")]
    pub response_timeout: Duration,
    /// How much longer than an entry lives the server keeps it. 1 second by default. This process' clock decides
    /// what is expired; the server only frees what nobody would be served.
    #[serde(default = "expiry_slack", with = "crate::options::seconds")]
    pub expiry_slack: Duration,
    /// Most tag markers kept per shard of a namespace; beyond, the older half is dropped and what was written
    /// before them is invalid. 16,384 by default: dropping half of them takes the server some milliseconds.
    #[serde(default = "markers_max")]
    pub markers_max: u32,
    /// Where the time comes from. The system by default.
    #[serde(skip)]
    pub clock: Clock,
}

fn prefix() -> String {
    "larder".to_owned()
}

fn shards() -> u32 {
    1
}

fn batch_max() -> usize {
    256
}

fn connect_timeout() -> Duration {
    Duration::from_secs(2)
}

fn response_timeout() -> Duration {
    Duration::from_secs(3)
}

fn expiry_slack() -> Duration {
    Duration::from_secs(1)
}

fn markers_max() -> u32 {
    16_384
}

impl RedisOptions {
    /// The defaults, for a server.
    pub fn new(url: impl Into<String>) -> Self {
        RedisOptions {
            url: url.into(),
            more_urls: Vec::new(),
            cluster: false,
            sentinel_master: None,
            tls_root: None,
            prefix: prefix(),
            shards: shards(),
            batch_max: batch_max(),
            connect_timeout: connect_timeout(),
            response_timeout: response_timeout(),
            expiry_slack: expiry_slack(),
            markers_max: markers_max(),
            clock: Clock::system(),
        }
    }

    /// Checks everything; the servers to ask, in order.
    pub(super) fn parse(&self) -> Result<Vec<ConnectionInfo>> {
        if self.prefix.is_empty()
            || self.prefix.len() > 64
            || !self.prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
        {
            return refuse(format!(
                "prefix is \"{}\"; 1 to 64 of A-Z a-z 0-9 _ - . are allowed",
                self.prefix.escape_debug()
            ));
        }
        for (name, value, max) in [("shards", self.shards as usize, 256), ("batch_max", self.batch_max, 1024)]
        {
            if !(1..=max).contains(&value) {
                return refuse(format!("{name} is {value}; 1 to {max} are allowed"));
            }
        }
        if self.markers_max == 0 {
            return refuse("markers_max is 0; at least 1 is needed".to_owned());
        }
        if self.connect_timeout.is_zero() || self.response_timeout.is_zero() {
            return refuse("connect_timeout and response_timeout have to be longer than 0".to_owned());
        }
        if self.cluster && self.sentinel_master.is_some() {
            return refuse("cluster and sentinel_master exclude each other".to_owned());
        }
        let root = self.tls_root.as_ref().map(|path| {
            std::fs::read(path).or_else(|error| refuse(format!("tls_root {}: {error}", path.display())))
        });
        let root = root.transpose()?;
        let urls = [&self.url].into_iter().chain(&self.more_urls);
        let servers: Vec<_> =
            urls.map(|url| trust(parse_url(url)?, root.as_deref())).collect::<Result<_>>()?;
        #[cfg(feature = "redis-tls")]
        if servers.iter().any(|server| matches!(server.addr(), redis::ConnectionAddr::TcpTls { .. })) {
            choose_provider();
        }
        Ok(servers)
    }
}

/// TLS takes the process's cryptography, and panics where two are compiled in and nobody has chosen: then it is
/// that of larder's encryption. A choice of the application's stays.
#[cfg(feature = "redis-tls")]
fn choose_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Somebody else may just have been quicker, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
}

/// The connection with a certificate of the user's at its root.
#[cfg(feature = "redis-tls")]
fn trust(info: ConnectionInfo, root: Option<&[u8]>) -> Result<ConnectionInfo> {
    let (Some(root), redis::ConnectionAddr::TcpTls { .. }) = (root, info.addr()) else { return Ok(info) };
    let certificates = redis::TlsCertificates { client_tls: None, root_cert: Some(root.to_vec()) };
    match redis::Client::build_with_tls(info, certificates) {
        Ok(client) => Ok(client.get_connection_info().clone()),
        Err(_) => refuse("tls_root is no PEM file of certificates".to_owned()),
    }
}

#[cfg(not(feature = "redis-tls"))]
fn trust(info: ConnectionInfo, _: Option<&[u8]>) -> Result<ConnectionInfo> {
    Ok(info)
}

fn parse_url(url: &str) -> Result<ConnectionInfo> {
    let is_tls = ["rediss:", "valkeys:"].iter().any(|scheme| url.starts_with(scheme));
    if is_tls && !cfg!(feature = "redis-tls") {
        return refuse("url asks for TLS, which needs the feature redis-tls".to_owned());
    }
    // The parser's message may quote the URL, password included.
    let Ok(info) = url.into_connection_info() else {
        return refuse("url is none of redis://, rediss:// and unix:// in its right form".to_owned());
    };
    if url.contains("#insecure") {
        return refuse("url asks for TLS without checking certificates (#insecure)".to_owned());
    }
    Ok(info)
}

fn refuse<T>(message: String) -> Result<T> {
    Err(Error::new(ErrorKind::Config, "open").backend(NAME).message(message))
}

/// Without the URLs' user and password.
impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address =
            |url: &String| parse_url(url).map_or_else(|_| "?".to_owned(), |info| info.addr().to_string());
        f.debug_struct("RedisOptions")
            .field("url", &address(&self.url))
            .field("more_urls", &self.more_urls.iter().map(address).collect::<Vec<_>>())
            .field("cluster", &self.cluster)
            .field("sentinel_master", &self.sentinel_master)
            .field("prefix", &self.prefix)
            .field("shards", &self.shards)
            .field("batch_max", &self.batch_max)
            .finish_non_exhaustive()
    }
}
