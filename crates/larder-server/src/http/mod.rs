//! The HTTP side of `larder serve`: what every request passes before and after its operation.

mod access;
mod body;
mod connection;
mod entries;
mod gateway;
mod headers;
mod health;
mod listing;
mod locks;
mod many;
mod metrics;
mod problem;
mod reports;
mod routes;
mod server;
mod target;

pub(crate) use listing::key_json;
pub(crate) use reports::{past_json, standing_json};
pub(crate) use server::{Ended, serve};
pub(crate) use target::percent_encode;

use crate::config::Settings;
use crate::gateway::Gateway;
use crate::store::Store;
use crate::value::{Key, StoredValue};
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use larder::key::Namespace;
use larder::{Cache, Written};
use problem::{Kind, Problem};
use routes::Operation;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// Everything that requests share.
#[derive(Debug)]
pub(crate) struct App {
    store: Store,
    settings: Settings,
    /// The tiers that are missing, with the reasons.
    faults: Vec<String>,
    access: access::Access,
    bodies: body::Bodies,
    locks: locks::Locks,
    metrics: metrics::HttpMetrics,
    gateway: Option<Arc<Gateway>>,
    is_stopping: AtomicBool,
    /// The start of every request id: tells the ids of two runs apart.
    run_id: u32,
    request_count: AtomicU64,
}

impl App {
    pub(crate) fn new(
        store: Store,
        settings: Settings,
        faults: Vec<String>,
        gateway: Option<Arc<Gateway>>,
    ) -> Self {
        App {
            gateway,
            access: access::Access::new(&settings),
            bodies: body::Bodies::new(settings.http.bodies_bytes_max.0, settings.http.body_bytes_max.0),
            store,
            settings,
            faults,
            locks: locks::Locks::new(),
            metrics: metrics::HttpMetrics::default(),
            is_stopping: AtomicBool::new(false),
            run_id: std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0) as u32,
            request_count: AtomicU64::new(0),
        }
    }

    /// The router of all routes.
    ///
    /// # Errors
    /// When the OpenAPI document and the operations disagree.
    pub(crate) fn router(self: &Arc<Self>) -> Result<Router, String> {
        routes::router(self)
    }

    async fn receive(&self, headers: &HeaderMap, body: Body) -> Result<body::Received, Problem> {
        let limit = self.settings.http.request_timeout;
        tokio::time::timeout(limit, self.bodies.receive(headers, body)).await.unwrap_or_else(|_| {
            Err(Problem::new(Kind::RequestTimeout, format!("the body did not arrive within {limit:?}")))
        })
    }

    /// Locks a key for a write, after checking the write's preconditions.
    async fn lock_for(
        &self,
        space: &Cache<Key, StoredValue>,
        key: &Key,
        preconditions: &headers::Preconditions,
    ) -> Result<locks::Locked, Problem> {
        let namespace: &Namespace = space.namespace_name();
        if preconditions.is_empty() {
            return Ok(self.locks.shared(namespace, std::iter::once(key)).await);
        }
        let locked = self.locks.alone(namespace, key).await;
        let current = space.get(key).await.map(|value| value.etag());
        match preconditions.judge(current) {
            headers::Verdict::Proceed => Ok(locked),
            _ => {
                let detail = match current {
                    Some(etag) => format!("the entry's ETag is {etag}"),
                    None => "there is no entry".to_owned(),
                };
                Err(Problem::new(Kind::PreconditionFailed, detail))
            }
        }
    }

    /// The status and name of what became of a set. Where a tier is missing, less has it than should.
    fn outcome(&self, written: Written) -> (StatusCode, &'static str) {
        match written {
            Written::Stored if !self.faults.is_empty() => (StatusCode::ACCEPTED, "local"),
            Written::Stored => (StatusCode::NO_CONTENT, "stored"),
            Written::Local => (StatusCode::ACCEPTED, "local"),
            Written::Superseded => (StatusCode::NO_CONTENT, "superseded"),
            Written::NotStored => (StatusCode::NO_CONTENT, "not-stored"),
            _ => (StatusCode::ACCEPTED, "unknown"),
        }
    }

    async fn metrics_response(&self) -> Response<Body> {
        let scrape = metrics::Scrape {
            gateway: self.gateway.as_ref().map(|gateway| gateway.counters()),
            stats: self.store.cache.stats(),
            database: self.store.usage().await,
            state: self.health_promptly().await.0,
            body_bytes: self.bodies.held(),
        };
        let text = metrics::render(&self.metrics, &scrape);
        let mut response = Response::new(Body::from(text));
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }

    /// The client's own id of a request, if it is short and plain, else a new one.
    fn request_id(&self, headers: &HeaderMap) -> String {
        let given = headers.get(headers::REQUEST_ID).and_then(|value| value.to_str().ok());
        let is_plain = |id: &&str| {
            (1..=64).contains(&id.len())
                && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        given.filter(is_plain).map_or_else(
            || format!("{:08x}-{}", self.run_id, self.request_count.fetch_add(1, Relaxed)),
            str::to_owned,
        )
    }
}

