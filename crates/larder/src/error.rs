//! What can go wrong, by kind. A miss is never an error.
//!
//! One opaque, cloneable [`Error`]: every waiter of a failed flight gets the same one. It names the
//! operation, the backend and a shortened key; cached values and secrets never reach it.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// The result of a cache operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A boxed error of a loader or a backend.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong, as far as a caller may want to act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A deadline passed: the loader, a tier or the caller's own limit.
    Timeout,
    /// A tier can't be reached or is busy at the moment.
    Unavailable,
    /// No space is left, on disk or in a tier's own limit.
    Full,
    /// A tier refuses writes: read-only folder, file or replica.
    ReadOnly,
    /// Stored bytes are not what was written. Readers count this as a miss; only maintenance reports it.
    Corrupt,
    /// A credential, a permission or a token was refused.
    Authentication,
    /// A setting is invalid or contradicts another one.
    Config,
    /// A key can't be encoded (its `Serialize` failed).
    Key,
    /// A value can't be encoded or decoded by the configured codec.
    Codec,
    /// A value, key or batch is over its limit.
    TooLarge,
    /// The loader returned an error.
    Loader,
    /// The loader panicked.
    LoaderPanicked,
    /// Other code of the caller's panicked: a backend, weigher, listener or `Serialize`.
    Panicked,
    /// The loader said, or is remembered to have said, that there is no such value.
    NotFound,
    /// A loader waits for a load that waits for it.
    NestedLoad,
    /// A bound on flights, waiters or background work was reached.
    Overloaded,
    /// The cache, or the runtime that ran the load, was shut down.
    Closed,
    /// The backend lacks a capability that the operation needs.
    Unsupported,
    /// The call has no tenant and the cache needs one, or it has another one than the view or namespace.
    Tenant,
    /// Anything else.
    Unknown,
}

/// How an error should be treated by a retry, a breaker or an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// Likely to go away by itself: a retry may help.
    Transient,
    /// Will come back until somebody changes something.
    Permanent,
    /// A deadline passed; whether the operation took effect is unknown.
    Timeout,
    /// A credential or permission was refused.
    Authentication,
    /// Not classified; treated as transient by nobody.
    Unknown,
}

impl ErrorKind {
    /// The kind's class: transient, permanent, timeout, authentication or unknown.
    pub fn class(self) -> ErrorClass {
        use ErrorKind::*;
        match self {
            Timeout => ErrorClass::Timeout,
            // A full disk is emptied by an operator or by eviction, without a change of the program.
            Unavailable | Full | Overloaded | Closed => ErrorClass::Transient,
            Authentication => ErrorClass::Authentication,
            ReadOnly | Corrupt | Config | Key | Codec | TooLarge | NotFound | NestedLoad | Unsupported
            | Tenant => ErrorClass::Permanent,
            Loader | LoaderPanicked | Panicked | Unknown => ErrorClass::Unknown,
        }
    }

    /// The kind in snake case, as metrics and problem details name it.
    pub fn name(self) -> &'static str {
        use ErrorKind::*;
        match self {
            Timeout => "timeout",
            Unavailable => "unavailable",
            Full => "full",
            ReadOnly => "read_only",
            Corrupt => "corrupt",
            Authentication => "authentication",
            Config => "config",
            Key => "key",
            Codec => "codec",
            TooLarge => "too_large",
            Loader => "loader",
            LoaderPanicked => "loader_panicked",
            Panicked => "panicked",
            NotFound => "not_found",
            NestedLoad => "nested_load",
            Overloaded => "overloaded",
            Closed => "closed",
            Unsupported => "unsupported",
            Tenant => "tenant",
            Unknown => "unknown",
        }
    }
}

/// An error of the cache, a backend or a loader. Cheap to clone.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    operation: &'static str,
    backend: Option<Cow<'static, str>>,
    key: Option<String>,
    message: Option<Cow<'static, str>>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// Longest part of a key that an error shows, in characters.
const KEY_CHARS_SHOWN: usize = 50;

impl Error {
    /// An error of `kind` in `operation` (a verb: "get", "put", "load", "open").
    pub fn new(kind: ErrorKind, operation: &'static str) -> Self {
        Error(Arc::new(Inner { kind, operation, backend: None, key: None, message: None, source: None }))
    }

    fn edit(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    /// Says which backend failed.
    #[must_use]
    pub fn backend(self, name: impl Into<Cow<'static, str>>) -> Self {
        self.edit(|inner| inner.backend = Some(name.into()))
    }

    /// Says for which key, shortened to 50 characters, control characters escaped.
    #[must_use]
    pub fn key(self, text: &str) -> Self {
        let mut shown: String = text.chars().take(KEY_CHARS_SHOWN).flat_map(char::escape_debug).collect();
        if text.chars().nth(KEY_CHARS_SHOWN).is_some() {
            shown.push('…');
        }
        self.edit(|inner| inner.key = Some(shown))
    }

    /// Says in words what was wrong and what is allowed.
    #[must_use]
    pub fn message(self, message: impl Into<Cow<'static, str>>) -> Self {
        self.edit(|inner| inner.message = Some(message.into()))
    }

    /// Keeps the error that caused this one.
    #[must_use]
    pub fn source(self, source: impl Into<BoxError>) -> Self {
        self.edit(|inner| inner.source = Some(Arc::from(source.into())))
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The operation that failed.
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// The backend that failed, if one did.
    pub fn backend_name(&self) -> Option<&str> {
        self.0.backend.as_deref()
    }

    /// The class of [`kind`](Self::kind).
    pub fn class(&self) -> ErrorClass {
        self.0.kind.class()
    }

    /// Whether the same operation may succeed a little later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self.class(), ErrorClass::Transient | ErrorClass::Timeout)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, operation, backend, key, message, source } = &*self.0;
        write!(f, "{operation}")?;
        if let Some(backend) = backend {
            write!(f, " on {backend}")?;
        }
        if let Some(key) = key {
            write!(f, " of \"{key}\"")?;
        }
        write!(f, ": {}", kind.name())?;
        if let Some(message) = message {
            write!(f, ": {message}")?;
        }
        if let Some(source) = source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({self})")
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn std::error::Error + 'static))
    }
}

/// For functions that return [`std::io::Result`]; the kind is `TimedOut` or `Other`.
impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::Timeout => std::io::Error::new(std::io::ErrorKind::TimedOut, error),
            _ => std::io::Error::other(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_names_operation_backend_and_shortened_key() {
        let error = Error::new(ErrorKind::Full, "put")
            .backend("sqlite")
            .key(&"k\n".repeat(60))
            .message("disk is full");
        let text = error.to_string();
        assert!(text.starts_with("put on sqlite of \"k\\n"), "{text}");
        assert!(text.ends_with("…\": full: disk is full"), "{text}");
        assert!(error.is_transient());
    }
}
