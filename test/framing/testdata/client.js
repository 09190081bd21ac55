// Node's client: each line of standard input asks for requests one after
// another, on one connection as far as the answers allow; each line of standard
// output says what came of them.
const http = require('http');
const readline = require('readline');

function one(agent, port, step) {
  return new Promise((resolve) => {
    const failed = (e) => resolve({ error: String(e) });
    const req = http.request({ agent, host: '127.0.0.1', port, method: step.method, path: step.path, timeout: 60e3 }, (res) => {
      const parts = [];
      res.on('data', (p) => parts.push(p));
      res.on('error', failed).on('aborted', () => failed('aborted'));
      res.on('end', () => {
        if (!res.complete) return failed('incomplete');
        resolve({ status: res.statusCode, nonce: res.headers['x-nonce'] || '', body: Buffer.concat(parts).toString('base64') });
      });
    });
    req.on('error', failed).on('timeout', () => req.destroy(new Error('timeout')));
    req.end();
  });
}

readline.createInterface({ input: process.stdin }).on('line', async (line) => {
  const { id, port, steps } = JSON.parse(line);
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  const results = [];
  for (const step of steps) results.push(await one(agent, port, step));
  agent.destroy();
  console.log(JSON.stringify({ id, results }));
}).on('close', () => process.exit(0));
