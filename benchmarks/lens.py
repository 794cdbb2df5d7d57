"""How large is the page, how soon does it answer, how fast does it write?

    python benchmarks/lens.py [--run runs/quickstart] [--prompts 1000] [--json PATH]

In headless Chromium, driven by playwright (pip install playwright; a Chromium on the PATH). The run is one of
train.py; the larger model has 15 M parameters with random weights. "interactive" is from navigation until the first
view is drawn. "all views" is the analysis of a prompt of 64 tokens and the drawing of each view, one after another.
The longest task is from the browser's own trace of the page's main thread while all this happens.
"""

import dataclasses
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli
from common.bench import Row, report
from common.files import write_text
from inference.run import load_tokenizer
from inference.text import TextModel
from lens.assemble import page
from lens.export import Precision, payload
from model import GPT, GPTConfig

LARGE = {"vocab_size": 32_000, "block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 288}
LARGE |= {"norm": "rmsnorm", "positions": "rotary", "mlp": "swiglu", "bias": False, "n_inner": 768}
WORDS = (
    "Once there was a little girl named Lily. She had a red ball and she loved to play with it in the park. "
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure pages of a run and of a 15 M model: bytes, milliseconds, tokens per second, memory."""

    run: Path = Path("runs/quickstart")
    """A run of train.py; with kept checkpoints, the bytes of a step of the film are measured, too."""
    prompts: int = 1000
    """Prompts after which memory is compared."""
    repeat: int = 7
    """Times that each thing is measured; the median counts."""
    json: Path | None = None
    """Write the table here as JSON."""


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = cli.parse(Options, argv, prog="benchmarks/lens.py")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise ValueError("this benchmark drives a browser: pip install playwright") from error
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        pages = make_pages(options.run, Path(folder))
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        rows = [
            *sizes(pages),
            *quickstart(browser, pages["float16"], options),
            *large(browser, pages["large"]),
        ]
        browser.close()
    report("lens", rows, options.json)


def at_most(name: str, value: float, unit: str, goal: float) -> Row:
    """Return a row for a figure that must not be larger than `goal`."""
    return Row(name, value, unit, "allowed", goal, less_is_better=True, goal=1)


def make_pages(run: Path, folder: Path) -> dict[str, Path]:
    """Write the page of a run in both precisions and with one step of its film, and that of the larger model."""
    source = TextModel.load(run, "cpu")
    precisions: tuple[Precision, ...] = ("float16", "int8")
    made = {name: payload(source.model, source.tokenizer, run, name) for name in precisions}
    made["one step"] = payload(source.model, source.tokenizer, run, "float16", film=1)
    made["large"] = payload(GPT(GPTConfig(**LARGE)).eval(), load_tokenizer(run), folder / "15M", "int8")
    for name, (head, data) in made.items():
        write_text(folder / f"{name}.html", page(head, data))
    return {name: folder / f"{name}.html" for name in made}


def sizes(pages: dict[str, Path]) -> list[Row]:
    """Measure the files."""
    megabytes = {name: path.stat().st_size / 1e6 for name, path in pages.items()}
    rows = [
        at_most("lens page, quickstart, float16", megabytes["float16"], "MB", 5),
        at_most("lens page, quickstart, int8", megabytes["int8"], "MB", 3),
        at_most("lens page, 15 M parameters, int8", megabytes["large"], "MB", 25),
    ]
    if (step := megabytes["one step"] - megabytes["float16"]) > 0:
        rows.append(at_most("lens page, one more step of the film", step, "MB", 1.5))
    return rows


def opened(browser: Any, path: Path) -> Any:
    """Return a page that has drawn its first view."""
    tab = browser.new_page(viewport={"width": 1440, "height": 900})
    tab.goto(path.as_uri())
    until(tab, "performance.getEntriesByType('measure').some(({ name }) => name.startsWith('draw'))")
    return tab


def until(tab: Any, condition: str) -> None:
    """Wait until a condition holds; the page's policy forbids playwright's own waiting."""
    for _ in range(6000):
        if tab.evaluate(condition):
            return
        tab.wait_for_timeout(10)
    raise ValueError(f"the page did not answer within a minute: {condition}")


def measured(tab: Any, action: str, name: str) -> float:
    """Return the milliseconds that the page measures under `name` after an action."""
    tab.evaluate(f"performance.clearMeasures(); {action}")
    until(tab, f"performance.getEntriesByName({name!r}).length > 0")
    return tab.evaluate(f"performance.getEntriesByName({name!r})[0].duration")


def ask_for(text: str) -> str:
    """Return the script that types a prompt."""
    return (
        "{ const box = document.getElementById('prompt'); "
        f"box.value = {json.dumps(text)}; box.dispatchEvent(new Event('input')); }}"
    )


def quickstart(browser: Any, path: Path, options: Options) -> list[Row]:
    """Measure the page of the run."""
    starts = []
    for _ in range(options.repeat):
        tab = opened(browser, path)
        first = "performance.getEntriesByType('measure').find(({ name }) => name.startsWith('draw'))"
        starts.append(tab.evaluate(f"{first}.startTime + {first}.duration"))
        tab.close()
    tab = opened(browser, path)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        browser.start_tracing(page=tab, path=trace, categories=["toplevel", "blink.user_timing"])
        analysis, views = all_views(tab, options.repeat)
        speed = statistics.median(tokens_per_second(tab) for _ in range(3))
        browser.stop_tracing()
        longest = longest_task(json.loads(trace.read_text()))
    growth = memory_growth(tab, options.prompts)
    tab.close()
    return [
        at_most("lens interactive, quickstart", statistics.median(starts) / 1000, "s", 1.5),
        at_most("lens analysis of 64 tokens", analysis, "ms", 100),
        at_most("lens analysis of 64 tokens and drawing of all views", analysis + views, "ms", 100),
        Row("lens generation, quickstart", speed, "tokens/s", "wanted", 400, goal=1),
        at_most("lens longest task of the main thread", longest, "ms", 50),
        at_most(
            f"lens memory after {options.prompts:,} prompts, relative to a tenth of them",
            growth,
            "times",
            1.1,
        ),
    ]


def all_views(tab: Any, repeat: int) -> tuple[float, float]:
    """Return the median milliseconds of the analysis of 64 tokens, and of drawing every view."""
    tab.evaluate("location.hash = 'tokens'")
    for extra in range(3):  # as the engine compiles what runs often
        measured(tab, ask_for(f"{WORDS * 3} {extra}"), "read the prompt")
    names = tab.evaluate("[...document.querySelectorAll('#tabs button')].map((e) => e.dataset.view)")
    tokens = (WORDS * 3).split(" ")
    count, words = "document.querySelectorAll('#strip .token').length", len(tokens)
    while tab.evaluate(count) > 64:
        words -= 1
        measured(tab, ask_for(" ".join(tokens[:words])), "read the prompt")
    analyses, drawings = [], []
    for turn in range(repeat):
        text = " ".join(tokens[:words])
        analyses.append(measured(tab, ask_for(text + " " * (turn % 2)), "read the prompt"))
        drawn = 0.0
        for name in names[1:] + names[:1]:
            drawn += measured(tab, f"location.hash = {name!r}", f"draw {name}")
        drawings.append(drawn)
    return statistics.median(analyses), statistics.median(drawings)


def tokens_per_second(tab: Any) -> float:
    """Return how fast the view Sampling writes."""
    measured(tab, ask_for("Once"), "read the prompt")
    tab.evaluate("location.hash = 'sampling'")
    until(tab, "document.querySelector('[data-key=run]') !== null")
    tab.evaluate("document.querySelector('[data-key=restart]').click()")
    until(tab, "document.querySelectorAll('.drawn').length === 0")
    start = "window.began = performance.now(); document.querySelector('[data-key=run]').click()"
    tab.evaluate(start)
    until(tab, "document.querySelectorAll('.drawn').length > 80")
    return tab.evaluate("1000 * document.querySelectorAll('.drawn').length / (performance.now() - began)")


def longest_task(trace: dict[str, Any]) -> float:
    """Return the milliseconds of the longest task of the thread that draws the page."""
    events = trace["traceEvents"]
    own = {
        (e["pid"], e["tid"]) for e in events if e.get("cat") == "blink.user_timing" and "draw" in e["name"]
    }
    tasks = [
        e["dur"] for e in events if "RunTask" in e["name"] and (e["pid"], e["tid"]) in own and "dur" in e
    ]
    return max(tasks) / 1000


def memory_growth(tab: Any, prompts: int) -> float:
    """Return the resident memory of the browser's renderers after this many prompts, relative to a tenth of them."""
    import psutil

    def used() -> int:
        running = psutil.Process().children(recursive=True)
        return sum(each.memory_info().rss for each in running if "--type=renderer" in each.cmdline())

    tab.evaluate("location.hash = 'attention'")
    first = 0
    for number in range(prompts):
        measured(tab, ask_for(f"One day, {number} dogs saw a cat."), "read the prompt")
        if number == prompts // 10:
            first = used()
    return used() / first


def large(browser: Any, path: Path) -> list[Row]:
    """Measure the page of the larger model."""
    tab = opened(browser, path)
    speed = statistics.median(tokens_per_second(tab) for _ in range(3))
    tab.close()
    return [Row("lens generation, 15 M parameters, int8", speed, "tokens/s", "wanted", 50, goal=1)]


if __name__ == "__main__":
    main()
