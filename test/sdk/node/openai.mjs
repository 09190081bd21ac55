// The cases of npm's openai. Each returns {text, …} or throws the SDK's own error.
import OpenAI, { toFile } from 'openai';

const client = new OpenAI();
const ask = { model: 'gpt-4o-mini', messages: [{ role: 'user', content: 'Say hello.' }] };

export async function chat() {
  const answer = await client.chat.completions.create(ask);
  return { text: answer.choices[0].message.content };
}

export async function stream(collect) {
  const events = await client.chat.completions.create({ ...ask, stream: true });
  return collect((async function* () {
    for await (const event of events) yield event.choices[0]?.delta?.content;
  })());
}

export async function responses() {
  const answer = await client.responses.create({ model: 'gpt-4o-mini', input: 'Say hello.' });
  return { text: answer.output_text };
}

export async function embeddings() {
  const answer = await client.embeddings.create({ model: 'text-embedding-3-small', input: 'hello' });
  return { text: `${answer.data[0].embedding.length} dimensions`, items: answer.data[0].embedding.length };
}

export async function models() {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  return { text: ids.join(' '), items: ids.length };
}

export async function upload() {
  const lines = '{"custom_id":"1","method":"POST","url":"/v1/chat/completions","body":{}}\n'.repeat(2000);
  const file = await client.files.create({ purpose: 'batch', file: await toFile(Buffer.from(lines), 'batch.jsonl') });
  return { text: file.id, bytes: file.bytes, sent: lines.length };
}
