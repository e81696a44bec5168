//! How a typed cache becomes bytes: present only in caches with tiers, so that a cache without them asks
//! nothing of its values.

use crate::entry::Meta;
use crate::envelope::{Envelope, Refused};
use crate::error::Result;
use crate::key::{EntryKey, Namespace};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Encodes keys, seals and opens values.
pub(crate) trait Format<K, V>: Send + Sync {
    fn encode(&self, namespace: &Namespace, key: &K) -> Result<EntryKey>;
    fn seal(&self, key: &EntryKey, meta: &Meta, value: Option<&V>) -> Result<Bytes>;
    fn open(&self, key: &EntryKey, sealed: &Bytes) -> Result<(Meta, Option<V>), Refused>;
}

impl<K: Serialize, V: Serialize + DeserializeOwned> Format<K, V> for Envelope {
    fn encode(&self, namespace: &Namespace, key: &K) -> Result<EntryKey> {
        EntryKey::new(namespace, key)
    }

    fn seal(&self, key: &EntryKey, meta: &Meta, value: Option<&V>) -> Result<Bytes> {
        Envelope::seal(self, key, meta, value)
    }

    fn open(&self, key: &EntryKey, sealed: &Bytes) -> Result<(Meta, Option<V>), Refused> {
        Envelope::open(self, key, sealed)
    }
}
