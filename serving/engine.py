"""The scheduler in a thread of its own, and texts: requests go in, pieces of text come out, for an asyncio server.

    engine = Engine(text_model, limits); engine.start()
    ticket = engine.submit(request, stops=["\\n"])       # in the event loop
    async for pieces in ticket: …                       # as they are drawn; whatever came since the last look together
    ticket.cancel()                                     # its pages are free after the current step

A piece never ends inside a character or inside what may become a stop string (inference.text.Continuation).
"""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from inference.text import Continuation, TextModel
from model.generate import NOT_NUMBERS
from serving.scheduler import Chance, Drawn, Limits, Reason, Request, Scheduler

PAUSE = (
    0.004  # seconds: what is drawn within it is handed over together, as waking the event loop costs a step
)


class QueueFull(Exception):
    """As many requests wait as may."""


class EngineError(Exception):
    """A request could not be computed; the message and the HTTP status are for its client."""

    def __init__(self, message: str, status: int = 500):
        super().__init__(message)
        self.status = status


@dataclass
class Piece:
    """What one text of a request has become longer by; with a `reason` it has ended."""

    index: int
    text: str
    tokens: list[tuple[int, Chance | None]]
    reason: Reason | None = None


@dataclass(eq=False)
class Ticket:
    """A request on its way; iterating gives its pieces."""

    engine: "Engine"
    request: Request
    stops: Sequence[str]
    loop: asyncio.AbstractEventLoop
    texts: dict[int, Continuation] = field(default_factory=dict)
    """Those that have not ended, for the engine's thread; each by its index."""
    _pieces: list[Piece] = field(default_factory=list)
    _error: EngineError | None = None
    _ready: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aiter__(self) -> AsyncIterator[list[Piece]]:
        """Yield lists of pieces until every text has ended. EngineError if one cannot be computed."""
        open_texts = len(self.request.seeds)
        while open_texts:
            await self._ready.wait()
            self._ready.clear()
            if self._error is not None:
                raise self._error
            pieces, self._pieces = self._pieces, []
            open_texts -= sum(piece.reason is not None for piece in pieces)
            yield pieces

    def cancel(self) -> None:
        """Compute no more of it."""
        self.engine.cancel(self)

    def put(self, piece: Piece) -> None:
        """Hand over a piece, in the event loop."""
        self._pieces.append(piece)
        if piece.reason == "error":
            self._error = EngineError(NOT_NUMBERS)
        self._ready.set()

    def fail(self, error: EngineError) -> None:
        """Let whoever iterates see this error, in the event loop."""
        self._error = error
        self._ready.set()


class Engine:
    """One thread that steps the scheduler while there is something to compute."""

    def __init__(self, text_model: TextModel, limits: Limits | None = None, queue: int = 256):
        """Allocate the cache; at most `queue` requests wait."""
        self.text_model, self.queue = text_model, queue
        self.scheduler = Scheduler(text_model.model, limits)
        self._tickets: dict[Request, Ticket] = {}
        self._inbox: list[Callable[[], None]] = []
        self._wake = threading.Condition()
        self._closed = False
        self._pending: dict[tuple[Ticket, int], Piece] = {}  # by request and text: not yet handed over
        self._handed_over = 0.0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the current step and wait for that; requests that are not complete stay so."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Return how many requests have not begun."""
        return len(self.scheduler.waiting) + len(self._inbox)

    def submit(self, request: Request, stops: Sequence[str] = ()) -> Ticket:
        """Queue a request, from the event loop that will read its ticket.

        QueueFull if too many wait, ValueError for a request that could never run.
        """
        self.scheduler.check(request)
        if self.waiting >= self.queue:
            raise QueueFull
        ticket = Ticket(self, request, stops, asyncio.get_running_loop())
        self._post(lambda: self._add(ticket))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """End a request; nothing happens if it has ended."""
        self._post(lambda: self._cancel(ticket))

    def _post(self, act: Callable[[], None]) -> None:
        with self._wake:
            self._inbox.append(act)
            self._wake.notify()

    # ---- in the engine's thread

    def _run(self) -> None:
        while not self._closed:
            try:
                self._read_inbox()
                self._deliver(self.scheduler.step())
            except (
                Exception
            ):  # a mistake of ours must not end the server; the log tells it, clients do not see it
                traceback.print_exc(file=sys.stderr)
                self._fail_all()

    def _read_inbox(self) -> None:
        """Do what other threads asked for; wait for that if there is nothing to compute."""
        if not self._inbox and not self.scheduler.is_idle:
            return
        with self._wake:
            self._wake.wait_for(lambda: self._inbox or self._closed or not self.scheduler.is_idle)
            inbox, self._inbox = self._inbox, []
        for act in inbox:
            act()

    def _add(self, ticket: Ticket) -> None:
        tokenizer, request = self.text_model.tokenizer, ticket.request
        ticket.texts = {index: Continuation(tokenizer, ticket.stops) for index in range(len(request.seeds))}
        self._tickets[request] = ticket
        self.scheduler.add(request)

    def _cancel(self, ticket: Ticket) -> None:
        for text in ticket.request.texts:
            self.scheduler.finish(text, "cancelled")
        self._tickets.pop(ticket.request, None)

    def _fail_all(self) -> None:
        """End all requests with an error."""
        for ticket in [*self._tickets.values()]:
            self._cancel(ticket)
            ticket.loop.call_soon_threadsafe(
                ticket.fail, EngineError("the engine failed: see the server's log")
            )

    def _deliver(self, drawn: Sequence[Drawn]) -> None:
        """Add the tokens of a step to the pieces, end texts at their stop strings, and hand over what is due.

        That is everything, at most once in PAUSE, but at once if a text begins or ends.
        """
        is_urgent = False
        for each in drawn:
            ticket, index = self._tickets[each.text.request], each.text.index
            text = ticket.texts.get(index)
            if text is None:  # a stop string came among tokens of the same step
                continue
            piece = self._pending.setdefault((ticket, index), Piece(index, "", []))
            if each.id is not None:
                is_urgent = is_urgent or not text.ids
                piece.text += text.add(each.id)
                piece.tokens.append((each.id, each.chance))
            if text.stopped:
                self.scheduler.finish(each.text, "stop")
                piece.reason = "stop"
            elif each.is_last:
                piece.text += text.finish()
                piece.reason = "stop" if text.stopped else each.text.reason
            if piece.reason is not None:
                is_urgent = True
                self._close_text(ticket, index)
        if self._pending and (is_urgent or time.monotonic() - self._handed_over > PAUSE):
            self._hand_over()

    def _close_text(self, ticket: Ticket, index: int) -> None:
        del ticket.texts[index]
        if not ticket.texts:
            del self._tickets[ticket.request]

    def _hand_over(self) -> None:
        """Give all pieces to their tickets in the event loop, in one call."""
        pieces, self._pending = self._pending, {}
        self._handed_over = time.monotonic()

        def put() -> None:
            for (ticket, _), piece in pieces.items():
                ticket.put(piece)

        next(iter(pieces))[0].loop.call_soon_threadsafe(put)
