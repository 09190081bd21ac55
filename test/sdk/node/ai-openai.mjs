// The cases of npm's ai with @ai-sdk/openai. Its default is the Responses API;
// chat completions are asked for by name.
import { embed, generateText, streamText } from 'ai';
import { openai } from '@ai-sdk/openai';

const prompt = 'Say hello.';

export async function chat() {
  const { text } = await generateText({ model: openai.chat('gpt-4o-mini'), prompt });
  return { text };
}

export async function stream(collect) {
  return collect(texts(streamText({ model: openai.chat('gpt-4o-mini'), prompt, onError() {} })));
}

export async function responses() {
  const { text } = await generateText({ model: openai('gpt-4o-mini'), prompt });
  return { text };
}

export async function embeddings() {
  const { embedding } = await embed({ model: openai.embedding('text-embedding-3-small'), value: 'hello' });
  return { text: `${embedding.length} dimensions`, items: embedding.length };
}

// texts yields what arrives and throws the stream's error, which textStream leaves out.
export async function* texts({ fullStream }) {
  for await (const part of fullStream) {
    if (part.type === 'error') throw part.error;
    if (part.type === 'text-delta') yield part.text;
  }
}
