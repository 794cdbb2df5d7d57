"""The options of a pipeline: one TOML file, one frozen dataclass for each of its tables; unknown names are refused.

[extract]                 how a page becomes text, and what a document may cost
[language]                which languages are kept
[rules]                   which quality rules, with which bounds
[[column]]                any number of them: a numeric field of JSON lines and which values are kept
[[classifier]]            any number of them: a label and from which probability it keeps or drops
[perplexity]              the n-gram model and the range that is kept
[personal]                which personal data is masked
[dedup]                   what counts as a duplicate
"""

import dataclasses
import math
import tomllib
import typing
from pathlib import Path
from typing import Any, TypeVar

from data.web import private, rules
from data.web.dedup import Dedup
from data.web.extract import Extractor, Tables

PRESET = Path(__file__).resolve().parents[2] / "presets" / "web" / "pipeline.toml"
T = TypeVar("T")


def check_range(name: str, low: float | None, high: float | None) -> None:
    """Raise ValueError if no number is from `low` to `high`."""
    if low is not None and high is not None and low > high:
        raise ValueError(f"{name}: low is {low:g} and high {high:g}, so nothing would be kept")


@dataclasses.dataclass(frozen=True)
class Extract:
    """How a page becomes text, and what one page may cost."""

    tables: Tables = "keep"
    """keep tables as they are laid out, turn their rows into sentences "column: value", or drop them."""
    main_content: bool = True
    """Leave out menus, headers and footers."""
    extractor: Extractor = "resiliparse"
    """trafilatura is slower and drops more."""
    max_bytes: int = 16_000_000
    """A larger page, or one that decompresses to more, is not read."""
    seconds: float = 10.0
    """Processor time for one page; its process is killed then."""
    memory_mb: int = 2000
    """Memory for one page, above what a process needs to start."""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "seconds", "memory_mb"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class Language:
    """Which languages are kept; none named: all, and none is identified."""

    keep: tuple[str, ...] = ()
    """Codes of ISO 639-1: en, de, zh …"""
    min_score: float = 0.65
    """Probability from which an identified language counts (FineWeb took 0.65)."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which quality rules."""

    use: tuple[str, ...] = ()
    """Families (gopher, repetition, c4, fineweb) or single rules, such as gopher.words."""
    c4_lines: bool = False
    """Drop the lines that C4 drops, before the rules see the text."""
    bounds: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """Other bounds, by rule: {"gopher.words" = {low = 20}}."""

    def __post_init__(self) -> None:
        self.chosen()

    def chosen(self) -> tuple[rules.Rule, ...]:
        """Return the rules; ValueError names what is unknown."""
        return rules.choose(self.use, self.bounds)


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained classifier and what is kept by it."""

    model: str
    """What python -m data web classifier train wrote."""
    low: float | None = None
    """Keep from this probability of the positive label."""
    high: float | None = None
    """Keep up to this probability."""

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ValueError(
                f"classifier {self.model}: give low to keep what is positive, or high to drop it"
            )
        check_range(f"classifier {self.model}", self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Column:
    """A numeric field of JSON lines, such as another program's score, and which values are kept."""

    name: str
    """Its field; a text without it is dropped."""
    low: float | None = None
    """Keep from this number."""
    high: float | None = None
    """Keep up to this number."""
    top: float = 1.0
    """Where its histogram ends."""

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ValueError(f"column {self.name}: give low, high or both")
        check_range(f"column {self.name}", self.low, self.high)
        if self.top <= 0:
            raise ValueError(f"column {self.name}: top must be above 0, not {self.top:g}")


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """The n-gram model by which texts are judged, trained on reference text when the pipeline begins."""

    reference: tuple[str, ...] = ()
    """Files of good text; none: no such filter."""
    low: float | None = None
    """Keep from this perplexity: below is boilerplate."""
    high: float | None = None
    """Keep up to this perplexity: above is no prose."""

    def __post_init__(self) -> None:
        check_range("perplexity", self.low, self.high)
        if not self.reference and (self.low, self.high) != (None, None):
            raise ValueError("perplexity: low and high need reference, the files of good text")


@dataclasses.dataclass(frozen=True)
class Personal:
    """Which personal data is masked."""

    mask: tuple[str, ...] = private.KINDS
    """Any of iban, card, email, ip, phone."""

    def __post_init__(self) -> None:
        if unknown := set(self.mask) - set(private.KINDS):
            raise ValueError(f"no personal data of kind {min(unknown)!r}: use {', '.join(private.KINDS)}")


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """All stages of a pipeline."""

    extract: Extract = Extract()
    language: Language = Language()
    rules: Rules = dataclasses.field(default_factory=Rules)
    column: tuple[Column, ...] = ()
    classifier: tuple[Classifier, ...] = ()
    perplexity: Perplexity = Perplexity()
    personal: Personal = Personal()
    dedup: Dedup = dataclasses.field(default_factory=Dedup)

    @classmethod
    def nothing(cls) -> "Pipeline":
        """Return the pipeline that only extracts."""
        return cls(personal=Personal(mask=()), dedup=Dedup(exact=False, near=False))


SEVERAL = {"column": Column, "classifier": Classifier}


def read(path: str | Path) -> Pipeline:
    """Read a pipeline; ValueError names the file, the table and what is wrong in it."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    try:
        return from_values(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def from_values(values: dict[str, Any]) -> Pipeline:
    """Return the pipeline of parsed TOML."""
    tables = {}
    for name, value in values.items():
        kind = {field.name: field for field in dataclasses.fields(Pipeline)}.get(name)
        if kind is None:
            raise ValueError(
                f"no table [{name}]: use {', '.join(field.name for field in dataclasses.fields(Pipeline))}"
            )
        if name in SEVERAL:
            if not isinstance(value, list):
                raise ValueError(f"{name} can occur several times: write [[{name}]] above its values")
            tables[name] = tuple(_table(SEVERAL[name], name, each) for each in value)
        else:
            tables[name] = _table(typing.get_type_hints(Pipeline)[name], name, value)
    return Pipeline(**tables)


def _table(kind: type[T], name: str, values: Any) -> T:
    """Return the dataclass of one TOML table, its values checked by type."""
    if not isinstance(values, dict):
        raise ValueError(f"{name} must be a table: write [{name}] above its values")
    hints = typing.get_type_hints(kind)
    if unknown := set(values) - set(hints):
        raise ValueError(f"[{name}] has no {min(unknown)!r}: use {', '.join(hints)}")
    return kind(**{key: _value(f"[{name}] {key}", hints[key], value) for key, value in values.items()})


def _value(where: str, hint: Any, value: Any) -> Any:
    """Return a TOML value as its field wants it."""
    check_finite(where, value)
    choices = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        if value not in choices:
            raise ValueError(f"{where} must be one of {', '.join(map(str, choices))}, not {value!r}")
        return value
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise ValueError(f"{where} must be a list of texts, not {value!r}")
        return tuple(value)
    if typing.get_origin(hint) is dict:
        return _value(where, dict, value)
    kinds = tuple(each for each in choices or (hint,) if each is not type(None))
    if float in kinds and type(value) is int:
        return float(value)
    if type(value) not in kinds:
        raise ValueError(f"{where} must be {kinds[0].__name__}, not {value!r}")
    return value


def check_finite(where: str, value: Any) -> None:
    """Raise ValueError for nan or inf, which TOML can write, also inside a table."""
    if isinstance(value, dict):
        for key, each in value.items():
            check_finite(f"{where} {key}", each)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} must be a finite number, not {value}")
