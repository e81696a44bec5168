//! What a request is: the exact key under which its answer is kept, and the partition within which another
//! request may mean the same.
//!
//! Everything in the body that we don't know to be without influence on the answer is part of the key, fields
//! that nobody has thought of yet included.

use super::canonical::Canonical;
use larder::key::Namespace;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;

/// An operation of the API whose answers can be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Endpoint {
    ChatCompletions,
    Completions,
    Embeddings,
    Responses,
}

impl Endpoint {
    /// The endpoint of a path below `/v1`.
    pub(crate) fn of_path(path: &str) -> Option<Self> {
        match path {
            "/v1/chat/completions" => Some(Endpoint::ChatCompletions),
            "/v1/completions" => Some(Endpoint::Completions),
            "/v1/embeddings" => Some(Endpoint::Embeddings),
            "/v1/responses" => Some(Endpoint::Responses),
            _ => None,
        }
    }

    pub(crate) fn path(self) -> &'static str {
        match self {
            Endpoint::ChatCompletions => "/v1/chat/completions",
            Endpoint::Completions => "/v1/completions",
            Endpoint::Embeddings => "/v1/embeddings",
            Endpoint::Responses => "/v1/responses",
        }
    }
}

/// Who asks, and where the answer comes from: what keys have in common beside the body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin<'a> {
    /// The upstream's name in the settings.
    pub(crate) upstream: &'a str,
    /// Whose answers these are; requests of two tenants never meet.
    pub(crate) tenant: &'a [u8],
    /// The namespace that the request asked for.
    pub(crate) namespace: &'a Namespace,
    /// Headers that choose what the upstream does, such as an organisation or a beta feature.
    pub(crate) headers: &'a [(&'a str, &'a [u8])],
    /// The query of the URL: a version of the API, or a credential.
    pub(crate) query: &'a str,
    /// What the client adds to tell keys apart.
    pub(crate) seed: &'a str,
    /// What the client wants in the place of the body.
    pub(crate) key: Option<&'a str>,
}

/// A key: SHA-256, because who can make two requests collide could read another's answer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Digest32(pub(crate) [u8; 32]);

impl fmt::Display for Digest32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What a request is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) endpoint: Endpoint,
    pub(crate) exact: Digest32,
    /// Where a request that means the same may be found, or why none is looked for.
    pub(crate) meaning: Result<Meaning, NotSemantic>,
    pub(crate) model: Option<String>,
    /// How many answers are asked for.
    pub(crate) count: u64,
    /// Whether the client wants the answer as a stream, and the usage at its end.
    pub(crate) stream: bool,
    pub(crate) wants_usage: bool,
}

/// The part of a request that is compared by meaning, and the rest of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meaning {
    /// Everything but the question.
    pub(crate) partition: Digest32,
    /// The last thing that the user said.
    pub(crate) question: String,
}

/// Why a request is answered by exact key only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotSemantic {
    /// Embeddings: another text has another vector.
    Endpoint,
    /// The last turn is not the user's, or is a tool's result.
    LastTurn,
    /// The last turn has more than text: images, audio, files.
    NotText,
    /// More than one answer is asked for.
    ManyAnswers,
    /// There is no question.
    Empty,
    /// The client gave the key.
    GivenKey,
}

/// Fields of the body that don't change the answer, only how it is delivered or who is billed.
const DELIVERY: [&str; 2] = ["stream", "stream_options"];
/// Fields that by setting are no part of the key.
pub(crate) const OF_THE_CALLER: [&str; 3] = ["user", "metadata", "safety_identifier"];
/// The controls that LiteLLM's clients send, which are meant for a cache.
pub(crate) const CONTROLS: &str = "cache";

