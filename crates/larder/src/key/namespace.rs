//! The name of a key space, and the tenant that is a part of it.

use super::NAMESPACE_BYTES_MAX;
use crate::error::{Error, ErrorKind, Result};
use crate::tenant::Tenant;
use std::fmt;
use std::sync::Arc;

/// Between name and tenant. Neither may contain it, so that the text has one reading.
const TENANT_MARK: char = '@';

/// The name of a key space. Entries of two namespaces never meet: it is a part of its own in every tier.
///
/// A namespace may belong to a [`Tenant`]; its text is then `name@tenant`. Everything that is kept apart by
/// namespace is so kept apart by tenant: keys, tags, clears, patterns, loads, checksums. Cheap to clone. The
/// default is `default`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(Arc<str>);

impl Namespace {
    /// Checks and takes a name: 1 to 128 bytes of `A-Z a-z 0-9 _ - . :`, and after an `@` the tenant, if it
    /// belongs to one, as [`as_str`](Self::as_str) gave it.
    ///
    /// # Errors
    /// [`ErrorKind::Key`], with the rule, when it is anything else.
    pub fn new(text: &str) -> Result<Self> {
        let (name, tenant) = match text.split_once(TENANT_MARK) {
            Some((name, tenant)) => (name, Some(tenant)),
            None => (text, None),
        };
        if name.is_empty() || name.len() > NAMESPACE_BYTES_MAX || !name.bytes().all(is_allowed) {
            return Err(Error::new(ErrorKind::Key, "namespace").key(text).message(format!(
                "a namespace has 1 to {NAMESPACE_BYTES_MAX} bytes of A-Z a-z 0-9 _ - . :"
            )));
        }
        if let Some(tenant) = tenant {
            Tenant::stored(tenant)?;
        }
        Ok(Namespace(Arc::from(text)))
    }

    /// The same name, for this tenant and no other.
    #[must_use]
    pub fn of_tenant(&self, tenant: &Tenant) -> Self {
        Namespace(Arc::from(format!("{}{TENANT_MARK}{tenant}", self.name())))
    }

    /// Name and tenant in one text, from which [`new`](Self::new) makes the same namespace.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name without the tenant.
    pub fn name(&self) -> &str {
        self.0.split_once(TENANT_MARK).map_or(&self.0, |(name, _)| name)
    }

    /// The tenant that it belongs to.
    pub fn tenant(&self) -> Option<Tenant> {
        let (_, tenant) = self.0.split_once(TENANT_MARK)?;
        Some(Tenant::stored(tenant).expect("it was checked when the namespace was made"))
    }
}

/// What names of namespaces and tenants are made of.
pub(crate) fn is_allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte)
}

impl Default for Namespace {
    fn default() -> Self {
        Namespace(Arc::from("default"))
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
