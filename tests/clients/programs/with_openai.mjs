// The official `openai` client for JavaScript: prints what it got as JSON.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "hello" }];
const small = { model: "local", messages, max_tokens: 6, temperature: 0 };
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
const schema = {
  type: "object",
  properties: { capital: { type: "string" } },
  required: ["capital"],
  additionalProperties: false,
};

const whole = await client.chat.completions.create(small);
let streamed = "";
for await (const chunk of await client.chat.completions.create({ ...small, stream: true })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
}

const question = { role: "user", content: "the weather in Oslo" };
const called = (await client.chat.completions.create({ model: "cloud", messages: [question], tools })).choices[0].message;
const results = called.tool_calls.map((call) => ({ role: "tool", tool_call_id: call.id, content: "4 degrees" }));
const told = await client.chat.completions.create({ model: "cloud", messages: [question, called, ...results], tools });

const capital = await client.chat.completions.parse({
  model: "cloud",
  messages: [{ role: "user", content: "the capital of Peru" }],
  response_format: { type: "json_schema", json_schema: { name: "answer", strict: true, schema } },
});

const events = [];
for await (const event of await client.responses.create({ model: "cloud", input: "hello", stream: true })) {
  events.push(event.type);
}

let refused = null;
try {
  await client.chat.completions.create({ ...small, temperature: 9 });
} catch (error) {
  refused = error instanceof OpenAI.BadRequestError ? error.message : `${error}`;
}

console.log(
  JSON.stringify({
    whole: whole.choices[0].message.content,
    streamed,
    calls: called.tool_calls.map((call) => [call.function.name, JSON.parse(call.function.arguments)]),
    told: told.choices[0].message.content,
    capital: capital.choices[0].message.content,
    responses: (await client.responses.create({ model: "cloud", input: "hello" })).output_text,
    first_event: events[0],
    last_event: events.at(-1),
    embedding: (await client.embeddings.create({ model: "auto", input: ["a", "b"] })).data[1].embedding.length,
    refused,
  }),
);
