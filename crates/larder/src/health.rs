//! Whether a cache and its tiers are well: the words for it, and the bounds by which it is judged.
//!
//! Owns the judgement. Never asks a tier: [`Cache::health_at`](crate::Cache::health_at) does.

use crate::backend::Usage;
use crate::error::{Error, ErrorKind, Result};
use crate::guard::BreakerState;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How thoroughly to look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthLevel {
    /// What the cache knows without asking a tier: those set aside, breakers, failed calls, undelivered
    /// removals, memory. Never waits, so that a hanging tier can't make a living process look dead.
    Ping,
    /// And a sign of life from every tier, with its latency. The default.
    #[default]
    Basic,
    /// And an entry written, read and removed in every tier, and how much each holds. Some stores count
    /// their entries for that one by one.
    Full,
}

/// How well something is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// All is well.
    #[default]
    Healthy,
    /// The cache serves, without something it should have.
    Degraded,
    /// It should get no requests.
    Unhealthy,
}

impl HealthState {
    /// The state in snake case, as metrics and commands name it.
    pub fn name(self) -> &'static str {
        match self {
            HealthState::Healthy => "healthy",
            HealthState::Degraded => "degraded",
            HealthState::Unhealthy => "unhealthy",
        }
    }
}

/// When something counts as degraded or unhealthy.
///
/// By default nothing but a closed cache is unhealthy, because a cache serves from memory and its loader
/// whatever happens below: taking a node out of service for a tier that all nodes share would take them all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct HealthOptions {
    /// For how long an answer is given again. Default: 1 second: an outage shows at once, and however many ask,
    /// tiers are asked once a second for each level.
    #[serde(with = "crate::options::seconds")]
    pub cached_for: Duration,
    /// How long a tier has for each step of a check. Default: 2 seconds; most probes are given up after more.
    #[serde(with = "crate::options::seconds")]
    pub timeout: Duration,
    /// Degraded when a sign of life takes longer. Default: 250 ms: a tier that slow helps few loaders.
    #[serde(with = "crate::options::seconds")]
    pub latency_degraded: Duration,
    /// Unhealthy when it takes longer. Default: never.
    #[serde(with = "crate::options::seconds")]
    pub latency_unhealthy: Duration,
    /// Degraded when this share of a tier's last calls failed, 0 to 1, of 20 calls or more within its breaker's
    /// window. Default: 0.1; retries and the tiers below hide fewer.
    pub error_share_degraded: f64,
    /// Unhealthy when this share failed. Default: `None`, never.
    pub error_share_unhealthy: Option<f64>,
    /// Degraded when a removal waits for its tier for longer. Default: 0, each one counts.
    #[serde(with = "crate::options::seconds")]
    pub undelivered_degraded: Duration,
    /// Unhealthy when one waits for longer. Default: never; this node does not serve what it removed.
    #[serde(with = "crate::options::seconds")]
    pub undelivered_unhealthy: Duration,
    /// Unhealthy when so many tiers are set aside, of which each is degraded. Default: `None`, never.
    pub tiers_aside_unhealthy: Option<u32>,
    /// Degraded when this share of the memory that the process may use is used, 0 to 1. Default: 0.9.
    pub memory_degraded: f64,
    /// Unhealthy when this share is used. Default: `None`, never: pages of files that were read lately count,
    /// and the kernel takes them back when it must.
    pub memory_unhealthy: Option<f64>,
}

/// Fewer calls prove nothing.
const CALLS_MIN: u64 = 20;

impl Default for HealthOptions {
    fn default() -> Self {
        HealthOptions {
            cached_for: Duration::from_secs(1),
            timeout: Duration::from_secs(2),
            latency_degraded: Duration::from_millis(250),
            latency_unhealthy: Duration::MAX,
            error_share_degraded: 0.1,
            error_share_unhealthy: None,
            undelivered_degraded: Duration::ZERO,
            undelivered_unhealthy: Duration::MAX,
            tiers_aside_unhealthy: None,
            memory_degraded: 0.9,
            memory_unhealthy: None,
        }
    }
}

