//! Which keys protect what is stored, and everything under the current one again.
//!
//! Goes through the tiers a page at a time, with bounded memory, beside readers and writers: an entry that is
//! written meanwhile is under the current key already, and one that is removed stays removed, because only what
//! still is as it was read is exchanged.

use super::{Cache, Key, Shared, Value};
use crate::backend::{Cursor, Exchange, Listed, Scan};
use crate::envelope::{Envelope, Fate, KeyId, Sealing};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{EntryKey, Namespace};
use crate::tier::{Tier, TierRead};
use std::collections::{BTreeMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;

/// Entries that one page of a scan lists.
const PAGE_ENTRIES: usize = 256;
/// Bytes of entries that are in memory at once, but for a single larger one.
const BATCH_BYTES: u64 = 8 << 20;

/// How many entries of a tier each key protects.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyUsage {
    /// The tier's name.
    pub tier: String,
    /// Entries by how they are protected and by which key, those without one first.
    pub entries: Vec<(Sealing, Option<KeyId>, u64)>,
    /// Entries whose header can't be read.
    pub unreadable: u64,
}

/// What a [`Rotation`] has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RotationProgress {
    /// Entries looked at.
    pub seen: u64,
    /// Entries sealed anew.
    pub resealed: u64,
    /// Entries under a key that isn't at hand: left alone.
    pub unknown: u64,
    /// Entries whose authentication failed: quarantined.
    pub tampered: u64,
    /// Entries that this cache would not open for another reason, unprotected ones first of all: left alone,
    /// since a reader drops them.
    pub refused: u64,
    /// Entries that were written or removed meanwhile: as they should be.
    pub overtaken: u64,
}

/// Seals everything in the tiers anew, page by page: see [`Cache::rotate_keys`].
#[derive(Debug)]
#[must_use = "nothing is done before it is asked for a step"]
pub struct Rotation<K: Hash + Eq, V: Clone> {
    shared: Arc<Shared<K, V>>,
    walk: Walk,
    progress: RotationProgress,
}

impl<K: Key, V: Value> Cache<K, V> {
    /// Counts the entries of every tier that can list its keys, in all namespaces, by the key that protects
    /// them. Reads every entry.
    ///
    /// # Errors
    /// Those of a tier; [`ErrorKind::Unavailable`] for one that is set aside.
    pub async fn key_usage(&self) -> Result<Vec<KeyUsage>> {
        let shared = &self.shared;
        let mut walk = Walk::new(&shared.tiers).await?;
        let mut counts: Vec<(BTreeMap<_, u64>, u64)> = vec![Default::default(); shared.tiers.len()];
        while let Some((at, batches)) = walk.page(&shared.tiers).await? {
            for keys in batches {
                for read in shared.tiers[at].read(&keys).await {
                    let sealed = match read {
                        TierRead::Found { sealed, .. } => sealed,
                        TierRead::Missed { .. } => continue,
                        TierRead::Unavailable => return Err(unavailable(&shared.tiers[at])),
                    };
                    match Envelope::header(&sealed) {
                        Ok(header) => *counts[at].0.entry((header.key_id, header.sealing)).or_default() += 1,
                        Err(_) => counts[at].1 += 1,
                    }
                }
            }
        }
        let usage = |(tier, (entries, unreadable)): (&Tier, (BTreeMap<_, u64>, u64))| KeyUsage {
            tier: tier.name().to_owned(),
            entries: entries.into_iter().map(|((id, sealing), count)| (sealing, id, count)).collect(),
            unreadable,
        };
        let listable = shared.tiers.iter().zip(counts).filter(|(tier, _)| tier.backend.capabilities().scan);
        Ok(listable.map(usage).collect())
    }

    /// Begins to seal every entry, in all namespaces of every tier that can list its keys, under the current
    /// key. Dropped and begun again, it passes by what is done already. Values are not decoded.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] in a cache without encryption or signing; those of a tier.
    pub async fn rotate_keys(&self) -> Result<Rotation<K, V>> {
        let shared = Arc::clone(&self.shared);
        if shared.format.as_ref().is_none_or(|format| format.protection().is_none()) {
            return Err(Error::new(ErrorKind::Config, "rotate")
                .message("the cache neither encrypts nor signs, or has no tier"));
        }
        let walk = Walk::new(&shared.tiers).await?;
        Ok(Rotation { shared, walk, progress: RotationProgress::default() })
    }
}

