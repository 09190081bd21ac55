// Runs cases against whatever the environment points the SDKs at, and prints
// JSON lines: one {"name", "ok", …} for each case, and while a case streams one
// {"name", "event": "chunk"} at its first chunk, so that a test which holds the
// rest of the answer back can let go of it.
//
//   node run.mjs openai/chat openai/stream …
//
// Nothing is configured here: base URLs, keys, proxies and CAs come from the
// environment alone, as they do in an application.
import { subscribe } from 'node:diagnostics_channel';

const sdks = new Map();
const requests = []; // of the case that runs

// fetch reports each request it makes, retries included. The CONNECT to a
// proxy is not one of them.
subscribe('undici:request:create', ({ request }) => {
  if (request.method !== 'CONNECT') requests.push(`${request.method} ${request.path}`);
});

const print = (line) => process.stdout.write(JSON.stringify(line) + '\n');

// collector returns a function that reads a case's stream of texts to its end.
function collector(name) {
  return async (texts) => {
    const chunks = [];
    for await (const text of texts) {
      if (!text) continue;
      if (chunks.length === 0) print({ name, event: 'chunk' });
      chunks.push(text);
    }
    return { text: chunks.join(''), chunks: chunks.length };
  };
}

// describe tells what an application can learn of an error. A wrapper that
// gave up after retries names the last error in its own message.
function describe(err) {
  return {
    type: err.name && err.name !== 'Error' ? err.name : err.constructor.name,
    status: err.status ?? err.statusCode ?? err.lastError?.statusCode ?? 0,
    message: err.message,
    cause: [err.cause?.message, err.cause?.cause?.message].filter(Boolean).join(': ') || undefined,
  };
}

async function run(name) {
  requests.length = 0;
  try {
    const [sdk, kind] = name.split('/');
    if (!sdks.has(sdk)) sdks.set(sdk, await import(`./${sdk}.mjs`));
    const result = await sdks.get(sdk)[kind](collector(name));
    print({ name, ok: true, ...result, attempts: requests.length, requests });
  } catch (err) {
    print({ name, ok: false, error: describe(err), attempts: requests.length, requests });
  }
}

for (const name of process.argv.slice(2)) await run(name);
