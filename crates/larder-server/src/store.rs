//! The cache that the server and the commands use: memory, and below it the configured tiers, or the database
//! in the data folder.

use crate::commands::Failure;
use crate::config::Settings;
use crate::data::database_in;
use crate::value::{Key, StoredValue};
use larder::backend::{Backend, Quarantined, SqliteBackend, SqliteOptions, Usage};
use larder::envelope::EnvelopeOptions;
use larder::{Cache, ErrorKind, Result, Stats, TierOptions};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;

/// Where removals are kept that a shared tier could not be told, in the data folder.
const JOURNAL_FILE: &str = "undelivered.journal";
/// What a value needs in its envelope beside its body: media type and validator.
const VALUE_HEAD_BYTES_MAX: u64 = 64 << 10;

/// A cache and what is below its memory.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) cache: Cache<Key, StoredValue>,
    /// Top first.
    pub(crate) backends: Vec<Arc<dyn Backend>>,
    /// The tiers that could not be opened, with the reasons.
    pub(crate) faults: Vec<String>,
}

/// What is done when a tier can't be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnFault {
    Fail,
    /// The cache goes on without it.
    GoOn,
}

impl Store {
    /// The counters of the cache, and what the database holds.
    pub(crate) async fn stats(&self) -> StoreStats {
        let usage = self.usage().await;
        StoreStats {
            cache: self.cache.stats(),
            database: usage.map(|usage| DatabaseStats { entries: usage.entries, bytes: usage.bytes }),
        }
    }

    /// The entries of all tiers that failed authentication.
    pub(crate) async fn quarantined(&self) -> Result<Vec<Quarantined>> {
        let mut found = Vec::new();
        for backend in &self.backends {
            found.extend(backend.quarantined().await?);
        }
        Ok(found)
    }

    /// Forgets them.
    pub(crate) async fn forget_quarantined(&self) -> Result<()> {
        for backend in &self.backends {
            backend.forget_quarantined().await?;
        }
        Ok(())
    }

    /// How much the topmost durable tier holds; `None` without one, and when it doesn't answer.
    pub(crate) async fn usage(&self) -> Option<Usage> {
        self.backends.iter().find(|backend| backend.capabilities().durable)?.usage().await.ok()
    }
}

/// What `/v1/stats` and `larder stats` say.
#[derive(Debug, Serialize)]
pub(crate) struct StoreStats {
    #[serde(flatten)]
    cache: Stats,
    database: Option<DatabaseStats>,
}

#[derive(Debug, Serialize)]
struct DatabaseStats {
    entries: u64,
    bytes: u64,
}

/// How values are sealed.
pub(crate) fn envelope(settings: &Settings) -> EnvelopeOptions {
    let mut envelope = settings.envelope.clone();
    // The schema belongs to the program, and every body that is accepted must fit.
    envelope.schema.get_or_insert_with(|| "larder value/1".to_owned());
    let body_bytes_max = settings.http.body_bytes_max.0.saturating_add(VALUE_HEAD_BYTES_MAX);
    envelope.value_bytes_max =
        envelope.value_bytes_max.max(u32::try_from(body_bytes_max).unwrap_or(u32::MAX));
    envelope
}

/// Opens the tiers and builds the cache on them. Without a folder, what would be on this host's disk is not
/// opened: nothing keeps another server away from it.
///
/// # Errors
/// Settings that a tier doesn't take, or that contradict each other; those of a tier, if a fault is to fail.
pub(crate) async fn open(
    settings: &Settings,
    folder: Option<&Path>,
    on_fault: OnFault,
) -> Result<Store, Failure> {
    let mut builder = Cache::<Key, StoredValue>::builder()
        .entries_max(settings.l1.entries_max)
        .bytes_max(settings.l1.bytes_max.0, |key, value| value.weight() + key.len() as u64)
        .l1_ttl_max(settings.l1.ttl_max)
        .defaults(settings.defaults.clone())
        .health(settings.health.clone())
        .envelope(envelope(settings));
    let (mut backends, mut faults) = (Vec::new(), Vec::new());
    let mut fault = |error: String| match on_fault {
        OnFault::Fail => Err(Failure::new(error)),
        OnFault::GoOn => {
            faults.push(error);
            Ok(())
        }
    };
    match (&settings.tiers, folder) {
        (None, None) => {}
        (None, Some(folder)) => match database(settings, folder).await {
            Ok(database) => backends.push((database, TierOptions::default())),
            Err(error) if error.kind() == ErrorKind::Config => return Err(error.into()),
            Err(error) => fault(error.to_string())?,
        },
        (Some(tiers), folder) => {
            for tier in tiers {
                if folder.is_none() && !tier.is_shared() && tier.backend != "memory" {
                    fault(format!("{}: it is not opened without the data folder", tier.name))?;
                    continue;
                }
                let opening = tier.clone();
                match tokio::task::spawn_blocking(move || opening.open()).await? {
                    Ok(opened) => backends.push(opened),
                    Err(error) if error.kind() == ErrorKind::Config => {
                        return Err(tier.refusal_of(&error).into());
                    }
                    Err(error) => fault(format!("{}: {error}", tier.name))?,
                }
            }
        }
    }
    // Without a tier nothing is sealed, and keys that can't be had don't matter.
    if !backends.is_empty()
        && let Some(protection) = settings.encryption.protection()?
    {
        builder = builder.protection(protection);
    }
    if backends.iter().any(|(backend, _)| backend.log().is_some()) {
        let mut bus = settings.bus.clone();
        bus.is_alone |= settings.single_node;
        if !bus.is_alone {
            bus.journal = bus.journal.or_else(|| folder.map(|folder| folder.join(JOURNAL_FILE)));
        }
        builder = builder.bus(bus);
    }
    for (backend, options) in &backends {
        builder = builder.tier_with(Arc::clone(backend), options.clone());
    }
    let backends = backends.into_iter().map(|(backend, _)| backend).collect();
    Ok(Store { cache: builder.build()?, backends, faults })
}

/// The database of a server without a list of tiers.
async fn database(settings: &Settings, folder: &Path) -> Result<Arc<dyn Backend>> {
    let options = SqliteOptions {
        durability: settings.sqlite.durability,
        entries_max: settings.sqlite.entries_max,
        bytes_max: settings.sqlite.bytes_max.map(|size| size.0),
        readers: settings.sqlite.readers,
        busy_timeout: settings.sqlite.busy_timeout,
        ..SqliteOptions::new(database_in(folder))
    };
    Ok(Arc::new(SqliteBackend::open(options).await?))
}
