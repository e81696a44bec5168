//! What the headers of a request say about an entry, and the headers that describe one.

use super::problem::Problem;
use super::target::{Plus, percent_decode, percent_encode};
use crate::value::ETag;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use larder::EntryOptions;
use larder::entry::Tags;
use std::time::Duration;

pub(crate) const TTL: HeaderName = HeaderName::from_static("larder-ttl");
pub(crate) const TAGS: HeaderName = HeaderName::from_static("larder-tags");
pub(crate) const STALE: HeaderName = HeaderName::from_static("larder-stale");
pub(crate) const TIER: HeaderName = HeaderName::from_static("larder-tier");
pub(crate) const WRITTEN: HeaderName = HeaderName::from_static("larder-written");
pub(crate) const EXISTED: HeaderName = HeaderName::from_static("larder-existed");
pub(crate) const STALE_WHILE_REVALIDATE: HeaderName =
    HeaderName::from_static("larder-stale-while-revalidate");
pub(crate) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The options of a put: `Larder-*` headers win over `Cache-Control`, which wins over the defaults.
pub(crate) fn entry_options(headers: &HeaderMap, mut options: EntryOptions) -> Result<EntryOptions, Problem> {
    let control = CacheControl::of(headers)?;
    if let Some(seconds) = control.seconds("s-maxage")?.or(control.seconds("max-age")?) {
        options.ttl = seconds;
    }
    if control.has("no-store") {
        options.ttl = Duration::ZERO;
    }
    if let Some(seconds) = control.seconds("stale-while-revalidate")? {
        options.stale_while_revalidate = seconds;
    }
    if let Some(seconds) = control.seconds("stale-if-error")? {
        options.stale_on_error = seconds;
    }
    if let Some(value) = text(headers, &TTL)? {
        options.ttl = duration("Larder-TTL", value)?;
    }
    if let Some(value) = text(headers, &STALE_WHILE_REVALIDATE)? {
        options.stale_while_revalidate = duration("Larder-Stale-While-Revalidate", value)?;
    }
    let tags = tags(headers)?;
    if !tags.is_empty() {
        options.tags = tags;
    }
    Ok(options)
}

/// The one value of a header, as text.
pub(crate) fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::bad_request(format!("the header {name} stands twice")));
    }
    let text = value.to_str().map(str::trim);
    text.map(Some).map_err(|_| Problem::bad_request(format!("the header {name} is no visible ASCII")))
}

/// All items of a header that is a comma-separated list and may stand more than once.
fn items<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Vec<&'h str>, Problem> {
    let mut items = Vec::new();
    for value in headers.get_all(name) {
        let text = value
            .to_str()
            .map_err(|_| Problem::bad_request(format!("the header {name} is no visible ASCII")))?;
        items.extend(text.split(',').map(str::trim).filter(|item| !item.is_empty()));
    }
    Ok(items)
}

/// Seconds with fractions, or "never".
pub(crate) fn duration(name: &str, value: &str) -> Result<Duration, Problem> {
    if value == "never" {
        return Ok(Duration::MAX);
    }
    let seconds = value.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| {
        Problem::bad_request(format!(
            "{name} is {value:?}; a number of seconds of 0 or more, or never, is allowed"
        ))
    })
}

fn tags(headers: &HeaderMap) -> Result<Tags, Problem> {
    let mut tags = Vec::new();
    for item in items(headers, &TAGS)? {
        let tag = String::from_utf8(percent_decode(item, Plus::Literal)?);
        tags.push(tag.map_err(|_| Problem::bad_request("a tag is no UTF-8"))?);
    }
    Tags::new(tags).map_err(|error| Problem::bad_request(error.to_string()))
}

/// The header that lists tags, each percent-encoded.
pub(crate) fn tags_value(tags: &Tags) -> Option<HeaderValue> {
    let list: Vec<String> = tags.iter().map(|tag| percent_encode(tag.as_bytes())).collect();
    (!list.is_empty()).then(|| HeaderValue::try_from(list.join(", ")).ok()).flatten()
}

/// The directives of `Cache-Control`.
#[derive(Debug)]
pub(crate) struct CacheControl<'h>(Vec<(&'h str, Option<&'h str>)>);

impl<'h> CacheControl<'h> {
    pub(crate) fn of(headers: &'h HeaderMap) -> Result<Self, Problem> {
        let items = items(headers, &header::CACHE_CONTROL)?;
        let directive = |item: &'h str| match item.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.trim().trim_matches('"'))),
            None => (item, None),
        };
        Ok(CacheControl(items.into_iter().map(directive).collect()))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(other, _)| other.eq_ignore_ascii_case(name))
    }

    /// The seconds of a directive; `None` when it is missing or has no value.
    pub(crate) fn seconds(&self, name: &str) -> Result<Option<Duration>, Problem> {
        let found = self.0.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        let Some((_, Some(value))) = found else { return Ok(None) };
        let seconds = value.parse().map(Duration::from_secs);
        seconds.map(Some).map_err(|_| {
            Problem::bad_request(format!("Cache-Control: {name} is {value:?}; whole seconds are allowed"))
        })
    }
}