impl HealthOptions {
    /// Checks what can't be meant.
    ///
    /// # Errors
    /// [`ErrorKind::Config`]; the message begins with the setting's name and says what is allowed.
    pub fn validate(&self) -> Result<()> {
        let refused = |message: String| Err(Error::new(ErrorKind::Config, "build").message(message));
        if self.timeout.is_zero() {
            return refused("timeout is 0; more is allowed".to_owned());
        }
        if self.tiers_aside_unhealthy == Some(0) {
            return refused("tiers_aside_unhealthy is 0; 1 or more is allowed".to_owned());
        }
        for (name, degraded, unhealthy) in [
            ("latency", self.latency_degraded, self.latency_unhealthy),
            ("undelivered", self.undelivered_degraded, self.undelivered_unhealthy),
        ] {
            if unhealthy < degraded {
                return refused(format!(
                    "{name}_unhealthy is {unhealthy:?}; {name}_degraded ({degraded:?}) or more is allowed"
                ));
            }
        }
        for (name, degraded, unhealthy) in [
            ("error_share", self.error_share_degraded, self.error_share_unhealthy),
            ("memory", self.memory_degraded, self.memory_unhealthy),
        ] {
            if !(degraded > 0.0 && degraded <= 1.0) {
                return refused(format!("{name}_degraded is {degraded}; above 0, at most 1 is allowed"));
            }
            if let Some(unhealthy) = unhealthy
                && !(degraded..=1.0).contains(&unhealthy)
            {
                return refused(format!(
                    "{name}_unhealthy is {unhealthy}; {name}_degraded ({degraded}) to 1 is allowed"
                ));
            }
        }
        Ok(())
    }
}

/// Whether a cache and its tiers are well.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Health {
    /// The worst of all reasons, the tiers' included.
    pub state: HealthState,
    /// How thoroughly was looked.
    pub level: HealthLevel,
    /// How old the answer is, in milliseconds.
    pub age_ms: u64,
    /// What is wrong with the cache itself.
    pub reasons: Vec<Reason>,
    /// Whether this node may have missed what others removed; it then serves only what it has just confirmed.
    pub is_suspect: bool,
    /// The share of the memory in use that the process may use; `None` without a limit.
    pub memory_share: Option<f64>,
    /// The tiers below L1, top first.
    pub tiers: Vec<TierHealth>,
}

/// Why something is not healthy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Reason {
    /// In a word, which says nothing of where things are: `closed`, `memory`, `tiers_aside`, `suspect`; of a tier
    /// `no_answer`, `slow`, `errors`, `aside`, `undelivered`, `breaker`, `round_trip`, or `note` for what its
    /// backend says itself.
    pub kind: &'static str,
    /// What it makes of the whole.
    pub state: HealthState,
    /// In words for an operator, who may see names of files and hosts.
    pub detail: String,
}

/// How a tier is.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct TierHealth {
    /// Its name.
    pub name: String,
    /// The worst of its reasons.
    pub state: HealthState,
    /// What is wrong.
    pub reasons: Vec<Reason>,
    /// What a sign of life took, in microseconds; `None` at [`HealthLevel::Ping`], and without one.
    pub ping_us: Option<u64>,
    /// What it took to write, read and remove an entry; `None` below [`HealthLevel::Full`], and when it failed.
    pub round_trip_us: Option<u64>,
    /// How much it holds; `None` below [`HealthLevel::Full`], and without an answer.
    pub usage: Option<Usage>,
    /// For how long it has been set aside, in milliseconds.
    pub aside_ms: Option<u64>,
    /// Removals that wait to be replayed.
    pub undelivered: u64,
    /// For how long the oldest of them may have waited, in milliseconds.
    pub undelivered_ms: Option<u64>,
    /// The share of the last calls that failed; `None` with fewer than 20 within the breakers' window.
    pub error_share: Option<f64>,
    /// The breaker of reads.
    pub read_breaker: Option<BreakerState>,
    /// The breaker of writes and removals.
    pub write_breaker: Option<BreakerState>,
}

/// What is known of a tier without asking it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub(crate) name: String,
    pub(crate) aside: Option<(Duration, Option<Error>)>,
    pub(crate) undelivered: u64,
    pub(crate) undelivered_for: Option<Duration>,
    pub(crate) calls: u64,
    pub(crate) failed: u64,
    pub(crate) read_breaker: Option<BreakerState>,
    pub(crate) write_breaker: Option<BreakerState>,
    pub(crate) notes: Vec<String>,
}

/// What a tier answered; `None` where it was not asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    pub(crate) ping: Option<Result<Duration>>,
    pub(crate) round_trip: Option<Result<Duration>>,
    pub(crate) usage: Option<Usage>,
}

