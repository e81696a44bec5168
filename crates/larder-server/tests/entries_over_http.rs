//! A value comes back as it was put, with what is known of it, under whatever key and however the request
//! spells it; conditional requests are atomic; removals of many reach what they name and nothing else.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that can't go on stops")]

mod support;

use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use support::{Server, eventually};

fn server() -> (tempfile::TempDir, Server) {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), &[]);
    (folder, server)
}

#[test]
fn a_value_comes_back_with_its_type_its_ttl_and_its_tags() {
    let (_folder, server) = server();
    let headers =
        [("Content-Type", "text/csv; charset=utf-8"), ("Larder-TTL", "60"), ("Larder-Tags", "b, a%2Cc")];
    let put = server.request("PUT", "/v1/cache/ns/k", &headers, b"1,2\n").is(204);
    assert_eq!(put.header("Larder-Written"), Some("stored"));
    let got = server.get("/v1/cache/ns/k").is(200);
    assert_eq!(got.body, b"1,2\n");
    assert_eq!(got.header("Content-Type"), Some("text/csv; charset=utf-8"));
    assert_eq!(got.header("ETag"), put.header("ETag"));
    assert_eq!(got.header("Larder-Tags"), Some("a%2Cc, b"));
    assert_eq!(got.header("Larder-Tier"), Some("l1"));
    let ttl: f64 = got.header("Larder-TTL").unwrap().parse().unwrap();
    assert!((1.0..=60.0).contains(&ttl), "{ttl}");
    let left = got.header("Cache-Status").unwrap().strip_prefix("larder; hit; ttl=").unwrap();
    assert!((1..=60).contains(&left.parse::<u32>().unwrap()), "{left}");
    assert!(got.header("Age").unwrap().parse::<u64>().unwrap() < 30);
    let head = server.request("HEAD", "/v1/cache/ns/k", &[], b"").is(200);
    assert_eq!((head.header("Content-Length"), head.body.len()), (Some("4"), 0));

    let miss = server.get("/v1/cache/other/k").is(404);
    assert_eq!(miss.json()["kind"], "miss");
    server.request("HEAD", "/v1/cache/other/k", &[], b"").is(404);
    let forever = server.request("PUT", "/v1/cache/ns/f", &[("Larder-TTL", "never")], b"").is(204);
    assert_eq!(forever.status, 204);
    let got = server.get("/v1/cache/ns/f").is(200);
    assert_eq!((got.header("Larder-TTL"), got.header("Cache-Status")), (Some("never"), Some("larder; hit")));
    assert_eq!(got.header("Content-Type"), Some("application/octet-stream"));
}

#[test]
fn every_spelling_of_a_key_is_the_same_key_and_no_two_keys_meet() {
    let (_folder, server) = server();
    let keys: [(&[&str], &str); 6] = [
        (&["/a/b%20c", "/a%2Fb%20c", "?key=a/b+c", "?key64=YS9iIGM"], "slash and blank"),
        (&["/a/b+c", "?key=a/b%2Bc"], "plus"),
        (&["?key=", "?key64="], "empty"),
        (&["/%ff%00%0a", "?key=%ff%00%0a", "?key64=_wAK"], "bytes"),
        (&["//a//b//", "?key=/a//b//"], "slashes"),
        (&["/%C3%BC", "?key=%c3%bc"], "umlaut"),
    ];
    for (spellings, value) in keys {
        server.put(&format!("/v1/cache/ns{}", spellings[0]), value.as_bytes()).is(204);
    }
    for (spellings, value) in keys {
        for spelling in spellings {
            assert_eq!(server.get(&format!("/v1/cache/ns{spelling}")).is(200).text(), value, "{spelling}");
        }
    }
    let listed = server.get("/v1/keys/ns").is(200).json();
    let exact = |exact: bool| {
        let keys = listed["keys"].as_array().unwrap().iter();
        keys.filter(|key| key["is_exact"] == exact).count()
    };
    assert_eq!((exact(true), exact(false)), (5, 1), "{listed}");
    let long = format!("/v1/cache/ns/{}", "x".repeat(50_000));
    server.put(&long, b"long").is(204);
    assert_eq!(server.get(&long).is(200).text(), "long");
    server.get(&format!("{long}y")).is(404);
}

