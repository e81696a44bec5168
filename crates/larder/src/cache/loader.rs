//! What a loader is given and what it may answer.

use crate::entry::Tags;
use crate::error::{BoxError, Result};
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// What a loader knows of the value it replaces.
pub struct LoadContext<V> {
    pub(crate) previous: Option<V>,
    pub(crate) is_refresh: bool,
}

impl<V> LoadContext<V> {
    /// The value that was cached before and is still valid but old, for a conditional request to the
    /// source. After "304" answer [`Loaded::not_modified`].
    pub fn previous(&self) -> Option<&V> {
        self.previous.as_ref()
    }

    /// Whether it runs in the background, with nobody waiting.
    pub fn is_refresh(&self) -> bool {
        self.is_refresh
    }
}

/// Shows everything but the value, which may be a secret.
impl<V> fmt::Debug for LoadContext<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (has_previous, is_refresh) = (self.previous.is_some(), self.is_refresh);
        write!(f, "LoadContext {{ has_previous: {has_previous}, is_refresh: {is_refresh} }}")
    }
}

/// What a loader found. Any value converts into it with `.into()`.
///
/// ```
/// use larder::Loaded;
/// use std::time::Duration;
///
/// let loaded = Loaded::new("body").ttl(Duration::from_secs(5)).tag("page");
/// # let _ = loaded;
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Loaded<V> {
    pub(crate) found: Found<V>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) tags: Vec<String>,
    pub(crate) is_stored: bool,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Found<V> {
    Value(V),
    Absent,
    NotModified,
}

impl<V> Loaded<V> {
    fn of(found: Found<V>) -> Self {
        Loaded { found, ttl: None, tags: Vec::new(), is_stored: true }
    }

    /// A value.
    pub fn new(value: V) -> Self {
        Self::of(Found::Value(value))
    }

    /// There is no such value. That is remembered for
    /// [`negative_ttl`](crate::EntryOptions#structfield.negative_ttl), or the TTL set here.
    pub fn absent() -> Self {
        Self::of(Found::Absent)
    }

    /// The [previous](LoadContext::previous) value is still right: it becomes fresh again. Without one the
    /// load fails with [`ErrorKind::Loader`](crate::ErrorKind::Loader).
    pub fn not_modified() -> Self {
        Self::of(Found::NotModified)
    }

    /// How long it is fresh, in place of the options' TTL.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Adds a tag to those of the options.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// Returns the value to the callers that wait and stores nothing.
    #[must_use]
    pub fn do_not_store(mut self) -> Self {
        self.is_stored = false;
        self
    }

    /// The tags of the options and its own.
    pub(crate) fn all_tags(&self, of_options: &Tags) -> Result<Tags> {
        if self.tags.is_empty() {
            return Ok(of_options.clone());
        }
        Tags::new(of_options.iter().chain(self.tags.iter().map(String::as_str)))
    }
}

/// Shows everything but the value, which may be a secret.
impl<V> fmt::Debug for Loaded<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = match self.found {
            Found::Value(_) => "value",
            Found::Absent => "absent",
            Found::NotModified => "not modified",
        };
        let Loaded { ttl, tags, is_stored, .. } = self;
        write!(f, "Loaded {{ {found}, ttl: {ttl:?}, tags: {tags:?}, is_stored: {is_stored} }}")
    }
}

impl<V> From<V> for Loaded<V> {
    fn from(value: V) -> Self {
        Loaded::new(value)
    }
}

/// `None` becomes [`Loaded::absent`].
pub(crate) fn from_option<V>(value: Option<V>) -> Loaded<V> {
    value.map_or_else(Loaded::absent, Loaded::new)
}

pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
pub(crate) type LoadOne<V> = Box<dyn FnOnce(LoadContext<V>) -> BoxFuture<Result<Loaded<V>, BoxError>> + Send>;
type LoadMany<K, V> = Box<dyn FnOnce(Vec<K>) -> BoxFuture<Result<HashMap<K, Loaded<V>>, BoxError>> + Send>;

/// Where the values of a flight come from once the tiers have nothing fresh.
pub(crate) enum Source<K, V> {
    /// Nowhere: a lookup.
    Tiers,
    /// A loader of one key.
    One(LoadOne<V>),
    /// A loader of all keys that are missing.
    Many(LoadMany<K, V>),
}

impl<K, V> Source<K, V> {
    pub(crate) fn one<F, Fut, T, E>(load: F) -> Self
    where
        F: FnOnce(LoadContext<V>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        T: Into<Loaded<V>>,
        E: Into<BoxError>,
        V: Send + 'static,
    {
        Source::One(Box::new(move |context| {
            // Made inside the future, so that a panic of `load` itself is the flight's to catch.
            Box::pin(async move { load(context).await.map(Into::into).map_err(Into::into) })
        }))
    }
}
