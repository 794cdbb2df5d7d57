"""Train a GPT on token files: python train.py [--preset NAME] [--data DIR] [--run DIR] [--FIELD value …]

Without data it first makes the built-in corpus. The plain version of everything here is basics/train.py.
On several GPUs or machines: torchrun --nproc-per-node N train.py … (docs/training.md, Scaling out)
"""

import os
from collections.abc import Sequence

from common import cli


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Train as `argv` says and print the report."""
    try:
        # torch takes seconds to import: nothing that needs it is imported before the flags are checked
        from training.config import parse_config
        from training.run import check_settings

        config = parse_config(argv, before_writing=check_settings)
        from training.loop import train

        result = train(config)
    except (ValueError, FileNotFoundError, KeyboardInterrupt) as error:
        if int(os.environ.get("RANK", 0)) == 0:
            raise
        # rank 0 reports a mistake in flags or files, or Ctrl-C
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 2) from None
    if result:
        result.print(config.run_directory)


if __name__ == "__main__":
    main()
