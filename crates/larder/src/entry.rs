//! What larder knows of an entry beside its value: kind, stamp, expiries, tags.

use crate::clock::NEVER_MS;
use crate::error::{Error, ErrorKind, Result};
use crate::stamp::Stamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::sync::Arc;

/// Most tags of one entry. Each is checked on the slow path of a read.
pub const TAGS_MAX: usize = 64;
/// Longest tag in bytes.
pub const TAG_BYTES_MAX: usize = 256;

/// Who produced an entry. Stamps order sets among themselves; a load yields to any set or removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A loader's result, or a promotion from a lower tier.
    Load,
    /// An explicit set.
    Set,
}

/// What larder keeps of an entry beside its value. All times are wall clock milliseconds since 1970;
/// [`NEVER_MS`] is "never".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Who produced it.
    pub kind: EntryKind,
    /// When, in hybrid logical time; also its version.
    pub stamp: Stamp,
    /// When, by the producer's wall clock.
    pub created_ms: u64,
    /// Fresh before this moment.
    pub fresh_until_ms: u64,
    /// Served stale, with a refresh in the background, before this moment; at least `fresh_until_ms`.
    pub revalidate_until_ms: u64,
    /// Physically gone from this moment on; at least `revalidate_until_ms`. In between it is served only
    /// when a load fails.
    pub gone_at_ms: u64,
    /// What the load took, in milliseconds; 0 for a set.
    pub load_ms: u32,
    /// A remembered absence: there is no value.
    pub is_negative: bool,
    /// Its tags.
    pub tags: Tags,
}

impl Meta {
    /// Whether it is physically expired at `wall_ms`.
    pub fn is_gone(&self, wall_ms: u64) -> bool {
        self.gone_at_ms != NEVER_MS && self.gone_at_ms <= wall_ms
    }
}

/// The tags of an entry: sorted, without duplicates, at most [`TAGS_MAX`] of at most [`TAG_BYTES_MAX`]
/// bytes. Cheap to clone.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Tags(Option<Arc<[Box<str>]>>);

impl Tags {
    /// No tags.
    pub const NONE: Tags = Tags(None);

    /// Tags of an entry.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] when there are more than [`TAGS_MAX`], or one is empty or longer than
    /// [`TAG_BYTES_MAX`].
    pub fn new<T: AsRef<str>>(tags: impl IntoIterator<Item = T>) -> Result<Self> {
        let mut tags: Vec<Box<str>> = tags
            .into_iter()
            .map(|tag| check_tag(tag.as_ref()).map(|()| Box::from(tag.as_ref())))
            .collect::<Result<_>>()?;
        tags.sort_unstable();
        tags.dedup();
        if tags.len() > TAGS_MAX {
            return Err(Error::new(ErrorKind::TooLarge, "tag")
                .message(format!("an entry has {} tags; at most {TAGS_MAX} are allowed", tags.len())));
        }
        Ok(if tags.is_empty() { Tags::NONE } else { Tags(Some(tags.into())) })
    }

    /// The tags in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        self.0.as_deref().unwrap_or_default().iter().map(|tag| &**tag)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether `tag` is one of them.
    pub fn contains(&self, tag: &str) -> bool {
        self.0.as_deref().unwrap_or_default().binary_search_by(|other| (**other).cmp(tag)).is_ok()
    }
}

impl Serialize for Tags {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Tags {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Tags::new(Vec::<String>::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl fmt::Debug for Tags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Checks one tag against the limits.
///
/// # Errors
/// [`ErrorKind::TooLarge`] when it is empty or longer than [`TAG_BYTES_MAX`].
pub fn check_tag(tag: &str) -> Result<()> {
    if tag.is_empty() || tag.len() > TAG_BYTES_MAX {
        return Err(Error::new(ErrorKind::TooLarge, "tag")
            .message(format!("a tag has {} bytes; 1 to {TAG_BYTES_MAX} are allowed", tag.len())));
    }
    Ok(())
}
