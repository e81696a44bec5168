//! The gateway's requests: let in, received, counted, as all others; but without the server's time limit, since
//! an answer takes as long as it takes, and with errors in the API's form.

use super::App;
use super::headers;
use super::problem::Problem;
use crate::gateway::{Endpoint, Gateway, refusal};
use axum::body::Body;
use axum::http::{HeaderValue, Method, Request, Response, header};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

/// Whether a path is the gateway's, if there is one and no operation of ours has it.
pub(super) fn serves(path: &str) -> bool {
    path.starts_with("/v1/")
}

pub(super) async fn handle(app: &App, gateway: &Arc<Gateway>, request: Request<Body>) -> Response<Body> {
    let start = Instant::now();
    let id = app.request_id(request.headers());
    app.metrics.in_flight.fetch_add(1, Relaxed);
    let _in_flight = super::OnDrop(|| {
        app.metrics.in_flight.fetch_sub(1, Relaxed);
    });
    let mut response = match answer(app, gateway, request).await {
        Ok(response) => response,
        Err(problem) => refusal(problem.status(), problem.detail()),
    };
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().entry(headers::REQUEST_ID).or_insert(value);
    }
    let (status, took) = (response.status().as_u16(), start.elapsed());
    app.metrics.count(super::routes::Operation::Gateway, status, took);
    let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    tracing::debug!(request = id, operation = "gateway", status, took_us, "request");
    response
}

async fn answer(
    app: &App,
    gateway: &Arc<Gateway>,
    request: Request<Body>,
) -> Result<Response<Body>, Problem> {
    // With a key of the client's own, the upstream lets in; without any, a web page might be asking.
    if gateway.needs_token() || !request.headers().contains_key(header::AUTHORIZATION) {
        app.access.check(request.uri(), request.headers())?;
    }
    let endpoint = Endpoint::of_path(request.uri().path()).filter(|_| request.method() == Method::POST);
    let Some(endpoint) = endpoint else { return Ok(gateway.pass(request).await) };
    let (parts, body) = request.into_parts();
    let received = app.receive(&parts.headers, body).await?;
    let path = parts.uri.path_and_query().map_or(parts.uri.path(), |path| path.as_str());
    Ok(gateway.answer(endpoint, path, parts.headers, received.bytes.clone()).await)
}
