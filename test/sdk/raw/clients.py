"""Raw HTTP clients against whatever the environment points them at.

    clients.py httpx/chat httpx/stream requests/chat … curl/stream

Prints JSON lines: one {"name", "ok", …} for each case, and while a case streams
one {"name", "event": "chunk"} at its first chunk. Base URL, key, proxy and CA
come from the environment alone. aiohttp reads proxies only with trust_env=True,
so that one setting stands in the code, as its users have to write it.
"""

import asyncio
import json
import os
import subprocess
import sys

BASE = os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1")
URL = BASE + "/chat/completions"
HEADERS = {
    "Authorization": "Bearer " + os.environ["OPENAI_API_KEY"],
    "Content-Type": "application/json",
}


def body(stream):
    messages = [{"role": "user", "content": "Say hello."}]
    return json.dumps({"model": "gpt-4o-mini", "messages": messages, "stream": stream})


class Failed(Exception):
    """An answer that is not a success."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class Answer:
    """Gathers one case's answer."""

    def __init__(self, name):
        self.name, self.text, self.chunks = name, "", 0

    def whole(self, status, text):
        """An answer that came in one piece, as every error does."""
        answer = json.loads(text)
        if status != 200:
            raise Failed(status, answer["error"]["message"])
        self.text = answer["choices"][0]["message"]["content"]

    def line(self, line):
        """One line of a streamed answer."""
        data = line.strip().removeprefix("data: ")
        if not data or data == "[DONE]":
            return
        choices = json.loads(data)["choices"]
        text = choices and choices[0]["delta"].get("content")
        if not text:
            return
        if self.chunks == 0:
            emit({"name": self.name, "event": "chunk"})
        self.chunks += 1
        self.text += text


def emit(line):
    print(json.dumps(line), flush=True)


def by_httpx(answer, stream):
    import httpx

    with httpx.Client(timeout=60) as client:
        with client.stream("POST", URL, headers=HEADERS, content=body(stream)) as r:
            if not stream or r.status_code != 200:
                return answer.whole(r.status_code, r.read())
            for line in r.iter_lines():
                answer.line(line)


def by_requests(answer, stream):
    import requests

    r = requests.post(URL, headers=HEADERS, data=body(stream), stream=stream, timeout=60)
    if not stream or r.status_code != 200:
        return answer.whole(r.status_code, r.content)
    for line in r.iter_lines(chunk_size=None):
        answer.line(line.decode())


def by_aiohttp(answer, stream):
    import aiohttp

    async def go():
        async with aiohttp.ClientSession(trust_env=True) as session:
            async with session.post(URL, headers=HEADERS, data=body(stream)) as r:
                if not stream or r.status != 200:
                    return answer.whole(r.status, await r.read())
                async for line in r.content:
                    answer.line(line.decode())

    asyncio.run(go())


def by_curl(answer, stream):
    command = ["curl", "-sS", "-N", "--max-time", "60", "-w", "\n%{http_code}", "--data-binary", body(stream), URL]
    for name, value in HEADERS.items():
        command += ["-H", f"{name}: {value}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = []
    for line in process.stdout:
        if stream and line.startswith("data: "):
            answer.line(line)
        lines.append(line)
    if process.wait() != 0:
        raise RuntimeError(process.stderr.read().strip())
    if not stream or lines[-1] != "200":
        answer.whole(int(lines[-1]), "".join(lines[:-1]))


CLIENTS = {"httpx": by_httpx, "requests": by_requests, "aiohttp": by_aiohttp, "curl": by_curl}


def run(name):
    client, kind = name.split("/")
    answer = Answer(name)
    try:
        CLIENTS[client](answer, {"chat": False, "stream": True}[kind])
    except Exception as err:  # whatever it is, it is this case's result
        error = {"type": type(err).__name__, "status": getattr(err, "status", 0), "message": str(err)}
        return emit({"name": name, "ok": False, "error": error})
    emit({"name": name, "ok": True, "text": answer.text, "chunks": answer.chunks})


if __name__ == "__main__":
    for case in sys.argv[1:]:
        run(case)
