//! A kept answer as the stream that a client asked for.

use super::answer::Answer;
use super::identity::Endpoint;
use super::sse;
use bytes::Bytes;
use serde_json::{Map, Value, json};

/// About how much text a piece has: four letters, a token's worth.
const PIECE_CHARS: usize = 4;

/// How a reply tells itself from the kept answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fresh<'a> {
    pub(crate) id: &'a str,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// Whether the client asked for the usage at the end of the stream.
    pub(crate) wants_usage: bool,
}

/// The events of a streamed reply.
pub(crate) fn events(answer: &Answer, fresh: Fresh<'_>) -> Vec<Bytes> {
    match answer.endpoint {
        Endpoint::ChatCompletions | Endpoint::Completions => chunks(answer, fresh),
        Endpoint::Responses => response(answer, fresh),
        // It has no streams; who asks for one all the same gets the answer in one event.
        Endpoint::Embeddings => {
            vec![sse::event(None, &Value::Object(answer.body.clone()).to_string()), done()]
        }
    }
}

fn done() -> Bytes {
    sse::event(None, "[DONE]")
}

fn chunks(answer: &Answer, fresh: Fresh<'_>) -> Vec<Bytes> {
    let is_chat = answer.endpoint == Endpoint::ChatCompletions;
    let mut head = answer.reply(fresh.id, fresh.created);
    let usage = head.remove("usage").unwrap_or(Value::Null);
    let choices = head.remove("choices").unwrap_or_default();
    head.insert("object".into(), if is_chat { "chat.completion.chunk" } else { "text_completion" }.into());
    let mut events = Vec::new();
    let mut send = |choices: Value, usage: Option<&Value>| {
        let mut chunk = head.clone();
        chunk.insert("choices".into(), choices);
        match usage {
            Some(usage) => drop(chunk.insert("usage".into(), usage.clone())),
            // Every chunk but the last says that it has none.
            None if fresh.wants_usage => drop(chunk.insert("usage".into(), Value::Null)),
            None => {}
        }
        events.push(sse::event(None, &Value::Object(chunk).to_string()));
    };
    for choice in choices.as_array().into_iter().flatten().filter_map(Value::as_object) {
        for part in if is_chat { chat_parts(choice) } else { text_parts(choice) } {
            send(json!([part]), None);
        }
    }
    if fresh.wants_usage && usage.is_object() {
        send(json!([]), Some(&usage));
    }
    events.push(done());
    events
}

/// The choices of the chunks of a chat's answer.
fn chat_parts(choice: &Map<String, Value>) -> Vec<Value> {
    let index = choice.get("index").cloned().unwrap_or(json!(0));
    let part =
        |delta: Value| json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null});
    let mut message = choice.get("message").and_then(Value::as_object).cloned().unwrap_or_default();
    let content = message.remove("content").unwrap_or_default();
    let refusal = message.remove("refusal").unwrap_or_default();
    let calls = message.remove("tool_calls").unwrap_or_default();
    // What is not told in pieces comes first, as it is.
    let mut first = Map::from_iter([("role".to_owned(), json!("assistant"))]);
    first.extend(message);
    let text = content.as_str();
    first.insert("content".into(), text.map_or(content.clone(), |_| json!("")));
    if refusal.is_null() && choice.get("message").is_some_and(|message| message.get("refusal").is_some()) {
        first.insert("refusal".into(), Value::Null);
    }
    let mut parts = vec![part(first.into())];
    let logprobs = choice.get("logprobs").filter(|logprobs| logprobs.is_object());
    parts.extend(told(text.unwrap_or_default(), logprobs, "content", &part));
    parts.extend(told(refusal.as_str().unwrap_or_default(), logprobs, "refusal", &part));
    for (number, call) in calls.as_array().into_iter().flatten().enumerate() {
        let Some(call) = call.as_object() else { continue };
        let mut opening = call.clone();
        opening.insert("index".into(), number.into());
        // Text that grows: a function's arguments, or a custom tool's input.
        for (kind, grows) in [("function", "arguments"), ("custom", "input")] {
            let Some(text) = call.get(kind).and_then(|kind| kind.get(grows)).and_then(Value::as_str) else {
                continue;
            };
            opening[kind][grows] = json!("");
            parts.push(part(json!({"tool_calls": [opening]})));
            parts.extend(
                pieces(text)
                    .map(|piece| part(json!({"tool_calls": [{"index": number, kind: {grows: piece}}]}))),
            );
            opening = Map::new();
            break;
        }
        if !opening.is_empty() {
            parts.push(part(json!({"tool_calls": [opening]})));
        }
    }
    let mut last = choice.clone();
    last.remove("message");
    last.insert("delta".into(), json!({}));
    last.insert("logprobs".into(), Value::Null);
    parts.push(last.into());
    parts
}

