"""One page through all stages that need no other page: extraction, language, rules, classifiers, perplexity,
masking.
"""

import dataclasses
import functools
import math

from data.web import private, rules
from data.web.classifier import HashedClassifier
from data.web.extract import Refused, extract
from data.web.language import Identifier
from data.web.ngrams import NgramModel
from data.web.records import Document, Page
from data.web.settings import Pipeline
from data.web.text import Text

READING, EXTRACTION, LANGUAGE, C4_LINES, MASKING = (
    "reading",
    "extraction",
    "language",
    "c4 lines",
    "personal data",
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a page: the document, or where and why it was dropped; and all that was measured on the way.

    `text` is what a stage dropped, for samples; `edited` holds the bytes that stages took out of the text.
    """

    document: Document | None
    stage: str = ""
    reason: str = ""
    text: str = ""
    size: int = 0  # bytes of the extracted text
    values: dict[str, float] = dataclasses.field(default_factory=dict)
    edited: dict[str, int] = dataclasses.field(default_factory=dict)


class Steps:
    """steps(page) -> Outcome, for one pipeline; holds its models. Built once in each process."""

    def __init__(self, pipeline: Pipeline, perplexity: NgramModel | None = None) -> None:
        self.pipeline = pipeline
        self.identify = Identifier() if pipeline.language.keep else None
        self.rules = all_rules(pipeline, perplexity)

    def __call__(self, page: Page) -> Outcome:
        """Take a page through the stages, up to the first that drops it."""
        options = self.pipeline.extract
        try:
            document = extract(page, options.tables, options.main_content, options.extractor)
        except Refused as refused:
            return Outcome(None, EXTRACTION, str(refused))
        size = document.num_bytes
        return dataclasses.replace(self._judge(document), size=size)

    def _judge(self, document: Document) -> Outcome:
        if reason := self._wrong_language(document):
            return Outcome(None, LANGUAGE, reason, document.text)
        edited: dict[str, int] = {}
        if self.pipeline.rules.c4_lines:
            kept = rules.c4_lines(document.text)
            if not kept:
                return Outcome(None, C4_LINES, "no line is a sentence", document.text)
            self._edit(document, kept, C4_LINES, edited)
        seen, values = Text(document.text, document.scores), {}
        for rule in self.rules:
            values[rule.key] = value = rule.measure(seen)
            if not rule.keeps(value):
                return Outcome(None, rule.family, rule.key, document.text, 0, values, edited)
            if rule.family in ("classifier", "perplexity"):
                document.scores[rule.name] = round(value, 6)
        if self.pipeline.personal.mask:
            text, document.masked = private.mask(document.text, self.pipeline.personal.mask)
            self._edit(document, text, MASKING, edited)
        return Outcome(document, text=document.text, values=values, edited=edited)

    def _wrong_language(self, document: Document) -> str:
        """Identify the language, if that is asked for; return why it is not wanted, or ""."""
        wanted = self.pipeline.language
        if self.identify is None:
            return ""
        document.language, score = self.identify(document.text)
        document.scores["language"] = round(score, 4)
        if document.language not in wanted.keep:
            return document.language or "no letters"
        return f"{document.language} below {wanted.min_score}" if score < wanted.min_score else ""

    @staticmethod
    def _edit(document: Document, text: str, stage: str, edited: dict[str, int]) -> None:
        if text != document.text:
            edited[stage] = document.num_bytes - len(text.encode())
            document.text = text


def all_rules(pipeline: Pipeline, perplexity: NgramModel | None) -> tuple[rules.Rule, ...]:
    """Return columns, quality rules, classifiers and perplexity as rules, in the order in which they are asked."""
    found = []
    for each in pipeline.column:
        number = functools.partial(number_beside, name=each.name)
        found.append(rules.Rule("column", each.name, number, "the file", each.low, each.high, each.top))
    found += pipeline.rules.chosen()
    for each in pipeline.classifier:
        model = HashedClassifier.load(each.model)
        found.append(
            rules.Rule("classifier", model.label, model.probability_of, each.model, each.low, each.high)
        )
    if perplexity is not None:
        low, high = pipeline.perplexity.low, pipeline.perplexity.high
        measure = perplexity.perplexity_of
        found.append(rules.Rule("perplexity", "perplexity", measure, "the reference", low, high, 2000))
    return tuple(found)


def number_beside(text: Text, name: str) -> float:
    """Return a numeric field of the text's JSON line; NaN, which no rule keeps, if there is none."""
    return text.numbers.get(name, math.nan)


def stages_of(pipeline: Pipeline) -> list[str]:
    """Return the names of the stages in their order, before deduplication."""
    families = dict.fromkeys(rule.family for rule in pipeline.rules.chosen())
    return [
        READING,
        EXTRACTION,
        *([LANGUAGE] if pipeline.language.keep else []),
        *([C4_LINES] if pipeline.rules.c4_lines else []),
        *(["column"] if pipeline.column else []),
        *families,
        *(["classifier"] if pipeline.classifier else []),
        *(["perplexity"] if pipeline.perplexity.reference else []),
        *([MASKING] if pipeline.personal.mask else []),
    ]
