//! The settings of `larder serve`: one struct, read from a file, the environment and flags.
//!
//! A flag wins over the environment, the environment over the file, the file over the default. Settings
//! that don't exist are refused wherever they stand.

mod address;
mod encryption;
mod file;
mod gateway;
mod node;
mod refusals;
mod tiers;
mod units;

pub(crate) use encryption::EncryptionSettings;
pub(crate) use gateway::{Abandoned, GatewaySettings, OtherPaths, TenantSource, UpstreamSettings};
use node::{ConfigError, Origin, Value};
pub(crate) use tiers::TierSettings;
pub(crate) use units::{Secret, Size};

use larder::backend::{Durability, SqliteOptions};
use larder::envelope::EnvelopeOptions;
use larder::{BusOptions, EntryOptions, HealthOptions};
use node::Node;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use units::seconds;

/// Everything that can be set.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// The file that they are from.
    #[serde(skip)]
    pub(crate) file: Option<PathBuf>,
    /// Address to listen on. Default: 127.0.0.1:7070. Any other than loopback needs `tokens`.
    #[serde(deserialize_with = "units::address")]
    pub(crate) listen: SocketAddr,
    /// Folder of the database, made if it is missing. Default: ./larder-data.
    pub(crate) data: PathBuf,
    /// Refuse to start when the database can't be opened, instead of serving from memory alone.
    pub(crate) require_data: bool,
    /// Bearer tokens, any of which is accepted. Default: none, then everybody who reaches the address is.
    #[serde(deserialize_with = "units::secrets")]
    pub(crate) tokens: Vec<Secret>,
    /// A file with one more token per line.
    pub(crate) tokens_file: Option<PathBuf>,
    /// Host names that requests may be addressed to when there is no token, beside the loopback ones.
    pub(crate) allowed_hosts: Vec<String>,
    pub(crate) log: LogFormat,
    pub(crate) l1: L1Settings,
    /// How entries are kept when a request doesn't say.
    pub(crate) defaults: EntryOptions,
    /// How values are encoded and compressed in the database.
    pub(crate) envelope: EnvelopeOptions,
    /// Whether and how the database is encrypted or signed.
    pub(crate) encryption: EncryptionSettings,
    /// The database of a server without `tiers`.
    pub(crate) sqlite: SqliteSettings,
    /// What is below memory, top first. Default: `None`, a database in the data folder.
    #[serde(deserialize_with = "ignored")]
    pub(crate) tiers: Option<Vec<TierSettings>>,
    /// Says that no other node uses the tiers that nodes may share. Default: no.
    pub(crate) single_node: bool,
    /// How the server follows a shared tier that tells what other nodes remove: Redis and PostgreSQL. The journal is
    /// in the data folder unless it names another file.
    pub(crate) bus: BusOptions,
    /// When the server counts as degraded or unhealthy.
    pub(crate) health: HealthOptions,
    pub(crate) http: HttpSettings,
    pub(crate) gateway: GatewaySettings,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            file: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
            data: PathBuf::from("larder-data"),
            require_data: false,
            tokens: Vec::new(),
            tokens_file: None,
            allowed_hosts: Vec::new(),
            log: LogFormat::default(),
            l1: L1Settings::default(),
            defaults: EntryOptions::default(),
            envelope: EnvelopeOptions::default(),
            encryption: EncryptionSettings::default(),
            sqlite: SqliteSettings::default(),
            tiers: None,
            single_node: false,
            bus: BusOptions::default(),
            health: HealthOptions::default(),
            http: HttpSettings::default(),
            gateway: GatewaySettings::default(),
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

/// How much is kept in memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct L1Settings {
    /// Default: a million. Each entry counts for at least `bytes_max / entries_max` bytes.
    pub(crate) entries_max: u64,
    /// Default: 256 MiB, a size that fits beside other services on a small host.
    pub(crate) bytes_max: Size,
    /// The longest that an entry stays fresh in memory. Default: never ends before the entry's own TTL. Has to
    /// be set where nodes share a tier: it bounds for how long another node's removal is not noticed.
    #[serde(with = "units::seconds_or_never")]
    pub(crate) ttl_max: Duration,
}

/// Read by itself, with where each part was written.
fn ignored<'de, T: Default, D: serde::Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    serde::de::IgnoredAny::deserialize(deserializer).map(|_| T::default())
}

