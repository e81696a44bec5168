//! Every metric of `/metrics`, in the text format of Prometheus. No label holds a key, a namespace or
//! anything else that a client chose.

use super::routes::Operation;
use crate::gateway::Counters;
use larder::backend::Usage;
use larder::{BusStats, HealthState, Stats};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the latency histogram, in seconds: an L1 hit takes some tens of microseconds, a durable
/// set some milliseconds, a request at most `http.request_timeout`.
const BUCKETS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// Counters of the HTTP server.
#[derive(Debug, Default)]
pub(crate) struct HttpMetrics {
    requests: Mutex<BTreeMap<(Operation, u16), u64>>,
    latencies: Mutex<BTreeMap<Operation, Latency>>,
    pub(crate) connections: AtomicU64,
    pub(crate) in_flight: AtomicU64,
}

#[derive(Debug, Default)]
struct Latency {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum_seconds: f64,
}

impl HttpMetrics {
    /// Counts a request that was answered.
    pub(crate) fn count(&self, operation: Operation, status: u16, took: Duration) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((operation, status)).or_default() += 1;
        drop(requests);
        let seconds = took.as_secs_f64();
        let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        let latency = latencies.entry(operation).or_default();
        latency.count += 1;
        latency.sum_seconds += seconds;
        if let Some(bucket) = BUCKETS.iter().position(|bound| seconds <= *bound) {
            latency.buckets[bucket] += 1;
        }
    }
}

/// The text of one scrape.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if at == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        self.sample(name, &[], value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    /// A counter with one label.
    fn counters(&mut self, name: &str, help: &str, label: &str, values: &[(&str, u64)]) {
        self.family(name, "counter", help);
        for (text, value) in values {
            self.sample(name, &[(label, text)], *value);
        }
    }
}

/// What is read for one scrape.
#[derive(Debug)]
pub(crate) struct Scrape<'a> {
    pub(crate) gateway: Option<&'a Counters>,
    pub(crate) stats: Stats,
    pub(crate) database: Option<Usage>,
    pub(crate) state: HealthState,
    pub(crate) body_bytes: u64,
}

