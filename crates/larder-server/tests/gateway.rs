//! Failure: a client of the API notices that there is a gateway by anything but the time and the headers: another
//! answer than the upstream's, somebody else's, one that was cut off or refused, or none because the cache fails.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod gateway_support;
mod support;

use gateway_support::{Gateway, Upstream, exchange};
use serde_json::{Value, json};
use support::larder;

fn ask(question: &str) -> Value {
    json!({"model": "dev", "messages": [{"role": "user", "content": question}]})
}

fn with(mut body: Value, name: &str, value: impl Into<Value>) -> Value {
    body[name] = value.into();
    body
}

#[test]
fn an_answer_is_kept_and_served_in_both_forms() {
    let gateway = Gateway::start(
        0,
        0,
        &[("LARDER_GATEWAY__PRICES__DEV__INPUT", "1e6"), ("LARDER_GATEWAY__PRICES__DEV__OUTPUT", "1e6")],
    );
    let question = ask("What is the capital of France?");
    let direct = exchange(
        gateway.upstream.address(),
        "POST",
        "/v1/chat/completions",
        &[("Authorization", "Bearer client-a")],
        &question.to_string(),
    );
    let miss = gateway.chat(&[], &question).is(200, "MISS");
    assert_eq!(miss.body, direct.body, "byte for byte");
    let hit = gateway.chat(&[], &question).is(200, "HIT-EXACT");
    let (was, is) = (miss.json(), hit.json());
    assert_eq!((&was["choices"], &was["usage"]), (&is["choices"], &is["usage"]));
    assert_ne!(was["id"], is["id"], "a new reply");
    assert_eq!(hit.header("age"), "0");
    assert!(hit.header("cache-status").starts_with("larder; hit; ttl="), "{hit:?}");
    let tokens = is["usage"]["total_tokens"].as_u64().unwrap();
    assert_eq!(hit.header("x-larder-tokens-saved"), tokens.to_string());
    assert_eq!(hit.header("x-larder-cost-saved"), format!("{tokens}.000000"));
    assert_eq!(hit.header("x-larder-entry"), miss.header("x-larder-entry"));
    let streamed = gateway.chat(&[], &with(question.clone(), "stream", true)).is(200, "HIT-EXACT");
    assert_eq!(streamed.said(), "The capital of France is Paris.");
    assert!(
        streamed.body.ends_with("data: [DONE]\n\n")
            && streamed.header("content-type").starts_with("text/event-stream")
    );

    // The other way round, and with usage.
    let question = with(ask("Hello there, you"), "stream", true);
    let with_usage = with(question.clone(), "stream_options", json!({"include_usage": true}));
    let direct = exchange(
        gateway.upstream.address(),
        "POST",
        "/v1/chat/completions",
        &[("Authorization", "Bearer client-a")],
        &with_usage.to_string(),
    );
    let miss = gateway.chat(&[], &with_usage).is(200, "MISS");
    assert_eq!(miss.body, direct.body, "byte for byte");
    assert_eq!(gateway.chat(&[], &question).is(200, "HIT-EXACT").said(), "You said: Hello there, you");
    let plain = gateway.chat(&[], &ask("Hello there, you")).is(200, "HIT-EXACT").json();
    assert_eq!(plain["choices"][0]["message"]["content"], "You said: Hello there, you");
    assert_eq!(plain["usage"]["prompt_tokens"], 3);
    assert_eq!(gateway.upstream.calls(), 4);
}

/// A stream without usage serves streams; who needs the usage asks anew.
#[test]
fn an_answer_without_usage_serves_who_does_not_need_it() {
    let gateway = Gateway::start(0, 0, &[]);
    let streamed = with(ask("q"), "stream", true);
    gateway.chat(&[], &streamed).is(200, "MISS");
    gateway.chat(&[], &streamed).is(200, "HIT-EXACT");
    let plain = gateway.chat(&[], &ask("q"));
    assert_eq!((plain.status, plain.json()["usage"]["prompt_tokens"].as_u64()), (200, Some(1)));
}

