//! Tenants: customers of one service whose entries must never meet.
//!
//! Owns what a tenant is, where a cache learns it, and the tenant of the task that runs. That two tenants are
//! kept apart is not decided here: the tenant is a part of the [`Namespace`](crate::key::Namespace), and so of
//! every key, tag, clear, load and checksum.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> larder::Result<()> {
//! use larder::Cache;
//! use larder::tenant::{self, Tenant, TenantFrom};
//!
//! let cache: Cache<u64, String> = Cache::builder().tenants(TenantFrom::Context).build()?;
//! let (acme, other) = (Tenant::new("acme")?, Tenant::new("other")?);
//! tenant::scope(acme.clone(), cache.set(1, "theirs".into())).await?;
//! assert_eq!(tenant::scope(acme, cache.get(&1)).await.as_deref(), Some("theirs"));
//! assert_eq!(tenant::scope(other, cache.get(&1)).await, None);
//! // Nobody's: refused.
//! assert!(cache.set(1, "whose?".into()).await.is_err());
//! # Ok(()) }
//! ```

use crate::error::{Error, ErrorKind, Result};
use crate::key::is_allowed_in_names;
use sha2::{Digest, Sha256};
use std::fmt::{self, Write as _};
use std::future::Future;
use std::sync::Arc;

/// Longest [`Tenant`] in bytes that is taken as it is: a UUID or a host name fits, and so does a SHA-256 in hex.
pub const TENANT_BYTES_MAX: usize = 64;

/// Before the hash of a [`Tenant::hashed`]; no other tenant can begin with it.
const HASHED_MARK: char = '~';
const SHA256_HEX_BYTES: usize = 64;

/// Whose entries they are. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant(Arc<str>);

impl Tenant {
    /// Checks and takes a name: 1 to 64 bytes of `A-Z a-z 0-9 _ - . :`. Case matters.
    ///
    /// # Errors
    /// [`ErrorKind::Key`], with the rule, when it is anything else. See [`hashed`](Self::hashed).
    pub fn new(name: &str) -> Result<Self> {
        if name.is_empty() || name.len() > TENANT_BYTES_MAX || !name.bytes().all(is_allowed_in_names) {
            return Err(Error::new(ErrorKind::Key, "tenant").message(format!(
                "a tenant has 1 to {TENANT_BYTES_MAX} bytes of A-Z a-z 0-9 _ - . :; others can be hashed"
            )));
        }
        Ok(Tenant(Arc::from(name)))
    }

    /// A tenant of any text, e.g. an e-mail address: `~` and its SHA-256. It never equals one that was taken as
    /// it is, and keeps the text out of keys, files and logs; whoever can guess the text can check the guess.
    pub fn hashed(text: &str) -> Self {
        let mut name = String::with_capacity(1 + SHA256_HEX_BYTES);
        name.push(HASHED_MARK);
        for byte in Sha256::digest(text.as_bytes()) {
            write!(name, "{byte:02x}").expect("writing to a string can't fail");
        }
        Tenant(Arc::from(name))
    }

    /// A tenant from the text of a namespace, hashed or not.
    pub(crate) fn stored(text: &str) -> Result<Self> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        match text.strip_prefix(HASHED_MARK) {
            Some(hash) if hash.len() == SHA256_HEX_BYTES && hash.bytes().all(is_digit) => {
                Ok(Tenant(Arc::from(text)))
            }
            _ => Self::new(text),
        }
    }

    /// Its name, or `~` and the hash.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a cache with tenants learns whose entries a call is about. Without an answer the call fails with
/// [`ErrorKind::Tenant`]: nothing is read, loaded or stored.
#[derive(Clone)]
#[non_exhaustive]
pub enum TenantFrom {
    /// Only from [`Cache::tenant`](crate::Cache::tenant).
    Argument,
    /// From this function, which is asked at each call, on the task or thread that makes it. Inside of a
    /// loader that is the load's task, where [`current`] has the tenant.
    Callback(TenantCallback),
    /// From the task: see [`scope`].
    Context,
}

/// Says whose a call is.
pub type TenantCallback = Arc<dyn Fn() -> Option<Tenant> + Send + Sync>;

impl TenantFrom {
    /// [`TenantFrom::Callback`] of a closure.
    pub fn callback(ask: impl Fn() -> Option<Tenant> + Send + Sync + 'static) -> Self {
        TenantFrom::Callback(Arc::new(ask))
    }

    pub(crate) fn ask(&self) -> Option<Tenant> {
        match self {
            TenantFrom::Argument => None,
            TenantFrom::Callback(ask) => ask(),
            TenantFrom::Context => current(),
        }
    }
}

impl fmt::Debug for TenantFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TenantFrom::Argument => "Argument",
            TenantFrom::Callback(_) => "Callback(..)",
            TenantFrom::Context => "Context",
        })
    }
}

tokio::task_local! {
    static CURRENT: Tenant;
}

/// Runs a future for a tenant: [`current`] answers it wherever the future is polled, across awaits and on any
/// executor. An inner scope hides the outer one.
///
/// Tasks that the future spawns don't inherit it, except by [`inherit`]; loads and background refreshes of
/// larder's do.
pub async fn scope<F: Future>(tenant: Tenant, future: F) -> F::Output {
    CURRENT.scope(tenant, future).await
}

/// Runs a function for a tenant, on this thread: for [`blocking`](crate::Cache::blocking) calls.
pub fn with<T>(tenant: Tenant, run: impl FnOnce() -> T) -> T {
    CURRENT.sync_scope(tenant, run)
}

/// The tenant of the innermost [`scope`] or [`with`] around the call.
pub fn current() -> Option<Tenant> {
    CURRENT.try_with(Tenant::clone).ok()
}

/// The future with the tenant of the caller, wherever it runs: `tokio::spawn(tenant::inherit(child))`.
pub fn inherit<F: Future>(future: F) -> impl Future<Output = F::Output> {
    maybe_scope(current(), future)
}

/// [`scope`], where there is a tenant.
pub(crate) async fn maybe_scope<F: Future>(tenant: Option<Tenant>, future: F) -> F::Output {
    match tenant {
        Some(tenant) => CURRENT.scope(tenant, future).await,
        None => future.await,
    }
}

/// [`with`], where there is a tenant.
pub(crate) fn maybe_with<T>(tenant: Option<Tenant>, run: impl FnOnce() -> T) -> T {
    match tenant {
        Some(tenant) => with(tenant, run),
        None => run(),
    }
}
