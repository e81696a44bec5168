//! How a typed cache becomes bytes: present only in caches with tiers, so that a cache without them asks
//! nothing of its values.

use crate::entry::Meta;
use crate::envelope::{Envelope, Header, Protection, Refused};
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
    /// The header of what [`open`](Self::open) would open, but for its value.
    fn verify(&self, key: &EntryKey, sealed: &Bytes) -> Result<Header, Refused>;
    /// The entry under the current key; `None` if it is.
    fn renew(&self, key: &EntryKey, sealed: &Bytes) -> Result<Option<Bytes>, Refused>;
    fn protection(&self) -> Option<&Protection>;
    /// Seals and opens pairs of numbers that the cache itself keeps in a tier.
    fn seal_pairs(&self, key: &EntryKey, meta: &Meta, pairs: &[(u64, u64)]) -> Result<Bytes>;
    fn open_pairs(&self, key: &EntryKey, sealed: &Bytes) -> Option<Vec<(u64, u64)>>;
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

    fn verify(&self, key: &EntryKey, sealed: &Bytes) -> Result<Header, Refused> {
        Envelope::verify(self, key, sealed)
    }

    fn renew(&self, key: &EntryKey, sealed: &Bytes) -> Result<Option<Bytes>, Refused> {
        let header = Envelope::header(sealed)?;
        if self.is_current(&header) {
            return Ok(None);
        }
        self.reseal(key, sealed, &header.meta).map(Some)
    }

    fn protection(&self) -> Option<&Protection> {
        Envelope::protection(self)
    }

    fn seal_pairs(&self, key: &EntryKey, meta: &Meta, pairs: &[(u64, u64)]) -> Result<Bytes> {
        Envelope::seal(self, key, meta, Some(&pairs.to_vec()))
    }

    fn open_pairs(&self, key: &EntryKey, sealed: &Bytes) -> Option<Vec<(u64, u64)>> {
        Envelope::open::<Vec<(u64, u64)>>(self, key, sealed).ok()?.1
    }
}
