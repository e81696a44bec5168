//! A streamed reply put together into the answer that the same request without `stream` would have got.

use super::answer::{Answer, NotKept};
use super::identity::Endpoint;
use super::sse::Event;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Members of a delta that are said anew, not continued.
const REPEATED: [&str; 4] = ["index", "type", "role", "id"];

/// Puts an answer together, event by event.
#[derive(Debug)]
pub(crate) struct Assembler {
    endpoint: Endpoint,
    /// Members of the chunks beside choices.
    head: Map<String, Value>,
    choices: BTreeMap<u64, Map<String, Value>>,
    /// The whole answer, where the stream ends with it.
    whole: Option<Map<String, Value>>,
    is_done: bool,
    failed: Option<NotKept>,
    bytes: usize,
    bytes_max: usize,
}

impl Assembler {
    /// Gives up an answer whose events have more than `bytes_max` bytes.
    pub(crate) fn new(endpoint: Endpoint, bytes_max: usize) -> Self {
        Assembler {
            endpoint,
            head: Map::new(),
            choices: BTreeMap::new(),
            whole: None,
            is_done: false,
            failed: None,
            bytes: 0,
            bytes_max,
        }
    }

    /// Takes the next event. After a failure nothing is taken any more, and nothing held.
    pub(crate) fn take(&mut self, event: &Event) {
        if self.failed.is_some() {
            return;
        }
        self.bytes += event.data.len();
        let taken = match self.bytes > self.bytes_max {
            true => Err(NotKept::TooLarge),
            false => self.try_take(event),
        };
        if let Err(why) = taken {
            self.failed = Some(why);
            self.choices.clear();
            self.head.clear();
            self.whole = None;
        }
    }

    /// The answer, at the end of the stream.
    pub(crate) fn finish(self, count: u64) -> Result<Answer, NotKept> {
        if let Some(why) = self.failed {
            return Err(why);
        }
        if !self.is_done {
            return Err(NotKept::CutOff);
        }
        if let Some(whole) = self.whole {
            return Answer::new(self.endpoint, whole, count);
        }
        let mut body = self.head;
        let is_chat = self.endpoint == Endpoint::ChatCompletions;
        body.insert("object".into(), if is_chat { "chat.completion" } else { "text_completion" }.into());
        let are_all_there = self.choices.keys().copied().eq(0..self.choices.len() as u64);
        if !are_all_there {
            return Err(NotKept::Missing);
        }
        let choices = self.choices.into_iter().map(|(index, choice)| close(index, choice, is_chat)).collect();
        body.insert("choices".into(), Value::Array(choices));
        Answer::new(self.endpoint, body, count)
    }

    fn try_take(&mut self, event: &Event) -> Result<(), NotKept> {
        if event.data == "[DONE]" {
            self.is_done = true;
            return Ok(());
        }
        let Ok(Value::Object(mut chunk)) = serde_json::from_str(&event.data) else {
            return Err(NotKept::Shape);
        };
        if self.endpoint == Endpoint::Responses {
            return self.take_response(chunk);
        }
        // After its end a stream says nothing more.
        if self.is_done {
            return Err(NotKept::Shape);
        }
        if chunk.get("error").is_some_and(|error| !error.is_null()) {
            return Err(NotKept::Error);
        }
        let choices = match chunk.remove("choices") {
            Some(Value::Array(choices)) => choices,
            None | Some(Value::Null) => Vec::new(),
            Some(_) => return Err(NotKept::Shape),
        };
        for (name, value) in chunk {
            if !value.is_null() || !self.head.contains_key(&name) {
                self.head.insert(name, value);
            }
        }
        for choice in choices {
            let Value::Object(mut choice) = choice else { return Err(NotKept::Shape) };
            let index = choice.remove("index").and_then(|index| index.as_u64()).unwrap_or(0);
            if let Some(delta) = choice.remove("delta") {
                choice.insert("message".into(), delta);
            }
            merge(self.choices.entry(index).or_default(), choice)?;
        }
        Ok(())
    }

    /// The last event of such a stream has all of the answer.
    fn take_response(&mut self, mut event: Map<String, Value>) -> Result<(), NotKept> {
        match event.get("type").and_then(Value::as_str) {
            Some("response.completed") => {
                let Some(Value::Object(response)) = event.remove("response") else {
                    return Err(NotKept::Shape);
                };
                self.whole = Some(response);
                self.is_done = true;
                Ok(())
            }
            Some("response.failed" | "error") => Err(NotKept::Error),
            Some("response.incomplete") => Err(NotKept::Unfinished),
            _ => Ok(()),
        }
    }
}

/// A choice as a plain reply has it.
fn close(index: u64, mut choice: Map<String, Value>, is_chat: bool) -> Value {
    choice.insert("index".into(), index.into());
    if is_chat {
        let message = choice.entry("message").or_insert_with(|| json!({}));
        if let Value::Object(message) = message {
            message.entry("role").or_insert_with(|| "assistant".into());
            message.entry("content").or_insert(Value::Null);
            if let Some(Value::Array(calls)) = message.get_mut("tool_calls") {
                for call in calls.iter_mut().filter_map(Value::as_object_mut) {
                    call.remove("index");
                }
            }
        }
    }
    Value::Object(choice)
}

