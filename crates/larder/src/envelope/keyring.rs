//! Keys that protect what tiers store: where they come from, which one is in use, and what is derived from
//! them. Never encrypts anything itself, and never shows a key: only its [`KeyId`].
//!
//! # Derivation
//! All by HKDF-SHA256 (RFC 5869), from a secret of 32 random bytes:
//!
//! | key | how |
//! | --- | --- |
//! | root | Extract, salt `larder envelope v1`, input the secret |
//! | key id | Expand of the root, info `larder key id`, 4 bytes, big-endian; 1 instead of 0 |
//! | encryption of a namespace | Expand of the root, info `larder encrypt`, a zero byte, the namespace's text |
//! | encryption of an entry | Expand of the namespace's key, info `larder entry`, the entry's salt of 16 bytes |
//! | signing of a namespace | Expand of the root, info `larder sign`, a zero byte, the namespace's text |
//! | names of a namespace | Expand of the root, info `larder names`, a zero byte, the namespace's text |
//!
//! All but the key id have 32 bytes. The text of a namespace tells its tenant too, so that every tenant has
//! keys of its own. The keys of a namespace are kept, so that an entry costs one Expand.

use super::KeyId;
use crate::error::{BoxError, Error, ErrorKind, Result};
use crate::key::{EntryKey, Namespace};
use aws_lc_rs::{constant_time, hkdf, hmac, rand};
use bytes::Bytes;
use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use zeroize::Zeroizing;

/// Bytes of a [`SecretKey`].
pub const SECRET_KEY_BYTES: usize = 32;
/// Most keys of a ring: one that encrypts and what past rotations left behind.
const KEYS_MAX: usize = 16;
/// Most namespaces whose keys are kept; past it they are derived anew, at some microseconds each.
const SPACES_MAX: usize = 4096;
/// Largest key file in bytes. A ring of 16 keys has about 1 KiB.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// A secret of 32 random bytes, wiped from memory with its last clone. Its `Debug` shows the [`KeyId`].
#[derive(Clone)]
pub struct SecretKey(Arc<Zeroizing<[u8; SECRET_KEY_BYTES]>>);

impl SecretKey {
    /// A new one, from the generator of AWS-LC, which is safe over `fork` and snapshots of a machine where
    /// the system says so.
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0; SECRET_KEY_BYTES]);
        fill_random(&mut *bytes);
        SecretKey(Arc::new(bytes))
    }

    /// Takes a copy of random bytes. No passphrase: nothing here is slow enough to hinder guessing.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when all bytes are equal, which no random key is.
    pub fn from_bytes(bytes: &[u8; SECRET_KEY_BYTES]) -> Result<Self> {
        if bytes.iter().all(|byte| *byte == bytes[0]) {
            return Err(config("a key has 32 equal bytes; 32 random ones are needed"));
        }
        Ok(SecretKey(Arc::new(Zeroizing::new(*bytes))))
    }

    /// Takes 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for anything else; what it was is not said.
    pub fn from_hex(hex: &str) -> Result<Self> {
        let refused = || config("a key is not 64 hexadecimal digits; `larder keys new` makes one");
        if hex.len() != 2 * SECRET_KEY_BYTES || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(refused());
        }
        let mut bytes = Zeroizing::new([0; SECRET_KEY_BYTES]);
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).map_err(|_| refused())?;
        }
        Self::from_bytes(&bytes)
    }

    /// The key in 64 hexadecimal digits: for a key file, and nothing else.
    pub fn to_hex(&self) -> Zeroizing<String> {
        let mut hex = Zeroizing::new(String::with_capacity(2 * SECRET_KEY_BYTES));
        for byte in self.0.iter() {
            write!(hex, "{byte:02x}").expect("writing to a string can't fail");
        }
        hex
    }

    /// The id by which entries name it, derived from it: no two keys can be mixed up by a wrong number.
    pub fn id(&self) -> KeyId {
        id_of(&self.root())
    }

    fn root(&self) -> hkdf::Prk {
        hkdf::Salt::new(hkdf::HKDF_SHA256, b"larder envelope v1").extract(&**self.0)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.id())
    }
}