impl Default for L1Settings {
    fn default() -> Self {
        L1Settings { entries_max: 1_000_000, bytes_max: Size(256 << 20), ttl_max: Duration::MAX }
    }
}

/// The database in the data folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SqliteSettings {
    /// What an acknowledged set survives: `power` loss (the default), or only the end of the `process`.
    pub(crate) durability: Durability,
    /// Default: no limit.
    pub(crate) entries_max: Option<u64>,
    /// Default: no limit.
    pub(crate) bytes_max: Option<Size>,
    /// Threads that read. Default: 2.
    pub(crate) readers: usize,
    /// Longest wait for another process. Default: 5 seconds.
    #[serde(with = "seconds")]
    pub(crate) busy_timeout: Duration,
}

impl Default for SqliteSettings {
    fn default() -> Self {
        let SqliteOptions { durability, readers, busy_timeout, .. } = SqliteOptions::new("");
        SqliteSettings { durability, entries_max: None, bytes_max: None, readers, busy_timeout }
    }
}

/// Limits of the HTTP server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct HttpSettings {
    /// Largest body of a request. Default: 64 MiB.
    pub(crate) body_bytes_max: Size,
    /// Most bytes of all bodies that are being received. Default: 512 MiB, so that slow uploads can't
    /// take all memory.
    pub(crate) bodies_bytes_max: Size,
    /// How long a request's head may take from its first byte. Default: 10 seconds.
    #[serde(with = "seconds")]
    pub(crate) header_timeout: Duration,
    /// How long a connection may be silent between requests, or not take the answer. Default: 75 seconds,
    /// longer than most clients keep a connection, so that they close it first.
    #[serde(with = "seconds")]
    pub(crate) idle_timeout: Duration,
    /// How long a request's body may take to arrive; the answer is given up after twice as long. Default:
    /// 30 seconds.
    #[serde(with = "seconds")]
    pub(crate) request_timeout: Duration,
    /// How long requests under way may take after a signal to stop. Default: 25 seconds: most process
    /// managers kill after 30.
    #[serde(with = "seconds")]
    pub(crate) shutdown_timeout: Duration,
    /// Most connections at once; more wait to be accepted. Default: 1024.
    pub(crate) connections_max: usize,
    /// Most operations of one batch. Default: 1000.
    pub(crate) batch_operations_max: usize,
    /// Most keys of one page. Default: 1000.
    pub(crate) page_keys_max: usize,
}

impl Default for HttpSettings {
    fn default() -> Self {
        HttpSettings {
            body_bytes_max: Size(64 << 20),
            bodies_bytes_max: Size(512 << 20),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            request_timeout: Duration::from_secs(30),
            shutdown_timeout: Duration::from_secs(25),
            connections_max: 1024,
            batch_operations_max: 1000,
            page_keys_max: 1000,
        }
    }
}

/// Environment variables that are no settings of the server.
const OTHER_VARIABLES: [&str; 5] =
    ["LARDER_LOG", "LARDER_TOKEN", "LARDER_SERVER", "LARDER_CONFIG", "LARDER_KEYS"];

