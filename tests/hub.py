"""As much of the Hugging Face hub's interface as one small repository needs, at 127.0.0.1."""

import contextlib
import hashlib
import http.server
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

COMMIT = "0" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves the files of one repository, such as datasets/me/tales or models/me/teller."""

    repository = ""
    files: ClassVar[Mapping[str, bytes]] = {}

    def do_GET(self):
        path, files = self.path.split("?")[0], self.files
        name = path.rsplit("/", 1)[-1]
        if "/resolve/" in path and name in files:
            tag = hashlib.sha1(files[name]).hexdigest()
            self.answer(200, files[name], {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})
        elif path.endswith(f"/tree/{COMMIT}"):
            found = [{"type": "file", "path": n, "size": len(b), "oid": "1" * 40} for n, b in files.items()]
            self.answer(200, json.dumps(found).encode())
        elif path.startswith(f"/api/{self.repository}/revision"):
            siblings = [{"rfilename": n} for n in files]
            about = {"id": self.repository.partition("/")[2], "sha": COMMIT, "tags": [], "siblings": siblings}
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


@contextlib.contextmanager
def hub(
    repository: str, files: Mapping[str, bytes], cache: Path
) -> Iterator[tuple[dict[str, str], Callable[[], None]]]:
    """Serve the files; yield the environment of a process that asks it and keeps `cache`, and what stops it."""
    handler = type("OneRepository", (Hub,), {"repository": repository, "files": files})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
    }

    def stop():
        server.shutdown()
        server.server_close()
        thread.join()

    try:
        yield environment, stop
    finally:
        stop()