/// Finds out what a request is.
///
/// `ignored` are the fields that by setting are no part of the key.
pub(crate) fn identify(
    endpoint: Endpoint,
    origin: Origin<'_>,
    mut body: Canonical,
    ignored: &[String],
) -> Identity {
    let stream = body.get("stream").is_some_and(|stream| stream.is("true"));
    let wants_usage = body
        .get("stream_options")
        .and_then(|options| options.get("include_usage"))
        .is_some_and(|usage| usage.is("true"));
    for name in DELIVERY.into_iter().chain([CONTROLS]).chain(ignored.iter().map(String::as_str)) {
        body.take(name);
    }
    let model = body.get("model").and_then(Canonical::as_text).map(str::to_owned);
    let count = body.get("n").and_then(Canonical::as_count).unwrap_or(1);
    let hash = |what: &str, body: &Canonical| {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(b"larder request 1");
        part(what.as_bytes());
        part(endpoint.path().as_bytes());
        part(origin.upstream.as_bytes());
        part(origin.tenant);
        part(origin.namespace.as_str().as_bytes());
        part(origin.query.as_bytes());
        part(origin.seed.as_bytes());
        part(&(origin.headers.len() as u64).to_le_bytes());
        for (name, value) in origin.headers {
            part(name.as_bytes());
            part(value);
        }
        match origin.key {
            Some(key) => hash.update(key),
            None => body.feed(&mut |bytes| hash.update(bytes)),
        }
        Digest32(hash.finalize().into())
    };
    let exact = hash(if origin.key.is_some() { "given" } else { "exact" }, &body);
    let meaning = match origin.key {
        Some(_) => Err(NotSemantic::GivenKey),
        None => take_question(endpoint, &mut body)
            .map(|question| Meaning { partition: hash("partition", &body), question }),
    };
    Identity { endpoint, exact, meaning, model, count, stream, wants_usage }
}

/// Takes the question out of a body, and leaves a placeholder that no question can be.
fn take_question(endpoint: Endpoint, body: &mut Canonical) -> Result<String, NotSemantic> {
    if body.get("n").is_some_and(|n| !n.is("1") && !n.is("null"))
        || body.get("best_of").is_some_and(|n| !n.is("1") && !n.is("null"))
    {
        return Err(NotSemantic::ManyAnswers);
    }
    let turn = match endpoint {
        Endpoint::Embeddings => return Err(NotSemantic::Endpoint),
        Endpoint::Completions => {
            let prompt = body.get_mut("prompt").ok_or(NotSemantic::Empty)?;
            return take_text(prompt);
        }
        Endpoint::ChatCompletions => body.get_mut("messages").ok_or(NotSemantic::Empty)?,
        Endpoint::Responses => {
            // What was said before is on the upstream's side, and may have changed there.
            let is_set = |value: &Canonical| !value.is("null");
            if body.get("previous_response_id").is_some_and(is_set)
                || body.get("conversation").is_some_and(is_set)
            {
                return Err(NotSemantic::LastTurn);
            }
            let input = body.get_mut("input").ok_or(NotSemantic::Empty)?;
            if matches!(input, Canonical::Text(_)) {
                return take_text(input);
            }
            input
        }
    };
    let Canonical::Array(turns) = turn else { return Err(NotSemantic::LastTurn) };
    let last = turns.last_mut().ok_or(NotSemantic::Empty)?;
    if last.get("role").and_then(Canonical::as_text) != Some("user") {
        return Err(NotSemantic::LastTurn);
    }
    take_text(last.get_mut("content").ok_or(NotSemantic::Empty)?)
}