#[test]
fn a_ttl_ends_and_stale_values_need_consent() {
    let (_folder, server) = server();
    let headers = [("Cache-Control", "max-age=1, stale-while-revalidate=3600")];
    server.request("PUT", "/v1/cache/ns/k", &headers, b"v").is(204);
    eventually("the value is stale", || server.get("/v1/cache/ns/k").status == 404);
    let got = server.request("GET", "/v1/cache/ns/k", &[("Cache-Control", "max-stale")], b"").is(200);
    assert_eq!(got.header("Larder-Stale"), Some("true"));
    assert!(got.header("Cache-Status").unwrap().starts_with("larder; hit; ttl=-"));
    server.request("GET", "/v1/cache/ns/k", &[("Cache-Control", "max-stale=3600")], b"").is(200);
    eventually("it is stale for more than a second", || {
        server.request("GET", "/v1/cache/ns/k", &[("Cache-Control", "max-stale=1")], b"").status == 404
    });
    server.request("PUT", "/v1/cache/ns/k", &[("Larder-TTL", "100")], b"v").is(204);
    server.request("GET", "/v1/cache/ns/k", &[("Cache-Control", "min-fresh=99999")], b"").is(404);
    let zero = server.request("PUT", "/v1/cache/ns/k", &[("Larder-TTL", "0")], b"w").is(204);
    assert_eq!(zero.header("Larder-Written"), Some("not-stored"));
    server.get("/v1/cache/ns/k").is(404);
}

#[test]
fn conditional_requests_compare_validators() {
    let (_folder, server) = server();
    let path = "/v1/cache/ns/k";
    let with = |method: &str, name: &str, value: &str| server.request(method, path, &[(name, value)], b"b");
    with("PUT", "If-Match", "*").is(412);
    let etag = with("PUT", "If-None-Match", "*").is(204).header("ETag").unwrap().to_owned();
    with("PUT", "If-None-Match", "*").is(412);
    let unchanged =
        server.request("GET", path, &[("If-None-Match", &format!("\"x\", W/{etag}"))], b"").is(304);
    assert_eq!((unchanged.header("ETag"), unchanged.body.len()), (Some(etag.as_str()), 0));
    server.request("GET", path, &[("If-None-Match", "\"x\"")], b"").is(200);
    server.request("GET", path, &[("If-Match", "\"x\"")], b"").is(412);
    with("PUT", "If-Match", "\"x\"").is(412);
    with("PUT", "If-Match", &format!("W/{etag}")).is(412);
    with("PUT", "If-Match", &etag).is(204);
    with("DELETE", "If-Match", "\"x\"").is(412);
    assert_eq!(with("DELETE", "If-Match", &etag).is(204).header("Larder-Existed"), Some("true"));
    let again = server.request("DELETE", path, &[], b"").is(204);
    assert_eq!(again.header("Larder-Existed"), Some("false"));
}

/// Each round is won by exactly one of the clients; without the lock several would find no entry.
#[test]
fn of_many_creations_at_once_exactly_one_wins() {
    let (_folder, server) = server();
    for round in 0..20 {
        let won = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for client in 0..8 {
                let (won, server) = (&won, &server);
                scope.spawn(move || {
                    let path = format!("/v1/cache/ns/{round}");
                    let body = format!("{client}");
                    let headers = [("If-None-Match", "*")];
                    match server.request("PUT", &path, &headers, body.as_bytes()).status {
                        204 => drop(won.fetch_add(1, Relaxed)),
                        status => assert_eq!(status, 412),
                    }
                });
            }
        });
        assert_eq!(won.into_inner(), 1);
    }
}