/// The deltas of a text; with its log probabilities a piece is a token.
fn told(text: &str, logprobs: Option<&Value>, name: &str, part: &impl Fn(Value) -> Value) -> Vec<Value> {
    let tokens =
        logprobs.and_then(|logprobs| logprobs.get(name)?.as_array()).filter(|tokens| !tokens.is_empty());
    let Some(tokens) = tokens else {
        return pieces(text).map(|piece| part(json!({name: piece}))).collect();
    };
    let texts: Option<Vec<&str>> = tokens.iter().map(|token| token.get("token")?.as_str()).collect();
    let is_told_by_tokens = texts.as_ref().is_some_and(|texts| texts.concat() == text);
    let with_logprobs = |text: &str, tokens: &[Value]| {
        let mut part = part(json!({name: text}));
        part["logprobs"] = json!({name: tokens});
        part
    };
    match texts {
        Some(texts) if is_told_by_tokens => {
            texts.iter().zip(tokens.chunks(1)).map(|(text, token)| with_logprobs(text, token)).collect()
        }
        // A token may be a part of a letter only.
        _ => vec![with_logprobs(text, tokens)],
    }
}

/// The choices of the chunks of a completion.
fn text_parts(choice: &Map<String, Value>) -> Vec<Value> {
    let mut last = choice.clone();
    let text = last.insert("text".into(), json!("")).unwrap_or_default();
    let index = choice.get("index").cloned().unwrap_or(json!(0));
    let text = text.as_str().unwrap_or_default();
    let part = |text: &str| json!({"index": index, "text": text, "logprobs": null, "finish_reason": null});
    let mut parts: Vec<Value> = pieces(text).map(part).collect();
    // Those of a completion are lists side by side: all of them stand with the end.
    parts.push(last.into());
    parts
}

/// A text in pieces that a reader sees growing.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let end = rest.char_indices().nth(PIECE_CHARS).map_or(rest.len(), |(at, _)| at);
        let (piece, after) = rest.split_at(end);
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

/// The events of a response: it begins without output, gets item by item, and is whole at the end.
fn response(answer: &Answer, fresh: Fresh<'_>) -> Vec<Bytes> {
    let whole = answer.reply(fresh.id, fresh.created);
    let mut begun = whole.clone();
    begun.insert("status".into(), "in_progress".into());
    begun.insert("output".into(), json!([]));
    begun.insert("usage".into(), Value::Null);
    let mut events = Vec::new();
    let mut send = |kind: &str, mut event: Value| {
        event["type"] = kind.into();
        event["sequence_number"] = events.len().into();
        events.push(sse::event(Some(kind), &event.to_string()));
    };
    send("response.created", json!({"response": begun}));
    send("response.in_progress", json!({"response": begun}));
    for (number, item) in whole.get("output").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let id = item.get("id").cloned().unwrap_or_default();
        let content = item.get("content").and_then(Value::as_array).filter(|content| !content.is_empty());
        let arguments = item.get("arguments").and_then(Value::as_str);
        let mut opening = item.clone();
        if opening.get("status").is_some() {
            opening["status"] = "in_progress".into();
        }
        if content.is_some() {
            opening["content"] = json!([]);
        }
        if arguments.is_some() {
            opening["arguments"] = "".into();
        }
        send("response.output_item.added", json!({"output_index": number, "item": opening}));
        for (at, part) in content.into_iter().flatten().enumerate() {
            let place = |event: Value| {
                let mut event = event;
                event["item_id"] = id.clone();
                event["output_index"] = number.into();
                event["content_index"] = at.into();
                event
            };
            let (grows, kind) = match part.get("type").and_then(Value::as_str) {
                Some("refusal") => ("refusal", "response.refusal"),
                _ => ("text", "response.output_text"),
            };
            let text = part.get(grows).and_then(Value::as_str);
            let mut empty = part.clone();
            if text.is_some() {
                empty[grows] = "".into();
            }
            send("response.content_part.added", place(json!({"part": empty})));
            if let Some(text) = text {
                for piece in pieces(text) {
                    send(&format!("{kind}.delta"), place(json!({"delta": piece})));
                }
                send(&format!("{kind}.done"), place(json!({grows: text})));
            }
            send("response.content_part.done", place(json!({"part": part})));
        }
        if let Some(arguments) = arguments {
            let place = json!({"item_id": id, "output_index": number});
            for piece in pieces(arguments) {
                let mut event = place.clone();
                event["delta"] = piece.into();
                send("response.function_call_arguments.delta", event);
            }
            let mut event = place.clone();
            event["arguments"] = arguments.into();
            send("response.function_call_arguments.done", event);
        }
        send("response.output_item.done", json!({"output_index": number, "item": item}));
    }
    send("response.completed", json!({"response": whole}));
    events
}