/// Compared in constant time.
impl PartialEq for SecretKey {
    fn eq(&self, other: &Self) -> bool {
        constant_time::verify_slices_are_equal(&**self.0, &**other.0).is_ok()
    }
}

impl Eq for SecretKey {}

/// Where keys are read from. In all three the text is the same: keys of 64 hexadecimal digits, separated by
/// white space or commas; the first one encrypts, the others only decrypt. `names:` before a key makes it the
/// one that hides names ([`KeyringBuilder::hide_names_with`]). `#` begins a comment, to the end of the line.
#[derive(Clone)]
pub enum KeySource {
    /// A file that its owner alone can read; if it is root's, its group too, as where a secret is mounted
    /// for a service.
    File(PathBuf),
    /// An environment variable. Whoever may look at the process can read it there for as long as it runs;
    /// a file is better.
    Env(String),
    /// Asked once, by [`load`](Self::load): a secret store. Its error is shown to operators.
    Callback(Arc<dyn Fn() -> Result<Zeroizing<String>, BoxError> + Send + Sync>),
}

impl KeySource {
    /// Reads the keys.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when there is no such file or variable, when others may read the file (with the
    /// cure), or when its text is no list of keys; never with what the text was.
    pub fn load(&self) -> Result<Keyring> {
        let text = match self {
            KeySource::File(path) => read_private(path)?,
            KeySource::Env(name) => Zeroizing::new(std::env::var(name).map_err(|_| {
                config(format!(
                    "the environment variable {name} holds no keys, and there is no start without"
                ))
            })?),
            KeySource::Callback(ask) => ask().map_err(|why| config("the keys were refused").source(why))?,
        };
        let named = |error: Error| config(format!("{self}: {}", reason(&error)));
        KeyringBuilder::parse(&text).and_then(KeyringBuilder::build).map_err(named)
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeySource::File(path) => write!(f, "{}", path.display()),
            KeySource::Env(name) => write!(f, "environment variable {name}"),
            KeySource::Callback(_) => f.write_str("callback"),
        }
    }
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySource({self})")
    }
}

/// Builds a [`Keyring`].
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct KeyringBuilder {
    current: Option<SecretKey>,
    previous: Vec<SecretKey>,
    names: Option<SecretKey>,
}

impl KeyringBuilder {
    /// The key of all that is written from now on; it reads, too.
    pub fn encrypt_with(mut self, key: SecretKey) -> Self {
        self.current = Some(key);
        self
    }

    /// One more key for what is stored already, or for what others begin to write with it.
    pub fn decrypt_with(mut self, key: SecretKey) -> Self {
        self.previous.push(key);
        self
    }

    /// The key that hides names in tiers with [`TierOptions::hide_keys`](crate::TierOptions). It is not
    /// rotated with the others: with another one, every entry has another name, and none is found again.
    pub fn hide_names_with(mut self, key: SecretKey) -> Self {
        self.names = Some(key);
        self
    }

    /// Reads the text of a [`KeySource`].
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for anything else, without saying what it was.
    pub fn parse(text: &str) -> Result<Self> {
        let mut builder = KeyringBuilder::default();
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
        for word in lines.flat_map(|line| line.split([' ', '\t', ','])).filter(|word| !word.is_empty()) {
            if let Some(hex) = word.strip_prefix("names:") {
                if builder.names.is_some() {
                    return Err(config("two keys hide names; one is allowed"));
                }
                builder.names = Some(SecretKey::from_hex(hex)?);
            } else if builder.current.is_none() {
                builder.current = Some(SecretKey::from_hex(word)?);
            } else {
                builder.previous.push(SecretKey::from_hex(word)?);
            }
        }
        Ok(builder)
    }

