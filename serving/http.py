"""The server: OpenAI's routes over the engine, by Starlette.

    GET  /v1/models             POST /v1/completions        POST /v1/chat/completions
    GET  /health                GET  /metrics               GET  /    (the file of --page)

Every answer but those of /health, /metrics and / is JSON in OpenAI's form, errors included; no stack trace leaves. A
client that closes its connection ends its requests.
"""

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inference.chat import ChatTemplate
from serving.engine import Engine, EngineError, Piece, QueueFull, Ticket
from serving.metrics import Metrics
from serving.protocol import Call, Refusal, Writer, encode, joined, parse_json, read_call

LEFT = 499  # the status that nginx gives to clients that closed the connection
OPEN_PATHS = ("/health",)  # without a key, for whatever watches over the server


@dataclass(frozen=True)
class Access:
    """Who may ask, and for how much."""

    hosts: frozenset[str]
    """Names in a Host header that are served; a page of another site cannot reach the server by a name of its own."""
    api_key: str | None = None
    origins: tuple[str, ...] = ()
    """Sites whose pages may read the answers (CORS)."""
    body_bytes: int = 1 << 20
    timeout: float = 600.0
    """Seconds for one request."""


@dataclass
class Server:
    """What the routes share."""

    engine: Engine
    name: str
    template: ChatTemplate | None
    access: Access
    page: str | None = None
    metrics: Metrics = field(default_factory=Metrics)
    started: int = field(default_factory=lambda: int(time.time()))

    def app(self) -> ASGIApp:
        """Return the application."""
        routes = [
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/completions", self.answering(chat=False), methods=["POST"]),
            Route("/v1/chat/completions", self.answering(chat=True), methods=["POST"]),
            Route("/health", self.health),
            Route("/metrics", self.tell_metrics),
        ]
        if self.page is not None:
            routes.append(Route("/", self.show_page))
        middleware = [Middleware(Guard, access=self.access, metrics=self.metrics)]
        if self.access.origins:
            origins = list(self.access.origins)
            middleware.insert(
                0, Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
            )
        handlers = {
            Refusal: _refused,
            ClientDisconnect: _gone,
            HTTPException: _failed,
            Exception: _broken,
        }
        return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)

    # ---- routes

    async def models(self, request: Request) -> Response:
        """List the one model."""
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """Describe the model by its name."""
        name = request.path_params["name"]
        if name != self.name:
            message = f"the model {name[:60]!r} does not exist: this server has {self.name!r}"
            raise Refusal(message, "model", status=404, code="model_not_found")
        return _json(self._model())

    def _model(self) -> dict[str, Any]:
        context = self.engine.text_model.model.config.block_size
        return {
            "id": self.name,
            "object": "model",
            "created": self.started,
            "owned_by": "slm",
            "max_model_len": context,
        }

    async def health(self, request: Request) -> Response:
        """Say that the server runs."""
        return _json({"status": "ok"})

    async def tell_metrics(self, request: Request) -> Response:
        """Tell Prometheus what was counted."""
        return PlainTextResponse(
            self.metrics.text(self.engine), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    async def show_page(self, request: Request) -> Response:
        """Show the page that --page names."""
        return FileResponse(self.page, media_type="text/html")

    def answering(self, *, chat: bool) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the route that completes prompts or chats."""

        async def answer(request: Request) -> Response:
            start = time.perf_counter()
            content = parse_json(await _body(request, self.access.body_bytes))
            # encoding a long text takes a while: meanwhile others are served
            call = await asyncio.to_thread(
                read_call, content, self.engine.text_model, self.template, self.name, chat=chat
            )
            writer = Writer(call, self.engine.text_model.tokenizer)
            tickets = self._submit(call)
            if call.stream:
                events = self._events(writer, tickets, start)
                return StreamingResponse(
                    events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
                )
            return await self._whole(request, writer, tickets, start)

        return answer

    def _submit(self, call: Call) -> list[Ticket]:
        """Queue the requests of a call, all of them or none."""
        tickets: list[Ticket] = []
        try:
            for each in call.requests:
                tickets.append(self.engine.submit(each, call.stops))
        except ValueError as error:  # the same for all of them, so none is queued yet
            raise Refusal(str(error), "n") from None
        except QueueFull:
            for ticket in tickets:
                ticket.cancel()
            message = f"{self.engine.queue} requests wait already: try again later"
            raise Refusal(message, status=429, kind="rate_limit_error", code="queue_full") from None
        return tickets

    async def _pieces(self, tickets: list[Ticket], start: float) -> AsyncIterator[tuple[int, list[Piece]]]:
        """Yield the number of a prompt and pieces of its texts, as they come; when this is closed, they end."""
        late = EngineError(f"the request took longer than {self.access.timeout:g} seconds", 504)
        loop = asyncio.get_running_loop()
        clocks = [loop.call_later(self.access.timeout, ticket.fail, late) for ticket in tickets]
        is_first = True
        try:
            async for number, pieces in _merged(tickets):
                if is_first:
                    self.metrics.first_token.add(time.perf_counter() - start)
                    is_first = False
                yield number, pieces
            self.metrics.whole.add(time.perf_counter() - start)
        except EngineError as error:
            raise Refusal(str(error), status=error.status, kind="server_error") from None
        finally:
            for clock, ticket in zip(clocks, tickets, strict=True):
                clock.cancel()
                ticket.cancel()

    async def _whole(self, request: Request, writer: Writer, tickets: list[Ticket], start: float) -> Response:
        """Return the answer in one piece, or nothing if the client leaves before."""
        found: list[list[Piece]] = [[] for _ in tickets]

        async def collect() -> None:
            async with contextlib.aclosing(self._pieces(tickets, start)) as arriving:
                async for number, pieces in arriving:
                    found[number] += pieces
                    writer.count(pieces)

        collecting, leaving = asyncio.create_task(collect()), asyncio.create_task(_left(request))
        try:
            await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not collecting.done():
                return Response(status_code=LEFT)
            collecting.result()
        finally:
            for task in (collecting, leaving):
                task.cancel()
            await asyncio.gather(collecting, leaving, return_exceptions=True)
        texts = [joined(each, len(ticket.request.seeds)) for each, ticket in zip(found, tickets, strict=True)]
        return _json(writer.whole(texts))

    async def _events(self, writer: Writer, tickets: list[Ticket], start: float) -> AsyncIterator[str]:
        """Yield server-sent events; what goes wrong after the head of the answer has left is an event as well."""
        try:
            async with contextlib.aclosing(self._pieces(tickets, start)) as arriving:
                async for number, pieces in arriving:
                    writer.count(pieces)
                    chunks = writer.chunks(number, pieces)
                    if chunks:
                        yield "".join(f"data: {encode(chunk)}\n\n" for chunk in chunks)
            if writer.call.stream_usage:
                yield f"data: {encode(writer.usage_chunk())}\n\n"
        except Refusal as refusal:
            yield f"data: {encode(refusal.body)}\n\n"
        yield "data: [DONE]\n\n"


async def _merged(tickets: list[Ticket]) -> AsyncIterator[tuple[int, list[Piece]]]:
    """Yield from all tickets, with the number of each, whatever comes first."""
    if len(tickets) == 1:
        async for pieces in tickets[0]:
            yield 0, pieces
        return
    queue: asyncio.Queue[tuple[int, list[Piece]] | Exception | None] = asyncio.Queue()

    async def follow(number: int, ticket: Ticket) -> None:
        try:
            async for pieces in ticket:
                queue.put_nowait((number, pieces))
            queue.put_nowait(None)
        except EngineError as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(follow(*pair)) for pair in enumerate(tickets)]
    try:
        left = len(tickets)
        while left:
            found = await queue.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                left -= 1
            else:
                yield found
    finally:
        for task in tasks:
            task.cancel()


async def _left(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request, most: int) -> bytes:
    """Return the body; Refusal if it is too long or not called JSON, which a form of another site cannot do."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal("the content type must be application/json", status=415)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise Refusal(f"the body is longer than {most} bytes", status=413)
    return bytes(body)


class Guard:
    """Checks the Host and the key of every request, and counts the answers."""

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics):
        self.app, self.access, self.metrics = app, access, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.answers[message["status"]] += 1
            await send(message)

        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope["path"], headers)
        if refusal is not None:
            return await _refusal_response(refusal)(scope, receive, counted)
        await self.app(scope, receive, counted)

    def _refusal(self, path: str, headers: dict[bytes, str]) -> Refusal | None:
        host = headers.get(b"host", "")
        if "*" not in self.access.hosts and host_name(host) not in self.access.hosts:
            message = f"the host {host[:60]!r} is not served: start the server with --allow-host for it"
            return Refusal(message, status=403, kind="permission_error")
        if self.access.api_key is None or path in OPEN_PATHS:
            return None
        given = headers.get(b"authorization", "").removeprefix("Bearer ")
        if hmac.compare_digest(given.encode(), self.access.api_key.encode()):
            return None
        message = "the API key is missing or wrong: send it as Authorization: Bearer KEY"
        return Refusal(message, status=401, kind="authentication_error", code="invalid_api_key")


def host_name(host: str) -> str:
    """Return the name in a Host header, without the port.

    >>> host_name("localhost:8000"), host_name("[::1]:8000"), host_name("example.org")
    ('localhost', '::1', 'example.org')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _json(content: Any, status: int = 200) -> Response:
    # a lone surrogate, which JSON may name but UTF-8 cannot hold, becomes a question mark
    return Response(encode(content).encode("utf-8", "replace"), status, media_type="application/json")


def _refusal_response(refusal: Refusal) -> Response:
    return _json(refusal.body, refusal.status)


async def _refused(request: Request, refusal: Refusal) -> Response:
    return _refusal_response(refusal)


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=LEFT)  # nobody reads it


async def _failed(request: Request, error: HTTPException) -> Response:
    """Answer an unknown path or method."""
    message = f"{request.method} {request.url.path[:100]} is not served: {error.detail}"
    return JSONResponse(Refusal(message).body, error.status_code, headers=error.headers)


async def _broken(request: Request, error: Exception) -> Response:
    """Answer a mistake of ours, which uvicorn then writes to the log; the client does not see it."""
    return _refusal_response(Refusal("the server failed: see its log", status=500, kind="server_error"))