/// Writes all metrics.
pub(crate) fn render(http: &HttpMetrics, scrape: &Scrape<'_>) -> String {
    let mut text = Text::default();
    text.family("larder_build_info", "gauge", "Always 1; the version is a label.");
    text.sample("larder_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    let degraded = (scrape.state > HealthState::Healthy).into();
    text.gauge("larder_degraded", "1 while something that should work doesn't; see /healthz.", degraded);
    let unhealthy = (scrape.state == HealthState::Unhealthy).into();
    text.gauge("larder_unhealthy", "1 while requests should not be sent here; see /readyz.", unhealthy);
    of_cache(&mut text, &scrape.stats);
    of_tiers(&mut text, &scrape.stats);
    if let Some(usage) = scrape.database {
        text.gauge(
            "larder_database_entries",
            "Entries in the database, unswept ones included.",
            usage.entries,
        );
        text.gauge("larder_database_bytes", "Bytes that they take, as the database counts.", usage.bytes);
    }
    if let Some(bus) = &scrape.stats.bus {
        of_bus(&mut text, bus);
    }
    if let Some(counters) = scrape.gateway {
        of_gateway(&mut text, counters);
    }
    of_http(&mut text, http);
    text.gauge("larder_http_body_bytes", "Bytes of request bodies in memory.", scrape.body_bytes);
    text.0
}

fn of_cache(text: &mut Text, stats: &Stats) {
    text.counters(
        "larder_l1_reads_total",
        "Reads by what memory (L1) answered.",
        "outcome",
        &[
            ("hit", stats.hits),
            ("stale", stats.hits_stale),
            ("negative", stats.hits_negative),
            ("miss", stats.misses),
        ],
    );
    text.counter(
        "larder_joined_total",
        "Reads that waited for a look-up another one had started.",
        stats.joined,
    );
    text.counter("larder_overloaded_total", "Reads refused at a bound.", stats.overloaded);
    text.counter("larder_sets_total", "Sets.", stats.sets);
    text.counter(
        "larder_sets_superseded_total",
        "Sets that lost to a later set or removal.",
        stats.sets_superseded,
    );
    text.counter("larder_sets_local_total", "Sets that are in memory only: a tier failed.", stats.sets_local);
    text.counter("larder_removals_total", "Removals of keys, tags, patterns and clears.", stats.removals);
    text.counter(
        "larder_removals_queued_total",
        "Removals that a tier could not take yet.",
        stats.removals_queued,
    );
    let evicted = &stats.evicted;
    text.counters(
        "larder_l1_evicted_total",
        "Entries that left memory (L1), by reason.",
        "reason",
        &[
            ("size", evicted.size),
            ("expired", evicted.expired),
            ("replaced", evicted.replaced),
            ("removed", evicted.removed),
            ("invalidated", evicted.invalidated),
            ("too_large", evicted.too_large),
            ("health", evicted.health),
        ],
    );
    text.gauge("larder_l1_entries", "Entries in memory (L1).", stats.entries);
    text.gauge("larder_l1_bytes", "Bytes in memory (L1), as larder weighs them.", stats.weight);
    text.gauge("larder_l1_max_bytes", "Most bytes in memory (L1): l1.bytes_max.", stats.weight_max);
    text.gauge("larder_flights", "Look-ups in tiers under way.", stats.flights);
}

fn of_bus(text: &mut Text, bus: &BusStats) {
    text.gauge(
        "larder_bus_suspect",
        "1 while this node may have missed what others removed.",
        u64::from(bus.is_suspect),
    );
    let name = "larder_bus_lag_seconds";
    text.family(name, "gauge", "How long ago everything that others removed was known; -1 before that.");
    text.sample(name, &[], bus.lag.map_or(-1.0, |lag| lag.as_secs_f64()));
    for (name, help, value) in [
        ("larder_bus_suspicions_total", "How often it was suspect.", bus.suspicions),
        ("larder_bus_records_total", "Records of other nodes that were applied.", bus.records),
        ("larder_bus_hints_total", "Hints of other nodes that were applied.", bus.hints),
        ("larder_bus_gaps_total", "How often the log was not whole.", bus.gaps),
        ("larder_bus_malformed_total", "Records and hints that could not be parsed.", bus.malformed),
        ("larder_bus_polls_failed_total", "Polls without an answer.", bus.polls_failed),
    ] {
        text.counter(name, help, value);
    }
}

fn of_gateway(text: &mut Text, counters: &Counters) {
    let read = |counter: &AtomicU64| counter.load(Relaxed);
    text.counters(
        "larder_gateway_requests_total",
        "Requests to the gateway, by what the cache had to do with the reply.",
        "result",
        &[
            ("hit_exact", read(&counters.hits_exact)),
            ("miss", read(&counters.misses)),
            ("bypass", read(&counters.bypassed)),
        ],
    );
    let plain: [(&str, &str, &AtomicU64); 5] = [
        ("larder_gateway_joined_total", "Requests that joined a reply under way.", &counters.joined),
        (
            "larder_gateway_stale_total",
            "Replies from the cache past their TTL, because the upstream failed.",
            &counters.stale,
        ),
        (
            "larder_gateway_not_kept_total",
            "Replies of status 200 that were no whole answer.",
            &counters.not_kept,
        ),
        (
            "larder_gateway_upstream_failed_total",
            "Calls that the upstream refused (5xx, 429) or did not answer.",
            &counters.upstream_failed,
        ),
        ("larder_gateway_tokens_saved_total", "Tokens of replies from the cache.", &counters.tokens_saved),
    ];
    for (name, help, counter) in plain {
        text.counter(name, help, read(counter));
    }
    let name = "larder_gateway_cost_saved_total";
    text.family(name, "counter", "What those tokens would have cost, by gateway.prices.");
    text.sample(name, &[], read(&counters.cost_saved_micros) as f64 / 1e6);
}

fn of_tiers(text: &mut Text, stats: &Stats) {
    text.family("larder_tier_reads_total", "counter", "Reads of a tier below memory, by outcome.");
    for tier in &stats.tiers {
        for (outcome, value) in [("hit", tier.hits), ("miss", tier.misses)] {
            text.sample("larder_tier_reads_total", &[("tier", &tier.name), ("outcome", outcome)], value);
        }
    }
    text.family(
        "larder_tier_refused_total",
        "counter",
        "Entries that a tier gave and that were refused, by reason.",
    );
    for tier in &stats.tiers {
        for (reason, value) in &tier.refused {
            text.sample("larder_tier_refused_total", &[("tier", &tier.name), ("reason", reason)], value);
        }
    }
    type Of = fn(&larder::TierStats) -> u64;
    let families: [(&str, &str, &str, Of); 17] = [
        ("larder_tier_promotions_total", "counter", "Entries copied upwards.", |tier| tier.promotions),
        ("larder_tier_writes_total", "counter", "Accepted writes.", |tier| tier.writes),
        (
            "larder_tier_writes_fenced_total",
            "counter",
            "Writes that lost to a removal or later set.",
            |tier| tier.writes_fenced,
        ),
        (
            "larder_tier_tampered_total",
            "counter",
            "Entries whose authentication failed under a known key: raise an alarm.",
            |tier| tier.tampered,
        ),
        ("larder_tier_errors_total", "counter", "Calls that failed or timed out.", |tier| tier.errors),
        (
            "larder_tier_bypassed_total",
            "counter",
            "Calls that passed a tier by while it was set aside.",
            |tier| tier.bypassed,
        ),
        ("larder_tier_undelivered", "gauge", "Removals that wait to be replayed.", |tier| tier.undelivered),
        ("larder_tier_aside", "gauge", "1 while the tier is set aside.", |tier| tier.is_aside.into()),
        ("larder_tier_breaker_read", "gauge", "0 closed, 1 half open, 2 open.", |tier| {
            breaker(tier.guard.read_breaker)
        }),
        ("larder_tier_breaker_write", "gauge", "0 closed, 1 half open, 2 open.", |tier| {
            breaker(tier.guard.write_breaker)
        }),
        ("larder_tier_breaker_opened_total", "counter", "How often a breaker opened.", |tier| {
            tier.guard.breakers_opened
        }),
        ("larder_tier_refused_open_total", "counter", "Calls refused by an open breaker.", |tier| {
            tier.guard.refused_open
        }),
        ("larder_tier_refused_queue_total", "counter", "Calls for which there was no place.", |tier| {
            tier.guard.refused_queue
        }),
        ("larder_tier_retries_total", "counter", "Attempts that were repeated.", |tier| tier.guard.retries),
        ("larder_tier_concurrency_limit", "gauge", "Calls under way, at most.", |tier| {
            tier.guard.concurrency_limit.into()
        }),
        ("larder_tier_under_way", "gauge", "Calls under way.", |tier| tier.guard.under_way.into()),
        ("larder_tier_queued", "gauge", "Calls that wait for a place.", |tier| tier.guard.queued.into()),
    ];
    for (name, kind, help, value) in families {
        text.family(name, kind, help);
        for tier in &stats.tiers {
            text.sample(name, &[("tier", &tier.name)], value(tier));
        }
    }
}

/// How far from closed a breaker is.
fn breaker(state: Option<larder::BreakerState>) -> u64 {
    match state {
        Some(larder::BreakerState::HalfOpen) => 1,
        Some(larder::BreakerState::Open) => 2,
        _ => 0,
    }
}

fn of_http(text: &mut Text, http: &HttpMetrics) {
    text.gauge("larder_http_connections", "Open connections.", http.connections.load(Relaxed));
    text.gauge("larder_http_requests_in_flight", "Requests being answered.", http.in_flight.load(Relaxed));
    text.family("larder_http_requests_total", "counter", "Answered requests, by operation and status.");
    let requests = http.requests.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for ((operation, status), value) in requests {
        let labels = [("operation", operation.name()), ("status", &status.to_string())];
        text.sample("larder_http_requests_total", &labels, value);
    }
    let name = "larder_http_request_seconds";
    text.family(name, "histogram", "Time from a request's head to its answer, in seconds.");
    let latencies = http.latencies.lock().unwrap_or_else(PoisonError::into_inner);
    for (operation, latency) in &*latencies {
        let operation = ("operation", operation.name());
        let mut below = 0;
        for (bound, count) in BUCKETS.iter().zip(latency.buckets) {
            below += count;
            text.sample(&format!("{name}_bucket"), &[operation, ("le", &bound.to_string())], below);
        }
        text.sample(&format!("{name}_bucket"), &[operation, ("le", "+Inf")], latency.count);
        text.sample(&format!("{name}_sum"), &[operation], latency.sum_seconds);
        text.sample(&format!("{name}_count"), &[operation], latency.count);
    }
}
