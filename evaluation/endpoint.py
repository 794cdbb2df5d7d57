"""Ask a language model behind an OpenAI-compatible endpoint: one request, one answer, over HTTP."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence

SECONDS = 60  # to wait for an answer
KEY = "OPENAI_API_KEY"  # sent as it is if it is set; a server of one's own needs none


def ask(
    url: str, messages: Sequence[dict[str, str]], *, model: str = "default", max_tokens: int = 200
) -> str:
    """Return the answer to messages of role and content, greedily; `url` is up to and including /v1.

    ConnectionError with cause and remedy if there is no answer, or none of this kind.
    """
    address = f"{url.rstrip('/')}/chat/completions"
    body = {"model": model, "messages": list(messages), "temperature": 0, "max_tokens": max_tokens}
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(KEY):
        headers["Authorization"] = f"Bearer {key}"
    try:
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return json.load(answer)["choices"][0]["message"]["content"]
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"{address} does not answer ({error}): check the URL, which ends in /v1, and that the server runs"
        ) from error
    except (KeyError, IndexError, TypeError) as error:
        raise ConnectionError(f"{address} answers, but not as an OpenAI-compatible endpoint does") from error
