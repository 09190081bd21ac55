// What a web page can do to make its browser send a request to an address that
// it names. Each attempt's name is the last segment of the path that it asks for.
"use strict";

const ask = new URLSearchParams(location.search);
const target = ask.get("target"); // ends with "/"
const home = ask.get("home"); // where the page's own server answers
const body = '{"model":"x","messages":[{"role":"user","content":"?"}]}';

const attempts = {};
const fetches = (name, init) => { attempts[name] = u => fetch(u, init); };

// fetch: simple, preflighted, opaque.
fetches("fetch", {});
fetches("fetch-no-cors", { mode: "no-cors" });
fetches("fetch-credentials", { credentials: "include" });
fetches("fetch-no-referrer", { referrerPolicy: "no-referrer" });
fetches("fetch-post-text", { method: "POST", mode: "no-cors", body, headers: { "Content-Type": "text/plain" } });
fetches("fetch-post-json", { method: "POST", body, headers: { "Content-Type": "application/json" } });
fetches("fetch-key", { headers: { Authorization: "Bearer attached-by-postern" } });
fetches("fetch-delete", { method: "DELETE" });
fetches("fetch-keepalive", { method: "POST", mode: "no-cors", keepalive: true, body });
fetches("fetch-local", { targetAddressSpace: "local" });
fetches("fetch-loopback", { targetAddressSpace: "loopback" });
fetches("fetch-low-priority", { mode: "no-cors", priority: "low", cache: "reload" });
attempts["fetch-later"] = u => fetchLater(u, { method: "POST", body, activateAfter: 0 });
attempts["xhr"] = u => new Promise(end => {
  const x = new XMLHttpRequest();
  x.onloadend = end;
  x.open("POST", u);
  x.setRequestHeader("Content-Type", "text/plain");
  x.send(body);
});
attempts["beacon"] = u => navigator.sendBeacon(u, body);
attempts["beacon-json"] = u => navigator.sendBeacon(u, new Blob([body], { type: "application/json" }));
attempts["event-source"] = u => closes(new EventSource(u));
attempts["event-source-credentials"] = u => closes(new EventSource(u, { withCredentials: true }));
attempts["websocket"] = u => closes(new WebSocket(u.replace(/^http/, "ws"), ["realtime", "openai-beta.realtime-v1"]));

// What loads by itself.
const element = (name, tag, set, parent = document.body) => {
  attempts[name] = u => new Promise(end => {
    const e = document.createElement(tag);
    e.onload = e.onerror = end;
    set(e, u);
    parent.append(e);
  });
};
element("img", "img", (e, u) => { e.src = u; });
element("img-cors", "img", (e, u) => { e.crossOrigin = "use-credentials"; e.src = u; });
element("img-srcset", "img", (e, u) => { e.srcset = u + " 1x"; });
element("input-image", "input", (e, u) => { e.type = "image"; e.src = u; });
element("script", "script", (e, u) => { e.src = u; });
element("script-module", "script", (e, u) => { e.type = "module"; e.src = u; });
element("audio", "audio", (e, u) => { e.preload = "auto"; e.src = u; });
element("video-poster", "video", (e, u) => { e.poster = u; });
element("track", "video", (e, u) => {
  e.crossOrigin = "anonymous";
  const t = document.createElement("track");
  t.default = true;
  t.src = u;
  e.append(t);
  t.track.mode = "showing";
});
element("object", "object", (e, u) => { e.data = u; });
element("embed", "embed", (e, u) => { e.src = u; });
element("iframe", "iframe", (e, u) => { e.src = u; });
element("iframe-sandbox", "iframe", (e, u) => { e.sandbox = "allow-scripts"; e.src = u; });
element("iframe-credentialless", "iframe", (e, u) => { e.credentialless = true; e.src = u; });
element("iframe-no-referrer", "iframe", (e, u) => { e.referrerPolicy = "no-referrer"; e.src = u; });
for (const rel of ["stylesheet", "icon", "prefetch", "prerender", "modulepreload", "manifest"]) {
  element("link-" + rel, "link", (e, u) => { e.rel = rel; e.href = u; }, document.head);
}
for (const as of ["fetch", "font", "image", "script", "style"]) {
  element("preload-" + as, "link", (e, u) => { e.rel = "preload"; e.as = as; e.href = u; }, document.head);
}
element("css-import", "style", (e, u) => { e.textContent = `@import url("${u}");`; });
element("css-background", "div", (e, u) => { e.style = `width: 9px; height: 9px; background: url("${u}")`; });
element("css-font", "style", (e, u) => {
  e.textContent = `@font-face { font-family: stolen; src: url("${u}"); }`;
  document.fonts.load("9px stolen").catch(() => { });
});
element("svg-image", "div", (e, u) => { e.innerHTML = `<svg><image href="${u}" width="9" height="9"/></svg>`; });
element("speculation-prefetch", "script", (e, u) => {
  e.type = "speculationrules";
  e.textContent = JSON.stringify({ prefetch: [{ source: "list", urls: [u], eagerness: "immediate" }] });
});
element("speculation-prerender", "script", (e, u) => {
  e.type = "speculationrules";
  e.textContent = JSON.stringify({ prerender: [{ source: "list", urls: [u], eagerness: "immediate" }] });
});

