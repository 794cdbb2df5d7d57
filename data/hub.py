"""Datasets of the Hugging Face hub, by the `datasets` library, which is imported when it is first needed."""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, TypeVar

from common.hub import ask
from data.splitting import Segment
from data.tables import ROWS, arrow_segments, column_kinds, pick_column

T = TypeVar("T")

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
    """Read NAME[:CONFIG][:SPLIT][#COLUMN]; one part after the name is a split if it is called like one.

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


@functools.cache
def library() -> ModuleType:
    """Import `datasets` without torch, which is not needed here and takes a second."""
    before = os.environ.get("USE_TORCH")
    os.environ["USE_TORCH"] = "0"
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"sources of the hub need the library datasets ({error}): pip install datasets"
        ) from error
    finally:
        os.environ.pop("USE_TORCH")
        if before is not None:
            os.environ["USE_TORCH"] = before
    datasets.logging.set_verbosity(logging.CRITICAL)  # its errors reach the user as exceptions
    return datasets


def load_name(name: Name, local_files_only: bool) -> Any:
    """Load a dataset, downloaded once to the library's cache; OSError says what was tried."""
    datasets = library()

    def call() -> Any:
        return datasets.load_dataset(name.dataset, name.config, split=name.split)

    return _ask(name.dataset, call, local_files_only)


def segments(where: str, name: Name, local_files_only: bool) -> Iterator[Segment]:
    """Yield the texts of one column of a dataset."""
    loaded = load_name(name, local_files_only).with_format("arrow")
    for table in loaded.iter(batch_size=ROWS):
        column = pick_column(where, column_kinds(table.schema), name.column)
        yield from arrow_segments(table[column])


def validation_split(name: Name, local_files_only: bool) -> str:
    """Return the name of the split that a dataset keeps for validation, or else for tests."""
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
    """Return the path of one file of a dataset, from the cache or downloaded to it."""
    import huggingface_hub

    def call() -> str:
        return huggingface_hub.hf_hub_download(dataset, filename, repo_type="dataset")

    return _ask(dataset, call, local_files_only)


def _ask(dataset: str, call: Callable[[], T], local_files_only: bool) -> T:
    datasets = library()
    return ask(
        dataset,
        call,
        local_files_only=local_files_only,
        failures=(datasets.exceptions.DatasetsError,),
        libraries=(datasets.config,),
        advice=WITHOUT_NETWORK,
    )
