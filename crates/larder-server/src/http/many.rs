//! Many entries at once: batches, and removals by tag, pattern or all.

use super::entries::removal_status;
use super::problem::{Kind, Problem};
use super::{App, json, target};
use crate::value::{JsonBytes, Key, StoredValue};
use axum::body::Body;
use axum::http::{HeaderMap, Request, Response, StatusCode, header};
use larder::entry::Tags;
use larder::key::Pattern;
use larder::{Cache, EntryOptions};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::time::Duration;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch {
    operations: Vec<Operation>,
}

/// One operation of a batch. They run in their order.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Operation {
    op: Verb,
    key: Option<String>,
    key64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    content_type: Option<String>,
    ttl: Option<Value>,
    tags: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verb {
    Get,
    Set,
    Delete,
    Exists,
}

/// An operation after its check.
enum Step {
    Get(Key),
    Exists(Key),
    Delete(Key),
    Set(Key, StoredValue, EntryOptions),
    Refused(Problem),
}

/// What became of an operation.
#[derive(Default, Serialize)]
struct Outcome {
    status: u16,
    #[serde(flatten)]
    value: JsonBytes,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    existed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Value>,
}

impl From<Problem> for Outcome {
    fn from(problem: Problem) -> Self {
        let status = problem.status().as_u16();
        Outcome { status, problem: Some(problem.to_json()), ..Outcome::default() }
    }
}

/// Answers a batch.
pub(crate) async fn batch(app: &App, request: Request<Body>) -> Result<Response<Body>, Problem> {
    let (parts, body) = request.into_parts();
    let space = app.store.cache.namespace(&target::namespace(&parts.uri)?);
    let Batch { operations } = read_json(app, &parts.headers, body).await?;
    let operations_max = app.settings.http.batch_operations_max;
    if operations.len() > operations_max {
        let detail = format!(
            "the batch has {} operations; http.batch_operations_max, {operations_max}, are allowed",
            operations.len()
        );
        return Err(Problem::new(Kind::TooLarge, detail));
    }
    let defaults = space.options();
    let steps: Vec<Step> = operations
        .into_iter()
        .map(|operation| operation.check(&defaults).unwrap_or_else(Step::Refused))
        .collect();
    let written = steps.iter().filter_map(|step| match step {
        Step::Set(key, ..) | Step::Delete(key) => Some(key),
        _ => None,
    });
    let _locked = app.locks.shared(space.namespace_name(), written).await;
    let results = run(app, &space, steps).await;
    json(StatusCode::OK, &json!({ "results": results }))
}

/// Runs neighbours of one kind as one call to the tiers.
async fn run(app: &App, space: &Cache<Key, StoredValue>, steps: Vec<Step>) -> Vec<Outcome> {
    let mut outcomes = Vec::with_capacity(steps.len());
    let mut steps = steps.into_iter().peekable();
    while let Some(step) = steps.next() {
        match step {
            Step::Refused(problem) => outcomes.push(problem.into()),
            Step::Exists(key) => {
                let status = if space.exists(&key).await { 200 } else { 404 };
                outcomes.push(Outcome { status, existed: Some(status == 200), ..Outcome::default() });
            }
            Step::Get(key) => {
                let mut keys = vec![key];
                while let Some(Step::Get(key)) = steps.next_if(|step| matches!(step, Step::Get(_))) {
                    keys.push(key);
                }
                outcomes.extend(space.get_many(&keys).await.into_iter().map(found));
            }
            Step::Delete(key) => {
                let mut seen = HashSet::from([key.clone()]);
                let mut keys = vec![key];
                // A key that comes again starts the next call, so that its answer is its own.
                let mut is_next = |step: &Step| matches!(step, Step::Delete(key) if seen.insert(key.clone()));
                while let Some(Step::Delete(key)) = steps.next_if(&mut is_next) {
                    keys.push(key);
                }
                outcomes.extend(space.remove_many(&keys).await.into_iter().map(|removal| match removal {
                    Ok(removal) => {
                        let status = removal_status(&removal).as_u16();
                        Outcome { status, existed: Some(removal.existed), ..Outcome::default() }
                    }
                    Err(error) => Problem::from(error).into(),
                }));
            }
            Step::Set(key, value, options) => {
                let mut seen = HashSet::from([key.clone()]);
                let mut etags = vec![value.etag()];
                let mut entries = vec![(key, value)];
                let mut is_alike = |step: &Step| matches!(step, Step::Set(key, _, other) if *other == options && seen.insert(key.clone()));
                while let Some(Step::Set(key, value, _)) = steps.next_if(&mut is_alike) {
                    etags.push(value.etag());
                    entries.push((key, value));
                }
                let written = space.set_many(entries, &options).await;
                outcomes.extend(written.into_iter().zip(etags).map(|(written, etag)| match written {
                    Ok(written) => {
                        let (status, name) = app.outcome(written);
                        let etag = Some(etag.to_string());
                        Outcome { status: status.as_u16(), written: Some(name), etag, ..Outcome::default() }
                    }
                    Err(error) => Problem::from(error).into(),
                }));
            }
        }
    }
    outcomes
}