impl Settings {
    /// Reads the file, the environment and the flags (setting and value), and checks the result.
    pub(crate) fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: impl IntoIterator<Item = (&'static str, &'static str, String)>,
    ) -> Result<Self, ConfigError> {
        let mut tree = match file {
            Some(path) => file::read(path)?,
            None => Node::new(Value::Table(Vec::new()), Origin::Default),
        };
        for (name, value) in environment {
            if let Some(path) = setting_of(&name) {
                let parts: Vec<&str> = path.split("__").collect();
                let node = Node::new(Value::Word(value), Origin::Environment(name));
                match parts.as_slice() {
                    ["tiers", of_tier @ ..] => tiers::set(&mut tree, of_tier, node)?,
                    parts => tree.set(parts, node),
                }
            }
        }
        for (flag, setting, value) in flags {
            let parts: Vec<&str> = setting.split('.').collect();
            tree.set(&parts, Node::new(Value::Word(value), Origin::Flag(flag)));
        }
        let mut settings = Settings::deserialize(&tree)?;
        settings.file = file.map(Path::to_owned);
        settings.read_tokens_file(&tree)?;
        settings.check(&tree)?;
        settings.tiers = tiers::read(&tree, &settings)?;
        Ok(settings)
    }

    /// The settings of a command that works on a folder: of the configuration, given or remembered in the folder,
    /// or else the defaults with the folder's keys.
    ///
    /// # Errors
    /// In words for a person.
    pub(crate) fn for_command(
        config: Option<&Path>,
        data: Option<&Path>,
        key_file: Option<&Path>,
    ) -> Result<Self, String> {
        // A folder that was named is used as it was last, whatever the surroundings say.
        let named = || data.is_none().then(|| std::env::var_os("LARDER_CONFIG").map(PathBuf::from)).flatten();
        let folder = data.map_or_else(|| Settings::default().data, Path::to_owned);
        let unreadable = |error: std::io::Error| format!("{}: {error}", folder.display());
        let file = match config.map(Path::to_owned).or_else(named) {
            Some(file) => Some(file),
            None => crate::data::config_of(&folder).map_err(unreadable)?,
        };
        let mut settings = match &file {
            Some(file) => {
                let data = data.map(|data| ("--data", "data", data.display().to_string()));
                Settings::load(Some(file), environment(), data).map_err(|error| error.to_string())?
            }
            None => {
                let encryption =
                    EncryptionSettings::recorded(&folder).map_err(unreadable)?.unwrap_or_default();
                Settings { data: folder, encryption, ..Settings::default() }
            }
        };
        if let Some(key_file) = key_file {
            settings.encryption.key_file = Some(key_file.to_owned());
            settings.encryption.key_variable = None;
        }
        settings.encryption.check_folder(&settings.data)?;
        Ok(settings)
    }

    fn read_tokens_file(&mut self, tree: &Node) -> Result<(), ConfigError> {
        let Some(path) = &self.tokens_file else { return Ok(()) };
        let text = std::fs::read_to_string(path).map_err(|error| {
            refusal(tree, "tokens_file", format!("{} can't be read: {error}", path.display()))
        })?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let before = self.tokens.len();
        self.tokens.extend(lines.map(|line| Secret::new(line.to_owned())));
        if self.tokens.len() == before {
            let message = format!("{} holds no token; one per line is allowed", path.display());
            return Err(refusal(tree, "tokens_file", message));
        }
        Ok(())
    }

    fn check(&self, tree: &Node) -> Result<(), ConfigError> {
        /// Short enough to type, too long to guess over a network.
        const TOKEN_BYTES_MIN: usize = 16;
        let fits = |token: &Secret| {
            token.reveal().len() >= TOKEN_BYTES_MIN && token.reveal().bytes().all(|b| b.is_ascii_graphic())
        };
        if !self.tokens.iter().all(fits) {
            let message = format!(
                "a token is too short or has blanks; {TOKEN_BYTES_MIN} or more visible ASCII characters are allowed"
            );
            return Err(refusal(tree, "tokens", message));
        }
        if !self.listen.ip().is_loopback() && self.tokens.is_empty() {
            let message = format!(
                "{} can be reached from other hosts; set tokens or tokens_file, or listen on 127.0.0.1",
                self.listen
            );
            return Err(refusal(tree, "listen", message));
        }
        for (table, checked) in [("defaults", self.defaults.validate()), ("health", self.health.validate())] {
            checked.map_err(|error| {
                let text = error.to_string();
                let message = text.rsplit_once("config: ").map_or(text.as_str(), |(_, message)| message);
                let setting = message.split(' ').next().unwrap_or_default();
                refusal(tree, &format!("{table}.{setting}"), message.to_owned())
            })?;
        }
        // The keys are read again when they are needed: `--check` should say now what is wrong with them.
        self.encryption.protection().map_err(|error| {
            let setting = if self.encryption.key_variable.is_some() { "key_variable" } else { "key_file" };
            let text = error.to_string();
            let message = text.split_once("config: ").map_or(text.as_str(), |(_, message)| message);
            refusal(tree, &format!("encryption.{setting}"), message.to_owned())
        })?;
        self.check_gateway(tree)?;
        if !(1..=64).contains(&self.sqlite.readers) {
            let message = format!("{} was given; 1 to 64 is allowed", self.sqlite.readers);
            return Err(refusal(tree, "sqlite.readers", message));
        }
        for (setting, value) in [
            ("l1.entries_max", self.l1.entries_max),
            ("l1.bytes_max", self.l1.bytes_max.0),
            ("http.body_bytes_max", self.http.body_bytes_max.0),
            ("http.connections_max", self.http.connections_max as u64),
            ("http.batch_operations_max", self.http.batch_operations_max as u64),
            ("http.page_keys_max", self.http.page_keys_max as u64),
        ] {
            if value == 0 {
                return Err(refusal(tree, setting, "0 was given; 1 or more is allowed".to_owned()));
            }
        }
        if self.http.bodies_bytes_max.0 < self.http.body_bytes_max.0 {
            let message = format!(
                "{} was given; at least http.body_bytes_max ({}) is allowed",
                self.http.bodies_bytes_max, self.http.body_bytes_max
            );
            return Err(refusal(tree, "http.bodies_bytes_max", message));
        }
        Ok(())
    }
}