    /// Checks the keys.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] without a key that encrypts, with one key twice, or with more than 16.
    pub fn build(self) -> Result<Keyring> {
        let Some(current) = self.current else {
            return Err(config("there is no key to encrypt with; `larder keys new` makes one"));
        };
        let keys: Vec<SecretKey> = std::iter::once(current).chain(self.previous).collect();
        if keys.len() > KEYS_MAX {
            return Err(config(format!("there are {} keys; at most {KEYS_MAX} are allowed", keys.len())));
        }
        let known: Vec<Known> = keys.iter().map(Known::new).collect();
        for (at, key) in known.iter().enumerate() {
            if known[..at].iter().any(|other| other.id == key.id) {
                return Err(config(format!("the key {} is there twice", key.id)));
            }
        }
        // One key for two purposes would be kept for the sake of the one and rotated for that of the other.
        if self.names.as_ref().is_some_and(|names| keys.contains(names)) {
            return Err(config("the key that hides names encrypts, too; it needs to be another one"));
        }
        let ring = Ring { known, names: self.names.as_ref().map(Known::new) };
        Ok(Keyring(Arc::new(RwLock::new(Arc::new(ring)))))
    }
}

/// One key that encrypts, a few that only decrypt, and perhaps one that hides names. Clones are one ring:
/// what [`replace`](Self::replace) changes, all caches with it see.
///
/// # Rotation
/// Every process first learns the new key to decrypt with, then encrypts with it; when no entry is left under
/// the old one ([`Cache::key_usage`](crate::Cache::key_usage)), it goes. With one process, the first step falls
/// away.
#[derive(Clone)]
pub struct Keyring(Arc<RwLock<Arc<Ring>>>);

impl Keyring {
    /// An empty builder.
    pub fn builder() -> KeyringBuilder {
        KeyringBuilder::default()
    }

    /// The key that encrypts.
    pub fn current(&self) -> KeyId {
        self.ring().current().id
    }

    /// All keys that decrypt, the current one first.
    pub fn ids(&self) -> Vec<KeyId> {
        self.ring().known.iter().map(|key| key.id).collect()
    }

    /// Whether it has a key that hides names.
    pub fn hides_names(&self) -> bool {
        self.ring().names.is_some()
    }

    /// Takes the keys of another ring, in the middle of everything: what begins later uses them.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the other one hides names otherwise: entries would be lost, and removals
    /// with them.
    pub fn replace(&self, with: &Keyring) -> Result<()> {
        let with = with.ring();
        let mut ring = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let names = |ring: &Ring| ring.names.as_ref().map(|names| names.id);
        if names(&ring) != names(&with) {
            return Err(config("the key that hides names can't be replaced while the cache is in use"));
        }
        *ring = with;
        Ok(())
    }

    pub(super) fn ring(&self) -> Arc<Ring> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The key as a tier with hidden names sees it: bytes, HMAC-SHA256 of the canonical encoding under the
    /// namespace's key for names. `None` without a key for that.
    pub(crate) fn hidden(&self, key: &EntryKey) -> Option<EntryKey> {
        let ring = self.ring();
        let keys = ring.names.as_ref()?.space(key.namespace());
        let hash = hmac::sign(&keys.names, key.as_bytes());
        let hash = Bytes::copy_from_slice(hash.as_ref());
        Some(EntryKey::new(key.namespace(), &hash).expect("32 bytes are a key"))
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keyring").field(&self.ids()).finish()
    }
}

/// The keys at a moment.
pub(super) struct Ring {
    known: Vec<Known>,
    names: Option<Known>,
}

impl Ring {
    pub(super) fn current(&self) -> &Known {
        &self.known[0]
    }

    pub(super) fn find(&self, id: KeyId) -> Option<&Known> {
        self.known.iter().find(|key| key.id == id)
    }
}

