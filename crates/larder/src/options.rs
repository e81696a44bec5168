//! The options of an entry: how long it is fresh, how stale it may be served, how it is loaded.
//!
//! They exist once. The builder holds the defaults of a cache, a call changes a copy, and the
//! configuration file of the server reads the same struct.

use crate::entry::Tags;
use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How one entry is kept, refreshed and loaded. `Default` is larder's default for each.
///
/// ```
/// use larder::EntryOptions;
/// use std::time::Duration;
///
/// let options = EntryOptions::default()
///     .ttl(Duration::from_secs(60))
///     .stale_while_revalidate(Duration::from_secs(30))
///     .stale_on_error(Duration::from_secs(3600));
/// assert_eq!(options.ttl, Duration::from_secs(60));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct EntryOptions {
    /// How long an entry is fresh. Zero: it is not stored, and a set of it removes what was there.
    /// [`Duration::MAX`]: for ever. Default: 5 minutes, short enough that a forgotten invalidation heals
    /// while somebody still looks for it.
    #[serde(with = "seconds")]
    pub ttl: Duration,
    /// Each TTL is scaled by a random factor in `1 ± ttl_jitter`, so that entries that were written
    /// together don't expire together. 0 to 1. Default: 0.
    pub ttl_jitter: f64,
    /// A hit in L1 makes an entry fresh there for another TTL. Tiers below keep the time that it was written
    /// with. Default: off.
    pub is_sliding: bool,
    /// L1 never evicts the value to make room: it stays until it expires, is removed or is replaced without
    /// this. Where pinned values fill L1's part for a key, further ones are refused with
    /// [`Written::Refused`](crate::Written::Refused) or, after a load, not kept: the limit holds always. Default:
    /// off.
    pub is_pinned: bool,
    /// For how long after its TTL an entry is served at once while one refresh runs. Default: 0, because
    /// a caller that gets an old value must have agreed to it.
    #[serde(with = "seconds")]
    pub stale_while_revalidate: Duration,
    /// For how long after its TTL an entry is served when a load fails or is late. Default: 0.
    #[serde(with = "seconds")]
    pub stale_on_error: Duration,
    /// After a failed load, how long the stale value is served without another try. Default: 10 seconds,
    /// so that a source that is down sees one call per key in that time and not all of them.
    #[serde(with = "seconds")]
    pub stale_on_error_throttle: Duration,
    /// Refresh in the background on a hit when this share of the TTL is gone. 0 to 1; `None`: never.
    /// Default: `None`.
    pub refresh_after: Option<f64>,
    /// XFetch (Vattani et al., "Optimal Probabilistic Cache Stampede Prevention", 2015): refresh on a hit
    /// with a probability that grows towards the expiry, faster for values that take long to load. 1 is
    /// the paper's optimum, more is earlier; `None`: never. Default: `None`.
    pub early_refresh_beta: Option<f64>,
    /// How long a load may take before a caller that has a stale value at hand gets it; the load goes on.
    /// `None`: such a caller waits for the hard timeout. Default: `None`.
    #[serde(with = "optional_seconds")]
    pub load_timeout_soft: Option<Duration>,
    /// How long a load may take, and a caller wait for it. The load is then dropped. Default: 30 seconds:
    /// longer than a healthy source takes, shorter than most callers' own limits.
    #[serde(with = "seconds")]
    pub load_timeout_hard: Duration,
    /// How long the absence of a value is remembered when a loader reports it. Default: 10 seconds, so
    /// that something new appears soon. Zero: not at all.
    #[serde(with = "seconds")]
    pub negative_ttl: Duration,
    /// Tags of the entry, beside those that its loader gives. Default: none.
    pub tags: Tags,
}

impl Default for EntryOptions {
    fn default() -> Self {
        EntryOptions {
            ttl: Duration::from_secs(300),
            ttl_jitter: 0.0,
            is_sliding: false,
            is_pinned: false,
            stale_while_revalidate: Duration::ZERO,
            stale_on_error: Duration::ZERO,
            stale_on_error_throttle: Duration::from_secs(10),
            refresh_after: None,
            early_refresh_beta: None,
            load_timeout_soft: None,
            load_timeout_hard: Duration::from_secs(30),
            negative_ttl: Duration::from_secs(10),
            tags: Tags::NONE,
        }
    }
}

macro_rules! setters {
    ($($name:ident: $type:ty),* $(,)?) => { $(
        #[doc = concat!("Sets [`", stringify!($name), "`](Self#structfield.", stringify!($name), ").")]
        #[must_use]
        pub fn $name(mut self, $name: $type) -> Self {
            self.$name = $name;
            self
        }
    )* };
}

impl EntryOptions {
    setters! {
        ttl: Duration,
        ttl_jitter: f64,
        stale_while_revalidate: Duration,
        stale_on_error: Duration,
        stale_on_error_throttle: Duration,
        load_timeout_hard: Duration,
        negative_ttl: Duration,
        tags: Tags,
    }

    /// Sets [`is_sliding`](Self#structfield.is_sliding).
    #[must_use]
    pub fn sliding(mut self) -> Self {
        self.is_sliding = true;
        self
    }

