// Talks to a base URL by the official package, and prints what it got, one line of JSON for each step.
// Without ids and times, which a kept answer has of its own.

import OpenAI from "openai";

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 30_000 });
const messages = [{ role: "user", content: "What is the capital of Germany?" }];
const tool = { type: "function", function: { name: "look_up", parameters: { type: "object", properties: {} } } };
const own = ["id", "created", "created_at", "system_fingerprint", "dev_headers"];

const strip = (value) => {
  if (Array.isArray(value)) return value.map(strip);
  if (value === null || typeof value !== "object") return value;
  const members = Object.entries(value).filter(([name, inner]) => !own.includes(name) && inner !== null);
  return Object.fromEntries(members.sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, inner]) => [name, strip(inner)]));
};
const say = (step, value) => console.log(JSON.stringify([step, strip(value)]));
const chat = (body, options) => client.chat.completions.create({ model: "dev", messages, ...body }, options);

say("plain", await chat({}));
say("json", await chat({ response_format: { type: "json_object" } }));
say("two", await chat({ n: 2 }));
say("tools", await chat({ tools: [tool] }));

let text = "";
let usage;
for await (const chunk of await chat({ model: "dev-s", stream: true, stream_options: { include_usage: true } })) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
say("stream", [text, usage]);
const runner = client.chat.completions.stream({ model: "dev-t", messages, tools: [tool] });
const call = (await runner.finalChatCompletion()).choices[0].message.tool_calls[0];
say("tools streamed", [call.function.name, call.function.arguments]);

const stopped = await chat({ model: "dev-c", stream: true });
for await (const chunk of stopped) {
  void chunk;
  break;
}
stopped.controller.abort();
say("cancelled", await chat({ model: "dev-c" }));

say("completion", await client.completions.create({ model: "dev", prompt: "c d" }));
say("embeddings", await client.embeddings.create({ model: "dev", input: ["c", "d"], encoding_format: "float" }));
say("response", (await client.responses.create({ model: "dev", input: "c d" })).output_text);
let deltas = "";
const responses = client.responses.stream({ model: "dev-r", input: "c d" });
for await (const event of responses) {
  if (event.type === "response.output_text.delta") deltas += event.delta;
}
say("response streamed", [deltas, (await responses.finalResponse()).output_text]);

for (const model of ["fail-400", "fail-401", "fail-404", "fail-429", "fail-500"]) {
  try {
    await chat({ model });
    say(model, "no error");
  } catch (error) {
    say(model, [error.constructor.name, error.status, error.error]);
  }
}
try {
  await chat({ model: "hang" }, { timeout: 500 });
  say("hang", "no error");
} catch (error) {
  say("hang", error.constructor.name);
}
try {
  for await (const chunk of await chat({ model: "cut", stream: true })) void chunk;
  say("cut", "no error");
} catch (error) {
  say("cut", "an error");
}
const models = [];
for await (const model of client.models.list()) models.push(model.id);
say("models", models);
