"""Trains a GPT on token files: python train.py [--preset NAME] [--data DIR] [--run DIR] [--FIELD value …]"""

import sys
from collections.abc import Sequence

from common import cli


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Trains as `argv` says and prints the report."""
    from training.config import (
        parse_config,
    )  # torch takes seconds to import: a wrong flag should not wait for more
    from training.loop import Interrupted, train

    config = parse_config(argv)
    try:
        train(config).print(config.run_directory)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
