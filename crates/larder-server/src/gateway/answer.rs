//! Answers as they are kept: one form, from which a plain and a streamed reply are made.

use super::identity::Endpoint;
use serde_json::{Map, Value};

/// An answer that is whole.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) endpoint: Endpoint,
    /// The body of a plain reply.
    pub(crate) body: Map<String, Value>,
}

/// Tokens that an answer cost, as the upstream counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) input_tokens: u64,
    pub(crate) output_tokens: u64,
}

/// Why a reply is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotKept {
    /// No reply of status 200.
    Status,
    /// No JSON object of the endpoint's shape.
    Shape,
    /// It has fewer answers than were asked for.
    Missing,
    /// One of its answers did not come to an end, or was filtered.
    Unfinished,
    /// The stream ended before its end was announced.
    CutOff,
    /// It is larger than what is kept.
    TooLarge,
    /// The stream carried an error.
    Error,
}

impl NotKept {
    pub(crate) fn name(self) -> &'static str {
        match self {
            NotKept::Status => "status",
            NotKept::Shape => "shape",
            NotKept::Missing => "missing",
            NotKept::Unfinished => "unfinished",
            NotKept::CutOff => "cut-off",
            NotKept::TooLarge => "too-large",
            NotKept::Error => "error",
        }
    }
}

/// Ends of an answer after which nothing is missing that was asked for.
const FINISHED: [&str; 4] = ["stop", "length", "tool_calls", "function_call"];

impl Answer {
    /// Reads a plain reply of status 200. `count` is how many answers were asked for.
    pub(crate) fn of_reply(endpoint: Endpoint, body: &[u8], count: u64) -> Result<Self, NotKept> {
        let Ok(Value::Object(body)) = serde_json::from_slice(body) else { return Err(NotKept::Shape) };
        Answer::new(endpoint, body, count)
    }

    /// Checks that nothing is missing.
    pub(crate) fn new(endpoint: Endpoint, body: Map<String, Value>, count: u64) -> Result<Self, NotKept> {
        if body.get("error").is_some_and(|error| !error.is_null()) {
            return Err(NotKept::Error);
        }
        match endpoint {
            Endpoint::ChatCompletions | Endpoint::Completions => {
                let choices = body.get("choices").and_then(Value::as_array).ok_or(NotKept::Shape)?;
                if (choices.len() as u64) < count.max(1) {
                    return Err(NotKept::Missing);
                }
                for choice in choices {
                    let part = if endpoint == Endpoint::ChatCompletions { "message" } else { "text" };
                    if choice.get(part).is_none_or(Value::is_null) {
                        return Err(NotKept::Shape);
                    }
                    let reason = choice.get("finish_reason").and_then(Value::as_str);
                    if !reason.is_some_and(|reason| FINISHED.contains(&reason)) {
                        return Err(NotKept::Unfinished);
                    }
                }
            }
            Endpoint::Embeddings => {
                let data = body.get("data").and_then(Value::as_array).ok_or(NotKept::Shape)?;
                if (data.len() as u64) < count.max(1) {
                    return Err(NotKept::Missing);
                }
            }
            Endpoint::Responses => match body.get("status").and_then(Value::as_str) {
                Some("completed") => {
                    body.get("output").and_then(Value::as_array).ok_or(NotKept::Shape)?;
                }
                Some(_) => return Err(NotKept::Unfinished),
                None => return Err(NotKept::Shape),
            },
        }
        Ok(Answer { endpoint, body })
    }

    /// What it cost, if the upstream said so.
    pub(crate) fn usage(&self) -> Option<Usage> {
        let usage = self.body.get("usage").filter(|usage| usage.is_object())?;
        let count = |names: [&str; 2]| names.iter().find_map(|name| usage.get(name)?.as_u64());
        Some(Usage {
            input_tokens: count(["prompt_tokens", "input_tokens"])?,
            output_tokens: count(["completion_tokens", "output_tokens"]).unwrap_or(0),
        })
    }

    /// The body of a plain reply. It is a new one: with an id and a time of its own, where the kept one had them.
    /// A response keeps its id: the upstream knows it by that, and a follow-up names it.
    pub(crate) fn reply(&self, id: &str, created: u64) -> Map<String, Value> {
        let mut body = self.body.clone();
        if self.endpoint != Endpoint::Responses {
            for (name, value) in [("id", Value::from(id)), ("created", created.into())] {
                if let Some(old) = body.get_mut(name) {
                    *old = value;
                }
            }
        }
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chat(reason: &Value) -> Value {
        json!({"id": "a", "created": 1, "choices": [{"index": 0, "finish_reason": reason,
               "message": {"role": "assistant", "content": "hi"}}],
               "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
    }

    fn read(endpoint: Endpoint, body: &Value, count: u64) -> Result<Answer, NotKept> {
        Answer::of_reply(endpoint, body.to_string().as_bytes(), count)
    }

    #[test]
    fn only_what_is_whole_is_kept() {
        let chat_of = |body: &Value, count| read(Endpoint::ChatCompletions, body, count).map(drop);
        for reason in FINISHED {
            assert_eq!(chat_of(&chat(&reason.into()), 1), Ok(()));
        }
        for reason in [json!("content_filter"), json!(null), json!("error"), json!(1)] {
            assert_eq!(chat_of(&chat(&reason), 1), Err(NotKept::Unfinished), "{reason}");
        }
        assert_eq!(chat_of(&chat(&"stop".into()), 2), Err(NotKept::Missing));
        assert_eq!(chat_of(&json!({"choices": []}), 0), Err(NotKept::Missing));
        assert_eq!(chat_of(&json!({"error": {"message": "x"}}), 1), Err(NotKept::Error));
        assert_eq!(chat_of(&json!([]), 1), Err(NotKept::Shape));
        let mut no_message = chat(&"stop".into());
        no_message["choices"][0].as_object_mut().unwrap().remove("message");
        assert_eq!(chat_of(&no_message, 1), Err(NotKept::Shape));
        let response = |status: &str| json!({"status": status, "output": [], "error": null});
        assert!(read(Endpoint::Responses, &response("completed"), 1).is_ok());
        assert_eq!(read(Endpoint::Responses, &response("incomplete"), 1), Err(NotKept::Unfinished));
        assert!(read(Endpoint::Embeddings, &json!({"data": [{"embedding": [0.1]}]}), 1).is_ok());
    }

    #[test]
    fn a_reply_has_its_own_id_and_time() {
        let answer = read(Endpoint::ChatCompletions, &chat(&"stop".into()), 1).unwrap();
        assert_eq!(answer.usage(), Some(Usage { input_tokens: 3, output_tokens: 2 }));
        let reply = answer.reply("b", 2);
        assert_eq!((&reply["id"], &reply["created"]), (&json!("b"), &json!(2)));
        assert_eq!(reply["choices"], answer.body["choices"]);
    }
}
