//! The gateway: which upstream answers, how its answers are kept, what they cost.

use super::node::{ConfigError, Node};
use super::units::{Secret, Size, seconds};
use super::{Settings, refusal};
use larder::EntryOptions;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// A caching gateway for OpenAI-compatible APIs. Off without `upstream.url`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct GatewaySettings {
    pub(crate) upstream: UpstreamSettings,
    /// Whose answers a request may get. Default: those that were given to the same `authorization`.
    pub(crate) tenant: TenantSource,
    /// Where answers are kept when a request doesn't say. Default: gateway.
    pub(crate) namespace: String,
    /// How answers are kept. Default: a day, and a day longer for when the upstream fails. `load_timeout_hard`
    /// is the longest time of one answer. Default: 10 minutes, as long as the official clients wait.
    pub(crate) answers: EntryOptions,
    /// What becomes of paths below /v1 that are not understood: `pass` them on (the default), or `refuse`.
    pub(crate) other_paths: OtherPaths,
    /// What becomes of an answer that everybody who asked for it has left: `finish` and keep it (the default), or
    /// `stop`.
    pub(crate) abandoned: Abandoned,
    /// Fields of the body that are no part of the key. Default: user, metadata and safety_identifier, which say
    /// who asks, not what.
    pub(crate) ignored_fields: Vec<String>,
    /// Headers that choose what the upstream does, and so are part of the key. Default: those of OpenAI.
    pub(crate) key_headers: Vec<String>,
    /// Largest answer that is kept, and most of one that is held for those who come late. Default: 16 MiB.
    pub(crate) answer_bytes_max: Size,
    /// Pause between the pieces of an answer that is streamed from the cache. Default: none.
    #[serde(with = "pause")]
    pub(crate) replay_pause: Duration,
    /// What a million tokens cost, by model: input, output. The longest name that a model begins with counts.
    /// Default: none, so no money is counted.
    pub(crate) prices: BTreeMap<String, Price>,
}

/// The API behind the gateway.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct UpstreamSettings {
    /// What its clients call the base URL, such as `https://api.openai.com/v1`.
    pub(crate) url: String,
    /// A file with the key that it is asked with, in the place of the client's. Default: the client's is passed on.
    pub(crate) key_file: Option<PathBuf>,
    /// The name of an environment variable with that key.
    pub(crate) key_variable: Option<String>,
    /// How long connecting may take. Default: 5 seconds.
    #[serde(with = "seconds")]
    pub(crate) connect_timeout: Duration,
    /// How long a reply may take to begin. Default: 5 minutes: a plain answer begins when it is whole.
    #[serde(with = "seconds")]
    pub(crate) reply_timeout: Duration,
    /// How long a reply may be silent after it began, and a connection be kept unused. Default: 60 seconds.
    #[serde(with = "seconds")]
    pub(crate) idle_timeout: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TenantSource {
    /// The header Authorization, api-key, x-api-key or x-goog-api-key; without any of them the cookies.
    #[default]
    Authorization,
    /// Everybody is one tenant.
    Shared,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OtherPaths {
    #[default]
    Pass,
    Refuse,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Abandoned {
    #[default]
    Finish,
    Stop,
}

/// Money for a million tokens, in whatever currency.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Price {
    pub(crate) input: f64,
    pub(crate) output: f64,
}

impl Default for GatewaySettings {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 60 * 60);
        GatewaySettings {
            upstream: UpstreamSettings::default(),
            tenant: TenantSource::default(),
            namespace: "gateway".to_owned(),
            answers: EntryOptions::default()
                .ttl(day)
                .stale_on_error(day)
                .load_timeout_hard(Duration::from_secs(600)),
            other_paths: OtherPaths::default(),
            abandoned: Abandoned::default(),
            ignored_fields: crate::gateway::OF_THE_CALLER.map(str::to_owned).to_vec(),
            key_headers: ["openai-organization", "openai-project", "openai-beta"].map(str::to_owned).to_vec(),
            answer_bytes_max: Size(16 << 20),
            replay_pause: Duration::ZERO,
            prices: BTreeMap::new(),
        }
    }
}

impl Default for UpstreamSettings {
    fn default() -> Self {
        UpstreamSettings {
            url: String::new(),
            key_file: None,
            key_variable: None,
            connect_timeout: Duration::from_secs(5),
            reply_timeout: Duration::from_secs(300),
            idle_timeout: Duration::from_secs(60),
        }
    }
}

impl UpstreamSettings {
    /// The key that the upstream is asked with, if it is not the client's.
    ///
    /// # Errors
    /// Says what is wrong with the place where it is.
    pub(crate) fn read_key(&self) -> Result<Option<Secret>, String> {
        let text = match (&self.key_file, &self.key_variable) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => {
                return Err("key_file and key_variable are set; one of them is allowed".to_owned());
            }
            (Some(path), None) => std::fs::read_to_string(path)
                .map_err(|error| format!("key_file {} can't be read: {error}", path.display()))?,
            (None, Some(name)) => std::env::var(name)
                .map_err(|_| format!("key_variable names {name}, which is not set in the environment"))?,
        };
        let key = text.trim();
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("the upstream's key is empty or has blanks".to_owned());
        }
        Ok(Some(Secret::new(key.to_owned())))
    }
}

impl GatewaySettings {
    pub(crate) fn is_on(&self) -> bool {
        !self.upstream.url.is_empty()
    }

    /// What a model's tokens cost.
    pub(crate) fn price(&self, model: &str) -> Option<Price> {
        let fits = self.prices.iter().filter(|(name, _)| model.starts_with(name.as_str()));
        fits.max_by_key(|(name, _)| name.len()).map(|(_, price)| *price)
    }
}

impl Settings {
    pub(super) fn check_gateway(&self, tree: &Node) -> Result<(), ConfigError> {
        let gateway = &self.gateway;
        gateway.answers.validate().map_err(|error| {
            let text = error.to_string();
            let message = text.rsplit_once("config: ").map_or(text.as_str(), |(_, message)| message);
            refusal(tree, "gateway.answers", message.to_owned())
        })?;
        let key =
            gateway.upstream.read_key().map_err(|message| refusal(tree, "gateway.upstream", message))?;
        if !gateway.is_on() {
            return Ok(());
        }
        if key.is_some() && gateway.tenant == TenantSource::Authorization && self.tokens.is_empty() {
            let message =
                "the upstream is asked with a key of ours, and nobody needs a token: whoever reaches the \
                           address spends it; set tokens, or tenant = \"shared\" to allow that on this host"
                    .to_owned();
            return Err(refusal(tree, "gateway.upstream", message));
        }
        let host = gateway.upstream.url.strip_prefix("http://").map(|rest| rest.split(['/', ':']).next());
        let is_local = |host: &str| host == "localhost" || host.starts_with("127.") || host.starts_with('[');
        if let Some(Some(host)) = host
            && !is_local(host)
            && key.is_some()
        {
            let message = format!("the key would go to {host} unencrypted; use https");
            return Err(refusal(tree, "gateway.upstream.url", message));
        }
        Ok(())
    }
}

/// Seconds of 0 to 10.
mod pause {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::time::Duration;

    pub(super) fn serialize<S: Serializer>(pause: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(pause.as_secs_f64())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        let pause = Duration::try_from_secs_f64(seconds).ok().filter(|_| seconds <= 10.0);
        pause.ok_or_else(|| D::Error::custom(format!("{seconds} was given; 0 to 10 seconds are allowed")))
    }
}
