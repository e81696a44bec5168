//! The settings, checked once; credentials never show.

use super::fault::NAME;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use serde::Deserialize;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
use tokio_postgres::config::{ChannelBinding, Config, Host, SslMode, TargetSessionAttrs};

/// The settings of a [`PostgresBackend`](super::PostgresBackend).
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresOptions {
    /// The server: `postgres://[user][:password@]host[:port][,host:port...][/database][?sslmode=require]`, or as
    /// `host=/run/postgresql user=u dbname=d`, which also does for a unix socket's folder. Of several hosts the
    /// first that is no replica is taken. Without `sslmode=require` nothing is encrypted; with it, which needs the
    /// feature `postgres-tls`, the server's certificate and name are checked. A pooler in between must keep
    /// sessions apart (PgBouncer's `pool_mode = session`).
    pub url: String,
    /// For `sslmode=require`: a PEM file of certificates to trust instead of the operating system's. `None` by
    /// default.
    #[serde(default)]
    pub tls_root: Option<PathBuf>,
    /// The schema that holds larder's tables and nothing else, 1 to 48 of `a-z 0-9 _`, not beginning with a digit.
    /// `larder` by default. It is made at the first use, and also names the channel of the hints.
    #[serde(default = "schema")]
    pub schema: String,
    /// Whether tables are logged. Off by default: what a cache loses in a crash it loads again, and unlogged tables
    /// spare the server's log, its disk and its replicas most of the work. Unlogged tables are empty after a crash
    /// of the server, though not after an orderly restart, and on a replica that is promoted; what is in logged ones
    /// survives the crash, and a set is acknowledged when it does. Every node has to say the same.
    #[serde(default)]
    pub logged: bool,
    /// Connections for reads, and as many for writes, 1 to 32. 2 by default: one is on its way while the server works
    /// for the other, and what is asked meanwhile gathers to one statement. One more does what takes longer (lists,
    /// patterns, sweeps), all are made when they are needed.
    #[serde(default = "connections")]
    pub connections: usize,
    /// Most keys or writes that share one statement, 1 to 1024. 256 by default. 1 sends each call by itself.
    #[serde(default = "batch_max")]
    pub batch_max: usize,
    /// How long connecting may take, the schema's making included. 5 seconds by default.
    #[serde(default = "connect_timeout", with = "crate::options::seconds")]
    pub connect_timeout: Duration,
    /// After how long without an answer a connection is given up. 10 seconds by default, longer than a tier's
    /// deadlines: they give up a call, this gives up everything that shares the statement. The server gives up by
    /// itself at the same time (`statement_timeout`), and stops waiting for a lock after half of it
    /// (`lock_timeout`). At least 100 ms.
    #[serde(default = "response_timeout", with = "crate::options::seconds")]
    pub response_timeout: Duration,
    /// Most tag markers kept per namespace; beyond, the older half is dropped and what was written before them is
    /// invalid. 65,536 by default.
    #[serde(default = "markers_max")]
    pub markers_max: u32,
    /// Where the time comes from. The system by default.
    #[serde(skip)]
    pub clock: Clock,
}

fn schema() -> String {
    "larder".to_owned()
}

fn connections() -> usize {
    2
}

fn batch_max() -> usize {
    256
}

fn connect_timeout() -> Duration {
    Duration::from_secs(5)
}

fn response_timeout() -> Duration {
    Duration::from_secs(10)
}

fn markers_max() -> u32 {
    65_536
}

/// After how long without a word an idle connection is probed: before the usual firewall forgets it.
const KEEPALIVE: Duration = Duration::from_secs(60);

impl PostgresOptions {
    /// The defaults, for a server.
    pub fn new(url: impl Into<String>) -> Self {
        PostgresOptions {
            url: url.into(),
            tls_root: None,
            schema: schema(),
            logged: false,
            connections: connections(),
            batch_max: batch_max(),
            connect_timeout: connect_timeout(),
            response_timeout: response_timeout(),
            markers_max: markers_max(),
            clock: Clock::system(),
        }
    }