impl HealthOptions {
    /// How a tier is.
    pub(crate) fn judge(&self, known: Known, asked: Asked) -> TierHealth {
        use HealthState::{Degraded, Unhealthy};
        let mut reasons = Vec::new();
        let mut because = |kind, state, detail: String| reasons.push(Reason { kind, state, detail });
        let worse = |is_worse: bool| if is_worse { Unhealthy } else { Degraded };
        match &asked.ping {
            Some(Err(error)) => because("no_answer", Degraded, error.to_string()),
            Some(Ok(took)) if *took > self.latency_degraded => {
                because(
                    "slow",
                    worse(*took > self.latency_unhealthy),
                    format!("a sign of life took {took:?}"),
                );
            }
            _ => {}
        }
        if let Some(Err(error)) = &asked.round_trip {
            because("round_trip", Degraded, error.to_string());
        }
        let error_share = (known.calls >= CALLS_MIN).then(|| known.failed as f64 / known.calls.max(1) as f64);
        if let Some(share) = error_share.filter(|share| *share >= self.error_share_degraded) {
            let state = worse(self.error_share_unhealthy.is_some_and(|bound| share >= bound));
            because("errors", state, format!("{} of the last {} calls failed", known.failed, known.calls));
        }
        if let Some((lasting, error)) = &known.aside {
            let why = error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
            because("aside", Degraded, format!("set aside for {} s{why}", lasting.as_secs()));
        }
        if let Some(waited) = known.undelivered_for.filter(|waited| *waited >= self.undelivered_degraded) {
            let state = worse(waited >= self.undelivered_unhealthy);
            let detail = format!("{} removals wait, for up to {} s", known.undelivered, waited.as_secs());
            because("undelivered", state, detail);
        }
        for (what, state) in [("reads", known.read_breaker), ("writes", known.write_breaker)] {
            // Half open it waits for calls to find out, which on an idle node may be long.
            if state == Some(BreakerState::Open) {
                because("breaker", Degraded, format!("the breaker of {what} is open"));
            }
        }
        known.notes.into_iter().for_each(|note| because("note", Degraded, note));
        let micros = |took: Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        TierHealth {
            name: known.name,
            state: worst(&reasons),
            reasons,
            ping_us: asked.ping.and_then(Result::ok).map(micros),
            round_trip_us: asked.round_trip.and_then(Result::ok).map(micros),
            usage: asked.usage,
            aside_ms: known.aside.map(|(lasting, _)| crate::clock::millis(lasting)),
            undelivered: known.undelivered,
            undelivered_ms: known.undelivered_for.map(crate::clock::millis),
            error_share,
            read_breaker: known.read_breaker,
            write_breaker: known.write_breaker,
        }
    }

    /// How the whole is.
    pub(crate) fn sum_up(
        &self,
        level: HealthLevel,
        is_closed: bool,
        is_suspect: bool,
        memory_share: Option<f64>,
        tiers: Vec<TierHealth>,
    ) -> Health {
        use HealthState::{Degraded, Unhealthy};
        let mut reasons = Vec::new();
        if is_closed {
            let detail = "the cache is closed".to_owned();
            reasons.push(Reason { kind: "closed", state: Unhealthy, detail });
        }
        if is_suspect {
            let detail =
                "this node may have missed what others removed: the shared tier doesn't tell".to_owned();
            reasons.push(Reason { kind: "suspect", state: Degraded, detail });
        }
        if let Some(share) = memory_share.filter(|share| *share >= self.memory_degraded) {
            let is_worse = self.memory_unhealthy.is_some_and(|bound| share >= bound);
            let state = if is_worse { Unhealthy } else { Degraded };
            let detail = format!("{:.0} % of the memory is used", share * 100.0);
            reasons.push(Reason { kind: "memory", state, detail });
        }
        let aside = tiers.iter().filter(|tier| tier.aside_ms.is_some()).count();
        if self.tiers_aside_unhealthy.is_some_and(|bound| aside >= bound as usize) {
            let detail = format!("{aside} of {} tiers are set aside", tiers.len());
            reasons.push(Reason { kind: "tiers_aside", state: Unhealthy, detail });
        }
        let of_tiers = tiers.iter().map(|tier| tier.state).max().unwrap_or_default();
        Health {
            state: worst(&reasons).max(of_tiers),
            level,
            age_ms: 0,
            reasons,
            is_suspect,
            memory_share,
            tiers,
        }
    }
}

fn worst(reasons: &[Reason]) -> HealthState {
    reasons.iter().map(|reason| reason.state).max().unwrap_or_default()
}