    /// Sets [`is_pinned`](Self#structfield.is_pinned).
    #[must_use]
    pub fn pinned(mut self) -> Self {
        self.is_pinned = true;
        self
    }

    /// Sets [`refresh_after`](Self#structfield.refresh_after), a share of the TTL.
    #[must_use]
    pub fn refresh_after(mut self, share: f64) -> Self {
        self.refresh_after = Some(share);
        self
    }

    /// Sets [`early_refresh_beta`](Self#structfield.early_refresh_beta).
    #[must_use]
    pub fn early_refresh_beta(mut self, beta: f64) -> Self {
        self.early_refresh_beta = Some(beta);
        self
    }

    /// Sets [`load_timeout_soft`](Self#structfield.load_timeout_soft).
    #[must_use]
    pub fn load_timeout_soft(mut self, timeout: Duration) -> Self {
        self.load_timeout_soft = Some(timeout);
        self
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], naming the setting, its value and what is allowed.
    pub fn validate(&self) -> Result<()> {
        share("ttl_jitter", self.ttl_jitter)?;
        if let Some(after) = self.refresh_after {
            share("refresh_after", after)?;
        }
        if let Some(beta) = self.early_refresh_beta
            && !(beta.is_finite() && beta > 0.0)
        {
            return Err(config(format!("early_refresh_beta is {beta}; a number above 0 is allowed")));
        }
        if self.load_timeout_hard.is_zero() {
            return Err(config("load_timeout_hard is 0; a load needs some time".to_owned()));
        }
        match self.load_timeout_soft {
            Some(soft) if soft > self.load_timeout_hard => Err(config(format!(
                "load_timeout_soft is {soft:?}; at most load_timeout_hard ({:?}) is allowed",
                self.load_timeout_hard
            ))),
            _ => Ok(()),
        }
    }
}

fn share(setting: &str, value: f64) -> Result<()> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(config(format!("{setting} is {value}; 0 to 1 is allowed")))
}

fn config(message: String) -> Error {
    Error::new(ErrorKind::Config, "build").message(message)
}

/// Durations as seconds, with fractions, in configuration files; "never" is [`Duration::MAX`].
pub(crate) mod seconds {
    use serde::{Deserialize, Deserializer, Serializer, de};
    use std::time::Duration;

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Seconds(f64),
        Word(String),
    }

    pub(crate) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        match *duration {
            Duration::MAX => serializer.serialize_str("never"),
            finite => serializer.serialize_f64(finite.as_secs_f64()),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let allowed = "a number of seconds of 0 or more, or \"never\", is allowed";
        match Written::deserialize(deserializer).map_err(|_| de::Error::custom(allowed))? {
            Written::Seconds(seconds) => Duration::try_from_secs_f64(seconds)
                .map_err(|_| de::Error::custom(format!("{seconds} is no duration; {allowed}"))),
            Written::Word(word) if word == "never" => Ok(Duration::MAX),
            Written::Word(word) => Err(de::Error::custom(format!("\"{word}\" is no duration; {allowed}"))),
        }
    }
}

mod optional_seconds {
    use super::seconds;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::time::Duration;

    #[derive(Serialize, Deserialize)]
    struct Seconds(#[serde(with = "seconds")] Duration);

    pub(crate) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.map(Seconds).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<Seconds>::deserialize(deserializer)?.map(|Seconds(duration)| duration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_the_setting_its_value_and_what_is_allowed() {
        let message = |options: EntryOptions| options.validate().unwrap_err().to_string();
        assert!(message(EntryOptions::default().ttl_jitter(1.5)).contains("ttl_jitter is 1.5; 0 to 1"));
        assert!(message(EntryOptions::default().refresh_after(f64::NAN)).contains("refresh_after is NaN"));
        assert!(message(EntryOptions::default().early_refresh_beta(0.0)).contains("early_refresh_beta is 0"));
        let late = EntryOptions::default().load_timeout_soft(Duration::from_secs(99));
        assert!(message(late).contains("load_timeout_soft is 99s; at most load_timeout_hard (30s)"));
    }

    #[test]
    fn durations_are_seconds_in_files() {
        let read = |text| serde_json::from_str::<EntryOptions>(text);
        assert_eq!(read(r#"{"ttl": 1.5}"#).unwrap().ttl, Duration::from_millis(1500));
        assert_eq!(read(r#"{"ttl": "never", "tags": ["a"]}"#).unwrap().ttl, Duration::MAX);
        for wrong in [r#"{"ttl": -1}"#, r#"{"ttl": "soon"}"#, r#"{"ttl": 1e300}"#] {
            assert!(read(wrong).unwrap_err().to_string().contains("is allowed"), "{wrong}");
        }
        assert!(read(r#"{"tttl": 1}"#).unwrap_err().to_string().contains("tttl"));
        let options = EntryOptions::default().load_timeout_soft(Duration::from_secs(2)).ttl(Duration::MAX);
        assert_eq!(read(&serde_json::to_string(&options).unwrap()).unwrap(), options);
    }
}
