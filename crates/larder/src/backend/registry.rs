//! Backends by name, for configuration files and for backends of third parties.

use super::{Backend, Capabilities, MemoryBackend, MemoryOptions};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

type Open = Box<dyn Fn(Value, &Clock) -> Result<Arc<dyn Backend>> + Send + Sync>;

/// What a caller needs of a backend beyond get, put and remove.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// It must survive a restart.
    pub durable: bool,
    /// Its keys must be listable, so that patterns can be removed.
    pub scan: bool,
}

/// Opens backends by name with settings of any format that serde reads.
///
/// ```
/// use larder::backend::{Needs, Registry};
/// use larder::clock::Clock;
///
/// let registry = Registry::with_defaults();
/// let settings = serde_json::json!({ "entries_max": 1000 });
/// let memory = registry.open("memory", settings, Needs { scan: true, ..Needs::default() }, &Clock::system())?;
/// assert_eq!(memory.name(), "memory");
///
/// let durable = Needs { durable: true, ..Needs::default() };
/// let refused = registry.open("memory", serde_json::json!({}), durable, &Clock::system()).unwrap_err();
/// assert_eq!(refused.kind(), larder::ErrorKind::Unsupported);
/// # Ok::<(), larder::Error>(())
/// ```
#[derive(Default)]
pub struct Registry {
    backends: BTreeMap<String, Open>,
}

impl Registry {
    /// A registry that knows no backend.
    pub fn new() -> Self {
        Self::default()
    }

    /// A registry of the backends that are compiled in: `memory`, and with the features of those names
    /// `sqlite`, `files`, `jsonl`, `redis` and `postgres`.
    pub fn with_defaults() -> Self {
        let mut registry = Registry::new();
        registry.register("memory", |options: MemoryOptions, clock| {
            Ok(Arc::new(MemoryBackend::new(MemoryOptions { clock: clock.clone(), ..options })))
        });
        #[cfg(feature = "sqlite")]
        registry.register("sqlite", |options: super::SqliteOptions, clock| {
            let options = super::SqliteOptions { clock: clock.clone(), ..options };
            Ok(Arc::new(super::SqliteBackend::open_blocking(options)?))
        });
        #[cfg(all(feature = "files", unix))]
        registry.register("files", |options: super::FilesOptions, clock| {
            let options = super::FilesOptions { clock: clock.clone(), ..options };
            Ok(Arc::new(super::FilesBackend::open_blocking(options)?))
        });
        #[cfg(all(feature = "jsonl", unix))]
        registry.register("jsonl", |options: super::JsonlOptions, clock| {
            let options = super::JsonlOptions { clock: clock.clone(), ..options };
            Ok(Arc::new(super::JsonlBackend::open_blocking(options)?))
        });
        #[cfg(all(feature = "redis", not(larder_shuttle)))]
        registry.register("redis", |options: super::RedisOptions, clock| {
            let options = super::RedisOptions { clock: clock.clone(), ..options };
            Ok(Arc::new(super::RedisBackend::new(options)?))
        });
        #[cfg(all(feature = "postgres", not(larder_shuttle)))]
        registry.register("postgres", |options: super::PostgresOptions, clock| {
            let options = super::PostgresOptions { clock: clock.clone(), ..options };
            Ok(Arc::new(super::PostgresBackend::new(options)?))
        });
        registry
    }

    /// Adds a backend, or takes the place of one with this name. `open` may block, on the disk or the network.
    pub fn register<S: DeserializeOwned>(
        &mut self,
        name: impl Into<String>,
        open: impl Fn(S, &Clock) -> Result<Arc<dyn Backend>> + Send + Sync + 'static,
    ) {
        let name = name.into();
        let named = name.clone();
        let open = move |settings: Value, clock: &Clock| {
            let settings = serde_json::from_value(settings).map_err(|error| {
                Error::new(ErrorKind::Config, "open").backend(named.clone()).message(error.to_string())
            })?;
            open(settings, clock)
        };
        self.backends.insert(name, Box::new(open));
    }

