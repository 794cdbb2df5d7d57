"""Makes small changes to a CUDA source: one operator, barrier, bound or statement at a time.

Regular expressions find them in the text without comments, strings, preprocessor lines and template declarations.
The sources are formatted, so that a comparison has spaces around it and a template's bracket has none.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Comments, strings, preprocessor lines; what affects only a GPU or only the compiler.
_IGNORED = re.compile(
    r"//[^\n]*|\"[^\"\n]*\"|^[ \t]*#.*$|__launch_bounds__\([^\n]*|static_assert[^\n]*|template <[^\n]*", re.M
)
# An assignment to an existing variable, or a call.
_STATEMENT = re.compile(
    r"(?<=[;{})\n]\n)[ ]+((?:[\w.\]\[:>()+*/% -]+ [-+*/^|&]?= |[\w.\]\[:]+(?:<[\w, ]+>)?\()[^;{}]*;)$", re.M
)
_NO_STATEMENT = re.compile(
    r"(?:return|if|for|while|else|case|default|using|const|constexpr|static|inline|auto|bool|unsigned|float|double|dim3|"
    r"(?:u?int|size)\w*|T|A|[A-Z]\w*(?:<[^=;]*>)?(?: [\w]+\b|\[)|std::\S+ \w+)\b"
    r"|__sync|ptx::cp_async_(?:wait|commit)"
)


@dataclass(frozen=True)
class Operator:
    """Replaces each match of `pattern` by each of `replacements` (templates of re.Match.expand)."""

    name: str
    pattern: str
    replacements: tuple[str, ...]


_BY_THREADS = r"(?:\w*Threads|32|[\w.]+\(\)|[\w.]+ \*)"  # the step of a loop that is split among threads
OPERATORS = (
    Operator("barrier removed", r"__sync(?:threads|warp)\(\);", ("",)),
    Operator("wait removed", r"ptx::cp_async_(?:wait<\w+>|commit)\(\);", ("",)),
    Operator("comparison", r" < ", (" <= ",)),
    Operator("comparison", r" <= ", (" < ",)),
    Operator("comparison", r" > ", (" >= ",)),
    Operator("comparison", r" >= ", (" > ",)),
    Operator("comparison", r" == ", (" != ",)),
    Operator("comparison", r" != ", (" == ",)),
    # a loop ends one element, or one step, earlier
    Operator("bound", rf"; (\w+ <=? [^;\n]+); (?=\+\+|\w+ \+= {_BY_THREADS})", (r"; \1 - 1; ",)),
    Operator(
        "bound", r"; (\w+ <=? [^;\n]+); (\w+ \+= )(?!\w*Threads|32\b)([\w/]+)(?=[,)])", (r"; \1 - \3; \2\3",)
    ),
    Operator("bound", r"; (\w+ >=? [^;\n]+); (\w+ -= )(\w+)", (r"; \1 + \3; \2\3",)),
    Operator("condition", r" && ", (" || ",)),
    Operator("condition", r" \|\| ", (" && ",)),
    Operator("swizzle", r" \^ (?:[\w:]+|\([^()]*\))", ("",)),
    Operator("swizzle", r" & (7|3|1|16)\b", (r" & (\1 >> 1)",)),
    Operator("swizzle", r" >> (\w+)", (r" << \1",)),
    Operator("bound", r" [+-] 1\b", ("",)),
    Operator("bound", r" ([+-]) 15\b", (r" \1 14", r" \1 16")),
    Operator("choice", r" \? ([^?:;\n]+) : ([^?:;,\n]+?)(?=\)?;|,|\) \*|\]| *\}|\) &)", (r" ? \2 : \1",)),
    Operator("update", r" [-+*]= ", (" = ",)),
)
# Most of these are noticed by the first case.
CRUDE_OPERATORS = (
    Operator("arithmetic", r" \+ ", (" - ",)),
    Operator("arithmetic", r" - ", (" + ",)),
)


@dataclass(frozen=True)
class Mutant:
    """One change: text[start:end] of a file is replaced by `new`."""

    file: str
    operator: str
    start: int
    end: int
    line: int
    old: str
    new: str

    def apply(self, text: str) -> str:
        return text[: self.start] + self.new + text[self.end :]

    def changed_line(self, text: str) -> str:
        """Return the line after the change."""
        first = text.rfind("\n", 0, self.start) + 1
        return self.apply(text)[first:].split("\n", 1)[0].strip()


def blank(text: str) -> str:
    """Return the text with everything that must not be changed replaced by spaces.

    >>> blank("a < b;  // a < b")
    'a < b;          '
    """
    return _IGNORED.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)


def mutants(file: str, text: str, thorough: bool = False) -> Iterator[Mutant]:
    """Yield all changes of one file, in the order of OPERATORS; `thorough` adds CRUDE_OPERATORS and statements.

    >>> [found.apply("if (a < b) c += d;") for found in mutants("x.cuh", "if (a < b) c += d;")]
    ['if (a <= b) c += d;', 'if (a < b) c = d;']
    """
    code = blank(text)
    headers = list(_loop_headers(code))
    for operator in OPERATORS + (CRUDE_OPERATORS if thorough else ()):
        for match in re.finditer(operator.pattern, code):
            if operator.name == "update" and any(match.start() in header for header in headers):
                continue  # an endless loop tests nothing
            for replacement in operator.replacements:
                new = match.expand(replacement)
                if _balanced(new):
                    yield _mutant(file, operator.name, text, match.span(), new)
    for match in _STATEMENT.finditer(code) if thorough else ():
        if not _NO_STATEMENT.match(match.group(1)):
            yield _mutant(file, "statement removed", text, match.span(1), ";")


def _loop_headers(code: str) -> Iterator[range]:
    """Yield the range inside the parentheses of each `for`."""
    for match in re.finditer(r"\bfor \(", code):
        depth, end = 1, match.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(code[end], 0)
            end += 1
        yield range(match.end(), end)


def _balanced(text: str) -> bool:
    return all(text.count(a) == text.count(b) for a, b in ("()", "[]", "<>") if " " not in text or a != "<")


def _mutant(file: str, operator: str, text: str, span: tuple[int, int], new: str) -> Mutant:
    start, end = span
    return Mutant(file, operator, start, end, text.count("\n", 0, start) + 1, text[start:end], new)
