//! A connection, from nothing to a server that is known to be able: TCP, unix socket or TLS, credentials, version,
//! settings, time.

use super::fault::Failure;
use super::options::{Address, Place};
use super::wire::{Refusal, refusal, split_line};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// Most bytes of the answers to a handshake: a server has about 10 KiB to say.
const HANDSHAKE_BYTES_MAX: usize = 256 << 10;
/// The first version whose meta protocol has all that larder asks of it.
const VERSION_MIN: [u32; 3] = [1, 6, 12];

/// Bytes in both directions.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What the server says of itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Server {
    /// Largest item, its key and memcached's own head included.
    pub(super) item_bytes_max: usize,
    /// Its clock, in seconds since 1970, and when that was asked for.
    pub(super) time_s: u64,
    pub(super) at: Instant,
}

/// How TLS is done; nothing without the feature.
#[derive(Clone)]
pub(super) struct Tls {
    #[cfg(feature = "memcached-tls")]
    pub(super) connector: Option<tokio_rustls::TlsConnector>,
}

/// Connects, and learns who answers. The caller limits the time that takes.
pub(super) async fn dial(address: &Address, tls: &Tls) -> Result<(Box<dyn Stream>, Server), Failure> {
    let mut stream = connect(address, tls).await?;
    if let Some((user, password)) = &address.credentials {
        let line = format!("set auth 0 0 {}\r\n{user} {password}\r\n", user.len() + 1 + password.len());
        stream.write_all(line.as_bytes()).await?;
        stream.flush().await?;
        let mut answers = Answers::new(&mut stream);
        let line = answers.line().await?;
        if line != b"STORED" {
            return Err(Failure::Refused(match refusal(line) {
                Refusal::NotUnderstood => Refusal::Unauthenticated,
                other => other,
            }));
        }
    }
    stream.write_all(b"version\r\nstats\r\nstats settings\r\n").await?;
    stream.flush().await?;
    let mut answers = Answers::new(&mut stream);
    check_version(answers.line().await?)?;
    let mut server = Server { item_bytes_max: 1 << 20, time_s: 0, at: Instant::now() };
    let mut has_cas = true;
    for _ in 0..2 {
        loop {
            let line = answers.line().await?;
            if line == b"END" {
                break;
            }
            let mut words = line.split(|byte| *byte == b' ');
            if words.next() != Some(b"STAT") {
                return Err(answered(line));
            }
            let (name, value) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let number = || std::str::from_utf8(value).ok().and_then(|value| value.parse::<u64>().ok());
            match name {
                b"time" => server.time_s = number().unwrap_or(0),
                b"item_size_max" => {
                    server.item_bytes_max = number().map_or(1 << 20, |bytes| bytes.min(1 << 30) as usize);
                }
                b"cas_enabled" => has_cas = value == b"yes",
                _ => {}
            }
        }
    }
    if !answers.is_at_end() {
        return Err(Failure::Nonsense("more than it was asked for"));
    }
    if !has_cas {
        return Err(Failure::Unsuitable("it runs without CAS (-C); larder needs it".to_owned()));
    }
    Ok((stream, server))
}

async fn connect(address: &Address, tls: &Tls) -> Result<Box<dyn Stream>, Failure> {
    match &address.place {
        #[cfg(unix)]
        Place::Unix(path) => Ok(Box::new(tokio::net::UnixStream::connect(path).await?)),
        #[cfg(not(unix))]
        Place::Unix(_) => Err(Failure::Unsuitable("this system has no unix sockets".to_owned())),
        Place::Tcp { host, port, is_tls } => {
            let stream = TcpStream::connect((&**host, *port)).await?;
            stream.set_nodelay(true)?;
            if *is_tls { secure(stream, host, tls).await } else { Ok(Box::new(stream)) }
        }
    }
}

