//! Why an answer is what it is, and an operator's word on the breakers.

use super::flight::Purpose;
use super::{Cache, Key, Value};
use crate::backend::Miss;
use crate::clock::NEVER_MS;
use crate::entry::{EntryKind, Meta};
use crate::error::{Error, ErrorKind, Result};
use crate::guard::BreakerMode;
use crate::key::EntryKey;
use crate::l1::Slot;
use crate::tier::{Tier, TierRead};
use serde::Serialize;
use std::borrow::Borrow;
use std::fmt;
use std::hash::Hash;
use std::time::Duration;

/// What every tier knows of a key, top first.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// The key's namespace.
    pub namespace: String,
    /// L1, then the tiers below.
    pub tiers: Vec<TierExplanation>,
    /// Whether a load of the key is under way.
    pub is_loading: bool,
    /// Whether this node may have missed what others removed: then L1 serves only what was known not to be outdated a
    /// short while ago, and tiers above the shared one are passed by.
    pub is_suspect: bool,
}

/// What one tier knows of a key.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct TierExplanation {
    /// "l1" or the tier's name.
    pub tier: String,
    /// In a word: `fresh`, `stale`, `absent`, `expired`, `tag` (one of its tags was removed), `cleared`,
    /// `aside` (the tier is set aside or did not answer), `suspect` (it may hold what other nodes removed, and is passed
    /// by), or the reason why the envelope was refused.
    pub state: String,
    /// Whether it sees a keyed hash in the place of the key.
    pub is_key_hidden: bool,
    /// What is known of the entry, if there is one.
    pub entry: Option<EntryState>,
}

/// The facts of an entry.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct EntryState {
    /// "load" or "set".
    pub kind: &'static str,
    /// Whether it is a remembered absence.
    pub is_negative: bool,
    /// Its version.
    pub stamp: String,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// Milliseconds that it stays fresh; `None`: for ever.
    pub fresh_ms_left: Option<u64>,
    /// Milliseconds until it is physically gone; `None`: never.
    pub gone_ms_left: Option<u64>,
    /// What its load took, in milliseconds.
    pub load_ms: u32,
    /// Its tags.
    pub tags: Vec<String>,
    /// "plain", "signed" or "encrypted"; `None` in L1, where values are as they are.
    pub sealing: Option<&'static str>,
    /// The id of the key that signs or encrypts it.
    pub key_id: Option<String>,
    /// The bytes of its envelope; `None` in L1.
    pub bytes: Option<u64>,
    /// L1 only: how often it was read; above 256 an estimate.
    pub accesses: Option<u32>,
    /// L1 only: milliseconds since it was last read, to about a second.
    pub idle_ms: Option<u64>,
    /// The tier that it was read or copied from; `None` for what was loaded or set in this process.
    pub source: Option<String>,
}

impl<K: Key, V: Value> Cache<K, V> {
    /// Says what every tier knows of a key. Counts as no access, changes nothing. No tier has anything to say to
    /// a call without a tenant, in a cache that has tenants.
    pub async fn explain<Q>(&self, key: &Q) -> Explanation
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let Ok(this) = self.view() else {
            let namespace = self.space.namespace.to_string();
            return Explanation { namespace, tiers: Vec::new(), is_loading: false, is_suspect: false };
        };
        let shared = &this.shared;
        let mut tiers = vec![this.explain_l1(key)];
        if let Ok(Some(entry_key)) = shared.encode(&this.space, &key.to_owned()) {
            for (position, tier) in shared.tiers.iter().enumerate() {
                let name = tier.key(&entry_key);
                let read = tier.read(std::slice::from_ref(&name)).await.pop();
                let explained = this.explain_tier(tier, &name, read);
                tiers.push(match shared.may_read(position, &this.space.namespace) {
                    true => explained,
                    false => TierExplanation { state: "suspect".to_owned(), ..explained },
                });
            }
        }
        let slot = Slot { space: this.space.id, key: key.to_owned() };
        Explanation {
            namespace: this.space.namespace.to_string(),
            tiers,
            is_loading: shared.flights.is_flying(&slot, Purpose::Load),
            is_suspect: shared.is_suspect(),
        }
    }

    /// What is known of the entry of a key: that of the topmost tier which has one that is not physically
    /// expired. Counts as no access, changes nothing.
    pub async fn entry<Q>(&self, key: &Q) -> Option<EntryState>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let this = &*self.view().ok()?;
        let of = |explained: TierExplanation| explained.entry.filter(|_| explained.state != "expired");
        if let Some(entry) = of(this.explain_l1(key)) {
            return Some(entry);
        }
        let entry_key = this.shared.encode(&this.space, &key.to_owned()).ok()??;
        for (position, tier) in this.shared.tiers.iter().enumerate() {
            if !this.shared.may_read(position, &this.space.namespace) {
                continue;
            }
            let name = tier.key(&entry_key);
            let read = tier.read(std::slice::from_ref(&name)).await.pop();
            if let Some(entry) = of(this.explain_tier(tier, &name, read)) {
                return Some(EntryState { source: Some(tier.name().to_owned()), ..entry });
            }
        }
        None
    }

    /// How long the value of a key stays fresh: zero where it is stale, [`Duration::MAX`] for ever. `None` where
    /// there is no value. See [`expire`](Self::expire) for a new TTL. Counts as no access.
    pub async fn ttl_left<Q>(&self, key: &Q) -> Option<Duration>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let entry = self.entry(key).await.filter(|entry| !entry.is_negative)?;
        Some(entry.fresh_ms_left.map_or(Duration::MAX, Duration::from_millis))
    }

    fn explain_l1<Q>(&self, key: &Q) -> TierExplanation
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let shared = &self.shared;
        let now = shared.now();
        let found = shared.l1.get(&self.space, key, now.mono_ms, |resident| {
            let state = match (resident.is_gone(now.mono_ms), resident.fresh_ms_left(now.mono_ms)) {
                (true, _) => "expired",
                (false, Some(0)) => "stale",
                (false, _) => "fresh",
            };
            let source = match resident.from_tier {
                0 => None,
                position => Some(shared.tiers[usize::from(position) - 1].name().to_owned()),
            };
            let entry = EntryState {
                accesses: Some(resident.accesses()),
                idle_ms: Some(resident.idle_ms(now.mono_ms)),
                source,
                ..entry_state(&resident.meta(now), now.wall_ms)
            };
            (state, entry)
        });
        let (state, entry) = found.map_or(("absent", None), |(state, entry)| (state, Some(entry)));
        TierExplanation { tier: "l1".to_owned(), state: state.to_owned(), is_key_hidden: false, entry }
    }

    fn explain_tier(&self, tier: &Tier, name: &EntryKey, read: Option<TierRead>) -> TierExplanation {
        let format = self.shared.format.as_ref().expect("a cache with tiers has a format");
        let wall_ms = self.shared.clock.wall_ms();
        let (state, entry) = match read {
            None | Some(TierRead::Unavailable) => ("aside", None),
            Some(TierRead::Missed { why, .. }) => (miss_name(why), None),
            Some(TierRead::Found { sealed, .. }) => match format.verify(name, &sealed) {
                Err(refused) => (refused.name(), None),
                Ok(header) => {
                    let mut entry = entry_state(&header.meta, wall_ms);
                    entry.bytes = Some(sealed.len() as u64);
                    entry.sealing = Some(header.sealing.name());
                    entry.key_id = header.key_id.map(|id| id.to_string());
                    (if entry.fresh_ms_left == Some(0) { "stale" } else { "fresh" }, Some(entry))
                }
            },
        };
        TierExplanation {
            tier: tier.name().to_owned(),
            state: state.to_owned(),
            is_key_hidden: tier.hides_keys(),
            entry,
        }
    }
}