    /// The names that are known, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.backends.keys().map(String::as_str)
    }

    /// Opens a backend.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for an unknown name, with those that are known, or for settings that it doesn't
    /// take; [`ErrorKind::Unsupported`], naming the capability, when it lacks what is needed; the backend's
    /// own.
    pub fn open(&self, name: &str, settings: Value, needs: Needs, clock: &Clock) -> Result<Arc<dyn Backend>> {
        let Some(open) = self.backends.get(name) else {
            let known: Vec<&str> = self.names().collect();
            return Err(Error::new(ErrorKind::Config, "open")
                .message(format!("there is no backend \"{name}\"; known are: {}", known.join(", "))));
        };
        let backend = open(settings, clock)?;
        let Capabilities { durable, scan } = backend.capabilities();
        for (needed, has, capability) in [(needs.durable, durable, "durable"), (needs.scan, scan, "scan")] {
            if needed && !has {
                return Err(Error::new(ErrorKind::Unsupported, "open")
                    .backend(name.to_owned())
                    .message(format!("the capability \"{capability}\" is needed, and it doesn't have it")));
            }
        }
        Ok(backend)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

#[cfg(all(test, not(larder_shuttle)))]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::json;

    #[test]
    fn refusals_name_the_backend_the_setting_or_the_capability() {
        let registry = Registry::with_defaults();
        let open = |name, settings, needs| registry.open(name, settings, needs, &Clock::system());
        let message = |name, settings, needs| open(name, settings, needs).unwrap_err().to_string();
        let any = Needs::default();
        assert!(message("redys", json!({}), any).contains("no backend \"redys\"; known are: "));
        assert!(message("memory", json!({ "entries": 1 }), any).contains("unknown field `entries`"));
        assert!(message("memory", json!({}), Needs { durable: true, scan: false }).contains("\"durable\""));
    }

    #[test]
    fn third_parties_register_their_own() {
        #[derive(Deserialize)]
        struct Mine {
            entries: u64,
        }
        let mut registry = Registry::new();
        registry.register("mine", |mine: Mine, clock| {
            let options =
                MemoryOptions { clock: clock.clone(), entries_max: Some(mine.entries), bytes_max: None };
            Ok(Arc::new(MemoryBackend::new(options)))
        });
        assert!(registry.open("mine", json!({ "entries": 5 }), Needs::default(), &Clock::system()).is_ok());
    }

    #[cfg(all(feature = "files", unix))]
    #[test]
    fn files_are_opened_from_settings() {
        let folder = tempfile::tempdir().unwrap();
        let settings =
            json!({ "path": folder.path().join("cache"), "bytes_max": 1 << 20, "touch_after": 5.0 });
        let needs = Needs { durable: true, scan: true };
        let files = Registry::with_defaults().open("files", settings, needs, &Clock::system()).unwrap();
        assert_eq!(files.name(), "files");
    }

    #[cfg(feature = "sqlite")]
    #[test]
    fn sqlite_is_opened_from_settings() {
        let folder = tempfile::tempdir().unwrap();
        let settings =
            json!({ "path": folder.path().join("cache.db"), "durability": "process", "readers": 1 });
        let needs = Needs { durable: true, scan: true };
        let sqlite = Registry::with_defaults().open("sqlite", settings, needs, &Clock::system()).unwrap();
        assert_eq!(sqlite.name(), "sqlite");
    }

    #[cfg(feature = "redis")]
    #[test]
    fn redis_is_opened_from_settings_without_a_server() {
        let registry = Registry::with_defaults();
        let open = |settings| registry.open("redis", settings, Needs::default(), &Clock::system());
        assert_eq!(open(json!({ "url": "redis://:secret@h", "shards": 4 })).unwrap().name(), "redis");
        for settings in [json!({ "url": "redis://:secret@h", "shards": 0 }), json!({ "url": ":secret@h" })] {
            let error = open(settings).unwrap_err();
            assert!(error.kind() == ErrorKind::Config && !error.to_string().contains("secret"), "{error}");
        }
    }
}
