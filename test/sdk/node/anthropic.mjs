// The cases of npm's @anthropic-ai/sdk.
import Anthropic from '@anthropic-ai/sdk';

const client = new Anthropic();
const ask = { model: 'claude-sonnet-4-5', max_tokens: 64, messages: [{ role: 'user', content: 'Say hello.' }] };

export async function chat() {
  const answer = await client.messages.create(ask);
  return { text: answer.content[0].text };
}

export async function stream(collect) {
  const events = await client.messages.create({ ...ask, stream: true });
  return collect((async function* () {
    for await (const event of events) yield event.delta?.text;
  })());
}

export async function models() {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  return { text: ids.join(' '), items: ids.length };
}
