"""python -m evaluation RUN: what a trained model can do."""

from collections.abc import Sequence

from common import cli
from evaluation.suite import Evaluate, evaluate


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate a run as `argv` says."""
    evaluate(cli.parse(Evaluate, argv, prog="python -m evaluation"))


if __name__ == "__main__":
    main()
