"""The quickstart: the figures of the run that `make train` makes, which README and the pages give.

python benchmarks/quickstart.py [--run runs/quickstart] [--story N] [--json PATH]

Most are read from RUN/report.json, where training has left them; a run that is not there is trained first. What the
model says of three texts and two words is computed. `python scripts/performance.py` brings all into the pages.
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import bench, cli, files
from inference import embeddings, scoring
from inference.run import settings
from inference.text import TextModel

NAMED = "Once there was a little girl named Lily."
ENDINGS = (f"{NAMED} She was sad.", f"{NAMED} He was sad.", f"{NAMED} Sad was she.")  # in docs/sampling.md
WORDS = ("day", "her")  # in docs/model.md


@dataclasses.dataclass(frozen=True)
class Options:
    """Report the figures of the quickstart."""

    run: Path = Path("runs/quickstart")
    """The finished run."""
    story: int = 2
    """Which of its three stories README tells."""
    json: Path | None = None
    """Write the rows to this file, or into this folder, as JSON."""


def rows(run: Path) -> list[bench.Row]:
    """Return the figures of a finished run."""
    report = files.read_json(run / "report.json")
    loss, bits = report["val_loss"], report["bits_per_byte"]
    return [
        bench.Row("quickstart: validation loss", loss, "nats per token"),
        bench.Row("quickstart: training loss", report["train_loss"], "nats per token"),
        bench.Row("quickstart: bits per byte", bits, "bits per byte"),
        bench.Row("quickstart: bytes per token", loss / (bits * math.log(2)), "bytes"),
        bench.Row("quickstart: coherence", 100 * report["coherence"], "%"),
        bench.Row("quickstart: steps", settings(run)["steps"], "steps"),
        bench.Row("quickstart: tokens", report["tokens"], "tokens"),
        bench.Row("quickstart: seconds", report["seconds"], "s"),
        bench.Row("quickstart: speed", report["tokens_per_second"], "tokens/s"),
        bench.Row("quickstart: peak memory", report["peak_memory_mb"], "MB"),
        bench.Row("quickstart: parameters", report["parameters"], "parameters"),
    ]


def examples(run: Path) -> list[bench.Row]:
    """Return how likely the texts are, with the perplexity as the note, and the words' neighbours."""
    text_model = TextModel.load(run, "cpu")
    rows = [
        bench.Row(f"quickstart: {text}", score.log_probability, "log P", note=f"{score.perplexity:.2f}")
        for text, score in zip(ENDINGS, scoring.score_texts(text_model, ENDINGS), strict=True)
    ]
    table, vocabulary = (
        text_model.model.wte.weight.detach(),
        embeddings.whole_words(text_model.tokenizer),
    )
    for word in WORDS:
        near = embeddings.nearest(table, vocabulary, embeddings.word_ids(text_model.tokenizer, word), 5)
        told = ", ".join(f"{other} {cosine:.2f}" for other, cosine in near)
        rows.append(bench.Row(f"quickstart: nearest to {word}", near[0][1], "cosine", note=told))
    return rows


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Report the figures, of a run that is trained first if there is none."""
    options = cli.parse(Options, argv, prog="benchmarks/quickstart.py")
    if not (options.run / "report.json").exists():
        import train

        train.main(["--preset", "quickstart", "--run", str(options.run)])
    figures = [*rows(options.run), *examples(options.run)]
    bench.report("quickstart", figures)
    if options.json:
        story = files.read_json(options.run / "report.json")["stories"][options.story - 1]
        told = bench.Row("quickstart: story", options.story, "of three", note=story)
        bench.write("quickstart", [*figures, told], options.json)


if __name__ == "__main__":
    main()
