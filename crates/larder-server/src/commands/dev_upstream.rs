//! `larder dev-upstream`: an OpenAI-compatible API of which nothing is intelligent. It answers the same request
//! always alike, streams, and can fail, hang and count on demand: to try the gateway with, and for tests.

use super::{Failure, Outcome};
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use bytes::Bytes;
use clap::Args;
use http_body_util::BodyExt;
use http_body_util::channel::Channel;
use serde_json::{Value, json};
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::net::TcpListener;

/// Largest request that is read.
const BODY_BYTES_MAX: usize = 16 << 20;

/// What it knows. All else it repeats.
const FACTS: [(&[&str], &str); 6] = [
    (&["capital", "france"], "The capital of France is Paris."),
    (&["capital", "germany"], "The capital of Germany is Berlin."),
    (&["boil", "celsius"], "Water boils at 100 degrees Celsius at sea level."),
    (&["boil", "fahrenheit"], "Water boils at 212 degrees Fahrenheit at sea level."),
    (&["10", "usd", "euro"], "10 USD are about 9 euros."),
    (&["100", "usd", "euro"], "100 USD are about 90 euros."),
];

#[derive(Debug, Args)]
pub(crate) struct DevUpstream {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7071")]
    listen: SocketAddr,
    /// How long it takes to begin an answer, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 300)]
    delay_ms: u64,
    /// How long it takes between two pieces of a stream, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 20)]
    piece_ms: u64,
}

/// What it has been asked so far, and how fast it is.
#[derive(Debug)]
struct State {
    calls: AtomicU64,
    delay: Duration,
    piece: Duration,
}

impl DevUpstream {
    pub(crate) fn run(self) -> Result<Outcome, Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = TcpListener::bind(self.listen)
                .await
                .map_err(|error| Failure::new(format!("--listen: {} can't be taken: {error}", self.listen)))?;
            writeln!(
                std::io::stdout(),
                "dev-upstream on http://{} | models: any; fail-<status>, hang, cut and filtered misbehave | calls: /dev/calls",
                listener.local_addr()?
            )?;
            let state = Arc::new(State {
                calls: AtomicU64::new(0),
                delay: Duration::from_millis(self.delay_ms),
                piece: Duration::from_millis(self.piece_ms),
            });
            let router = axum::Router::new().fallback(move |request: Request<Body>| {
                let state = Arc::clone(&state);
                async move { answer(&state, request).await }
            });
            serve(listener, router).await
        })
    }
}

async fn serve(listener: TcpListener, router: axum::Router) -> Result<Outcome, Failure> {
    loop {
        let (stream, _) = listener.accept().await?;
        let service = hyper_util::service::TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let stream = hyper_util::rt::TokioIo::new(stream);
            drop(hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await);
        });
    }
}

async fn answer(state: &State, request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    if path == "/dev/calls" {
        return reply(StatusCode::OK, &json!({"calls": state.calls.load(Relaxed)}));
    }
    if path == "/v1/models" {
        return reply(StatusCode::OK, &json!({"object": "list", "data": [{"id": "dev", "object": "model"}]}));
    }
    state.calls.fetch_add(1, Relaxed);
    if parts.method != Method::POST {
        return error(StatusCode::METHOD_NOT_ALLOWED, "only POST");
    }
    let Ok(body) = http_body_util::Limited::new(body, BODY_BYTES_MAX).collect().await else {
        return error(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large");
    };
    let Ok(asked) = serde_json::from_slice::<Value>(&body.to_bytes()) else {
        return error(StatusCode::BAD_REQUEST, "the body is no JSON");
    };
    let model = asked["model"].as_str().unwrap_or_default();
    if let Some(status) = model.strip_prefix("fail-") {
        let status = status.parse().ok().and_then(|status| StatusCode::from_u16(status).ok());
        return error(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), "as asked");
    }
    if model == "hang" {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(state.delay).await;
    let echo = echo(&parts.headers);
    match path {
        "/v1/chat/completions" => chat(state, &asked, model, &echo),
        "/v1/completions" => completion(state, &asked, model),
        "/v1/embeddings" => embeddings(&asked, model),
        "/v1/responses" => response(state, &asked, model),
        _ => error(StatusCode::NOT_FOUND, "no such path"),
    }
}

/// What of the request's headers is told back, for tests of what reaches the upstream.
fn echo(headers: &HeaderMap) -> Value {
    let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    json!({"authorization": value("authorization"), "larder-ttl": value("larder-ttl"), "x-test": value("x-test")})
}

fn told(question: &str) -> String {
    let words: Vec<String> = question
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect();
    let knows = |needed: &[&str]| {
        needed
            .iter()
            .all(|need| words.iter().any(|word| word.starts_with(need) && (need.len() > 3 || word == need)))
    };
    let fact = FACTS.iter().find(|(needed, _)| knows(needed));
    fact.map_or_else(|| format!("You said: {question}"), |(_, fact)| (*fact).to_owned())
}

fn last_text(turns: &Value) -> String {
    let content = turns.as_array().and_then(|turns| turns.last()).map_or(turns, |turn| &turn["content"]);
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join(" ")
        }
        _ => String::new(),
    }
}

