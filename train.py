"""Trains a GPT on token files: python train.py [--preset NAME] [--data DIR] [--run DIR] [--FIELD value …]

On several GPUs or machines: torchrun --nproc-per-node N train.py … (docs/training.md, Scaling out)
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from common import cli

if TYPE_CHECKING:
    from training.config import TrainConfig


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Trains as `argv` says and prints the report."""
    # torch takes seconds to import: a wrong flag should not wait for more
    from training.config import parse_config
    from training.distributed import this_process

    main_process = this_process().main
    try:
        config = parse_config(argv, before_writing=check_settings)
        from training.loop import train

        result = train(config)
    except (ValueError, FileNotFoundError, KeyboardInterrupt) as error:
        if main_process:
            raise
        # a mistake in flags or files, or Ctrl-C: the main process says which
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 2) from None
    if result:
        result.print(config.run_directory)


def check_settings(config: "TrainConfig") -> None:
    """Refuses what cannot work before data is prepared for it."""
    from training.run import check_settings

    check_settings(config)


if __name__ == "__main__":
    main()
