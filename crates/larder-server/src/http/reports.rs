//! How entries fare in use: reports of their users, and what was reported.

use super::many::read_json;
use super::problem::Problem;
use super::{App, json, target};
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use larder::report::{Past, Query, Report, Standing, Verdict};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

/// Entries of a page when the request doesn't say.
const PAGE_ENTRIES: usize = 100;

/// A report as a client sends it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReportBody {
    verdict: String,
    latency: Option<f64>,
    source: Option<String>,
    note: Option<String>,
}

impl ReportBody {
    fn report(&self) -> Result<Report, Problem> {
        let mut report = match verdict(&self.verdict)? {
            Verdict::Good => Report::good(),
            Verdict::Bad => Report::bad(),
        };
        if let Some(seconds) = self.latency {
            let latency = Duration::try_from_secs_f64(seconds)
                .map_err(|_| Problem::bad_request("latency is no number of seconds of 0 or more"))?;
            report = report.latency(latency);
        }
        if let Some(source) = &self.source {
            report = report.source(source);
        }
        if let Some(note) = &self.note {
            report = report.note(note);
        }
        Ok(report)
    }
}

fn verdict(text: &str) -> Result<Verdict, Problem> {
    match text {
        "good" => Ok(Verdict::Good),
        "bad" => Ok(Verdict::Bad),
        _ => Err(Problem::bad_request("verdict is neither good nor bad")),
    }
}

/// Takes a report about an entry; after some bad ones in a row it removes the entry.
pub(crate) async fn report(app: &App, request: Request<Body>) -> Result<Response<Body>, Problem> {
    let (parts, body) = request.into_parts();
    let space = app.store.cache.namespace(&target::namespace(&parts.uri)?);
    let key = target::key(&parts.uri)?;
    let body: ReportBody = read_json(app, &parts.headers, body).await?;
    let report = body.report()?;
    let _locked = app.locks.shared(space.namespace_name(), std::iter::once(&key)).await;
    let reported = space.report(&key, report).await?;
    json(StatusCode::OK, &json!({ "in_a_row": reported.in_a_row, "is_evicted": reported.is_evicted }))
}

/// Answers the reports about an entry that are kept, the newest first.
pub(crate) async fn history(app: &App, request: Request<Body>) -> Result<Response<Body>, Problem> {
    let space = app.store.cache.namespace(&target::namespace(request.uri())?);
    let history = space.history(&target::key(request.uri())?).await?;
    json(StatusCode::OK, &json!({ "reports": history.iter().map(past_json).collect::<Vec<_>>() }))
}

/// Answers a page of the entries that were reported on.
pub(crate) async fn standings(app: &App, request: Request<Body>) -> Result<Response<Body>, Problem> {
    let space = app.store.cache.namespace(&target::namespace(request.uri())?);
    let query = target::Query::parse(request.uri(), &["source", "verdict", "after", "limit"])?;
    let limit_max = app.settings.http.page_keys_max;
    let limit = query.number("limit")?.unwrap_or(PAGE_ENTRIES.min(limit_max));
    if limit == 0 || limit > limit_max {
        return Err(Problem::bad_request(format!("limit is {limit}; 1 to {limit_max} is allowed")));
    }
    let wanted = Query {
        source: query.text("source")?.map(str::to_owned),
        verdict: query.text("verdict")?.map(verdict).transpose()?,
        after: query.text("after")?.map(str::to_owned),
        limit,
        ..Query::default()
    };
    let page = space.by_health(&wanted).await?;
    let entries: Vec<Value> = page.entries.iter().map(standing_json).collect();
    json(StatusCode::OK, &json!({ "entries": entries, "next": page.next }))
}

fn name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Good => "good",
        Verdict::Bad => "bad",
    }
}

/// A report of the past.
pub(crate) fn past_json(past: &Past) -> Value {
    json!({
        "at_ms": past.wall_ms,
        "verdict": name(past.verdict),
        "latency": past.latency.map(|latency| latency.as_secs_f64()),
        "note": past.note,
    })
}

/// How an entry stands.
pub(crate) fn standing_json(standing: &Standing) -> Value {
    json!({
        "key": standing.key.text(),
        "is_exact": standing.key.decode_str().is_some(),
        "source": standing.source,
        "verdict": name(standing.verdict),
        "bad_in_a_row": standing.bad_in_a_row,
        "reports": standing.reports,
        "accessed_ms": standing.accessed_ms,
    })
}
