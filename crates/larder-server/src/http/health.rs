//! How the server is, to probes: whether it answers, and whether requests should be sent here.

use super::problem::{Kind, Problem};
use super::{App, json, target};
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use larder::{HealthLevel, HealthState};
use serde_json::{Value, json};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// How long an answer waits for tiers when no level was asked for: less than the second after which most
/// probes give up, or a tier that hangs would take the server out of service.
const PATIENCE: Duration = Duration::from_millis(500);

/// Answers that the process lives, always with 200: a restart cures none of what it may say. Waits for no tier
/// unless a level is asked for.
pub(crate) async fn health(app: &App, request: Request<Body>) -> Result<Response<Body>, Problem> {
    let (level, may_see) = asked(app, &request)?;
    let (_, health) = app.health(level.unwrap_or(HealthLevel::Ping)).await;
    json(StatusCode::OK, &shown(health, may_see))
}

/// Answers whether requests should be sent here: not once it is told to stop, and not while it is unhealthy by
/// `health`.
pub(crate) async fn ready(app: &App, request: Request<Body>) -> Result<Response<Body>, Problem> {
    let (level, may_see) = asked(app, &request)?;
    let (state, health) = match level {
        Some(level) => app.health(level).await,
        None => app.health_promptly().await,
    };
    if state == HealthState::Unhealthy {
        let kinds: Vec<String> = kinds(&health);
        return Err(Problem::new(Kind::Unavailable, format!("unhealthy: {}", kinds.join(", "))));
    }
    json(StatusCode::OK, &shown(health, may_see))
}

/// The level, and whether whoever asks may see details and have tiers written to.
fn asked(app: &App, request: &Request<Body>) -> Result<(Option<HealthLevel>, bool), Problem> {
    let query = target::Query::parse(request.uri(), &["level"])?;
    let level = match query.text("level")? {
        None => None,
        Some("ping") => Some(HealthLevel::Ping),
        Some("basic") => Some(HealthLevel::Basic),
        Some("full") => Some(HealthLevel::Full),
        Some(_) => return Err(Problem::bad_request("level is none of ping, basic and full")),
    };
    let access = app.access.check(request.uri(), request.headers());
    if level == Some(HealthLevel::Full) {
        access?;
        return Ok((level, true));
    }
    Ok((level, access.is_ok()))
}

impl App {
    /// How the server is, as JSON with all details.
    pub(super) async fn health(&self, level: HealthLevel) -> (HealthState, Value) {
        let health = self.store.cache.health_at(level).await;
        let mut state = health.state;
        let mut shown = serde_json::to_value(&health).unwrap_or_default();
        let mut because = |kind: &str, reason_state: HealthState, detail: &str| {
            state = state.max(reason_state);
            if let Value::Array(reasons) = &mut shown["reasons"] {
                reasons.push(json!({ "kind": kind, "state": reason_state, "detail": detail }));
            }
        };
        for fault in &self.faults {
            let what = if self.settings.tiers.is_none() { "memory only" } else { "served without a tier" };
            because("not_opened", HealthState::Degraded, &format!("{what}: {fault}"));
        }
        if self.is_stopping.load(Relaxed) {
            because("stopping", HealthState::Unhealthy, "the server is stopping");
        }
        shown["state"] = json!(state);
        (state, shown)
    }

    /// With signs of life from the tiers if they come soon, else what is known; the next one to ask gets them.
    pub(super) async fn health_promptly(&self) -> (HealthState, Value) {
        match tokio::time::timeout(PATIENCE, self.health(HealthLevel::Basic)).await {
            Ok(health) => health,
            Err(_) => self.health(HealthLevel::Ping).await,
        }
    }
}

/// To whoever has no token: states, kinds of reasons and names of tiers, and nothing of where anything is.
fn shown(mut health: Value, may_see: bool) -> Value {
    if may_see {
        return health;
    }
    let part = |part: &Value| {
        let reasons = part["reasons"].as_array().into_iter().flatten();
        let reasons: Vec<Value> =
            reasons.map(|reason| json!({ "kind": reason["kind"], "state": reason["state"] })).collect();
        json!({ "state": part["state"], "reasons": reasons })
    };
    let mut public = part(&health);
    for field in ["level", "age_ms"] {
        public[field] = health[field].take();
    }
    let tiers = health["tiers"].as_array().into_iter().flatten();
    public["tiers"] = tiers
        .map(|tier| {
            let mut shown = part(tier);
            shown["name"] = tier["name"].clone();
            shown
        })
        .collect();
    public
}

/// Why it is not healthy, in words that everybody may read.
fn kinds(health: &Value) -> Vec<String> {
    let of = |part: &Value, before: &str| -> Vec<String> {
        let reasons = part["reasons"].as_array().into_iter().flatten();
        reasons.filter_map(|reason| Some(format!("{before}{}", reason["kind"].as_str()?))).collect()
    };
    let mut kinds = of(health, "");
    for tier in health["tiers"].as_array().into_iter().flatten() {
        kinds.extend(of(tier, &format!("{} ", tier["name"].as_str().unwrap_or_default())));
    }
    kinds
}