#[test]
fn callers_of_one_request_share_one_call() {
    let gateway = Gateway::start(300, 20, &[]);
    let question = with(ask("one two three four"), "stream_options", json!({"include_usage": true}));
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..24)
            .map(|i| {
                let (gateway, question) = (&gateway, with(question.clone(), "stream", i % 3 != 0));
                scope.spawn(move || (i % 3 != 0, gateway.chat(&[], &question)))
            })
            .collect();
        for caller in callers {
            let (is_stream, reply) = caller.join().unwrap();
            let said = match is_stream {
                true => reply.said(),
                false => reply.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned(),
            };
            assert_eq!((said.as_str(), reply.is_whole), ("You said: one two three four", true), "{reply:?}");
        }
    });
    assert_eq!(gateway.upstream.calls(), 1);
}

#[test]
fn nothing_of_one_client_reaches_another() {
    let gateway = Gateway::start(0, 0, &[]);
    let as_ = |who: &str| gateway.chat(&[("Authorization", who)], &ask("q"));
    let first = as_("Bearer a").is(200, "MISS").json();
    assert_eq!(first["dev_headers"]["authorization"], "Bearer a", "passed on");
    as_("Bearer b").is(200, "MISS");
    as_("Bearer a").is(200, "HIT-EXACT");
    // Credentials that are not in Authorization.
    let (address, body) = (gateway.server.address.to_string(), ask("q").to_string());
    for name in ["Api-Key", "X-Api-Key", "X-Goog-Api-Key", "Cookie"] {
        let as_ = |who: &str| exchange(&address, "POST", "/v1/chat/completions", &[(name, who)], &body);
        as_("k=a").is(200, "MISS");
        as_("k=b").is(200, "MISS");
        as_("k=a").is(200, "HIT-EXACT");
    }
    let as_ = |who: &str| exchange(&address, "POST", &format!("/v1/chat/completions?key={who}"), &[], &body);
    as_("a").is(200, "MISS");
    as_("b").is(200, "MISS");
    as_("a").is(200, "HIT-EXACT");
}

/// Whatever stands in the place of an answer, it costs one call and no more.
#[test]
fn what_can_not_be_read_is_asked_for_anew() {
    let gateway = Gateway::start(0, 0, &[]);
    let entry = gateway.chat(&[], &ask("q")).is(200, "MISS").header("x-larder-entry").to_owned();
    let path = format!("/v1/cache/gateway/{entry}");
    let put = exchange(&gateway.server.address.to_string(), "PUT", &path, &[], "no answer");
    assert_eq!(put.status, 204, "{put:?}");
    gateway.chat(&[], &ask("q")).is(200, "MISS");
    gateway.chat(&[], &ask("q")).is(200, "HIT-EXACT");
}

/// Neither in the log nor on the disk.
#[test]
fn credentials_are_passed_on_and_not_kept() {
    let gateway = Gateway::start(0, 0, &[("LARDER_LOG", "trace")]);
    let body = json!({"model": "dev", "prompt": "to be kept"});
    gateway.post("/v1/completions", &[("Authorization", "Bearer not-to-be-kept")], &body).is(200, "MISS");
    gateway
        .post("/v1/completions", &[("Authorization", "Bearer not-to-be-kept")], &body)
        .is(200, "HIT-EXACT");
    let Gateway { server, folder, .. } = gateway;
    assert!(!server.log().contains("not-to-be-kept"));
    server.stop();
    let files = std::fs::read_dir(folder.path()).unwrap();
    let bytes: Vec<u8> =
        files.flat_map(|file| std::fs::read(file.unwrap().path()).unwrap_or_default()).collect();
    let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(has("You said: to be kept") && !has("not-to-be-kept"));
}

#[test]
fn what_is_no_whole_answer_is_passed_on_and_not_kept() {
    let gateway = Gateway::start(0, 0, &[]);
    for (model, status) in
        [("fail-500", 500), ("fail-429", 429), ("fail-400", 400), ("fail-401", 401), ("filtered", 200)]
    {
        for _ in 0..2 {
            let reply = gateway.chat(&[], &with(ask("q"), "model", model));
            assert_eq!((reply.status, reply.header("x-larder-cache")), (status, "MISS"), "{model}");
        }
    }
    let cut = with(with(ask("one two three four five six"), "model", "cut"), "stream", true);
    for _ in 0..2 {
        let reply = gateway.chat(&[], &cut).is(200, "MISS");
        assert!(!reply.is_whole, "a client must see that it was cut off");
    }
    assert_eq!(gateway.upstream.calls(), 12);
    let reply = gateway.post("/v1/chat/completions", &[], &json!("no object"));
    assert_eq!(reply.header("x-larder-cache"), "BYPASS");
}