#[cfg(test)]
mod tests {
    use super::super::assemble::Assembler;
    use super::super::sse::Events;
    use super::*;
    use proptest::prelude::*;

    fn round_trip(answer: &Answer, wants_usage: bool) -> Answer {
        let fresh = Fresh { id: "new", created: 7, wants_usage };
        let mut assembler = Assembler::new(answer.endpoint, 1 << 20);
        let mut reader = Events::new(1 << 20);
        for bytes in events(answer, fresh) {
            for event in reader.feed(&bytes).unwrap() {
                assembler.take(&event);
            }
        }
        assembler.finish(1).unwrap()
    }

    fn expected(answer: &Answer, wants_usage: bool) -> Map<String, Value> {
        let mut body = answer.reply("new", 7);
        if !wants_usage && answer.endpoint != Endpoint::Responses {
            body.remove("usage");
        }
        body
    }

    fn call() -> impl Strategy<Value = Value> {
        ("[a-z]{1,8}", ".{0,30}", any::<bool>()).prop_map(|(name, text, is_custom)| match is_custom {
            true => json!({"id": "call_1", "type": "custom", "custom": {"name": name, "input": text}}),
            false => {
                json!({"id": "call_1", "type": "function", "function": {"name": name, "arguments": text}})
            }
        })
    }

    fn message() -> impl Strategy<Value = Value> {
        let content = prop::option::of(".{0,40}");
        let refusal = prop::option::of(prop::option::of(".{1,20}"));
        let thought = prop::option::of(".{0,20}");
        (content, refusal, prop::collection::vec(call(), 0..3), thought).prop_map(
            |(content, refusal, calls, thought)| {
                let mut message = json!({"role": "assistant", "content": content});
                if let Some(refusal) = refusal {
                    message["refusal"] = refusal.into();
                }
                if !calls.is_empty() {
                    message["tool_calls"] = calls.into();
                }
                if let Some(thought) = thought {
                    message["reasoning_content"] = thought.into();
                }
                message
            },
        )
    }

    proptest! {
        /// A streamed hit, put together by a client, is the kept answer.
        #[test]
        fn a_chat_streamed_is_the_chat(
            messages in prop::collection::vec(message(), 1..3),
            wants_usage: bool,
            has_logprobs: bool,
        ) {
            let choices: Vec<Value> = messages.into_iter().enumerate().map(|(index, message)| {
                let logprobs = match message["content"].as_str().filter(|text| has_logprobs && !text.is_empty()) {
                    Some(text) => {
                        let token = |c: char| json!({"token": c.to_string(), "logprob": -0.5, "top_logprobs": []});
                        json!({"content": text.chars().map(token).collect::<Vec<_>>()})
                    }
                    None => Value::Null,
                };
                json!({"index": index, "message": message, "finish_reason": "stop", "logprobs": logprobs})
            }).collect();
            let body = json!({"id": "old", "object": "chat.completion", "created": 1, "model": "m",
                "system_fingerprint": null, "choices": choices,
                "usage": {"prompt_tokens": 1, "completion_tokens": 2}});
            let Value::Object(body) = body else { unreachable!() };
            let answer = Answer::new(Endpoint::ChatCompletions, body, 1).unwrap();
            prop_assert_eq!(round_trip(&answer, wants_usage).body, expected(&answer, wants_usage));
        }

        #[test]
        fn a_completion_streamed_is_the_completion(text in ".{0,40}", wants_usage: bool) {
            let body = json!({"id": "old", "object": "text_completion", "created": 1, "model": "m",
                "choices": [{"index": 0, "text": text, "finish_reason": "length",
                    "logprobs": {"tokens": ["a", "b"], "token_logprobs": [-0.5, -1.0]}}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 2}});
            let Value::Object(body) = body else { unreachable!() };
            let answer = Answer::new(Endpoint::Completions, body, 1).unwrap();
            prop_assert_eq!(round_trip(&answer, wants_usage).body, expected(&answer, wants_usage));
        }

        #[test]
        fn a_response_streamed_is_the_response(text in ".{0,40}", arguments in ".{0,40}") {
            let body = json!({"id": "old", "object": "response", "created_at": 1, "status": "completed",
                "output": [
                    {"id": "rs_1", "type": "reasoning", "summary": []},
                    {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant",
                     "content": [{"type": "output_text", "text": text, "annotations": []}]},
                    {"id": "fc_1", "type": "function_call", "name": "f", "call_id": "c", "arguments": arguments},
                ],
                "usage": {"input_tokens": 1, "output_tokens": 2}});
            let Value::Object(body) = body else { unreachable!() };
            let answer = Answer::new(Endpoint::Responses, body, 1).unwrap();
            prop_assert_eq!(round_trip(&answer, false).body, expected(&answer, false));
        }
    }
}
