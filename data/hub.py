"""The `datasets` library, imported when it is first needed, and what its errors mean for a user."""

import contextlib
import dataclasses
import functools
import glob
import logging
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import pyarrow

T = TypeVar("T")

SECONDS_TO_ANSWER = 5
USUAL_SPLITS = ("train", "validation", "valid", "val", "dev", "test")
WITHOUT_NETWORK = "--source stories and local files (text:, jsonl:, parquet:, csv:) need no network"


@dataclasses.dataclass(frozen=True)
class Name:
    """A dataset of the hub: hf:NAME[:CONFIG][:SPLIT][#COLUMN]."""

    dataset: str
    config: str | None
    split: str
    column: str | None


def parse(text: str) -> Name:
    """Reads NAME[:CONFIG][:SPLIT][#COLUMN]; one part after the name is a split if it is called like one.

    >>> parse("roneneldan/TinyStories:validation#text")
    Name(dataset='roneneldan/TinyStories', config=None, split='validation', column='text')
    >>> parse("Salesforce/wikitext:wikitext-2-raw-v1").config
    'wikitext-2-raw-v1'
    """
    address, _, column = text.partition("#")
    dataset, *parts = address.split(":")
    if not dataset or len(parts) > 2:
        raise ValueError(f"hf:{text} is not of the form hf:NAME[:CONFIG][:SPLIT][#COLUMN]")
    if len(parts) == 1:
        parts = ["", parts[0]] if parts[0] in USUAL_SPLITS else [parts[0], ""]
    config, split = parts or ("", "")
    return Name(dataset, config or None, split or "train", column or None)


class ColumnError(ValueError):
    """The column that was asked for is not there or holds no text."""


@functools.cache
def library() -> ModuleType:
    """The module `datasets`, imported without torch, of which it needs nothing here: a second less."""
    before = os.environ.get("USE_TORCH")
    os.environ["USE_TORCH"] = "0"
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"all sources but stories need the library datasets ({error}): pip install datasets"
        ) from error
    finally:
        os.environ.pop("USE_TORCH")
        if before is not None:
            os.environ["USE_TORCH"] = before
    datasets.logging.set_verbosity(logging.CRITICAL)  # its errors reach the user as exceptions
    return datasets


def load(kind: str, **options: Any) -> Any:
    """`datasets.load_dataset` of local files, as one split; the library would otherwise tell the hub of it."""
    datasets = library()
    paths = [glob.escape(path) for path in options.pop("data_files")]  # the library would expand them again
    with _offline():
        return datasets.load_dataset(kind, data_files=paths, split="train", **options)


def load_name(name: Name, local_files_only: bool) -> Any:
    """A dataset of the hub, downloaded once to the library's cache; OSError says what was tried."""
    datasets = library()

    def call() -> Any:
        return datasets.load_dataset(name.dataset, name.config, split=name.split)

    return _ask(name.dataset, call, local_files_only)


def validation_split(name: Name, local_files_only: bool) -> str:
    """The name of the split that a dataset keeps for validation, or else for tests."""
    datasets = library()

    def call() -> list[str]:
        return datasets.get_dataset_split_names(name.dataset, name.config)

    splits = _ask(name.dataset, call, local_files_only)
    for usual in ("validation", "valid", "val", "dev", "test"):
        if usual in splits and usual != name.split:
            return usual
    raise ValueError(
        f"{name.dataset} has no split for validation, only {', '.join(splits)}: leave out --val-source own"
    )


def download(dataset: str, filename: str, local_files_only: bool) -> str:
    """One file of a dataset of the hub, from the cache or downloaded to it: its path."""
    import huggingface_hub

    def call() -> str:
        return huggingface_hub.hf_hub_download(dataset, filename, repo_type="dataset")

    return _ask(dataset, call, local_files_only)


def _ask(dataset: str, call: Callable[[], T], local_files_only: bool) -> T:
    """`call()`, from the cache alone where the hub may not or cannot be asked."""
    datasets = library()
    from huggingface_hub import constants

    reason = _why_offline(local_files_only)
    try:
        with _offline() if reason else contextlib.nullcontext():
            return call()
    except (ConnectionError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
        asked = f"not asked, {reason}" if reason else "asked in vain"
        raise OSError(
            f"cannot load {dataset}: {constants.ENDPOINT} was {asked}; "
            f"the cache {constants.HF_HOME} was searched ({error}). {WITHOUT_NETWORK}"
        ) from error


def _why_offline(local_files_only: bool) -> str:
    """Why the hub is not to be asked, or "": one short request now spares minutes of retries later."""
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
def _offline() -> Iterator[None]:
    """Keeps both libraries from the network."""
    from huggingface_hub import constants

    modules = (library().config, constants)
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def text_column(where: str, table: "pyarrow.Table", column: str | None) -> list[bytes | None]:
    """The texts of a table's column as UTF-8, None where a value is missing.

    Without a name: the column "text", or the only one that holds text. ColumnError names those that hold text.
    """
    import pyarrow as pa

    types = {field.name: field.type for field in table.schema}
    texts = [
        name for name, kind in types.items() if pa.types.is_string(kind) or pa.types.is_large_string(kind)
    ]
    if column is None:
        column = "text" if "text" in texts else texts[0] if len(texts) == 1 else None
    if column in texts or (column in types and pa.types.is_null(types[column])):
        return table[column].cast(pa.large_binary()).to_pylist()
    if not texts:
        raise ColumnError(f"{where} has no column with text, only {', '.join(types)}: use another file")
    if column is None:
        problem = "has several columns that could be the text"
    elif column not in types:
        problem = f"has no column {column!r}"
    else:
        problem = f"holds {types[column]}, not text, in column {column!r}"
    raise ColumnError(f"{where} {problem}: name one of {', '.join(texts)} after a #")


def joined_bytes(array: "pyarrow.StringArray") -> bytes:
    """All strings of an Arrow array in one, read from its buffer without making them one by one."""
    import numpy as np

    _, offsets, data = array.buffers()
    bounds = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]  # (len + 1,)
    return data[bounds[0] : bounds[-1]].to_pybytes() if data else b""
