"""A dataset of the hub, from a hub that the test runs itself: asked once, then read from the cache."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from data.tokenfile import read_meta

COMMIT = "0" * 40
FILES = {
    "README.md": b"---\n{}\n---\n",
    "train.jsonl": b"".join(b'{"text": "Tale number %d of the hub."}\n' % i for i in range(300)),
    "validation.jsonl": b"".join(b'{"text": "Kept tale %d."}\n' % i for i in range(30)),
}


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's interface as one small dataset, me/tales, needs."""

    def do_GET(self):
        path = self.path.split("?")[0]
        name = path.rsplit("/", 1)[-1]
        if "/resolve/" in path and name in FILES:
            tag = hashlib.sha1(FILES[name]).hexdigest()
            self.answer(200, FILES[name], {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})
        elif path.endswith(f"/tree/{COMMIT}"):
            files = [{"type": "file", "path": n, "size": len(b), "oid": "1" * 40} for n, b in FILES.items()]
            self.answer(200, json.dumps(files).encode())
        elif path.startswith("/api/datasets/me/tales/revision"):
            about = {
                "id": "me/tales",
                "sha": COMMIT,
                "tags": [],
                "siblings": [{"rfilename": n} for n in FILES],
            }
            self.answer(200, json.dumps(about).encode())
        else:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def answer(self, code, body, headers=()):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def stop():
        server.shutdown()
        server.server_close()
        thread.join()

    yield server.server_port, stop
    stop()


def test_a_dataset_is_downloaded_once_and_then_read_from_the_cache(tmp_path, hub, tokenizer_path):
    port, stop = hub
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HOME": str(tmp_path / "cache"),
    }

    def run(source, out, *more):
        words = [
            "--source",
            source,
            "--tokenizer",
            tokenizer_path,
            "--workers",
            "1",
            "--out",
            str(tmp_path / out),
        ]
        command = [sys.executable, "-m", "data", "prepare", *words, *more]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    done = run("hf:me/tales", "online", "--val-source", "own")
    assert done.returncode == 0, done.stderr
    assert read_meta(tmp_path / "online").documents == {"train": 300, "val": 30}
    stop()
    done = run("hf:me/tales:validation#text", "offline", "--local-files-only", "--val-fraction", "0.3")
    assert done.returncode == 0, done.stderr
    assert sum(read_meta(tmp_path / "offline").documents.values()) == 30
    done = run("hf:me/other", "missing", "--local-files-only")
    assert done.returncode == 2 and done.stderr.startswith("error: cannot load me/other: ")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "missing").exists()