impl<K: Key, V: Value> Rotation<K, V> {
    /// Does one page, at most 256 entries, and says how far it got; `None` at the end.
    ///
    /// # Errors
    /// Those of the tier. It may be asked again, and goes on after the page that failed.
    pub async fn step(&mut self) -> Result<Option<RotationProgress>> {
        let Some((at, batches)) = self.walk.page(&self.shared.tiers).await? else { return Ok(None) };
        for keys in batches {
            self.batch(at, &keys).await?;
        }
        Ok(Some(self.progress))
    }

    /// What was done so far.
    pub fn progress(&self) -> RotationProgress {
        self.progress
    }

    async fn batch(&mut self, at: usize, keys: &[EntryKey]) -> Result<()> {
        let tier = &self.shared.tiers[at];
        let format = self.shared.format.as_ref().expect("a cache with tiers has a format");
        let mut exchanges = Vec::new();
        for (key, read) in keys.iter().zip(tier.read(keys).await) {
            let (ticket, sealed) = match read {
                TierRead::Found { ticket, sealed } => (ticket, sealed),
                TierRead::Missed { .. } => continue,
                TierRead::Unavailable => return Err(unavailable(tier)),
            };
            self.progress.seen += 1;
            match format.renew(key, &sealed) {
                Ok(None) => {}
                Ok(Some(renewed)) => {
                    exchanges.push((Exchange { key: key.clone(), old: sealed, new: renewed }, ticket));
                }
                Err(refused) => match refused.fate() {
                    Fate::Keep => self.progress.unknown += 1,
                    Fate::Discard => self.progress.refused += 1,
                    Fate::Quarantine => {
                        self.progress.tampered += 1;
                        tier.count_refused(refused.name());
                        tier.quarantine(key, &sealed, refused.name()).await;
                    }
                },
            }
        }
        if exchanges.is_empty() {
            return Ok(());
        }
        for was_there in tier.exchange_many(exchanges).await {
            match was_there? {
                true => self.progress.resealed += 1,
                false => self.progress.overtaken += 1,
            }
        }
        Ok(())
    }
}

/// Where a walk through all entries of all tiers stands.
#[derive(Debug)]
struct Walk {
    left: VecDeque<(usize, Namespace)>,
    after: Option<Cursor>,
}

impl Walk {
    async fn new(tiers: &[Tier]) -> Result<Self> {
        let mut left = VecDeque::new();
        for (at, tier) in tiers.iter().enumerate().filter(|(_, tier)| tier.backend.capabilities().scan) {
            if tier.is_aside() {
                return Err(unavailable(tier));
            }
            left.extend(tier.namespaces().await?.into_iter().map(|namespace| (at, namespace)));
        }
        Ok(Walk { left, after: None })
    }

    /// The tier of the next page and its keys, as the tier names them, in batches of bounded size.
    async fn page(&mut self, tiers: &[Tier]) -> Result<Option<(usize, Vec<Vec<EntryKey>>)>> {
        let Some((at, namespace)) = self.left.front() else { return Ok(None) };
        let (at, after) = (*at, self.after.take());
        let scan = Scan { namespace, pattern: None, after, limit: PAGE_ENTRIES };
        let page = tiers[at].scan(scan).await?;
        self.after = page.next;
        if self.after.is_none() {
            self.left.pop_front();
        }
        Ok(Some((at, batches(page.entries))))
    }
}

fn batches(entries: Vec<Listed>) -> Vec<Vec<EntryKey>> {
    let mut batches: Vec<Vec<EntryKey>> = Vec::new();
    let mut bytes = u64::MAX;
    for entry in entries {
        bytes = bytes.saturating_add(entry.sealed_bytes);
        if bytes > BATCH_BYTES {
            batches.push(Vec::new());
            bytes = entry.sealed_bytes;
        }
        batches.last_mut().expect("the first entry began one").push(entry.key);
    }
    batches
}

fn unavailable(tier: &Tier) -> Error {
    Error::new(ErrorKind::Unavailable, "rotate")
        .backend(tier.name().to_owned())
        .message("it is set aside or gave no answer")
}
