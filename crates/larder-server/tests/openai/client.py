"""Talks to a base URL by the official package, and prints what it got, one line of JSON for each step.

Without ids and times, which a kept answer has of its own."""

import json
import sys

import openai

base_url, key = sys.argv[1:3]
client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=30)
question = [{"role": "user", "content": "What is the capital of France?"}]
tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}


def say(step, value):
    def strip(value):
        if isinstance(value, dict):
            own = ("id", "created", "created_at", "item_id", "response_id", "sequence_number")
            return {name: strip(inner) for name, inner in value.items() if name not in own}
        return [strip(inner) for inner in value] if isinstance(value, list) else value

    print(json.dumps([step, strip(value)], sort_keys=True), flush=True)


def dump(value):
    return value.model_dump(exclude_none=True, exclude={"system_fingerprint", "dev_headers"})


def text_of(chunks):
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


say("plain", dump(client.chat.completions.create(model="dev", messages=question)))
json_mode = {"type": "json_object"}
say("json", dump(client.chat.completions.create(model="dev", messages=question, response_format=json_mode)))
say("two", dump(client.chat.completions.create(model="dev", messages=question, n=2)))
say("tools", dump(client.chat.completions.create(model="dev", messages=question, tools=[tool])))

usage = {"include_usage": True}
chunks = list(client.chat.completions.create(model="dev-s", messages=question, stream=True, stream_options=usage))
last = chunks[-1].usage
say("stream", [text_of(chunks), [c.choices[0].finish_reason for c in chunks if c.choices][-1], last.model_dump(exclude_none=True)])
with client.chat.completions.stream(model="dev-t", messages=question, tools=[tool]) as stream:
    stream.until_done()
    call = stream.get_final_completion().choices[0].message.tool_calls[0]
    say("tools streamed", [call.id, call.function.name, call.function.arguments])

stopped = client.chat.completions.create(model="dev-c", messages=question, stream=True)
for chunk in stopped:
    break
stopped.close()
say("cancelled", dump(client.chat.completions.create(model="dev-c", messages=question)))

say("completion", dump(client.completions.create(model="dev", prompt="a b")))
say("embeddings", dump(client.embeddings.create(model="dev", input=["a", "b"], encoding_format="float")))
say("response", client.responses.create(model="dev", input="a b").output_text)
with client.responses.stream(model="dev-r", input="a b") as stream:
    deltas = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    say("response streamed", [deltas, stream.get_final_response().output_text])

for model in ["fail-400", "fail-401", "fail-404", "fail-429", "fail-500"]:
    try:
        client.chat.completions.create(model=model, messages=question)
        say(model, "no error")
    except openai.APIStatusError as error:
        say(model, [type(error).__name__, error.status_code, error.body])
try:
    client.with_options(timeout=0.5).chat.completions.create(model="hang", messages=question)
    say("hang", "no error")
except openai.APITimeoutError as error:
    say("hang", type(error).__name__)
try:
    list(client.chat.completions.create(model="cut", messages=question, stream=True))
    say("cut", "no error")
except Exception as error:  # The package has no name of its own for it.
    say("cut", type(error).__name__)
say("models", [model.id for model in client.models.list()])