#[test]
fn controls_of_the_request_are_followed_and_not_passed_on() {
    let gateway = Gateway::start(0, 0, &[]);
    let question = ask("q");
    let only = [("Cache-Control", "only-if-cached")];
    let absent = gateway.chat(&only, &question);
    assert_eq!((absent.status, &absent.json()["error"]["code"]), (504, &json!("only_if_cached")));
    let not_stored = gateway.chat(&[("Cache-Control", "no-store")], &question).is(200, "BYPASS");
    assert_eq!(not_stored.status, 200);
    let miss = gateway.chat(&[("Larder-TTL", "60"), ("X-Test", "t")], &question).is(200, "MISS").json();
    assert_eq!(
        miss["dev_headers"],
        json!({"authorization": "Bearer client-a", "larder-ttl": null, "x-test": "t"})
    );
    gateway.chat(&only, &question).is(200, "HIT-EXACT");
    gateway.chat(&[("Cache-Control", "no-cache")], &question).is(200, "MISS");
    gateway.chat(&[("cf-aig-skip-cache", "true")], &question).is(200, "BYPASS");
    gateway.chat(&[("x-portkey-cache-namespace", "other")], &question).is(200, "MISS");
    gateway.chat(&[], &with(question.clone(), "cache", json!({"no-cache": true}))).is(200, "MISS");
    gateway.chat(&[], &with(question.clone(), "cache", json!({"ttl": 5}))).is(200, "HIT-EXACT");
    let wrong = gateway.chat(&[("Larder-TTL", "soon")], &question);
    assert_eq!(wrong.status, 400);
    assert!(wrong.json()["error"]["message"].as_str().unwrap().contains("larder-ttl"));
    let kept_for = gateway.chat(&[], &question).is(200, "HIT-EXACT");
    let ttl: u64 = kept_for.header("cache-status").rsplit('=').next().unwrap().parse().unwrap();
    assert!(ttl > 60, "the last one said nothing of a TTL: {kept_for:?}");
    // A client makes answers fresher, never older.
    gateway.chat(&[("Larder-TTL", "1e9")], &ask("long")).is(200, "MISS");
    let kept_for = gateway.chat(&[], &ask("long")).is(200, "HIT-EXACT");
    let ttl: u64 = kept_for.header("cache-status").rsplit('=').next().unwrap().parse().unwrap();
    assert!(ttl <= 24 * 60 * 60, "{kept_for:?}");
}

/// Removed while it is under way: the answer is not put back, and nobody who comes later joins it.
#[test]
fn what_is_removed_while_it_is_under_way_stays_away() {
    let gateway = Gateway::start(600, 0, &[]);
    let question = ask("q");
    std::thread::scope(|scope| {
        let early = scope.spawn(|| gateway.chat(&[], &question));
        support::eventually("the upstream is asked", || gateway.upstream.calls() == 1);
        gateway.server.post("/v1/invalidate/gateway", &json!({"all": true}));
        let late = gateway.chat(&[], &question).is(200, "MISS");
        assert_eq!(late.header("cache-status"), "larder; fwd=uri-miss");
        early.join().unwrap().is(200, "MISS");
    });
    assert_eq!(gateway.upstream.calls(), 2);
}

