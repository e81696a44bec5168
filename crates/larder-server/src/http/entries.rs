//! One entry: get, head, put, delete, explain.

use super::App;
use super::headers::{self, CacheControl, Preconditions, Verdict};
use super::problem::{Kind, Problem};
use super::target;
use crate::value::{Key, StoredValue};
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use larder::{Hit, Removal, Stale, Written};
use std::time::Duration;

/// Answers GET and HEAD.
pub(crate) async fn get(app: &App, request: Request<Body>) -> Result<Response<Body>, Problem> {
    let (parts, _) = request.into_parts();
    let space = app.store.cache.namespace(&target::namespace(&parts.uri)?);
    let key = target::key(&parts.uri)?;
    let preconditions = Preconditions::of(&parts.headers)?;
    let wish = Wish::of(&parts.headers)?;
    let hit = space.lookup(&key, wish.stale).await.filter(|hit| wish.accepts(hit));
    let Some(hit) = hit else {
        let verdict = preconditions.judge(None);
        if verdict == Verdict::Failed {
            return Err(Problem::new(Kind::PreconditionFailed, "If-Match needs an entry, and there is none"));
        }
        return Err(miss());
    };
    let mut response = Response::new(Body::empty());
    describe(&hit, response.headers_mut());
    match preconditions.judge(Some(hit.value.etag())) {
        Verdict::Failed => {
            return Err(Problem::new(Kind::PreconditionFailed, "the entry is not one of If-Match"));
        }
        Verdict::NotModified => *response.status_mut() = StatusCode::NOT_MODIFIED,
        Verdict::Proceed => {
            let content_type = hit.value.content_type.as_deref().unwrap_or("application/octet-stream");
            if let Ok(value) = HeaderValue::try_from(content_type) {
                response.headers_mut().insert(header::CONTENT_TYPE, value);
            }
            response.headers_mut().insert(header::CONTENT_LENGTH, hit.value.body.len().into());
            *response.body_mut() = Body::from(hit.value.body);
        }
    }
    Ok(response)
}

fn miss() -> Problem {
    let status = HeaderValue::from_static("larder; detail=miss");
    Problem::new(Kind::Miss, "nothing is stored under this key, or it expired or was invalidated")
        .header(headers::CACHE_STATUS, status)
}

/// What a reader agrees to, by its `Cache-Control`.
struct Wish {
    stale: Stale,
    stale_max: Option<Duration>,
    age_max: Option<Duration>,
    fresh_min: Option<Duration>,
}

impl Wish {
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let control = CacheControl::of(headers)?;
        Ok(Wish {
            stale: if control.has("max-stale") { Stale::Allow } else { Stale::Refuse },
            stale_max: control.seconds("max-stale")?,
            age_max: control.seconds("max-age")?,
            fresh_min: control.seconds("min-fresh")?,
        })
    }

    fn accepts(&self, hit: &Hit<StoredValue>) -> bool {
        let is_young = self.age_max.is_none_or(|age_max| hit.age <= age_max);
        let is_fresh = self.fresh_min.is_none_or(|min| hit.ttl_left.is_none_or(|left| left >= min));
        let is_little_stale = self.stale_max.is_none_or(|max| hit.stale_for <= max);
        is_young && is_fresh && is_little_stale
    }
}

/// The headers that say what is known of an entry.
fn describe(hit: &Hit<StoredValue>, headers: &mut HeaderMap) {
    let mut put = |name: header::HeaderName, value: String| {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    };
    put(header::ETAG, hit.value.etag().to_string());
    put(header::AGE, hit.age.as_secs().to_string());
    let status = match hit.ttl_left {
        _ if hit.is_stale => format!("larder; hit; ttl=-{}", hit.stale_for.as_secs().max(1)),
        Some(left) => format!("larder; hit; ttl={}", left.as_secs()),
        None => "larder; hit".to_owned(),
    };
    put(headers::CACHE_STATUS, status);
    let ttl = hit.ttl_left.map_or("never".to_owned(), |left| format!("{:.3}", left.as_secs_f64()));
    put(headers::TTL, ttl);
    put(headers::TIER, hit.tier.clone());
    if hit.is_stale {
        headers.insert(headers::STALE, HeaderValue::from_static("true"));
    }
    if let Some(tags) = headers::tags_value(&hit.tags) {
        headers.insert(headers::TAGS, tags);
    }
    // Other caches must ask again; a browser must neither guess the type nor run what somebody stored.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
}

