// Node's server as an upstream: it answers each request with the digest of what
// it saw, in the form that message_test.go describes.
const crypto = require('crypto');
const fs = require('fs');
const https = require('https');

const between = ['connection', 'content-length', 'transfer-encoding', 'te', 'keep-alive', 'expect', 'upgrade', 'trailer'];

function seen(req, body) {
  const kept = [];
  for (let i = 0; i < req.rawHeaders.length; i += 2) {
    const name = req.rawHeaders[i].toLowerCase();
    if (!between.includes(name)) kept.push([name, req.rawHeaders[i + 1]]);
  }
  kept.sort((a, b) => (a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : 0));
  const fields = kept.map(([n, v]) => `${n}: ${v}\n`).join('');
  const sum = crypto.createHash('sha256').update(body).digest('hex');
  return Buffer.from(`${req.method}\n${req.url}\n${fields}${body.length} bytes ${sum}\n`, 'latin1');
}

const [certFile, keyFile] = process.argv.slice(2);
const options = {
  cert: fs.readFileSync(certFile), key: fs.readFileSync(keyFile),
  maxHeaderSize: 256 << 10, requestTimeout: 0, headersTimeout: 0, keepAliveTimeout: 3600e3,
};
const server = https.createServer(options, (req, res) => {
  const parts = [];
  req.on('data', (p) => parts.push(p));
  req.on('end', () => {
    if (!req.complete) return;
    const text = seen(req, Buffer.concat(parts));
    res.setHeader('X-Saw', crypto.createHash('sha256').update(text).digest('hex'));
    res.end(text.subarray(0, 4096));
  });
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
process.stdin.on('end', () => process.exit(0)).resume(); // ends with the test, however that ends
