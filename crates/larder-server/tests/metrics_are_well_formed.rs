//! A scraper refuses a whole page for one malformed line, so each is checked: families are declared once,
//! before their samples; counters end in `_total`; histograms add up; nothing of a client's is a label.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that can't go on stops")]

mod support;

use std::collections::BTreeMap;
use support::Server;

#[test]
fn every_line_is_what_a_scraper_expects() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    server
        .request("PUT", "/v1/cache/private-ns/private-key", &[("Larder-Tags", "private-tag")], b"v")
        .is(204);
    server.get("/v1/cache/private-ns/private-key").is(200);
    server.get("/private-path").is(404);
    let page = server.get("/metrics").is(200);
    assert_eq!(page.header("Content-Type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = page.text();
    assert!(!text.contains("private"), "{text}");

    let mut kinds = BTreeMap::new();
    let mut samples = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            assert!(rest.split_once(' ').unwrap().1.ends_with('.'), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
            let name = series.split('{').next().unwrap();
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end).filter(|family| kinds.contains_key(*family)))
                .unwrap_or(name);
            assert!(kinds.contains_key(family), "{line}");
            assert!(series == name || series.ends_with("\"}"), "{line}");
            assert!(samples.insert(series.to_owned(), value).is_none(), "{line} twice");
        }
    }
    let of = |series: &str| samples.get(series).copied().unwrap_or_else(|| panic!("{series} in {text}"));
    assert_eq!(of("larder_degraded"), 0.0);
    assert_eq!(of("larder_sets_total"), 1.0);
    assert_eq!(of("larder_l1_reads_total{outcome=\"hit\"}"), 1.0);
    assert_eq!(of("larder_database_entries"), 1.0);
    assert_eq!(of("larder_http_requests_total{operation=\"unknown\",status=\"404\"}"), 1.0);
    let name = "larder_http_request_seconds";
    let (below, all) = (format!("{name}_bucket{{operation=\"getEntry\",le=\"+Inf\"}}"), "getEntry");
    assert_eq!(of(&below), of(&format!("{name}_count{{operation=\"{all}\"}}")));
}
