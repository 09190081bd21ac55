// The cases of npm's ai with @ai-sdk/anthropic, which reads ANTHROPIC_BASE_URL
// another way than @anthropic-ai/sdk does.
import { generateText, streamText } from 'ai';
import { anthropic } from '@ai-sdk/anthropic';
import { texts } from './ai-openai.mjs';

const ask = { model: anthropic('claude-sonnet-4-5'), prompt: 'Say hello.' };

export async function chat() {
  const { text } = await generateText(ask);
  return { text };
}

export async function stream(collect) {
  return collect(texts(streamText({ ...ask, onError() {} })));
}