#[test]
fn a_batch_has_one_result_per_operation_in_order() {
    let (_folder, server) = server();
    let batch = json!({"operations": [
        {"op": "set", "key": "a", "value": "1", "ttl": 60, "tags": ["t"], "content_type": "text/plain"},
        {"op": "set", "key": "b", "value_base64": "/wA=", "ttl": "never"},
        {"op": "set", "key": "a", "value": "2"},
        {"op": "get", "key": "a"},
        {"op": "get", "key64": "Yg"},
        {"op": "get", "key": "none"},
        {"op": "exists", "key": "b"},
        {"op": "set", "key": "a"},
        {"op": "set", "key": "a", "value": "x", "ttl": -1},
        {"op": "set", "key": "a", "value": "x", "tags": [""]},
        {"op": "get", "key": "a", "value": "x"},
        {"op": "get"},
        {"op": "delete", "key": "a"},
        {"op": "delete", "key": "a"},
        {"op": "get", "key": "a"},
    ]});
    let results = server.post("/v1/batch/ns", &batch).is(200).json()["results"].take();
    let statuses: Vec<u64> =
        results.as_array().unwrap().iter().map(|result| result["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [204, 204, 204, 200, 200, 404, 200, 400, 400, 400, 400, 400, 204, 204, 404]);
    assert_eq!((&results[3]["value"], &results[4]["value_base64"]), (&json!("2"), &json!("/wA=")));
    assert_eq!((&results[12]["existed"], &results[13]["existed"]), (&json!(true), &json!(false)));
    assert_eq!(results[8]["problem"]["kind"], "bad-request");
    let many: Vec<Value> = (0..1001).map(|_| json!({"op": "get", "key": "a"})).collect();
    server.post("/v1/batch/ns", &json!({"operations": many})).is(413);
    server.post("/v1/batch/ns", &json!({"operations": [{"op": "fly", "key": "a"}]})).is(400);
    server.post("/v1/batch/ns", &json!({"operations": [], "x": 1})).is(400);
}

#[test]
fn removals_of_many_reach_what_they_name_and_nothing_else() {
    let (_folder, server) = server();
    let fill = || {
        for (key, tags) in [("user/1", "users"), ("user/2", "users, eu"), ("post/1", "posts, eu")] {
            server.request("PUT", &format!("/v1/cache/ns/{key}"), &[("Larder-Tags", tags)], b"v").is(204);
        }
        server.put("/v1/cache/other/user/1", b"v").is(204);
    };
    let there = || {
        let keys = ["ns/user/1", "ns/user/2", "ns/post/1", "other/user/1"];
        keys.map(|key| server.get(&format!("/v1/cache/{key}")).status == 200)
    };
    let cases = [
        (json!({"tags": ["users"]}), [false, false, true, true]),
        (json!({"tags": ["eu", "none"]}), [true, false, false, true]),
        (json!({"pattern": "user/*"}), [false, false, true, true]),
        (json!({"all": true}), [false, false, false, true]),
    ];
    for (selection, left) in cases {
        fill();
        assert_eq!(there(), [true; 4]);
        let answer = server.post("/v1/invalidate/ns", &selection).is(200).json();
        let counted = selection.get("pattern").map_or(Value::Null, |_| json!(2));
        assert_eq!(answer["removed"], counted, "{selection}");
        assert_eq!(there(), left, "{selection}");
    }
    fill();
    for wrong in [json!({}), json!({"all": false}), json!({"tags": ["a"], "all": true}), json!({"tag": "a"})]
    {
        server.post("/v1/invalidate/ns", &wrong).is(400);
    }
    // What a web page could send without asking first.
    server
        .request("POST", "/v1/invalidate/ns", &[("Content-Type", "text/plain")], b"{\"all\": true}")
        .is(415);
    assert_eq!(there(), [true; 4]);
    server.post("/v1/invalidate/ns", &json!({"tags": []})).is(200);
}

#[test]
fn keys_are_listed_page_by_page() {
    let (_folder, server) = server();
    for key in 0..25 {
        server.put(&format!("/v1/cache/ns/{}/{key}", if key < 20 { "many" } else { "few" }), b"v").is(204);
    }
    let mut seen = Vec::new();
    let mut after = String::new();
    loop {
        let page = server.get(&format!("/v1/keys/ns?limit=7&pattern=many/*{after}")).is(200).json();
        let keys = page["keys"].as_array().unwrap();
        assert!(keys.len() <= 7);
        seen.extend(keys.iter().map(|key| key["key"].as_str().unwrap().to_owned()));
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 20);
    for wrong in ["limit=0", "limit=1001", "limit=x", "after=%00%00", "pattern=[", "patern=*"] {
        let status = server.get(&format!("/v1/keys/ns?{wrong}")).status;
        assert_eq!(status, 400, "{wrong}");
    }
    assert_eq!(server.get("/v1/namespaces").is(200).json()["namespaces"], json!(["default", "ns"]));
    let explanation = server.get("/v1/explain/ns/many/1").is(200).json();
    assert_eq!(explanation["tiers"][1]["tier"], "sqlite");
    assert!(server.get("/v1/explain/ns?key=many/1&format=text").is(200).text().contains("sqlite"));
    assert!(server.get("/v1/stats").is(200).json()["sets"].as_u64() >= Some(25));
}