/// A key and what was derived from it.
pub(super) struct Known {
    pub(super) id: KeyId,
    root: hkdf::Prk,
    spaces: RwLock<HashMap<Namespace, Arc<SpaceKeys>>>,
}

/// The keys of a namespace.
pub(super) struct SpaceKeys {
    encrypt: hkdf::Prk,
    pub(super) sign: hmac::Key,
    names: hmac::Key,
}

impl Known {
    fn new(secret: &SecretKey) -> Self {
        let root = secret.root();
        Known { id: id_of(&root), root, spaces: RwLock::default() }
    }

    pub(super) fn space(&self, namespace: &Namespace) -> Arc<SpaceKeys> {
        let spaces = self.spaces.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = spaces.get(namespace) {
            return Arc::clone(keys);
        }
        drop(spaces);
        let keys = Arc::new(SpaceKeys::derive(&self.root, namespace));
        let mut spaces = self.spaces.write().unwrap_or_else(PoisonError::into_inner);
        if spaces.len() >= SPACES_MAX {
            spaces.clear();
        }
        spaces.insert(namespace.clone(), Arc::clone(&keys));
        keys
    }
}

impl SpaceKeys {
    /// The one place where a namespace, and with it its tenant, gets keys of its own.
    fn derive(root: &hkdf::Prk, namespace: &Namespace) -> Self {
        let key = |purpose: &str| -> Zeroizing<[u8; 32]> {
            expand(root, &[purpose.as_bytes(), &[0], namespace.as_str().as_bytes()])
        };
        SpaceKeys {
            encrypt: hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, &*key("larder encrypt")),
            sign: hmac::Key::new(hmac::HMAC_SHA256, &*key("larder sign")),
            names: hmac::Key::new(hmac::HMAC_SHA256, &*key("larder names")),
        }
    }

    /// The key of the entry with this salt.
    pub(super) fn entry(&self, salt: &[u8]) -> Zeroizing<[u8; 32]> {
        expand(&self.encrypt, &[b"larder entry", salt])
    }
}

pub(super) fn fill_random(bytes: &mut [u8]) {
    // It waits for the system or ends the process, but never returns without.
    rand::fill(bytes).expect("AWS-LC's generator never fails");
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

fn expand<const N: usize>(key: &hkdf::Prk, info: &[&[u8]]) -> Zeroizing<[u8; N]> {
    let mut out = Zeroizing::new([0; N]);
    let okm = key.expand(info, Length(N)).expect("32 bytes are fewer than HKDF can give");
    okm.fill(&mut *out).expect("the lengths are equal");
    out
}

fn id_of(root: &hkdf::Prk) -> KeyId {
    KeyId::new(u32::from_be_bytes(*expand(root, &[b"larder key id"])).max(1)).expect("at least 1")
}

fn config(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Config, "keyring").message(message)
}

/// What an error of this module says, without operation and kind.
fn reason(error: &Error) -> String {
    let text = error.to_string();
    text.split_once("config: ").map_or(text.clone(), |(_, reason)| reason.to_owned())
}

fn read_private(path: &Path) -> Result<Zeroizing<String>> {
    let failed = |error: std::io::Error| config(format!("{} can't be read: {error}", path.display()));
    let file = std::fs::File::open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() || found.len() > FILE_BYTES_MAX {
        return Err(config(format!("{} is no file of at most {FILE_BYTES_MAX} bytes", path.display())));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let allowed = if found.uid() == 0 { 0o740 } else { 0o700 };
        let mode = found.mode() & 0o777;
        if mode & !allowed != 0 {
            return Err(config(format!(
                "{0} has mode {mode:04o}: others can use the keys; run `chmod 600 {0}`, and rotate the keys if \
                 others had access",
                path.display()
            )));
        }
    }
    // With room for all of it from the start: no copy is left behind where it grew.
    let length = usize::try_from(found.len()).unwrap_or(0);
    let mut text = Zeroizing::new(String::with_capacity(length + 64));
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}
