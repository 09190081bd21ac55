// The cases of npm's @google/genai.
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { GoogleGenAI } from '@google/genai';

const client = new GoogleGenAI({});
const ask = { model: 'gemini-2.5-flash', contents: 'Say hello.' };

export async function chat() {
  const answer = await client.models.generateContent(ask);
  return { text: answer.text };
}

export async function stream(collect) {
  const events = await client.models.generateContentStream(ask);
  return collect((async function* () {
    for await (const event of events) yield event.text;
  })());
}

export async function embeddings() {
  const answer = await client.models.embedContent({ model: 'gemini-embedding-001', contents: 'hello' });
  return { text: `${answer.embeddings[0].values.length} dimensions`, items: answer.embeddings[0].values.length };
}

// upload goes to the address that the provider answers the first request with.
export async function upload() {
  const dir = await mkdtemp(join(tmpdir(), 'postern-upload-'));
  try {
    const path = join(dir, 'notes.txt');
    const text = 'a line of the file\n'.repeat(5000);
    await writeFile(path, text);
    const file = await client.files.upload({ file: path, config: { mimeType: 'text/plain' } });
    return { text: file.name, bytes: Number(file.sizeBytes), sent: text.length };
  } finally {
    await rm(dir, { recursive: true });
  }
}
