//! Listing keys: from the lowest tier that can, else from L1.

use super::{Cache, Key, Value};
use crate::backend::{Cursor, Listed, Scan};
use crate::clock::NEVER_MS;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{EntryKey, Namespace, Pattern};
use serde::Serialize;
use std::time::Duration;

/// Which keys to list.
#[derive(Clone, Debug)]
pub struct KeysRequest {
    /// Only keys whose text matches. Default: all.
    pub pattern: Option<Pattern>,
    /// Where the last page ended. Default: the start.
    pub after: Option<String>,
    /// Most keys of the page; at least 1. Default: 100.
    pub limit: usize,
}

impl Default for KeysRequest {
    fn default() -> Self {
        KeysRequest { pattern: None, after: None, limit: 100 }
    }
}

impl KeysRequest {
    fn matches(&self, key: &EntryKey) -> bool {
        self.pattern.as_ref().is_none_or(|pattern| pattern.matches(&key.text()))
    }
}

/// A page of keys.
#[derive(Clone, Debug, Default)]
pub struct KeysPage {
    /// The keys, in an order of the tier's. A page may be short, and even empty, although more follow.
    pub keys: Vec<KeyInfo>,
    /// Where to go on; `None` at the end.
    pub next: Option<String>,
}

/// A key as a listing shows it.
#[derive(Clone, Debug)]
pub struct KeyInfo {
    /// The key as tiers see it.
    pub key: EntryKey,
    /// How long until it is physically gone; `None`: for ever.
    pub gone_in: Option<Duration>,
    /// The bytes of its envelope; `None` where it was listed from L1.
    pub bytes: Option<u64>,
}

impl<K: Key + Serialize, V: Value> Cache<K, V> {
    /// Lists keys of the namespace, a page at a time. Entries that appear or vanish meanwhile may or may
    /// not be listed; each that stays is listed once.
    ///
    /// # Errors
    /// Those of the tier; [`ErrorKind::Config`] for a limit of 0 or a cursor that is none;
    /// [`ErrorKind::Unsupported`] where a tier has its keys hidden.
    pub async fn keys(&self, request: &KeysRequest) -> Result<KeysPage> {
        let this = &*self.view()?;
        if request.limit == 0 {
            return Err(Error::new(ErrorKind::Config, "keys").message("limit is 0; at least 1 is allowed"));
        }
        // What the others have is not all there is.
        let hiding = self.shared.tiers.iter().find(|tier| tier.hides_keys());
        hiding.map_or(Ok(()), |tier| tier.check_scan("keys"))?;
        let lowest =
            self.shared.tiers.iter().rev().find(|tier| tier.backend.capabilities().scan && !tier.is_aside());
        let Some(tier) = lowest else { return this.keys_of_l1(request) };
        let page = tier
            .scan(Scan {
                namespace: &this.space.namespace,
                pattern: request.pattern.as_ref(),
                after: request.after.clone().map(Cursor),
                limit: request.limit,
            })
            .await?;
        let wall_ms = self.shared.clock.wall_ms();
        let info = |Listed { key, gone_at_ms, sealed_bytes, .. }| KeyInfo {
            key,
            gone_in: gone_in(gone_at_ms, wall_ms),
            bytes: Some(sealed_bytes),
        };
        let keys = page.entries.into_iter().map(info).collect();
        Ok(KeysPage { keys, next: page.next.map(|Cursor(cursor)| cursor) })
    }

    /// The namespaces that hold entries in some tier, or were used through this cache; in a tenant's view, or
    /// a cache with tenants, those of the tenant.
    ///
    /// # Errors
    /// Those of the tier.
    pub async fn namespaces(&self) -> Result<Vec<Namespace>> {
        let this = self.view()?;
        let mut namespaces = this.all_namespaces().await?;
        if let Some(own) = this.space.namespace.tenant() {
            namespaces.retain(|namespace| namespace.tenant().as_ref() == Some(&own));
        }
        Ok(namespaces)
    }
}

impl<K: Key, V: Value> Cache<K, V> {
    /// Those of all tenants.
    pub(super) async fn all_namespaces(&self) -> Result<Vec<Namespace>> {
        let mut namespaces: Vec<Namespace> = self.shared.spaces.lock().keys().cloned().collect();
        for tier in &self.shared.tiers {
            if tier.backend.capabilities().scan && !tier.is_aside() {
                namespaces.extend(tier.namespaces().await?);
            }
        }
        namespaces.retain(|namespace| !super::health::is_reserved(namespace));
        namespaces.sort_unstable();
        namespaces.dedup();
        Ok(namespaces)
    }
}

impl<K: Key + Serialize, V: Value> Cache<K, V> {
    fn keys_of_l1(&self, request: &KeysRequest) -> Result<KeysPage> {
        let now = self.shared.now();
        let mut keys = Vec::new();
        let mut outcome = Ok(());
        self.shared.l1.list(&self.space, now, |key, seen| match EntryKey::new(&self.space.namespace, &key) {
            Ok(key) if seen.value.is_some() && request.matches(&key) => {
                let gone_in = gone_in(seen.meta.gone_at_ms, now.wall_ms);
                keys.push((hex(key.as_bytes()), KeyInfo { key, gone_in, bytes: None }));
            }
            Ok(_) => {}
            Err(error) => outcome = Err(error),
        });
        outcome?;
        keys.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let first =
            request.after.as_ref().map_or(0, |after| keys.partition_point(|(place, _)| place <= after));
        let mut page = keys.split_off(first);
        let next = page.get(request.limit).is_some().then(|| page[request.limit - 1].0.clone());
        page.truncate(request.limit);
        Ok(KeysPage { keys: page.into_iter().map(|(_, info)| info).collect(), next })
    }
}

fn gone_in(gone_at_ms: u64, wall_ms: u64) -> Option<Duration> {
    (gone_at_ms != NEVER_MS).then(|| Duration::from_millis(gone_at_ms.saturating_sub(wall_ms)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