/// Answers a request: checks who asks, runs the operation under the time limit, counts and logs it.
/// `allowed` are the methods of a path that was asked for with another one.
async fn handle(
    app: &App,
    operation: Operation,
    request: Request<Body>,
    allowed: Option<&str>,
) -> Response<Body> {
    let start = Instant::now();
    let id = app.request_id(request.headers());
    let method = request.method().clone();
    app.metrics.in_flight.fetch_add(1, Relaxed);
    let _in_flight = OnDrop(|| {
        app.metrics.in_flight.fetch_sub(1, Relaxed);
    });
    let answer = async {
        if !operation.is_public() {
            app.access.check(request.uri(), request.headers())?;
        }
        if let Some(allowed) = allowed {
            let problem = Problem::new(Kind::MethodNotAllowed, format!("allowed: {allowed}"));
            let value = HeaderValue::from_str(allowed).unwrap_or(HeaderValue::from_static("GET"));
            return Err(problem.header(header::ALLOW, value));
        }
        // Twice: the body has as long as this for itself.
        let limit = 2 * app.settings.http.request_timeout;
        match tokio::time::timeout(limit, operation.run(app, request)).await {
            Ok(answer) => answer,
            Err(_) => Err(Problem::new(Kind::Timeout, format!("no answer within {limit:?}"))),
        }
    };
    let answer = answer.await;
    if let Some(gateway) = app.gateway.as_ref().filter(|_| operation.removes()) {
        gateway.forget_flights();
    }
    let mut response = match answer {
        Ok(response) => response,
        Err(problem) => {
            let (kind, operation) = (problem.kind(), operation.name());
            // Overload is counted, not logged: a line per refused request would add to it.
            if problem.status().is_server_error() && kind != Kind::Overloaded {
                tracing::warn!(request = id, operation, ?kind, "request failed");
            }
            // The detail may hold a part of the key.
            tracing::debug!(request = id, operation, ?problem, "request refused");
            problem.into_response(&id)
        }
    };
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(headers::REQUEST_ID, value);
    }
    let (status, took) = (response.status().as_u16(), start.elapsed());
    app.metrics.count(operation, status, took);
    // No path: it holds the key.
    let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    tracing::debug!(request = id, %method, operation = operation.name(), status, took_us, "request");
    response
}

/// Runs something when it is dropped, also when a request is given up.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// An answer of JSON.
fn json(status: StatusCode, value: &impl Serialize) -> Result<Response<Body>, Problem> {
    let mut text = serde_json::to_string(value)
        .map_err(|error| Problem::new(Kind::Internal, format!("the answer can't be encoded: {error}")))?;
    // For terminals.
    text.push('\n');
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// An answer of plain text.
fn plain(text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