/// The variables of the process that are text.
pub(crate) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// An error of a setting that was read, at the place that set it.
fn refusal(tree: &Node, setting: &str, message: String) -> ConfigError {
    let origin = tree.find(setting).map_or(Origin::Default, |node| node.origin.clone());
    ConfigError::of(setting, origin, message)
}

/// The setting that an environment variable names, in lower case with `__` between its parts.
fn setting_of(variable: &str) -> Option<String> {
    let name = variable.strip_prefix("LARDER_")?;
    if OTHER_VARIABLES.contains(&variable) || is_orchestrators(name) {
        return None;
    }
    Some(name.to_ascii_lowercase())
}

/// Whether Kubernetes or Docker links made the variable for a service that is called larder-something.
fn is_orchestrators(name: &str) -> bool {
    let port = name == "PORT" || name.ends_with("_PORT");
    let address =
        name.split_once("PORT_").is_some_and(|(_, rest)| rest.starts_with(|c: char| c.is_ascii_digit()));
    port || address || name.contains("SERVICE_HOST") || name.contains("SERVICE_PORT")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(name: &str, text: &str, variables: &[(&str, &str)]) -> Result<Settings, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Settings::load(Some(&path), variables, [])
            .map_err(|error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))
    }

    #[test]
    fn three_formats_give_the_same_settings() {
        let toml =
            "listen = \"127.0.0.1:1\"\n[defaults]\nttl = 1.5\ntags = [\"a\"]\n[l1]\nbytes_max = \"1 MiB\"\n";
        let yaml = "listen: 127.0.0.1:1\ndefaults:\n  ttl: 1.5\n  tags: [a]\nl1:\n  bytes_max: 1 MiB\n";
        let json = r#"{"listen": "127.0.0.1:1", "defaults": {"ttl": 1.5, "tags": ["a"]}, "l1": {"bytes_max": "1 MiB"}}"#;
        for (name, text) in [("a.toml", toml), ("a.yaml", yaml), ("a.yml", yaml), ("a.json", json)] {
            let settings = load(name, text, &[]).unwrap();
            assert_eq!(settings.listen.port(), 1, "{name}");
            assert_eq!(settings.defaults.ttl, Duration::from_millis(1500), "{name}");
            assert!(settings.defaults.tags.contains("a"), "{name}");
            assert_eq!(settings.l1.bytes_max, Size(1 << 20), "{name}");
        }
    }

    /// What the example leaves out would be a setting that nobody finds.
    #[test]
    fn the_example_file_has_every_setting_at_its_default() {
        let text = include_str!("../../larder.example.toml");
        let json = |settings: &Settings| serde_json::to_value(settings).unwrap();
        assert_eq!(json(&load("a.toml", text, &[]).unwrap()), json(&Settings::default()));
        // With the commented ones, every name stands in it.
        let all: String = text.lines().map(|line| format!("{}\n", line.trim_start_matches("# "))).collect();
        fn names(value: &serde_json::Value) -> Vec<&String> {
            let members = value.as_object().into_iter().flatten();
            members.flat_map(|(name, inner)| std::iter::once(name).chain(names(inner))).collect()
        }
        for name in names(&json(&Settings::default())) {
            let stands = |line: &str| {
                line.starts_with(&format!("{name} ="))
                    || line == format!("[{name}]")
                    || line.ends_with(&format!(".{name}]"))
                    || line == format!("[[{name}]]")
            };
            assert!(name == "schema" || all.lines().any(stands), "{name}");
        }
    }

    #[test]
    fn environment_wins_over_the_file_and_flags_win_over_both() {
        let variables = [
            ("LARDER_DEFAULTS__TTL", "7"),
            ("LARDER_TOKENS", "0123456789abcdef, 1234567890123456"),
            ("LARDER_SERVICE_HOST", "10.0.0.1"),
            ("LARDER_PORT_7070_TCP_ADDR", "10.0.0.1"),
            ("LARDER_TOKEN", "x"),
        ];
        let settings =
            load("a.toml", "[defaults]\nttl = 1\n[http]\nconnections_max = 3", &variables).unwrap();
        assert_eq!(settings.defaults.ttl, Duration::from_secs(7));
        assert_eq!(settings.http.connections_max, 3);
        assert_eq!(settings.tokens[1].reveal(), "1234567890123456");
        assert!(!format!("{settings:?}").contains("1234567890123456"));
        let environment = [("LARDER_LISTEN".to_owned(), "127.0.0.1:2".to_owned())];
        let flags = [("--listen", "listen", "127.0.0.1:3".to_owned())];
        assert_eq!(Settings::load(None, environment, flags).unwrap().listen.port(), 3);
    }

    #[test]
    fn refusals_say_where_which_what_and_what_is_allowed() {
        let cases: &[(&str, &str, &str)] = &[
            ("a.toml", "listn = \"x\"", "a.toml:1:1: listn: there is no such setting; did you mean listen?"),
            (
                "a.yaml",
                "http:\n  header_timout: 3",
                "a.yaml:2:3: http.header_timout: there is no such setting; did you mean header_timeout?",
            ),
            (
                "a.json",
                "{\n \"l1\": {\"zzzzzz\": 1}}",
                "l1.zzzzzz: there is no such setting; allowed are entries_max, bytes_max",
            ),
            (
                "a.toml",
                "[defaults]\nttl = -1",
                "a.toml:2:7: defaults.ttl: -1 is no duration; a number of seconds of 0 or more, or \"never\", is allowed",
            ),
            (
                "a.yaml",
                "defaults:\n  ttl_jitter: 2\n",
                "a.yaml:2:15: defaults.ttl_jitter: ttl_jitter is 2; 0 to 1 is allowed",
            ),
            ("a.toml", "listen = 5", "a.toml:1:10: listen: 5 was given; text is allowed"),
            (
                "a.toml",
                "listen = \"0.0.0.0:7070\"",
                "listen: 0.0.0.0:7070 can be reached from other hosts; set tokens",
            ),
            (
                "a.toml",
                "listen = \"example.com:80\"",
                "a.toml:1:10: listen: \"example.com:80\" is no address; IP:PORT, like 127.0.0.1:7070, is allowed",
            ),
            ("a.toml", "http = 1", "a.toml:1:8: http: 1 was given; a table is allowed"),
            (
                "a.yaml",
                "require_data: maybe",
                "a.yaml:1:15: require_data: \"maybe\" was given; true or false is allowed",
            ),
            ("a.toml", "tokens = [\"short\"]", "tokens: a token is too short"),
            (
                "a.toml",
                "[l1]\nbytes_max = \"9 parsecs\"",
                "a.toml:2:13: l1.bytes_max: \"9 parsecs\" is no size",
            ),
            (
                "a.toml",
                "[http]\nrequest_timeout = 0",
                "a.toml:2:19: http.request_timeout: 0 was given; a number of seconds above 0",
            ),
            (
                "a.toml",
                "[http]\nconnections_max = -4",
                "a.toml:2:19: http.connections_max: -4 was given; a whole number of 0 or more is allowed",
            ),
            ("a.toml", "log = \"xml\"", "a.toml:1:7: log: \"xml\" was given; text or json is allowed"),
            ("a.toml", "a = = 1", "a.toml:1:5: "),
            ("a.json", "{\"listen\": }", "a.json:1:12: expected value"),
            ("a.json", "{\"log\": \"json\", \"log\": \"text\"}", "a.json:1:1: log is set twice"),
            ("a.yaml", "a: b: c", "a.yaml:1:"),
            ("a.ini", "", "a.ini: has an unknown extension; .toml, .yaml, .yml or .json is allowed"),
        ];
        for (name, text, message) in cases {
            let error = load(name, text, &[]).unwrap_err();
            assert!(error.contains(message), "{text:?} gave\n  {error}\nnot\n  {message}");
        }
        let error = load("a.toml", "", &[("LARDER_HTTP__BODY_BYTES_MAXX", "1")]).unwrap_err();
        assert!(
            error.contains("environment variable LARDER_HTTP__BODY_BYTES_MAXX: http.body_bytes_maxx"),
            "{error}"
        );
        let error = load("a.toml", "tokens = 1234567890123456789", &[]).unwrap_err();
        assert!(!error.contains("1234567890123456789"), "{error}");
    }
}