// Where it goes: forms, links, windows.
const frame = name => {
  const f = document.createElement("iframe");
  f.name = name;
  document.body.append(f);
  return f;
};
const form = (name, method, enctype) => {
  attempts[name] = u => new Promise(end => {
    const f = document.createElement("form");
    Object.assign(f, { method, enctype, action: u, target: "in-" + name });
    f.innerHTML = `<input name='{"model":"x","a":"' value='"}'>`;
    document.body.append(f);
    frame("in-" + name).onload = end;
    f.submit();
  });
};
form("form-get", "get", "");
form("form-post", "post", "application/x-www-form-urlencoded");
form("form-post-text", "post", "text/plain");
form("form-post-multipart", "post", "multipart/form-data");
const link = (name, set) => {
  attempts[name] = u => {
    const a = document.createElement("a");
    set(a, u);
    document.body.append(a);
    frame("in-" + name);
    a.click();
  };
};
link("link", (a, u) => { a.href = u; a.target = "in-link"; });
link("link-no-referrer", (a, u) => { a.href = u; a.rel = "noreferrer noopener"; a.target = "in-link-no-referrer"; });
link("link-ping", (a, u) => { a.href = "/nothing"; a.ping = u; a.target = "in-link-ping"; });
link("link-download", (a, u) => { a.href = u; a.download = "x"; a.target = "in-link-download"; });
attempts["window"] = u => { window.open(u); };
attempts["window-no-opener"] = u => { window.open(u, "_blank", "noopener,noreferrer"); };
attempts["window-then-location"] = u => { window.open("about:blank").location = u; };
element("meta-refresh", "iframe", (e, u) => { e.srcdoc = `<meta http-equiv="refresh" content="0;url=${u}">`; });
element("document", "iframe", (e, u) => { e.src = "/document?to=" + encodeURIComponent(u); });

// Through a redirect of the page's own server.
const via = (u, code) => `${home}/redirect?code=${code}&to=${encodeURIComponent(u)}`;
attempts["redirected-fetch"] = u => fetch(via(u, 302), { mode: "no-cors" });
attempts["redirected-post"] = u => fetch(via(u, 307), { mode: "no-cors", method: "POST", body });
element("redirected-img", "img", (e, u) => { e.src = via(u, 302); });
element("redirected-script", "script", (e, u) => { e.src = via(u, 308); });
element("redirected-iframe", "iframe", (e, u) => { e.src = via(u, 303); });
attempts["redirected-window"] = u => { window.open(via(u, 302)); };

// Without an origin of its own.
const inside = u => `<script>
  fetch(${JSON.stringify(u)}, {mode: "no-cors", method: "POST", body: "x"}).catch(() => {});
  new Image().src = ${JSON.stringify(u + "-img")};
  new WebSocket(${JSON.stringify(u.replace(/^http/, "ws") + "-websocket")});
</scr` + "ipt>";
element("null-sandbox", "iframe", (e, u) => { e.sandbox = "allow-scripts"; e.srcdoc = inside(u); });
element("null-data", "iframe", (e, u) => { e.src = "data:text/html," + encodeURIComponent(inside(u)); });
element("null-blob", "iframe", (e, u) => {
  e.sandbox = "allow-scripts";
  e.src = URL.createObjectURL(new Blob([inside(u)], { type: "text/html" }));
});

// From workers.
const text = source => URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
const reports = (w, port = w) => new Promise(end => { port.onmessage = w.onerror = end; });
attempts["worker"] = u => reports(new Worker(text(`fetch(${JSON.stringify(u)}, {mode: "no-cors"}).finally(() => postMessage(1))`)));
attempts["worker-import"] = u => reports(new Worker(text(`importScripts(${JSON.stringify(u)})`)));
attempts["worker-module"] = u => reports(new Worker(text(`import ${JSON.stringify(u)}`), { type: "module" }));
attempts["worker-script"] = u => reports(new Worker(u));
attempts["shared-worker"] = u => {
  const w = new SharedWorker(text(`onconnect = c => fetch(${JSON.stringify(u)}, {mode: "no-cors"}).finally(() => c.ports[0].postMessage(1))`));
  return reports(w, w.port);
};
attempts["service-worker-script"] = u => navigator.serviceWorker.register(u);
attempts["service-worker"] = async u => {
  const registered = await navigator.serviceWorker.register("/worker.js");
  const w = registered.installing || registered.waiting || registered.active;
  w.postMessage(u);
};

// With another protocol than HTTP.
attempts["turn"] = async u => {
  const at = new URL(u).host;
  const c = new RTCPeerConnection({ iceServers: [{ urls: `turn:${at}?transport=tcp`, username: "x", credential: "x" }] });
  c.createDataChannel("x");
  await c.setLocalDescription(await c.createOffer());
};

// closes waits for the end of a connection, and makes it.
function closes(c) {
  return new Promise(end => {
    c.onopen = c.onerror = c.onclose = () => { c.close(); end(); };
  });
}

(async () => {
  const open = new Set(Object.keys(attempts));
  const all = [...open].map(async name => {
    try {
      await attempts[name](target + name);
    } catch {
      // Refused by the browser, or by who was asked.
    }
    open.delete(name);
  });
  const limit = new Promise(end => setTimeout(end, 2000)); // for what tells nobody how it ended
  await Promise.race([limit, Promise.all(all)]);
  new Image().src = `${home}/done?` + new URLSearchParams({ page: ask.get("name"), open: [...open].join() });
})();
