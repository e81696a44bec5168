//! Replies to clients: what the cache says about itself in the headers, and errors in the API's own form.

use super::answer::Usage;
use super::live::Failure;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::json;
use std::time::Duration;

const RESULT: HeaderName = HeaderName::from_static("x-larder-cache");
const ENTRY: HeaderName = HeaderName::from_static("x-larder-entry");
const REASON: HeaderName = HeaderName::from_static("x-larder-reason");
const STALE: HeaderName = HeaderName::from_static("x-larder-stale");
const TOKENS_SAVED: HeaderName = HeaderName::from_static("x-larder-tokens-saved");
const COST_SAVED: HeaderName = HeaderName::from_static("x-larder-cost-saved");

/// What the cache had to do with a reply.
#[derive(Clone, Debug)]
pub(crate) enum Result {
    HitExact { age: Duration, ttl_left: Option<Duration>, stale_for: Option<Duration> },
    Miss { is_joined: bool },
    Bypass { reason: &'static str },
}

impl Result {
    /// The name in the header and the metrics.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Result::HitExact { .. } => "HIT-EXACT",
            Result::Miss { .. } => "MISS",
            Result::Bypass { .. } => "BYPASS",
        }
    }

    /// Says it in the headers of a reply.
    pub(crate) fn describe(&self, headers: &mut HeaderMap) {
        headers.insert(RESULT, HeaderValue::from_static(self.name()));
        let status = match self {
            Result::HitExact { age, ttl_left, stale_for } => {
                headers.insert(header::AGE, age.as_secs().into());
                match (stale_for, ttl_left) {
                    (Some(for_), _) => {
                        headers.insert(STALE, HeaderValue::from_static("true"));
                        format!("larder; hit; ttl=-{}", for_.as_secs().max(1))
                    }
                    (None, Some(left)) => format!("larder; hit; ttl={}", left.as_secs()),
                    (None, None) => "larder; hit".to_owned(),
                }
            }
            Result::Miss { is_joined: true } => "larder; fwd=uri-miss; collapsed".to_owned(),
            Result::Miss { is_joined: false } => "larder; fwd=uri-miss".to_owned(),
            Result::Bypass { reason } => {
                headers.insert(REASON, HeaderValue::from_static(reason));
                format!("larder; fwd=bypass; detail={reason}")
            }
        };
        put(headers, header::CACHE_STATUS, status);
    }
}

/// Names the entry that a reply is kept under.
pub(crate) fn name_entry(headers: &mut HeaderMap, id: &str) {
    put(headers, ENTRY, id.to_owned());
}

/// Says what was saved.
pub(crate) fn name_savings(headers: &mut HeaderMap, usage: Option<Usage>, cost: Option<f64>) {
    if let Some(usage) = usage {
        headers.insert(TOKENS_SAVED, (usage.input_tokens + usage.output_tokens).into());
    }
    if let Some(cost) = cost {
        put(headers, COST_SAVED, format!("{cost:.6}"));
    }
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

/// An error as clients of the API know them.
pub(crate) fn error(status: StatusCode, kind: &str, code: &str, message: &str) -> Response<Body> {
    let body = json!({"error": {"message": message, "type": kind, "param": null, "code": code}});
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A request that larder itself refuses.
pub(crate) fn refusal(status: StatusCode, why: &str) -> Response<Body> {
    let kind = match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        status if status.is_client_error() => "invalid_request_error",
        _ => "api_error",
    };
    error(status, kind, "refused_by_gateway", why)
}

/// What a client hears when the upstream doesn't reply and nothing is kept.
pub(crate) fn failure(failure: Failure) -> Response<Body> {
    let (status, code, message) = match failure {
        Failure::Unreachable => {
            (StatusCode::BAD_GATEWAY, "upstream_unreachable", "the upstream can't be reached")
        }
        Failure::Timeout => {
            (StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", "the upstream did not reply in time")
        }
        Failure::Dropped => (StatusCode::SERVICE_UNAVAILABLE, "gateway_gave_up", "the answer was given up"),
    };
    error(status, "api_error", code, message)
}