fn entry_state(meta: &Meta, wall_ms: u64) -> EntryState {
    let left = |until_ms| (until_ms != NEVER_MS).then(|| u64::saturating_sub(until_ms, wall_ms));
    EntryState {
        kind: match meta.kind {
            EntryKind::Load => "load",
            EntryKind::Set => "set",
        },
        is_negative: meta.is_negative,
        stamp: meta.stamp.to_string(),
        created_ms: meta.created_ms,
        fresh_ms_left: left(meta.fresh_until_ms),
        gone_ms_left: left(meta.gone_at_ms),
        load_ms: meta.load_ms,
        tags: meta.tags.iter().map(str::to_owned).collect(),
        sealing: None,
        key_id: None,
        bytes: None,
        accesses: None,
        idle_ms: None,
        source: None,
    }
}

fn miss_name(why: Miss) -> &'static str {
    match why {
        Miss::Absent => "absent",
        Miss::Expired => "expired",
        Miss::Tag => "tag",
        Miss::Cleared => "cleared",
        Miss::Incarnation => "incarnation",
        Miss::Clock => "clock",
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "namespace {}", self.namespace)?;
        for TierExplanation { tier, state, is_key_hidden, entry } in &self.tiers {
            write!(f, "{tier:<10} {state}")?;
            if *is_key_hidden {
                write!(f, ", key hidden")?;
            }
            if let Some(entry) = entry {
                let seconds = |ms: u64| format!("{:.1} s", ms as f64 / 1e3);
                let fresh = entry.fresh_ms_left.map_or("ever".to_owned(), seconds);
                let gone = entry.gone_ms_left.map_or("never".to_owned(), |ms| format!("in {}", seconds(ms)));
                write!(f, ", {}", if entry.is_negative { "absence" } else { entry.kind })?;
                write!(f, ", fresh for {fresh}, gone {gone}")?;
                if let Some(bytes) = entry.bytes {
                    write!(f, ", {bytes} bytes")?;
                }
                if let (Some(sealing), Some(key_id)) = (entry.sealing, &entry.key_id) {
                    write!(f, ", {sealing} with key {key_id}")?;
                }
                write!(f, ", version {}", entry.stamp)?;
                if !entry.tags.is_empty() {
                    write!(f, ", tags {}", entry.tags.join(" "))?;
                }
                if let Some(accesses) = entry.accesses {
                    write!(f, ", read {accesses} times, idle {}", seconds(entry.idle_ms.unwrap_or(0)))?;
                }
                if let Some(source) = &entry.source {
                    write!(f, ", copied from {source}")?;
                }
            }
            writeln!(f)?;
        }
        if self.is_loading {
            writeln!(f, "a load is under way")?;
        }
        if self.is_suspect {
            writeln!(f, "suspect: what other nodes removed is not known at the moment")?;
        }
        Ok(())
    }
}

impl<K: Key, V: Value> Cache<K, V> {
    /// Forces the breakers of a tier open, switches them off, or lets them decide again. While one is forced
    /// open nothing is read or set there, and removals are kept until it is given free.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) when no tier has that name.
    pub fn set_breakers(&self, tier: &str, mode: BreakerMode) -> Result<()> {
        let mut found = self.shared.tiers.iter().filter(|one| one.name() == tier).peekable();
        if found.peek().is_none() {
            return Err(
                Error::new(ErrorKind::Config, "set_breakers").message(format!("no tier is named {tier}"))
            );
        }
        found.for_each(|tier| tier.set_breaker_mode(mode));
        Ok(())
    }
}