fn usage(question: &str, text: &str) -> Value {
    let (asked, said) = (question.split_whitespace().count(), text.split_whitespace().count());
    json!({"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said})
}

fn chat(state: &State, asked: &Value, model: &str, echo: &Value) -> Response<Body> {
    let question = last_text(&asked["messages"]);
    let text = told(&question);
    let reason = if model == "filtered" { "content_filter" } else { "stop" };
    let base = json!({"id": "chatcmpl-dev", "created": 1_700_000_000, "model": model, "system_fingerprint": "dev", "dev_headers": echo});
    let count = asked["n"].as_u64().unwrap_or(1);
    let calls = asked["tools"].as_array().and_then(|tools| tools.first()).map(|tool| {
        let arguments = json!({"question": question}).to_string();
        json!([{"id": "call_dev", "type": "function", "function": {"name": tool["function"]["name"], "arguments": arguments}}])
    });
    let reason = if calls.is_some() { "tool_calls" } else { reason };
    if asked["stream"] == true {
        let mut events = Vec::new();
        let mut send = |choices: Value| {
            let mut chunk = base.clone();
            chunk["object"] = "chat.completion.chunk".into();
            chunk["choices"] = choices;
            events.push(chunk);
        };
        for index in 0..count {
            let part = |delta: Value, reason: Value| json!([{"index": index, "delta": delta, "finish_reason": reason}]);
            send(part(json!({"role": "assistant", "content": ""}), Value::Null));
            match &calls {
                Some(calls) => {
                    let mut call = calls[0].clone();
                    call["index"] = 0.into();
                    send(part(json!({"tool_calls": [call]}), Value::Null));
                }
                None => text
                    .split_inclusive(' ')
                    .for_each(|word| send(part(json!({"content": word}), Value::Null))),
            }
            send(part(json!({}), reason.into()));
        }
        if asked["stream_options"]["include_usage"] == true {
            let mut last = base.clone();
            last["object"] = "chat.completion.chunk".into();
            last["choices"] = json!([]);
            last["usage"] = usage(&question, &text);
            events.push(last);
        }
        return stream(state, events, model == "cut");
    }
    let message = match calls {
        Some(calls) => json!({"role": "assistant", "content": null, "tool_calls": calls}),
        None => json!({"role": "assistant", "content": text}),
    };
    let choice =
        |index: u64| json!({"index": index, "message": message, "finish_reason": reason, "logprobs": null});
    let mut whole = base;
    whole["object"] = "chat.completion".into();
    whole["choices"] = (0..count).map(choice).collect::<Vec<_>>().into();
    whole["usage"] = usage(&question, &text);
    reply(StatusCode::OK, &whole)
}

fn completion(state: &State, asked: &Value, model: &str) -> Response<Body> {
    let question = asked["prompt"].as_str().unwrap_or_default();
    let text = told(question);
    let base =
        json!({"id": "cmpl-dev", "object": "text_completion", "created": 1_700_000_000, "model": model});
    let with = |text: &str, reason: Value| {
        let mut chunk = base.clone();
        chunk["choices"] = json!([{"index": 0, "text": text, "logprobs": null, "finish_reason": reason}]);
        chunk
    };
    if asked["stream"] == true {
        let mut events: Vec<Value> = text.split_inclusive(' ').map(|word| with(word, Value::Null)).collect();
        events.push(with("", "stop".into()));
        return stream(state, events, model == "cut");
    }
    let mut whole = with(&text, "stop".into());
    whole["usage"] = usage(question, &text);
    reply(StatusCode::OK, &whole)
}

fn embeddings(asked: &Value, model: &str) -> Response<Body> {
    let inputs: Vec<String> = match &asked["input"] {
        Value::Array(inputs) => inputs.iter().map(Value::to_string).collect(),
        one => vec![one.to_string()],
    };
    let embedding = |(index, input): (usize, &String)| {
        let hash = xxhash_rust::xxh3::xxh3_64(input.as_bytes());
        let vector: Vec<f64> = (0..8).map(|i| f64::from((hash >> (i * 8)) as u8) / 255.0).collect();
        json!({"object": "embedding", "index": index, "embedding": vector})
    };
    let data: Vec<Value> = inputs.iter().enumerate().map(embedding).collect();
    let usage = json!({"prompt_tokens": inputs.len(), "total_tokens": inputs.len()});
    reply(StatusCode::OK, &json!({"object": "list", "data": data, "model": model, "usage": usage}))
}

fn response(state: &State, asked: &Value, model: &str) -> Response<Body> {
    let question = last_text(&asked["input"]);
    let text = told(&question);
    let part = json!({"type": "output_text", "text": text, "annotations": []});
    let item = json!({"id": "msg_dev", "type": "message", "status": "completed", "role": "assistant", "content": [part]});
    let whole = json!({
        "id": "resp_dev", "object": "response", "created_at": 1_700_000_000, "status": "completed", "error": null,
        "incomplete_details": null, "instructions": null, "metadata": {}, "model": model, "output": [item],
        "parallel_tool_calls": true, "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0,
        "usage": {"input_tokens": question.split_whitespace().count(), "output_tokens": text.split_whitespace().count(),
                  "total_tokens": 0, "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}},
    });
    if asked["stream"] != true {
        return reply(StatusCode::OK, &whole);
    }
    let mut begun = whole.clone();
    begun["status"] = "in_progress".into();
    begun["output"] = json!([]);
    let place = json!({"item_id": "msg_dev", "output_index": 0, "content_index": 0});
    let mut events = vec![json!({"type": "response.created", "response": begun})];
    events.push(json!({"type": "response.output_item.added", "output_index": 0,
        "item": {"id": "msg_dev", "type": "message", "status": "in_progress", "role": "assistant", "content": []}}));
    let at = |kind: &str, name: &str, value: Value| {
        let mut event = place.clone();
        event["type"] = kind.into();
        event[name] = value;
        event
    };
    events.push(at(
        "response.content_part.added",
        "part",
        json!({"type": "output_text", "text": "", "annotations": []}),
    ));
    for word in text.split_inclusive(' ') {
        events.push(at("response.output_text.delta", "delta", word.into()));
    }
    events.push(at("response.output_text.done", "text", text.as_str().into()));
    events.push(at("response.content_part.done", "part", part));
    events.push(json!({"type": "response.output_item.done", "output_index": 0, "item": item}));
    events.push(json!({"type": "response.completed", "response": whole}));
    for (number, event) in events.iter_mut().enumerate() {
        event["sequence_number"] = number.into();
    }
    stream(state, events, model == "cut")
}

/// Sends events one after the other; one that is cut ends in the middle.
fn stream(state: &State, mut events: Vec<Value>, is_cut: bool) -> Response<Body> {
    let (mut sender, body) = Channel::<Bytes, std::io::Error>::new(1);
    let pause = state.piece;
    if is_cut {
        events.truncate(events.len() / 2);
    }
    tokio::spawn(async move {
        for event in events {
            let name = event["type"].as_str().map_or(String::new(), |name| format!("event: {name}\n"));
            if sender.send_data(format!("{name}data: {event}\n\n").into()).await.is_err() {
                return;
            }
            tokio::time::sleep(pause).await;
        }
        if is_cut {
            sender.abort(std::io::ErrorKind::ConnectionReset.into());
            return;
        }
        drop(sender.send_data("data: [DONE]\n\n".into()).await);
    });
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}

fn reply(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn error(status: StatusCode, message: &str) -> Response<Body> {
    reply(status, &json!({"error": {"message": message, "type": "dev_error", "param": null, "code": null}}))
}
