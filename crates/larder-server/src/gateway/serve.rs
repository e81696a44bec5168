//! What becomes of a request: a kept answer, the reply that others wait for already, or a new one of the upstream.
//!
//! A fault of the cache, whatever it is, costs a call of the upstream and nothing else.

use super::answer::{Answer, NotKept, Usage};
use super::assemble::Assembler;
use super::canonical::Canonical;
use super::controls::Controls;
use super::identity::{CONTROLS, Digest32, Endpoint, Identity, Origin, identify};
use super::live::{CutOff, Head, Live, Producer, Reader, Settled};
use super::reply;
use super::sse::Events;
use super::upstream::{Upstream, passed_back, shared};
use super::{replay, replay::Fresh};
use crate::config::{Abandoned, GatewaySettings, OtherPaths, TenantSource};
use crate::value::{Key, StoredValue};
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};
use hyper::body::Incoming;
use larder::entry::Tags;
use larder::key::Namespace;
use larder::{Cache, Hit, Loaded, Stale};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How old a reply may be that others join, where other nodes may have removed its answer: the bound on reading what
/// they removed.
const JOINED_WITHIN: Duration = Duration::from_secs(2);
/// Pieces that wait in a connection for a slow client.
const PIECES_AHEAD: usize = 16;
/// What the media type of a kept answer says that came without usage.
const WITHOUT_USAGE: &str = "application/json; usage=none";
/// Between the name of a tenant and the tag that a client gave.
const TAG_SEPARATOR: char = ':';

/// The gateway.
#[derive(Debug)]
pub(crate) struct Gateway {
    settings: GatewaySettings,
    namespace: Namespace,
    upstream: Upstream,
    cache: Cache<Key, StoredValue>,
    /// Whether other nodes remove entries, too.
    shares_tiers: bool,
    /// Replies that others may join, by key.
    flights: Mutex<HashMap<Digest32, Weak<Live<Kept>>>>,
    counters: Counters,
    run_id: u64,
    replies: AtomicU64,
}

/// What the gateway has done so far.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) hits_exact: AtomicU64,
    pub(crate) misses: AtomicU64,
    pub(crate) bypassed: AtomicU64,
    pub(crate) joined: AtomicU64,
    pub(crate) stale: AtomicU64,
    pub(crate) not_kept: AtomicU64,
    pub(crate) upstream_failed: AtomicU64,
    pub(crate) tokens_saved: AtomicU64,
    /// In millionths of the price table's unit.
    pub(crate) cost_saved_micros: AtomicU64,
}

/// An answer from the cache.
type Kept = Arc<Hit<StoredValue>>;

/// What the upstream is asked.
#[derive(Clone, Debug)]
struct Call {
    path_and_query: String,
    headers: HeaderMap,
    body: Bytes,
}

/// A request that is understood.
#[derive(Clone, Debug)]
struct Job {
    identity: Identity,
    controls: Controls,
    call: Call,
    tags: Tags,
    /// What is served if the upstream fails.
    fallback: Option<Kept>,
}

