"""python -m serving RUN [--port 8000]: serve a trained model by OpenAI's API.

    curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "One day"}'
    OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none").completions.create(model=…, prompt="One day")

docs/serving.md says how it works. The API key, if one is wanted, is in SLM_API_KEY or in a file, never on the command
line, which other users of the machine can read.
"""

import dataclasses
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from common import cli, files

KEY_VARIABLE = "SLM_API_KEY"


@dataclasses.dataclass(frozen=True)
class Options:
    """Serve a trained model: completions and, if it has a chat template, chats."""

    run: tyro.conf.Positional[Path] = Path("runs/quickstart")
    """A run of train.py or of python -m alignment, or a model in Hugging Face's layout."""
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 lets other machines in."""
    port: int = 8000
    """The port; 0 takes a free one."""
    name: str | None = None
    """The model's name in the API (the name of its folder)."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """Precision of the matrices: fewer bits are read faster; int8 is for the CPU."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."""
    kernels: Literal["auto", "torch", "fused", "emulated"] = "auto"
    """Attention and norms by torch's ops, by ours (fused), or by our CUDA on the CPU (emulated, slow)."""
    cache_mb: float = 256
    """Memory for the keys and values of all texts, in MB."""
    running: int = 64
    """Texts computed at the same time; more requests wait."""
    chunk: int = 256
    """Tokens of prompts that are read in a step; fewer make the pauses of running texts shorter."""
    lookup: int = 0
    """Tokens guessed ahead by prompt lookup, such as 4: faster where texts repeat themselves; no text depends on it."""
    queue: int = 256
    """Requests that may wait; more are answered with status 429."""
    timeout: float = 600
    """Seconds after which a request is given up."""
    body_kb: int = 1024
    """Largest body of a request, in KB."""
    api_key_file: Path | None = None
    """A file with the key that requests must bring; the variable SLM_API_KEY does the same (neither: no key)."""
    allow_host: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A further name in the Host header that is served, such as that of this machine; * serves all."""
    allow_origin: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A site whose pages may use the server, such as https://example.org (none: no other site)."""
    page: Path | None = None
    """An HTML file to show at /, such as the one that python -m lens writes."""

    def __post_init__(self) -> None:
        for name in ("queue", "body_kb"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"port is {self.port}: it must be in 0..65535")
        if not self.timeout > 0:
            raise ValueError(f"timeout is {self.timeout}: it must be above 0 seconds")


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Serve until interrupted."""
    options = cli.parse(Options, argv, prog="python -m serving")
    key = api_key(options.api_key_file)
    if options.page is not None and not options.page.is_file():
        raise FileNotFoundError(
            f"{options.page} is no file: write one with python -m lens RUN --out {options.page}"
        )
    listening = listen(options.host, options.port)
    with listening:
        serve(options, key, listening)


def api_key(path: Path | None) -> str | None:
    """Return the key in the file, else that in the environment, else None; ValueError for an empty one."""
    key = os.environ.get(KEY_VARIABLE) if path is None else files.read_text(path).strip()
    if key is None:
        return None
    if not key or not key.isascii() or any(letter.isspace() for letter in key):
        raise ValueError(
            f"the API key in {path or KEY_VARIABLE} is empty or holds blanks or letters beyond ASCII: write another"
        )
    return key


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; ValueError if the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise ValueError(
            f"cannot listen on {host}:{port} ({error.strerror}): another program may use the port; choose another "
            "--port, or 0 for a free one"
        ) from None


def serve(options: Options, key: str | None, listening: socket.socket) -> None:
    """Load the model and answer requests on the socket."""
    import uvicorn

    import kernels
    from inference.chat import ChatTemplate
    from inference.text import TextModel
    from serving.engine import Engine
    from serving.http import Access, Server
    from serving.scheduler import Limits

    with kernels.use(options.kernels):
        text_model = TextModel.load(options.run, options.device, options.precision)
        limits = Limits(options.cache_mb, options.running, options.chunk, options.lookup)
        engine = Engine(text_model, limits, options.queue)
        template = ChatTemplate.find(options.run)
        hosts = frozenset({"localhost", "127.0.0.1", "::1", options.host, *options.allow_host})
        access = Access(hosts, key, options.allow_origin, options.body_kb * 1024, options.timeout)
        name = options.name or options.run.resolve().name
        app = Server(engine, name, template, access, options.page and str(options.page)).app()
        print(greeting(name, listening, template is not None, key is not None), flush=True)
        engine.start()
        try:
            config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5, lifespan="off")
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            engine.close()


def greeting(name: str, listening: socket.socket, chats: bool, has_key: bool) -> str:
    """Return the line that says what is served and where."""
    host, port = listening.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    what = "completions and chats" if chats else "completions (no chat template)"
    return f"{name}: {what} at http://{host}:{port}/v1, {'with' if has_key else 'without'} an API key"


if __name__ == "__main__":
    main()