#[test]
fn a_stale_answer_is_served_while_the_upstream_fails() {
    let mut gateway = Gateway::start(0, 0, &[("LARDER_GATEWAY__ANSWERS__STALE_ON_ERROR", "3600")]);
    let question = ask("q");
    let miss = gateway.chat(&[("Larder-TTL", "0.05")], &question).is(200, "MISS").json();
    let address = gateway.upstream.address().to_owned();
    gateway.upstream.child.kill().unwrap();
    gateway.upstream.child.wait().unwrap();
    support::eventually("it is stale", || gateway.chat(&[], &question).header("x-larder-stale") == "true");
    let stale = gateway.chat(&[], &question).is(200, "HIT-EXACT");
    assert_eq!(stale.json()["choices"], miss["choices"]);
    assert!(stale.header("cache-status").contains("ttl=-"), "{stale:?}");
    let other = gateway.chat(&[], &ask("another"));
    assert_eq!((other.status, &other.json()["error"]["code"]), (502, &json!("upstream_unreachable")));
    gateway.upstream = Upstream::on(&address, 0, 0);
    support::eventually("it is fresh again", || {
        gateway.chat(&[], &question).header("x-larder-stale") != "true"
    });
}

#[test]
fn every_endpoint_and_every_other_path() {
    let gateway = Gateway::start(0, 0, &[]);
    let completion = json!({"model": "dev", "prompt": "a b"});
    let embedding = json!({"model": "dev", "input": ["a", "b"]});
    let response = json!({"model": "dev", "input": "a b"});
    for (path, body) in
        [("/v1/completions", completion), ("/v1/embeddings", embedding), ("/v1/responses", response)]
    {
        let miss = gateway.post(path, &[], &body).is(200, "MISS").json();
        let hit = gateway.post(path, &[], &body).is(200, "HIT-EXACT").json();
        for part in ["choices", "data", "output", "usage"] {
            assert_eq!(miss[part], hit[part], "{path}");
        }
        if path == "/v1/embeddings" {
            continue;
        }
        let streamed = with(body, "stream", true);
        let hit = gateway.post(path, &[], &streamed).is(200, "HIT-EXACT");
        assert!(hit.body.contains("\"You \""), "{hit:?}");
    }
    let address = gateway.server.address.to_string();
    let models =
        exchange(&address, "GET", "/v1/models", &[("Authorization", "Bearer x")], "").is(200, "BYPASS");
    assert_eq!(models.json()["data"][0]["id"], "dev");
    let unknown = gateway.post("/v1/audio/speech", &[], &json!({})).is(404, "BYPASS");
    assert_eq!(unknown.json()["error"]["message"], "no such path");
    assert_eq!(exchange(&address, "GET", "/v1/stats", &[], "").status, 200, "larder's own");
    // Out of the folder that the settings name.
    let calls = gateway.upstream.calls();
    for path in ["/v1/../admin", "/v1/x/%2E%2e/%2e./admin", "/v1/..%2fadmin", "/v1/..%5Cadmin"] {
        let refused = gateway.post(path, &[], &json!({}));
        assert_eq!(
            (refused.status, &refused.json()["error"]["code"]),
            (400, &json!("dot_segments")),
            "{path}"
        );
    }
    assert_eq!(gateway.upstream.calls(), calls);
}

/// With a key of ours, only who has a token of ours may spend it, and it is nowhere to be seen.
#[test]
fn a_key_of_ours_is_spent_by_those_with_a_token_only() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "upstream-key-0123456789\n").unwrap();
    let key_file = secret.path().to_str().unwrap();
    let variables =
        [("LARDER_GATEWAY__UPSTREAM__KEY_FILE", key_file), ("LARDER_TOKENS", "token-0123456789abcdef")];
    let gateway = Gateway::start(0, 0, &variables);
    let refused = gateway.chat(&[], &ask("q"));
    assert_eq!((refused.status, &refused.json()["error"]["type"]), (401, &json!("authentication_error")));
    let bearer = [("Authorization", "Bearer token-0123456789abcdef")];
    let miss = gateway.chat(&bearer, &ask("q")).is(200, "MISS").json();
    assert_eq!(miss["dev_headers"]["authorization"], "Bearer upstream-key-0123456789");
    assert!(!gateway.server.log().contains("upstream-key"));
    let folder = tempfile::tempdir().unwrap();
    let mut command = larder(&["serve", "--upstream", "http://127.0.0.1:9", "--data"]);
    command.arg(folder.path()).env("LARDER_GATEWAY__UPSTREAM__KEY_FILE", key_file);
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("set tokens"), "{error}");
}