/// The preconditions of RFC 9110 that compare validators.
#[derive(Debug, Default)]
pub(crate) struct Preconditions {
    if_match: Option<Validators>,
    if_none_match: Option<Validators>,
}

#[derive(Debug)]
enum Validators {
    Any,
    List(Vec<String>),
}

/// What the preconditions say about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Proceed,
    /// `If-None-Match` met the current entry: 304 for a read, 412 for a write.
    NotModified,
    Failed,
}

impl Preconditions {
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        Ok(Preconditions {
            if_match: validators(headers, &header::IF_MATCH)?,
            if_none_match: validators(headers, &header::IF_NONE_MATCH)?,
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.if_match.is_none() && self.if_none_match.is_none()
    }

    /// Judges them for the current entry, if there is one.
    pub(crate) fn judge(&self, current: Option<ETag>) -> Verdict {
        let current = current.map(|etag| etag.to_string());
        let met = |validators: &Validators, is_weak_allowed: bool| match (&current, validators) {
            (None, _) => false,
            (Some(_), Validators::Any) => true,
            (Some(current), Validators::List(list)) => list.iter().any(|one| {
                one == current || (is_weak_allowed && one.strip_prefix("W/") == Some(current.as_str()))
            }),
        };
        if self.if_match.as_ref().is_some_and(|validators| !met(validators, false)) {
            return Verdict::Failed;
        }
        match &self.if_none_match {
            Some(validators) if met(validators, true) => Verdict::NotModified,
            _ => Verdict::Proceed,
        }
    }
}

fn validators(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Validators>, Problem> {
    let mut list = Vec::new();
    for value in headers.get_all(name) {
        let wrong = || Problem::bad_request(format!("the header {name} is no list of entity tags"));
        let mut rest = value.to_str().map_err(|_| wrong())?.trim();
        if rest == "*" {
            return Ok(Some(Validators::Any));
        }
        while !rest.is_empty() {
            let open = if rest.starts_with("W/\"") { 3 } else { 1 };
            if open == 1 && !rest.starts_with('"') {
                return Err(wrong());
            }
            let end = open + rest[open..].find('"').ok_or_else(wrong)? + 1;
            list.push(rest[..end].to_owned());
            rest = rest[end..].trim_start_matches([' ', '\t', ',']);
        }
    }
    Ok((!list.is_empty()).then_some(Validators::List(list)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::StoredValue;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn larder_headers_win_over_cache_control() {
        let options = |pairs: &[(HeaderName, &str)]| entry_options(&headers(pairs), EntryOptions::default());
        let control = (header::CACHE_CONTROL, "public, max-age=60, stale-while-revalidate=5");
        let from_control = options(std::slice::from_ref(&control)).unwrap();
        assert_eq!(from_control.ttl, Duration::from_secs(60));
        assert_eq!(from_control.stale_while_revalidate, Duration::from_secs(5));
        assert_eq!(options(&[control, (TTL, "0.5")]).unwrap().ttl, Duration::from_millis(500));
        assert_eq!(options(&[(TTL, "never")]).unwrap().ttl, Duration::MAX);
        assert_eq!(options(&[(header::CACHE_CONTROL, "no-store")]).unwrap().ttl, Duration::ZERO);
        let tags = options(&[(TAGS, "b, a%2Cc,,b")]).unwrap().tags;
        assert_eq!(tags.iter().collect::<Vec<_>>(), ["a,c", "b"]);
        assert_eq!(tags_value(&tags).unwrap(), "a%2Cc, b");
        for wrong in ["-1", "soon", "", "NaN", "inf", "1e300"] {
            assert!(options(&[(TTL, wrong)]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn preconditions_follow_rfc_9110() {
        let etag = StoredValue::new(None, "x".into()).etag();
        let (same, weak) = (etag.to_string(), format!("\"a,b\", W/{etag}"));
        let judge = |name: HeaderName, value: &str, current| {
            Preconditions::of(&headers(&[(name, value)])).unwrap().judge(current)
        };
        assert_eq!(judge(header::IF_MATCH, &same, Some(etag)), Verdict::Proceed);
        assert_eq!(judge(header::IF_MATCH, &weak, Some(etag)), Verdict::Failed);
        assert_eq!(judge(header::IF_MATCH, "*", None), Verdict::Failed);
        assert_eq!(judge(header::IF_NONE_MATCH, &weak, Some(etag)), Verdict::NotModified);
        assert_eq!(judge(header::IF_NONE_MATCH, "*", Some(etag)), Verdict::NotModified);
        assert_eq!(judge(header::IF_NONE_MATCH, "*", None), Verdict::Proceed);
        assert!(Preconditions::of(&headers(&[(header::IF_MATCH, "abc")])).is_err());
    }
}