/// Continues `known` by what a delta says: text and lists go on, objects member by member, all else is replaced.
/// Items of a list that have an index continue the item of that index.
fn merge(known: &mut Map<String, Value>, delta: Map<String, Value>) -> Result<(), NotKept> {
    for (name, more) in delta {
        let Some(old) = known.get_mut(&name).filter(|old| !old.is_null()) else {
            let fresh = match more {
                Value::Array(items) => Value::Array(merge_items(Vec::new(), items)?),
                other => other,
            };
            known.insert(name, fresh);
            continue;
        };
        match (old, more) {
            (_, Value::Null) => {}
            (old, more) if REPEATED.contains(&name.as_str()) => *old = more,
            (Value::String(text), Value::String(more)) => {
                // Some repeat the whole name of a function in every chunk.
                if name != "name" || *text != more {
                    text.push_str(&more);
                }
            }
            (Value::Object(old), Value::Object(more)) => merge(old, more)?,
            (Value::Array(items), Value::Array(more)) => *items = merge_items(std::mem::take(items), more)?,
            (old @ (Value::Number(_) | Value::Bool(_)), more @ (Value::Number(_) | Value::Bool(_))) => {
                *old = more;
            }
            _ => return Err(NotKept::Shape),
        }
    }
    Ok(())
}

fn merge_items(mut items: Vec<Value>, more: Vec<Value>) -> Result<Vec<Value>, NotKept> {
    let index_of = |item: &Value| item.get("index").and_then(Value::as_u64);
    for item in more {
        let at = index_of(&item).and_then(|index| items.iter().position(|old| index_of(old) == Some(index)));
        match (at, item) {
            (Some(at), Value::Object(item)) => {
                let Value::Object(old) = &mut items[at] else { return Err(NotKept::Shape) };
                merge(old, item)?;
            }
            (_, item) => items.push(item),
        }
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assemble(chunks: &[Value], is_done: bool) -> Result<Map<String, Value>, NotKept> {
        let mut assembler = Assembler::new(Endpoint::ChatCompletions, 100_000);
        for chunk in chunks {
            assembler.take(&Event { name: None, data: chunk.to_string() });
        }
        if is_done {
            assembler.take(&Event { name: None, data: "[DONE]".to_owned() });
        }
        assembler.finish(1).map(|answer| answer.body)
    }

    fn delta(delta: impl Into<Value>, reason: impl Into<Value>) -> Value {
        json!({"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m",
               "choices": [{"index": 0, "delta": delta.into(), "finish_reason": reason.into()}]})
    }

    #[test]
    fn chunks_become_one_answer() {
        let chunks = [
            delta(json!({"role": "assistant", "content": ""}), json!(null)),
            delta(json!({"content": "Hel"}), json!(null)),
            delta(json!({"role": "assistant", "content": "lo"}), json!(null)),
            delta(
                json!({"tool_calls": [
                    {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}},
                    {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{"}},
                ]}),
                json!(null),
            ),
            delta(
                json!({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "}"}}]}),
                json!(null),
            ),
            delta(
                json!({"tool_calls": [{"index": 1, "id": "b", "function": {"arguments": "[]"}}]}),
                json!(null),
            ),
            delta(json!({}), json!("tool_calls")),
            json!({"id": "a", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}),
        ];
        let body = assemble(&chunks, true).unwrap();
        let message = &body["choices"][0]["message"];
        assert_eq!(message["content"], "Hello");
        assert_eq!(message["role"], "assistant");
        let call = |id: &str, name: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        assert_eq!(message["tool_calls"], json!([call("b", "g", "[]"), call("a", "f", "{}")]));
        assert_eq!(body["choices"][0]["finish_reason"], "tool_calls");
        assert_eq!(
            (&body["object"], &body["usage"]["prompt_tokens"]),
            (&json!("chat.completion"), &json!(1))
        );
    }

    #[test]
    fn what_is_not_whole_is_no_answer() {
        let text = || delta(json!({"content": "a"}), json!(null));
        let end = || delta(json!({}), json!("stop"));
        assert!(assemble(&[text(), end()], true).is_ok());
        assert_eq!(assemble(&[text(), end()], false), Err(NotKept::CutOff));
        assert_eq!(assemble(&[text()], true), Err(NotKept::Unfinished));
        assert_eq!(assemble(&[], true), Err(NotKept::Missing));
        assert_eq!(assemble(&[text(), json!({"error": {"message": "x"}}), end()], true), Err(NotKept::Error));
        assert_eq!(assemble(&[text(), json!("x"), end()], true), Err(NotKept::Shape));
        let large = delta(json!({"content": "x".repeat(100_000)}), json!(null));
        assert_eq!(assemble(&[large, end()], true), Err(NotKept::TooLarge));
        let second_only =
            json!({"choices": [{"index": 1, "delta": {"content": "a"}, "finish_reason": "stop"}]});
        assert_eq!(assemble(&[second_only], true), Err(NotKept::Missing));
    }
}
