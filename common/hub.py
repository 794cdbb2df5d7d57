"""The Hugging Face hub, asked once and kept in its cache: what is offline, and why, is said in one line."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")

SECONDS_TO_ANSWER = 5
# What a model's directory holds here: no pickles, no code, no weights of other frameworks.
MODEL_FILES = ("config.json", "*.safetensors", "*.index.json", "tokenizer*.json", "vocab.json", "merges.txt")


def model(name: str) -> Path:
    """Return the directory of a model of the hub, downloaded once to the cache; OSError says what was tried."""
    import huggingface_hub
    from huggingface_hub import errors

    def call() -> str:
        return huggingface_hub.snapshot_download(name, allow_patterns=list(MODEL_FILES))

    failures = (errors.HfHubHTTPError, errors.LocalEntryNotFoundError)
    return Path(ask(name, call, failures=failures, advice="A directory of weights needs no network"))


def ask(
    name: str,
    call: Callable[[], T],
    *,
    local_files_only: bool = False,
    failures: Sequence[type[Exception]] = (),
    libraries: Sequence[ModuleType] = (),
    advice: str,
) -> T:
    """Return `call()`; it uses the cache alone if the hub may not or cannot be asked.

    `libraries` are modules besides the hub's own that have a HF_HUB_OFFLINE. OSError, with the `advice`, for what
    cannot be had.
    """
    from huggingface_hub import constants

    reason = _why_offline(local_files_only)
    try:
        with _offline([*libraries, constants]) if reason else contextlib.nullcontext():
            return call()
    except (ConnectionError, FileNotFoundError, *failures) as error:
        asked = f"not asked, {reason}" if reason else "asked without success"
        said = str(error).split("\n")[0]
        raise OSError(
            f"cannot load {name}: {constants.ENDPOINT} was {asked}; "
            f"the cache {constants.HF_HOME} was searched ({said}). {advice}"
        ) from error


def _why_offline(local_files_only: bool) -> str:
    """Return why the hub is not to be asked, or "": one short request saves minutes of retries."""
    from huggingface_hub import constants, utils

    if local_files_only:
        return "because of --local-files-only"
    if constants.is_offline_mode():
        return "because HF_HUB_OFFLINE is set"
    try:
        utils.get_session().head(constants.ENDPOINT, timeout=SECONDS_TO_ANSWER)
    except Exception as error:  # whatever the HTTP client of the day raises
        return f"because it does not answer ({error})"
    return ""


@contextlib.contextmanager
def _offline(modules: Sequence[ModuleType]) -> Iterator[None]:
    """Keep the libraries from the network."""
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value
