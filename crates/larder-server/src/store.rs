//! The cache that the server and the commands use: memory, and the database in the data folder.

use crate::config::Settings;
use crate::value::{Key, StoredValue};
use larder::backend::{Backend, Quarantined, SqliteBackend, SqliteOptions, Usage};
use larder::envelope::EnvelopeOptions;
use larder::{Cache, Result, Stats};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;

/// What a value needs in its envelope beside its body: media type and validator.
const VALUE_HEAD_BYTES_MAX: u64 = 64 << 10;

/// A cache, and the database below its memory, if it has one.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) cache: Cache<Key, StoredValue>,
    database: Option<Arc<SqliteBackend>>,
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

    /// The entries of the database that failed authentication.
    pub(crate) async fn quarantined(&self) -> Result<Vec<Quarantined>> {
        match &self.database {
            Some(database) => database.quarantined().await,
            None => Ok(Vec::new()),
        }
    }

    /// Forgets them.
    pub(crate) async fn forget_quarantined(&self) -> Result<()> {
        match &self.database {
            Some(database) => database.forget_quarantined().await,
            None => Ok(()),
        }
    }

    /// How much the database holds; `None` without one, and when it doesn't answer.
    pub(crate) async fn usage(&self) -> Option<Usage> {
        self.database.as_ref()?.usage().await.ok()
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

/// Opens the database and builds the cache on it. Without a path, memory is all there is.
///
/// # Errors
/// Those of the database, and settings that contradict each other.
pub(crate) async fn open(settings: &Settings, database: Option<&Path>) -> Result<Store> {
    let envelope = envelope(settings);
    let mut builder = Cache::<Key, StoredValue>::builder()
        .entries_max(settings.l1.entries_max)
        .bytes_max(settings.l1.bytes_max.0, |key, value| value.weight() + key.len() as u64)
        .defaults(settings.defaults.clone())
        .envelope(envelope);
    let mut opened = None;
    if let Some(path) = database {
        if let Some(protection) = settings.encryption.protection()? {
            builder = builder.protection(protection);
        }
        let options = SqliteOptions {
            durability: settings.sqlite.durability,
            entries_max: settings.sqlite.entries_max,
            bytes_max: settings.sqlite.bytes_max.map(|size| size.0),
            readers: settings.sqlite.readers,
            busy_timeout: settings.sqlite.busy_timeout,
            ..SqliteOptions::new(path)
        };
        opened = Some(Arc::new(SqliteBackend::open(options).await?));
    }
    if let Some(backend) = &opened {
        builder = builder.tier(Arc::clone(backend) as Arc<dyn Backend>);
    }
    Ok(Store { cache: builder.build()?, database: opened })
}