#[cfg(feature = "memcached-tls")]
async fn secure(stream: TcpStream, host: &str, tls: &Tls) -> Result<Box<dyn Stream>, Failure> {
    let connector = tls.connector.as_ref().ok_or(Failure::Tls("TLS is not set up"))?;
    let name = rustls::pki_types::ServerName::try_from(host.to_owned())
        .map_err(|_| Failure::Tls("no certificate can name such a host"))?;
    match connector.connect(name, stream).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) if is_of_tls(&error) => {
            Err(Failure::Tls("TLS failed: its certificate isn't trusted, or it speaks no TLS"))
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(feature = "memcached-tls")]
fn is_of_tls(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>)
}

#[cfg(not(feature = "memcached-tls"))]
async fn secure(_: TcpStream, _: &str, _: &Tls) -> Result<Box<dyn Stream>, Failure> {
    Err(Failure::Tls("TLS needs the feature memcached-tls"))
}

/// What TLS trusts.
#[cfg(feature = "memcached-tls")]
pub(super) fn tls(root: Option<&std::path::Path>) -> crate::error::Result<Tls> {
    use super::options::refuse;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    match root {
        Some(path) => {
            let pem = std::fs::read(path)
                .or_else(|error| refuse(format!("tls_root {}: {error}", path.display())))?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let added = certificate.is_ok_and(|certificate| roots.add(certificate).is_ok());
                if !added {
                    return refuse("tls_root is no PEM file of certificates".to_owned());
                }
            }
            if roots.is_empty() {
                return refuse("tls_root is no PEM file of certificates".to_owned());
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                return refuse("the operating system has no certificates; name some by tls_root".to_owned());
            }
        }
    }
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .or_else(|_| refuse("TLS is not available".to_owned()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Tls { connector: Some(std::sync::Arc::new(config).into()) })
}

fn check_version(line: &[u8]) -> Result<(), Failure> {
    let Some(version) = line.strip_prefix(b"VERSION ") else { return Err(answered(line)) };
    let mut numbers = version.split(|byte| !byte.is_ascii_digit());
    let mut next = || {
        let digits = numbers.next().and_then(|digits| std::str::from_utf8(digits).ok());
        digits.and_then(|digits| digits.parse::<u32>().ok()).unwrap_or(0)
    };
    let found = [next(), next(), next()];
    if found < VERSION_MIN {
        let shown = |version: [u32; 3]| version.map(|part| part.to_string()).join(".");
        let why = format!("it is memcached {}; at least {} is needed", shown(found), shown(VERSION_MIN));
        return Err(Failure::Unsuitable(why));
    }
    Ok(())
}

/// The failure of a handshake that was answered by this line.
fn answered(line: &[u8]) -> Failure {
    let words: [&[u8]; 4] = [b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR", b"BUSY"];
    match words.iter().any(|word| line.starts_with(word)) {
        true => Failure::Refused(refusal(line)),
        false => Failure::Nonsense("a greeting that memcached doesn't give"),
    }
}

/// The lines of a handshake.
struct Answers<'s> {
    stream: &'s mut Box<dyn Stream>,
    received: Vec<u8>,
    /// Where the next line begins.
    at: usize,
    total: usize,
}

impl<'s> Answers<'s> {
    fn new(stream: &'s mut Box<dyn Stream>) -> Self {
        Answers { stream, received: Vec::with_capacity(4096), at: 0, total: 0 }
    }

    async fn line(&mut self) -> Result<&[u8], Failure> {
        loop {
            if let Some((line, taken)) = split_line(&self.received[self.at..])? {
                let (from, to) = (self.at, self.at + line.len());
                self.at += taken;
                return Ok(&self.received[from..to]);
            }
            self.received.drain(..self.at);
            self.at = 0;
            match self.stream.read_buf(&mut self.received).await? {
                0 => return Err(Failure::Connection(std::io::ErrorKind::UnexpectedEof)),
                bytes => self.total += bytes,
            }
            if self.total > HANDSHAKE_BYTES_MAX {
                return Err(Failure::Nonsense("a greeting that doesn't end"));
            }
        }
    }

    fn is_at_end(&self) -> bool {
        self.at == self.received.len()
    }
}
