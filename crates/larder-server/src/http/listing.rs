//! What the cache holds: keys, namespaces, statistics.

use super::App;
use super::problem::Problem;
use super::{json, target};
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use larder::key::Pattern;
use larder::{KeyInfo, KeysRequest};
use serde_json::{Value, json};

/// Keys of a page when the request doesn't say.
const PAGE_KEYS: usize = 100;

/// Answers a page of keys.
pub(crate) async fn keys(app: &App, request: Request<Body>) -> Result<Response<Body>, Problem> {
    let space = app.store.cache.namespace(&target::namespace(request.uri())?);
    let query = target::Query::parse(request.uri(), &["pattern", "after", "limit"])?;
    let limit_max = app.settings.http.page_keys_max;
    let limit = query.number("limit")?.unwrap_or(PAGE_KEYS.min(limit_max));
    if limit == 0 || limit > limit_max {
        return Err(Problem::bad_request(format!("limit is {limit}; 1 to {limit_max} is allowed")));
    }
    let pattern = query.text("pattern")?.map(Pattern::new).transpose();
    let page = space
        .keys(&KeysRequest {
            pattern: pattern.map_err(|error| Problem::bad_request(error.to_string()))?,
            after: query.text("after")?.map(str::to_owned),
            limit,
        })
        .await?;
    let keys: Vec<Value> = page.keys.iter().map(key_json).collect();
    json(StatusCode::OK, &json!({ "keys": keys, "next": page.next }))
}

/// A key of a listing. A key of bytes, or one so long that it is kept as a hash, is shown, not given.
pub(crate) fn key_json(info: &KeyInfo) -> Value {
    json!({
        "key": info.key.text(),
        "is_exact": info.key.decode_str().is_some(),
        "gone_in": info.gone_in.map(|left| left.as_secs_f64()),
        "bytes": info.bytes,
    })
}

/// Answers the names of all namespaces.
pub(crate) async fn namespaces(app: &App) -> Result<Response<Body>, Problem> {
    let namespaces = app.store.cache.namespaces().await?;
    let names: Vec<&str> = namespaces.iter().map(larder::key::Namespace::as_str).collect();
    json(StatusCode::OK, &json!({ "namespaces": names }))
}

/// Answers the statistics of the cache.
pub(crate) async fn stats(app: &App) -> Result<Response<Body>, Problem> {
    json(StatusCode::OK, &app.store.stats().await)
}