impl Gateway {
    /// # Errors
    /// Names the setting and what is wrong with it.
    pub(crate) fn new(settings: GatewaySettings, cache: Cache<Key, StoredValue>) -> Result<Self, String> {
        let upstream =
            Upstream::new(&settings.upstream).map_err(|error| format!("gateway.upstream: {error}"))?;
        let namespace =
            Namespace::new(&settings.namespace).map_err(|error| format!("gateway.namespace: {error}"))?;
        Ok(Gateway {
            settings,
            namespace,
            upstream,
            shares_tiers: cache.stats().bus.is_some(),
            cache,
            flights: Mutex::default(),
            counters: Counters::default(),
            run_id: std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0),
            replies: AtomicU64::new(0),
        })
    }

    /// Whether clients need a token of ours, because the upstream's key is ours.
    pub(crate) fn needs_token(&self) -> bool {
        self.upstream.has_key()
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Lets nobody join what is under way: something was removed.
    pub(crate) fn forget_flights(&self) {
        self.flights().clear();
    }

    /// Answers a request whose body has been received.
    pub(crate) async fn answer(
        self: &Arc<Self>,
        endpoint: Endpoint,
        path_and_query: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Response<Body> {
        let call = Call { path_and_query: path_and_query.to_owned(), headers, body };
        let canonical = match Canonical::parse(&call.body) {
            Ok(canonical @ Canonical::Object(_)) => canonical,
            // The upstream says best what is wrong with it.
            _ => return self.forward(call, "not-canonical").await,
        };
        let mut job = match self.job(endpoint, call, canonical) {
            Ok(job) => job,
            Err(refusal) => {
                let (code, message) = refusal;
                return reply::error(StatusCode::BAD_REQUEST, "invalid_request_error", code, &message);
            }
        };
        if job.controls.read {
            // A stale one is the fallback, and a young enough one the answer.
            let space = self.space(&job.controls);
            let hit = space.lookup(&self.entry_key(job.identity.exact), Stale::Allow).await.map(Arc::new);
            if let Some(hit) = hit {
                let is_young = job.controls.age_max.is_none_or(|age_max| hit.age <= age_max);
                if !hit.is_stale && is_young && self.fits(&job, &hit) {
                    if let Some(response) = self.serve_kept(&job, &hit) {
                        return response;
                    }
                    // No answer of ours: a new one takes its place.
                    job.controls.read = false;
                } else {
                    job.fallback = Some(hit).filter(|hit| self.fits(&job, hit));
                }
            }
        }
        if job.controls.only_if_cached {
            let message = "nothing is kept for this request, and it allows nothing else";
            return reply::error(
                StatusCode::GATEWAY_TIMEOUT,
                "invalid_request_error",
                "only_if_cached",
                message,
            );
        }
        if !job.controls.write {
            return self.forward(job.call, "asked").await;
        }
        self.join_or_ask(job).await
    }

    /// Passes on what is not understood.
    pub(crate) async fn pass(&self, request: Request<Body>) -> Response<Body> {
        if self.settings.other_paths == OtherPaths::Refuse {
            let message = "this path is not served by the gateway";
            return reply::error(StatusCode::NOT_FOUND, "invalid_request_error", "unknown_path", message);
        }
        if climbs(request.uri().path()) {
            let message = "a path with \".\" or \"..\" in it is not passed on";
            return reply::error(StatusCode::BAD_REQUEST, "invalid_request_error", "dot_segments", message);
        }
        let (parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        self.counters.bypassed.fetch_add(1, Relaxed);
        match self.upstream.pass(&parts.method, path, &parts.headers, body).await {
            Ok(response) => {
                let (parts, body) = response.into_parts();
                let mut response = Response::new(Body::new(body));
                *response.status_mut() = parts.status;
                *response.headers_mut() = passed_back(parts.headers);
                reply::Result::Bypass { reason: "path" }.describe(response.headers_mut());
                response
            }
            Err(failure) => self.failed(failure),
        }
    }

    /// Finds out what a request is and asks of the cache; or says, with a code, what is wrong with that.
    fn job(
        &self,
        endpoint: Endpoint,
        mut call: Call,
        body: Canonical,
    ) -> Result<Job, (&'static str, String)> {
        let controls =
            Controls::of(&call.headers, &body).map_err(|message| ("invalid_cache_control", message))?;
        let tenant = self.tenant(&call.headers);
        let tags = self.tags(&tenant, &controls).map_err(|message| ("invalid_tags", message))?;
        let namespace = controls.namespace.as_ref().unwrap_or(&self.namespace);
        let mut seed = controls.seed.clone();
        if controls.bucket > 1 {
            // One of so many answers, drawn anew for each request.
            let drawn = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
            seed = format!("{seed}#{}", drawn % u64::from(controls.bucket));
        }
        let headers: Vec<(&str, &[u8])> = self
            .settings
            .key_headers
            .iter()
            .flat_map(|name| call.headers.get_all(name).iter().map(|value| (name.as_str(), value.as_bytes())))
            .collect();
        let origin = Origin {
            upstream: &self.settings.upstream.url,
            tenant: &tenant,
            namespace,
            headers: &headers,
            query: call.path_and_query.split_once('?').map_or("", |(_, query)| query),
            seed: &seed,
            key: controls.key.as_deref(),
        };
        let has_controls = body.get(CONTROLS).is_some();
        let identity = identify(endpoint, origin, body, &self.settings.ignored_fields);
        if has_controls {
            call.body = without_controls(&call.body);
        }
        Ok(Job { identity, controls, call, tags, fallback: None })
    }

    /// Whose answers these are.
    fn tenant(&self, headers: &HeaderMap) -> Vec<u8> {
        match self.settings.tenant {
            TenantSource::Shared => Vec::new(),
            // Azure's clients have a header of their own.
            TenantSource::Authorization => {
                let mut hash = Sha256::new();
                let mut names = &["authorization", "api-key", "x-api-key", "x-goog-api-key"][..];
                if !names.iter().any(|name| headers.contains_key(*name)) {
                    // Beside another credential it mostly tells a balancer of loads something.
                    names = &["cookie"];
                }
                for name in names {
                    for value in headers.get_all(*name) {
                        hash.update(name.as_bytes());
                        hash.update((value.len() as u64).to_le_bytes());
                        hash.update(value);
                    }
                }
                hash.finalize()[..16].to_vec()
            }
        }
    }

    /// A tag is its tenant's own.
    fn tags(&self, tenant: &[u8], controls: &Controls) -> Result<Tags, String> {
        let own = controls.tags.iter().map(|tag| tag_of(tenant, tag));
        let all = self.settings.answers.tags.iter().map(str::to_owned).chain(own);
        Tags::new(all).map_err(|error| error.to_string())
    }

    fn space(&self, controls: &Controls) -> Cache<Key, StoredValue> {
        self.cache.namespace(controls.namespace.as_ref().unwrap_or(&self.namespace))
    }

    fn entry_key(&self, key: Digest32) -> Key {
        Key::from(key.to_string().as_str())
    }

    /// Whether a kept answer has all that this request asks for.
    fn fits(&self, job: &Job, hit: &Hit<StoredValue>) -> bool {
        let needs_usage = job.identity.wants_usage || !job.identity.stream;
        !(needs_usage && hit.value.content_type.as_deref() == Some(WITHOUT_USAGE))
    }

    /// Joins the reply that is under way for the same request, or asks for it.
    async fn join_or_ask(self: &Arc<Self>, job: Job) -> Response<Body> {
        // Who wants to read nothing old doesn't join what began earlier.
        let joined = if job.controls.read {
            self.flights().get(&job.identity.exact).and_then(Weak::upgrade)
        } else {
            None
        };
        // Removals by this server end the joining; those by other nodes are heard of this late.
        let is_young = |live: &Arc<Live<Kept>>| !self.shares_tiers || live.age() < JOINED_WITHIN;
        if let Some(reader) = joined.filter(is_young).and_then(|live| live.join()) {
            self.counters.joined.fetch_add(1, Relaxed);
            return self.follow(job, reader, true).await;
        }
        let (producer, live) = Live::start(self.answer_bytes_max());
        let Some(reader) = live.join() else { return self.forward(job.call, "overloaded").await };
        {
            let mut flights = self.flights();
            flights.retain(|_, flight| flight.strong_count() > 0);
            flights.insert(job.identity.exact, Arc::downgrade(&live));
        }
        let gateway = Arc::clone(self);
        let asked = job.clone();
        tokio::spawn(async move { gateway.load(asked, producer).await });
        self.follow(job, reader, false).await
    }

    /// Asks the upstream as the one load of its key, so that what is removed meanwhile is not put back.
    async fn load(self: Arc<Self>, job: Job, producer: Producer<Kept>) {
        let space = self.space(&job.controls);
        let mut options = self.settings.answers.clone().tags(job.tags.clone());
        if let Some(ttl) = job.controls.ttl {
            options.ttl = options.ttl.min(ttl);
        }
        let entry_key = self.entry_key(job.identity.exact);
        let hand = Arc::new(Mutex::new(Some(producer)));
        let take =
            |hand: &Mutex<Option<Producer<Kept>>>| hand.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (gateway, asked, given) = (Arc::clone(&self), job.clone(), Arc::clone(&hand));
        let load = move |_| async move {
            let Some(producer) = take(&given) else { return Err(NotKept::Missing.name()) };
            let answer = gateway.ask(&asked, producer).await;
            answer.map(Loaded::new).map_err(NotKept::name)
        };
        let loaded = match job.controls.read {
            true => space.get_or_load_with(&entry_key, &options, load).await.map(drop),
            false => space.reload(&entry_key, &options, load).await.map(drop),
        };
        if let Some(producer) = take(&hand) {
            // The loader did not run: somebody else had just stored it, or the cache failed.
            let kept = match loaded {
                Ok(()) => space.lookup(&entry_key, Stale::Allow).await.filter(|hit| self.fits(&job, hit)),
                Err(_) => None,
            };
            match kept {
                Some(hit) => producer.settle(Settled::Kept(Arc::new(hit))),
                None => drop(self.ask(&job, producer).await),
            }
        }
        let mut flights = self.flights();
        if flights.get(&job.identity.exact).is_some_and(|flight| flight.strong_count() == 0) {
            flights.remove(&job.identity.exact);
        }
    }

    /// Asks the upstream, hands on what it says, and gives what is to be kept of it.
    async fn ask(&self, job: &Job, producer: Producer<Kept>) -> Result<StoredValue, NotKept> {
        let Call { path_and_query, headers, body } = &job.call;
        let asked = self.upstream.ask(&Method::POST, path_and_query, headers, body.clone()).await;
        let is_error = asked.as_ref().map_or(true, |response| {
            response.status().is_server_error() || response.status() == StatusCode::TOO_MANY_REQUESTS
        });
        if is_error {
            self.counters.upstream_failed.fetch_add(1, Relaxed);
            if let Some(stale) = &job.fallback {
                self.counters.stale.fetch_add(1, Relaxed);
                producer.settle(Settled::Kept(Arc::clone(stale)));
                return Err(NotKept::Status);
            }
        }
        let response = match asked {
            Ok(response) => response,
            Err(failure) => {
                producer.settle(Settled::Failed(failure));
                return Err(NotKept::Status);
            }
        };
        let (parts, body) = response.into_parts();
        let is_ok = parts.status == StatusCode::OK && !parts.headers.contains_key(header::CONTENT_ENCODING);
        let is_stream = parts
            .headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        producer.settle(Settled::Reply(Head { status: parts.status, headers: passed_back(parts.headers) }));
        let mut keeping =
            is_ok.then(|| Keeping::new(job.identity.endpoint, is_stream, self.answer_bytes_max()));
        match self.hand_on(body, &producer, &mut keeping).await {
            Ok(()) => {
                let kept =
                    keeping.ok_or(NotKept::Status).and_then(|keeping| keeping.finish(job.identity.count));
                producer.end(Ok(()));
                if let Err(why) = &kept {
                    self.counters.not_kept.fetch_add(1, Relaxed);
                    tracing::debug!(reason = why.name(), "an answer is not kept");
                }
                kept
            }
            Err(CutOff) => {
                producer.end(Err(CutOff));
                Err(NotKept::CutOff)
            }
        }
    }

    async fn hand_on(
        &self,
        mut body: Incoming,
        producer: &Producer<Kept>,
        keeping: &mut Option<Keeping>,
    ) -> Result<(), CutOff> {
        loop {
            let frame = tokio::time::timeout(self.settings.upstream.idle_timeout, body.frame()).await;
            let piece = match frame {
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(piece) => piece,
                    Err(_) => continue,
                },
                Ok(None) => return Ok(()),
                Ok(Some(Err(_))) | Err(_) => return Err(CutOff),
            };
            if let Some(keeping) = keeping {
                keeping.take(&piece);
            }
            if !producer.push(piece).await {
                return Err(CutOff);
            }
            if !producer.is_all_held() {
                *keeping = None;
            }
            let may_stop = keeping.is_none() || self.settings.abandoned == Abandoned::Stop;
            if may_stop && producer.cut_off_if_abandoned() {
                return Err(CutOff);
            }
        }
    }

    /// Serves what comes of a flight.
    async fn follow(self: &Arc<Self>, job: Job, mut reader: Reader<Kept>, is_joined: bool) -> Response<Body> {
        match reader.settled().await {
            Settled::Kept(hit) if self.fits(&job, &hit) => match self.serve_kept(&job, &hit) {
                Some(response) => response,
                None => self.forward(job.call, "unreadable").await,
            },
            // It lacks what this one asks for, and others need not.
            Settled::Kept(_) => self.forward(job.call, "usage").await,
            Settled::Failed(failure) => self.failed(failure),
            Settled::Reply(head) => {
                let is_stream = head
                    .headers
                    .get(header::CONTENT_TYPE)
                    .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
                let is_other_form = head.status == StatusCode::OK && is_stream != job.identity.stream;
                if is_joined && is_other_form {
                    // One asked for a stream, the other for a whole: each gets the answer in its form.
                    return self.convert(job, reader).await;
                }
                self.counters.misses.fetch_add(1, Relaxed);
                let head = if is_joined { Head { headers: shared(head.headers), ..head } } else { head };
                let mut response = self.relay(head, reader);
                reply::Result::Miss { is_joined }.describe(response.headers_mut());
                reply::name_entry(response.headers_mut(), &job.identity.exact.to_string());
                response
            }
        }
    }

    /// Waits for the end of a reply of the other form, and gives its answer.
    async fn convert(self: &Arc<Self>, job: Job, mut reader: Reader<Kept>) -> Response<Body> {
        let mut keeping = Keeping::new(job.identity.endpoint, !job.identity.stream, self.answer_bytes_max());
        loop {
            match reader.next().await {
                Some(Ok(piece)) => keeping.take(&piece),
                Some(Err(CutOff)) => return self.forward(job.call, "cut-off").await,
                None => break,
            }
        }
        let Ok(value) = keeping.finish(job.identity.count) else {
            return self.forward(job.call, "not-kept").await;
        };
        let lacks_usage = value.content_type.as_deref() == Some(WITHOUT_USAGE);
        if lacks_usage && (job.identity.wants_usage || !job.identity.stream) {
            return self.forward(job.call, "usage").await;
        }
        self.counters.misses.fetch_add(1, Relaxed);
        let Some(mut response) = self.say(&job, &value) else {
            return self.forward(job.call, "unreadable").await;
        };
        reply::Result::Miss { is_joined: true }.describe(response.headers_mut());
        reply::name_entry(response.headers_mut(), &job.identity.exact.to_string());
        response
    }

    /// Asks the upstream for this request alone, and keeps nothing.
    async fn forward(&self, call: Call, reason: &'static str) -> Response<Body> {
        self.counters.bypassed.fetch_add(1, Relaxed);
        match self.upstream.ask(&Method::POST, &call.path_and_query, &call.headers, call.body).await {
            Ok(response) => {
                let (parts, body) = response.into_parts();
                let mut response = Response::new(Body::new(body));
                *response.status_mut() = parts.status;
                *response.headers_mut() = passed_back(parts.headers);
                reply::Result::Bypass { reason }.describe(response.headers_mut());
                response
            }
            Err(failure) => self.failed(failure),
        }
    }

    fn failed(&self, failure: super::live::Failure) -> Response<Body> {
        self.counters.upstream_failed.fetch_add(1, Relaxed);
        reply::failure(failure)
    }

    /// A kept answer in the form that was asked for, unless it can't be read.
    fn serve_kept(self: &Arc<Self>, job: &Job, hit: &Hit<StoredValue>) -> Option<Response<Body>> {
        let mut response = self.say(job, &hit.value)?;
        self.counters.hits_exact.fetch_add(1, Relaxed);
        let stale_for = hit.is_stale.then_some(hit.stale_for);
        reply::Result::HitExact { age: hit.age, ttl_left: hit.ttl_left, stale_for }
            .describe(response.headers_mut());
        reply::name_entry(response.headers_mut(), &job.identity.exact.to_string());
        if let Some(answer) = self.read(job, &hit.value) {
            let usage = answer.usage();
            let cost = usage.and_then(|usage| self.cost(job, usage));
            reply::name_savings(response.headers_mut(), usage, cost);
            if let Some(usage) = usage {
                self.counters.tokens_saved.fetch_add(usage.input_tokens + usage.output_tokens, Relaxed);
            }
            if let Some(cost) = cost {
                self.counters.cost_saved_micros.fetch_add((cost * 1e6) as u64, Relaxed);
            }
        }
        Some(response)
    }

    fn cost(&self, job: &Job, usage: Usage) -> Option<f64> {
        let price = self.settings.price(job.identity.model.as_deref()?)?;
        Some((usage.input_tokens as f64 * price.input + usage.output_tokens as f64 * price.output) / 1e6)
    }

    fn read(&self, job: &Job, value: &StoredValue) -> Option<Answer> {
        let Ok(Value::Object(body)) = serde_json::from_slice::<Value>(&value.body) else { return None };
        Some(Answer { endpoint: job.identity.endpoint, body })
    }

    fn say(self: &Arc<Self>, job: &Job, value: &StoredValue) -> Option<Response<Body>> {
        let answer = self.read(job, value)?;
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let number = self.replies.fetch_add(1, Relaxed);
        let prefix = match job.identity.endpoint {
            Endpoint::ChatCompletions => "chatcmpl",
            Endpoint::Completions => "cmpl",
            Endpoint::Embeddings => "embd",
            Endpoint::Responses => "resp",
        };
        let id = format!("{prefix}-{:016x}{number:08x}", self.run_id);
        if !job.identity.stream {
            let mut response =
                Response::new(Body::from(Value::Object(answer.reply(&id, created)).to_string()));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            return Some(response);
        }
        let events =
            replay::events(&answer, Fresh { id: &id, created, wants_usage: job.identity.wants_usage });
        let body = match self.settings.replay_pause {
            Duration::ZERO => Body::from(events.concat()),
            pause => {
                let (sender, body) = Channel::<Bytes, CutOffError>::new(PIECES_AHEAD);
                tokio::spawn(send_slowly(events, pause, sender));
                Body::new(body)
            }
        };
        let mut response = Response::new(body);
        let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        Some(response)
    }

    /// The upstream's reply, as it comes.
    fn relay(&self, head: Head, mut reader: Reader<Kept>) -> Response<Body> {
        let (mut sender, body) = Channel::<Bytes, CutOffError>::new(PIECES_AHEAD);
        tokio::spawn(async move {
            while let Some(piece) = reader.next().await {
                match piece {
                    Ok(piece) => {
                        if sender.send_data(piece).await.is_err() {
                            return;
                        }
                    }
                    Err(CutOff) => {
                        sender.abort(CutOffError);
                        return;
                    }
                }
            }
        });
        let mut response = Response::new(Body::new(body));
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        response
    }

    fn answer_bytes_max(&self) -> usize {
        usize::try_from(self.settings.answer_bytes_max.0).unwrap_or(usize::MAX)
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<Digest32, Weak<Live<Kept>>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a client's connection ends with when a reply was cut off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CutOffError;

impl std::fmt::Display for CutOffError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the upstream's reply was cut off")
    }
}

impl std::error::Error for CutOffError {}

async fn send_slowly(events: Vec<Bytes>, pause: Duration, mut sender: Sender<Bytes, CutOffError>) {
    for event in events {
        if sender.send_data(event).await.is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}

/// The name of a tag among those of all tenants.
pub(crate) fn tag_of(tenant: &[u8], tag: &str) -> String {
    let hex: String = tenant.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}{TAG_SEPARATOR}{tag}")
}

/// What of a reply may be kept, collected while it is handed on.
enum Keeping {
    Stream { events: Events, assembler: Option<Assembler> },
    Whole { endpoint: Endpoint, body: Vec<u8>, bytes_max: usize, is_too_large: bool },
}

impl Keeping {
    fn new(endpoint: Endpoint, is_stream: bool, bytes_max: usize) -> Self {
        match is_stream {
            true => Keeping::Stream {
                events: Events::new(bytes_max),
                assembler: Some(Assembler::new(endpoint, bytes_max)),
            },
            false => Keeping::Whole { endpoint, body: Vec::new(), bytes_max, is_too_large: false },
        }
    }

    fn take(&mut self, piece: &[u8]) {
        match self {
            Keeping::Stream { events, assembler } => {
                let Some(taking) = assembler else { return };
                match events.feed(piece) {
                    Ok(events) => events.iter().for_each(|event| taking.take(event)),
                    Err(_) => *assembler = None,
                }
            }
            Keeping::Whole { body, bytes_max, is_too_large, .. } => {
                *is_too_large |= body.len() + piece.len() > *bytes_max;
                if *is_too_large {
                    *body = Vec::new();
                } else {
                    body.extend_from_slice(piece);
                }
            }
        }
    }

    fn finish(self, count: u64) -> Result<StoredValue, NotKept> {
        match self {
            Keeping::Stream { assembler, .. } => {
                let answer = assembler.ok_or(NotKept::TooLarge)?.finish(count)?;
                let kind = if answer.usage().is_none() { WITHOUT_USAGE } else { "application/json" };
                Ok(StoredValue::new(Some(kind), Bytes::from(Value::Object(answer.body).to_string())))
            }
            Keeping::Whole { is_too_large: true, .. } => Err(NotKept::TooLarge),
            Keeping::Whole { endpoint, body, .. } => {
                Answer::of_reply(endpoint, &body, count)?;
                Ok(StoredValue::new(Some("application/json"), Bytes::from(body)))
            }
        }
    }
}

/// Whether a path has segments by which an upstream may leave the folder that the settings name.
fn climbs(path: &str) -> bool {
    let path = path.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/").replace("%5c", "\\");
    path.split(['/', '\\']).any(|segment| matches!(segment, "." | ".."))
}

/// A body without what was meant for the cache; all else as it was written.
fn without_controls(body: &Bytes) -> Bytes {
    let members: Result<std::collections::BTreeMap<String, &serde_json::value::RawValue>, _> =
        serde_json::from_slice(body);
    let Ok(mut members) = members else { return body.clone() };
    members.remove(CONTROLS);
    serde_json::to_vec(&members).map_or_else(|_| body.clone(), Bytes::from)
}
