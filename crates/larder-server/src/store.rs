//! The cache that the server and the commands use: memory, and the database in the data folder.

use crate::config::{Settings, Survives};
use crate::value::{Key, StoredValue};
use larder::backend::{Durability, SqliteBackend, SqliteOptions};
use larder::{Cache, Result};
use std::path::Path;
use std::sync::Arc;

/// What a value needs in its envelope beside its body: media type and validator.
const VALUE_HEAD_BYTES_MAX: u64 = 64 << 10;

/// Opens the database and builds the cache on it. Without a path, memory is all there is.
///
/// # Errors
/// Those of the database, and settings that contradict each other.
pub(crate) async fn open(settings: &Settings, database: Option<&Path>) -> Result<Cache<Key, StoredValue>> {
    let mut envelope = settings.envelope.clone();
    // The schema belongs to the program, and every body that is accepted must fit.
    envelope.schema.get_or_insert_with(|| "larder value/1".to_owned());
    let body_bytes_max = settings.http.body_bytes_max.0.saturating_add(VALUE_HEAD_BYTES_MAX);
    envelope.value_bytes_max =
        envelope.value_bytes_max.max(u32::try_from(body_bytes_max).unwrap_or(u32::MAX));
    let mut builder = Cache::<Key, StoredValue>::builder()
        .entries_max(settings.l1.entries_max)
        .bytes_max(settings.l1.bytes_max.0, |key, value| value.weight() + key.len() as u64)
        .defaults(settings.defaults.clone())
        .envelope(envelope);
    if let Some(path) = database {
        let options = SqliteOptions {
            durability: match settings.sqlite.durability {
                Survives::Power => Durability::Power,
                Survives::Process => Durability::Process,
            },
            entries_max: settings.sqlite.entries_max,
            bytes_max: settings.sqlite.bytes_max.map(|size| size.0),
            readers: settings.sqlite.readers,
            busy_timeout: settings.sqlite.busy_timeout,
            ..SqliteOptions::new(path)
        };
        builder = builder.tier(Arc::new(SqliteBackend::open(options).await?));
    }
    builder.build()
}
