"""Train a stage of alignment as its command line says."""

from collections.abc import Callable, Sequence

from training.config import C, parse_config, with_vocabulary_of_data
from training.loop import train
from training.objective import Objective
from training.run import check_settings


def learn(
    argv: Sequence[str] | None, name: str, preset: str, kind: type[C], objective: Callable[[C], Objective]
) -> None:
    """Train an objective as `argv` of python -m alignment NAME says, a `kind` of settings, and print the report."""
    config = parse_config(argv, f"python -m alignment {name}", check_settings, kind=kind, preset=preset)
    # A resumed run has its vocabulary; that of a new one's data may have got special tokens.
    report = train(config if config.resume else with_vocabulary_of_data(config), objective)
    if report:
        report.print(config.run_directory)