/// Takes a text, or the only part of a content if that is a text.
fn take_text(content: &mut Canonical) -> Result<String, NotSemantic> {
    let text = match content {
        Canonical::Text(_) => content,
        Canonical::Array(parts) => match parts.as_mut_slice() {
            [] => return Err(NotSemantic::Empty),
            [part] => {
                let kind = part.get("type").and_then(Canonical::as_text);
                if !matches!(kind, Some("text" | "input_text")) {
                    return Err(NotSemantic::NotText);
                }
                part.get_mut("text").ok_or(NotSemantic::Empty)?
            }
            _ => return Err(NotSemantic::NotText),
        },
        _ => return Err(NotSemantic::NotText),
    };
    let Canonical::Text(question) = text else { return Err(NotSemantic::NotText) };
    if question.trim().is_empty() {
        return Err(NotSemantic::Empty);
    }
    let question = std::mem::take(question);
    // No text: so no question that says "placeholder" is taken for one.
    *text = Canonical::Plain("question".to_owned());
    Ok(question)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn identity(endpoint: Endpoint, body: &Value) -> Identity {
        let namespace = Namespace::new("gateway").unwrap();
        let origin = Origin {
            upstream: "openai",
            tenant: b"t",
            namespace: &namespace,
            headers: &[],
            query: "",
            seed: "",
            key: None,
        };
        let ignored = OF_THE_CALLER.map(str::to_owned);
        identify(endpoint, origin, Canonical::parse(body.to_string().as_bytes()).unwrap(), &ignored)
    }

    fn chat() -> Value {
        json!({"model": "m", "messages": [
            {"role": "system", "content": "You are terse."},
            {"role": "user", "content": "What is a larder?"},
        ]})
    }

    /// Every field of the four requests in the API's description of 2026, with another value than it has by
    /// default, and one that nobody has thought of.
    fn fields(endpoint: Endpoint) -> Vec<(&'static str, Value)> {
        let sampling = [
            ("temperature", json!(0.5)),
            ("top_p", json!(0.5)),
            ("model", json!("other")),
            ("brand_new_field", json!(true)),
            ("service_tier", json!("flex")),
        ];
        let own: Vec<(&str, Value)> = match endpoint {
            Endpoint::ChatCompletions => vec![
                ("audio", json!({"voice": "ash", "format": "wav"})),
                ("frequency_penalty", json!(1)),
                ("function_call", json!("auto")),
                ("functions", json!([{"name": "f"}])),
                ("logit_bias", json!({"50256": -100})),
                ("logprobs", json!(true)),
                ("max_completion_tokens", json!(5)),
                ("max_tokens", json!(5)),
                ("modalities", json!(["text"])),
                ("n", json!(2)),
                ("parallel_tool_calls", json!(false)),
                ("prediction", json!({"type": "content", "content": "x"})),
                ("presence_penalty", json!(1)),
                ("prompt_cache_key", json!("x")),
                ("reasoning_effort", json!("low")),
                ("response_format", json!({"type": "json_object"})),
                ("seed", json!(1)),
                ("stop", json!(["x"])),
                ("store", json!(true)),
                ("tool_choice", json!("none")),
                ("tools", json!([{"type": "function", "function": {"name": "f"}}])),
                ("top_logprobs", json!(2)),
                ("verbosity", json!("low")),
                ("web_search_options", json!({})),
            ],
            Endpoint::Completions => vec![
                ("best_of", json!(2)),
                ("echo", json!(true)),
                ("frequency_penalty", json!(1)),
                ("logit_bias", json!({"50256": -100})),
                ("logprobs", json!(1)),
                ("max_tokens", json!(5)),
                ("n", json!(2)),
                ("presence_penalty", json!(1)),
                ("seed", json!(1)),
                ("stop", json!("x")),
                ("suffix", json!("x")),
            ],
            Endpoint::Embeddings => vec![("dimensions", json!(8)), ("encoding_format", json!("base64"))],
            Endpoint::Responses => vec![
                ("background", json!(true)),
                ("conversation", json!("c")),
                ("include", json!(["x"])),
                ("instructions", json!("x")),
                ("max_output_tokens", json!(5)),
                ("max_tool_calls", json!(5)),
                ("parallel_tool_calls", json!(false)),
                ("previous_response_id", json!("r")),
                ("prompt", json!({"id": "p"})),
                ("reasoning", json!({"effort": "low"})),
                ("store", json!(false)),
                ("text", json!({"format": {"type": "json_object"}})),
                ("tool_choice", json!("none")),
                ("tools", json!([{"type": "web_search"}])),
                ("top_logprobs", json!(2)),
                ("truncation", json!("auto")),
            ],
        };
        own.into_iter().chain(sampling).collect()
    }

    #[test]
    fn every_field_that_can_change_an_answer_changes_the_key() {
        for (endpoint, body) in [
            (Endpoint::ChatCompletions, chat()),
            (Endpoint::Completions, json!({"model": "m", "prompt": "a"})),
            (Endpoint::Embeddings, json!({"model": "m", "input": "a"})),
            (Endpoint::Responses, json!({"model": "m", "input": "a"})),
        ] {
            let plain = identity(endpoint, &body);
            for (name, value) in fields(endpoint) {
                let mut changed = body.clone();
                changed[name] = value;
                let changed = identity(endpoint, &changed);
                assert_ne!(plain.exact, changed.exact, "{endpoint:?} {name}");
                if let (Ok(before), Ok(after)) = (&plain.meaning, &changed.meaning) {
                    assert_ne!(before.partition, after.partition, "{endpoint:?} {name}");
                }
            }
            let delivery = [
                ("stream", json!(true)),
                ("stream_options", json!({"include_usage": true})),
                ("user", json!("u")),
                ("metadata", json!({"a": "b"})),
                ("safety_identifier", json!("u")),
                ("cache", json!({"ttl": 1})),
            ];
            for (name, value) in delivery {
                let mut changed = body.clone();
                changed[name] = value;
                assert_eq!(plain.exact, identity(endpoint, &changed).exact, "{endpoint:?} {name}");
            }
        }
    }

    #[test]
    fn every_part_of_a_conversation_changes_the_key() {
        let plain = identity(Endpoint::ChatCompletions, &chat());
        let change = |change: fn(&mut Value)| {
            let mut body = chat();
            change(&mut body["messages"]);
            identity(Endpoint::ChatCompletions, &body)
        };
        let same_question = [
            change(|messages| messages[0]["content"] = json!("You are verbose.")),
            change(|messages| messages[0]["role"] = json!("developer")),
            change(|messages| messages[1]["name"] = json!("bob")),
            change(|messages| {
                messages.as_array_mut().unwrap().insert(1, json!({"role": "user", "content": "Hi"}));
            }),
            change(|messages| drop(messages.as_array_mut().unwrap().remove(0))),
        ];
        let before = plain.meaning.as_ref().unwrap();
        assert_eq!(before.question, "What is a larder?");
        for changed in same_question {
            assert_ne!(plain.exact, changed.exact);
            assert_ne!(before.partition, changed.meaning.unwrap().partition);
        }
        let asked = change(|messages| messages[1]["content"] = json!("What's a larder?"));
        assert_ne!(plain.exact, asked.exact);
        assert_eq!(before.partition, asked.meaning.unwrap().partition);
    }

    #[test]
    fn who_asks_whom_changes_the_key() {
        let (namespace, other) = (Namespace::new("gateway").unwrap(), Namespace::new("other").unwrap());
        let plain = Origin {
            upstream: "a",
            tenant: b"t",
            namespace: &namespace,
            headers: &[],
            query: "",
            seed: "",
            key: None,
        };
        let of = |endpoint, origin: Origin<'_>| {
            let body = json!({"model": "m", "prompt": "x", "messages": [], "input": "x"});
            identify(endpoint, origin, Canonical::parse(body.to_string().as_bytes()).unwrap(), &[]).exact
        };
        let all = [
            of(Endpoint::Completions, plain),
            of(Endpoint::Responses, plain),
            of(Endpoint::Completions, Origin { upstream: "b", ..plain }),
            of(Endpoint::Completions, Origin { tenant: b"u", ..plain }),
            of(Endpoint::Completions, Origin { tenant: b"", upstream: "at", ..plain }),
            of(Endpoint::Completions, Origin { namespace: &other, ..plain }),
            of(Endpoint::Completions, Origin { query: "s", ..plain }),
            of(Endpoint::Completions, Origin { seed: "s", ..plain }),
            of(Endpoint::Completions, Origin { headers: &[("openai-organization", b"o")], ..plain }),
            of(Endpoint::Completions, Origin { key: Some("k"), ..plain }),
            of(Endpoint::Completions, Origin { key: Some(""), ..plain }),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(!all[i + 1..].contains(a), "{i}");
        }
    }

    #[test]
    fn what_may_be_found_by_meaning() {
        let of = |endpoint, body: Value| identity(endpoint, &body).meaning.map(|meaning| meaning.question);
        let chat = |last: Value| of(Endpoint::ChatCompletions, json!({"messages": [last]}));
        let text = json!({"type": "text", "text": "q"});
        assert_eq!(chat(json!({"role": "user", "content": [text]})), Ok("q".to_owned()));
        let image = json!({"type": "image_url", "image_url": {"url": "x"}});
        assert_eq!(chat(json!({"role": "user", "content": [text, image]})), Err(NotSemantic::NotText));
        assert_eq!(chat(json!({"role": "user", "content": [image]})), Err(NotSemantic::NotText));
        assert_eq!(chat(json!({"role": "tool", "content": "q"})), Err(NotSemantic::LastTurn));
        assert_eq!(chat(json!({"role": "assistant", "content": "q"})), Err(NotSemantic::LastTurn));
        assert_eq!(chat(json!({"role": "user", "content": "  "})), Err(NotSemantic::Empty));
        let many = json!({"n": 2, "messages": [{"role": "user", "content": "q"}]});
        assert_eq!(of(Endpoint::ChatCompletions, many), Err(NotSemantic::ManyAnswers));
        assert_eq!(of(Endpoint::Embeddings, json!({"input": "q"})), Err(NotSemantic::Endpoint));
        assert_eq!(of(Endpoint::Responses, json!({"input": "q"})), Ok("q".to_owned()));
        let turn = json!([{"role": "user", "content": [{"type": "input_text", "text": "q"}]}]);
        assert_eq!(of(Endpoint::Responses, json!({"input": turn})), Ok("q".to_owned()));
        let follow_up = json!({"input": "q", "previous_response_id": "r"});
        assert_eq!(of(Endpoint::Responses, follow_up), Err(NotSemantic::LastTurn));
        assert_eq!(of(Endpoint::Completions, json!({"prompt": ["a", "b"]})), Err(NotSemantic::NotText));
    }
}