/// Answers PUT.
pub(crate) async fn put(app: &App, request: Request<Body>) -> Result<Response<Body>, Problem> {
    let (parts, body) = request.into_parts();
    let space = app.store.cache.namespace(&target::namespace(&parts.uri)?);
    let key = target::key(&parts.uri)?;
    let preconditions = Preconditions::of(&parts.headers)?;
    let options = headers::entry_options(&parts.headers, space.options())?;
    if parts.headers.contains_key(header::CONTENT_RANGE) {
        return Err(Problem::bad_request("an entry is put whole; Content-Range is not allowed"));
    }
    if let Some(encoding) = headers::text(&parts.headers, &header::CONTENT_ENCODING)?
        && !encoding.eq_ignore_ascii_case("identity")
    {
        let detail = format!("Content-Encoding {encoding:?} would be lost; send the body as it is");
        return Err(Problem::new(Kind::UnsupportedMediaType, detail)
            .header(header::ACCEPT_ENCODING, HeaderValue::from_static("identity")));
    }
    let content_type = headers::text(&parts.headers, &header::CONTENT_TYPE)?;
    let received = app.receive(&parts.headers, body).await?;
    let value = StoredValue::new(content_type, received.bytes.clone());
    let etag = value.etag();

    let _locked = app.lock_for(&space, &key, &preconditions).await?;
    let written = space.set_with(key, value, &options).await?;
    let mut response = written_response(app, written);
    if let Ok(value) = HeaderValue::try_from(etag.to_string()) {
        response.headers_mut().insert(header::ETAG, value);
    }
    Ok(response)
}

/// 204 for what is as durable as the data folder, 202 for what is only in memory.
fn written_response(app: &App, written: Written) -> Response<Body> {
    let (status, name) = app.outcome(written);
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response.headers_mut().insert(headers::WRITTEN, HeaderValue::from_static(name));
    response
}

/// Answers DELETE.
pub(crate) async fn delete(app: &App, request: Request<Body>) -> Result<Response<Body>, Problem> {
    let (parts, _) = request.into_parts();
    let space = app.store.cache.namespace(&target::namespace(&parts.uri)?);
    let key = target::key(&parts.uri)?;
    let preconditions = Preconditions::of(&parts.headers)?;
    let _locked = app.lock_for(&space, &key, &preconditions).await?;
    let removal = space.remove(&key).await?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = removal_status(&removal);
    let existed = if removal.existed { "true" } else { "false" };
    response.headers_mut().insert(headers::EXISTED, HeaderValue::from_static(existed));
    Ok(response)
}

/// 204 for a removal that is done everywhere, 202 for one that a tier still has to be told.
pub(crate) fn removal_status(removal: &Removal) -> StatusCode {
    if removal.is_queued { StatusCode::ACCEPTED } else { StatusCode::NO_CONTENT }
}

/// Answers the GET that explains what is known of a key.
pub(crate) async fn explain(app: &App, request: Request<Body>) -> Result<Response<Body>, Problem> {
    let space = app.store.cache.namespace(&target::namespace(request.uri())?);
    let key: Key = target::key(request.uri())?;
    let query = target::Query::parse(request.uri(), &["key", "key64", "format"])?;
    let explanation = space.explain(&key).await;
    match query.text("format")? {
        None | Some("json") => super::json(StatusCode::OK, &explanation),
        Some("text") => Ok(super::plain(explanation.to_string())),
        Some(other) => Err(Problem::bad_request(format!("format is {other:?}; json or text is allowed"))),
    }
}
