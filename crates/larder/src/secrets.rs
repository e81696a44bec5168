//! A store of secrets: credentials, tokens, keys of other services. Sealed in every tier, never shown.
//!
//! Owns what must hold beyond a [`StateStore`]: no tier without encryption, no copy in memory unless it is
//! asked for, nothing in `Debug`. A value is in plain memory while it is sealed or opened, in buffers of the
//! codec that are not wiped; the [`Secret`] that a caller holds is wiped with its last clone.

use crate::cache::{Builder, Cache, Removal};
use crate::error::{Error, ErrorKind, Result};
use crate::state::{Names, StateStore};
use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// Bytes that nobody should see, wiped from memory with their last clone. `Debug` shows nothing of them.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<Vec<u8>>>);

impl Secret {
    /// Takes the bytes over.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Secret(Arc::new(Zeroizing::new(bytes.into())))
    }

    /// The bytes, to use and not to keep.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text, if they are.
    pub fn expose_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl<'de> Visitor<'de> for Bytes {
            type Value = Secret;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Secret, E> {
                Ok(Secret::new(bytes))
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Secret, E> {
                Ok(Secret::new(bytes))
            }
            // JSON has no bytes.
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Secret, A::Error> {
                let mut bytes = Zeroizing::new(Vec::new());
                while let Some(byte) = list.next_element()? {
                    bytes.push(byte);
                }
                Ok(Secret(Arc::new(bytes)))
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

/// Whether a process keeps copies of secrets in its memory between uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Copies {
    /// None: each read asks a tier, and opens what it has. The default, because a dump of the memory then
    /// holds what is in use, and not all there is.
    #[default]
    None,
    /// In L1, as in any cache: a read costs nanoseconds.
    InMemory,
}

/// Secrets by name, encrypted in every tier of a cache. Clones are cheap and share everything.
///
/// Names are stored in plain unless [`hide_keys`](crate::TierOptions#structfield.hide_keys) hides them, and
/// then they can't be listed.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> larder::Result<()> {
/// use larder::backend::{MemoryBackend, MemoryOptions};
/// use larder::envelope::{Keyring, SecretKey};
/// use larder::secrets::{Copies, Secret, SecretStore};
/// use std::sync::Arc;
///
/// let keyring = Keyring::builder().encrypt_with(SecretKey::generate()).build()?;
/// let tier = Arc::new(MemoryBackend::new(MemoryOptions::default()));
/// let secrets = SecretStore::new(larder::Cache::builder().tier(tier).encryption(keyring), Copies::None)?;
/// secrets.put("db/password", Secret::new("correct horse")).await?;
/// assert_eq!(secrets.get("db/password").await?.unwrap().expose(), b"correct horse");
/// assert_eq!(secrets.list("db/", None, 10).await?.names, ["db/password"]);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct SecretStore {
    state: StateStore<Secret>,
}

impl SecretStore {
    /// A store over the cache that `builder` builds, which needs a tier and a keyring that encrypts.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] without a tier, or without encryption (a signature hides nothing); and as
    /// [`Builder::build`].
    pub fn new(builder: Builder<String, Secret>, copies: Copies) -> Result<Self> {
        if !builder.encrypts() {
            return Err(Error::new(ErrorKind::Config, "build")
                .message("a store of secrets needs encryption; give the builder a keyring by `encryption`"));
        }
        let builder = match copies {
            Copies::None => builder.without_memory(),
            Copies::InMemory => builder,
        };
        Ok(SecretStore { state: StateStore::new(builder)? })
    }

    /// The cache below: for its statistics, [rotation](Cache::rotate_keys) and [`close`](Cache::close).
    pub fn cache(&self) -> &Cache<String, Secret> {
        self.state.cache()
    }

    /// The same store over another view of its cache: of a namespace, or a tenant.
    #[must_use]
    pub fn with_view(&self, view: impl FnOnce(&Cache<String, Secret>) -> Cache<String, Secret>) -> Self {
        SecretStore { state: self.state.with_view(view) }
    }

    /// Stores a secret in every tier, for ever.
    ///
    /// # Errors
    /// As [`StateStore::set`].
    pub async fn put(&self, name: &str, secret: Secret) -> Result<()> {
        self.state.set(name, secret).await
    }

    /// Stores a secret that expires.
    ///
    /// # Errors
    /// As [`StateStore::set`].
    pub async fn put_for(&self, name: &str, secret: Secret, ttl: Duration) -> Result<()> {
        self.state.set_for(name, secret, ttl).await
    }

    /// The secret of a name.
    ///
    /// # Errors
    /// As [`StateStore::get`].
    pub async fn get(&self, name: &str) -> Result<Option<Secret>> {
        self.state.get(name).await
    }

    /// Deletes a secret everywhere.
    ///
    /// # Errors
    /// As [`StateStore::delete`].
    pub async fn delete(&self, name: &str) -> Result<Removal> {
        self.state.delete(name).await
    }

    /// Lists the names that begin with `prefix`, at most `limit` of a page. Opens no secret.
    ///
    /// # Errors
    /// As [`Cache::keys`].
    pub async fn list(&self, prefix: &str, after: Option<String>, limit: usize) -> Result<Names> {
        self.state.list(prefix, after, limit).await
    }
}

impl fmt::Debug for SecretStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretStore").field("cache", self.cache()).finish_non_exhaustive()
    }
}