    /// Checks everything; how to connect.
    pub(super) fn parse(&self) -> Result<Target> {
        let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if self.schema.is_empty()
            || self.schema.len() > 48
            || !self.schema.bytes().all(is_name)
            || self.schema.as_bytes()[0].is_ascii_digit()
            || self.schema.starts_with("pg_")
            || ["public", "information_schema"].contains(&&*self.schema)
        {
            return refuse(format!(
                "schema is \"{}\"; 1 to 48 of a-z 0-9 _ are allowed, not beginning with a digit or pg_, and not public: \
                 larder wants a schema of its own",
                self.schema.escape_debug()
            ));
        }
        for (name, value, max) in [("connections", self.connections, 32), ("batch_max", self.batch_max, 1024)]
        {
            if !(1..=max).contains(&value) {
                return refuse(format!("{name} is {value}; 1 to {max} are allowed"));
            }
        }
        if self.markers_max == 0 {
            return refuse("markers_max is 0; at least 1 is needed".to_owned());
        }
        if self.connect_timeout.is_zero() {
            return refuse("connect_timeout is 0; it has to be longer".to_owned());
        }
        if self.response_timeout < Duration::from_millis(100) {
            return refuse(format!(
                "response_timeout is {:?}; at least 100 ms are needed",
                self.response_timeout
            ));
        }
        let mut config = parse_url(&self.url)?;
        let keepalive = KEEPALIVE.min(config.get_keepalives_idle());
        config.connect_timeout(self.connect_timeout).keepalives_idle(keepalive);
        if config.get_hosts().len() > 1 {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        if config.get_application_name().is_none() {
            config.application_name("larder");
        }
        let tls = match config.get_ssl_mode() {
            SslMode::Require => Some(Tls::new(self.tls_root.as_deref())?),
            // "prefer" would let whoever is in between choose.
            _ => {
                if config.get_channel_binding() == ChannelBinding::Require {
                    return refuse("url asks for channel_binding without sslmode=require".to_owned());
                }
                config.ssl_mode(SslMode::Disable);
                if self.tls_root.is_some() {
                    return refuse("tls_root is set, and url doesn't say sslmode=require".to_owned());
                }
                None
            }
        };
        Ok(Target { config, tls })
    }
}

/// Where the server is, and how to get there.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) config: Config,
    pub(super) tls: Option<Tls>,
}

/// Hosts alone.
impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |host: &Host| match host {
            Host::Tcp(name) => name.clone(),
            #[cfg(unix)]
            Host::Unix(path) => path.display().to_string(),
        };
        f.debug_list().entries(self.config.get_hosts().iter().map(shown)).finish()
    }
}

/// How a server has to prove who it is.
#[derive(Clone)]
#[cfg(feature = "postgres-tls")]
pub(super) struct Tls(pub(super) tokio_postgres_rustls::MakeRustlsConnect);

#[cfg(feature = "postgres-tls")]
impl Tls {
    fn new(root: Option<&std::path::Path>) -> Result<Self> {
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject;

        let mut roots = rustls::RootCertStore::empty();
        match root {
            Some(path) => {
                let pem = std::fs::read(path)
                    .or_else(|error| refuse(format!("tls_root {}: {error}", path.display())))?;
                for certificate in CertificateDer::pem_slice_iter(&pem) {
                    let is_sound = certificate.is_ok_and(|certificate| roots.add(certificate).is_ok());
                    if !is_sound {
                        return refuse("tls_root is no PEM file of certificates".to_owned());
                    }
                }
                if roots.is_empty() {
                    return refuse("tls_root has no certificate in it".to_owned());
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        // Named, because a process may have several and no default among them.
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .or_else(|_| refuse("TLS can't be set up".to_owned()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Tls(tokio_postgres_rustls::MakeRustlsConnect::new(client)))
    }
}

#[derive(Clone)]
#[cfg(not(feature = "postgres-tls"))]
pub(super) enum Tls {}

#[cfg(not(feature = "postgres-tls"))]
impl Tls {
    fn new(_: Option<&std::path::Path>) -> Result<Self> {
        refuse("url asks for TLS (sslmode=require), which needs the feature postgres-tls".to_owned())
    }
}

fn parse_url(url: &str) -> Result<Config> {
    // The parser's message may quote the URL, password included.
    let Ok(config) = url.parse::<Config>() else {
        return refuse(
            "url is neither postgres://user@host/database nor host=... user=... in its right form; of sslmode, \
             disable and require are known"
                .to_owned(),
        );
    };
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return refuse("url names no host".to_owned());
    }
    Ok(config)
}

fn refuse<T>(message: String) -> Result<T> {
    Err(Error::new(ErrorKind::Config, "open").backend(NAME).message(message))
}

/// Without user and password.
impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = parse_url(&self.url).map(|config| Target { config, tls: None });
        f.debug_struct("PostgresOptions")
            .field("hosts", &hosts.as_ref().map_err(|_| "?"))
            .field("schema", &self.schema)
            .field("logged", &self.logged)
            .field("connections", &self.connections)
            .field("batch_max", &self.batch_max)
            .finish_non_exhaustive()
    }
}