fn found(value: Option<StoredValue>) -> Outcome {
    match value {
        None => Outcome { status: 404, ..Outcome::default() },
        Some(value) => Outcome {
            status: 200,
            value: JsonBytes::of(&value.body),
            etag: Some(value.etag().to_string()),
            content_type: value.content_type,
            ..Outcome::default()
        },
    }
}

impl Operation {
    fn check(self, defaults: &EntryOptions) -> Result<Step, Problem> {
        let key = match (self.key, self.key64) {
            (Some(text), None) => Key::from(text.as_str()),
            (None, Some(text)) => Key::from_base64url(&text)
                .ok_or_else(|| Problem::bad_request("key64 is no base64url without padding"))?,
            _ => return Err(Problem::bad_request("exactly one of key and key64 is allowed")),
        };
        let has_set_fields = self.value.is_some()
            || self.value_base64.is_some()
            || self.content_type.is_some()
            || self.ttl.is_some()
            || self.tags.is_some();
        if self.op != Verb::Set && has_set_fields {
            return Err(Problem::bad_request("value, content_type, ttl and tags belong to set only"));
        }
        Ok(match self.op {
            Verb::Get => Step::Get(key),
            Verb::Exists => Step::Exists(key),
            Verb::Delete => Step::Delete(key),
            Verb::Set => {
                let body = JsonBytes::new(self.value, self.value_base64);
                let body = body.into_bytes().map_err(Problem::bad_request)?;
                let mut options = defaults.clone();
                if let Some(ttl) = self.ttl {
                    options.ttl = json_duration(&ttl)?;
                }
                if let Some(tags) = self.tags {
                    options.tags =
                        Tags::new(tags).map_err(|error| Problem::bad_request(error.to_string()))?;
                }
                Step::Set(key, StoredValue::new(self.content_type.as_deref(), body), options)
            }
        })
    }
}

fn json_duration(value: &Value) -> Result<Duration, Problem> {
    let duration = match value {
        Value::String(word) if word == "never" => Some(Duration::MAX),
        Value::Number(number) => number.as_f64().and_then(|s| Duration::try_from_secs_f64(s).ok()),
        _ => None,
    };
    duration.ok_or_else(|| {
        Problem::bad_request(format!("ttl is {value}; seconds of 0 or more, or \"never\", are allowed"))
    })
}

/// What to remove: exactly one of them.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Selection {
    tags: Option<Vec<String>>,
    pattern: Option<String>,
    all: Option<bool>,
}

/// Answers a removal of many.
pub(crate) async fn invalidate(app: &App, request: Request<Body>) -> Result<Response<Body>, Problem> {
    let (parts, body) = request.into_parts();
    let space = app.store.cache.namespace(&target::namespace(&parts.uri)?);
    let selection: Selection = read_json(app, &parts.headers, body).await?;
    let _locked = app.locks.all_shared().await;
    let (is_queued, removed) = match selection {
        Selection { tags: Some(tags), pattern: None, all: None } => {
            // All are checked before the first is removed.
            let tags = Tags::new(tags).map_err(|error| Problem::bad_request(error.to_string()))?;
            let mut is_queued = false;
            for tag in tags.iter() {
                is_queued |= space.remove_tag(tag).await?.is_queued;
            }
            (is_queued, None)
        }
        Selection { tags: None, pattern: Some(glob), all: None } => {
            let pattern = Pattern::new(&glob).map_err(|error| Problem::bad_request(error.to_string()))?;
            (false, Some(space.remove_matching(&pattern).await?))
        }
        Selection { tags: None, pattern: None, all: Some(true) } => (space.clear().await?.is_queued, None),
        _ => return Err(Problem::bad_request("exactly one of tags, pattern and \"all\": true is allowed")),
    };
    let status = if is_queued { StatusCode::ACCEPTED } else { StatusCode::OK };
    json(status, &json!({ "removed": removed, "is_queued": is_queued }))
}

/// A body of JSON. The content type must say so: what a web page may send to other sites without asking
/// first can't.
pub(super) async fn read_json<T: DeserializeOwned>(
    app: &App,
    headers: &HeaderMap,
    body: Body,
) -> Result<T, Problem> {
    let content_type = super::headers::text(headers, &header::CONTENT_TYPE)?.unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        let detail = format!("the content type is {media_type:?}; application/json is needed");
        return Err(Problem::new(Kind::UnsupportedMediaType, detail));
    }
    let received = app.receive(headers, body).await?;
    serde_json::from_slice(&received.bytes)
        .map_err(|error| Problem::bad_request(format!("the body is not what it should be: {error}")))
}
