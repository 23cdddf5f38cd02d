// Asks a server of ours by the npm package `openai`, and prints what it heard as one JSON document.
// node client.mjs BASE_URL KEY, in a folder where `openai` is installed.
import OpenAI from "openai";

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "hello there" }];
const heard = {};

heard.models = [];
for await (const model of client.models.list()) heard.models.push(model.id);
heard.answer = (await client.chat.completions.create({ model: "say", messages })).choices[0].message.content;
heard.pieces = [];
const stream = await client.chat.completions.create({ model: "say", messages, stream: true });
for await (const chunk of stream) heard.pieces.push(chunk.choices[0]?.delta?.content ?? "");
heard.vectors = (await client.embeddings.create({ model: "fold", input: ["a", "b"] })).data.map((row) => row.embedding);
heard.refused = {};
for (const [name, told] of Object.entries({
  unknown: { model: "nobody", messages },
  nonsense: { model: "say", messages, max_tokens: -1 },
})) {
  try {
    await client.chat.completions.create(told);
  } catch (error) {
    heard.refused[name] = { kind: error.constructor.name, status: error.status, code: error.code };
  }
}
console.log(JSON.stringify(heard));
