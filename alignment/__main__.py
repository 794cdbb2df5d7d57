"""python -m alignment data | sft | dpo | grpo | ppo | evaluate …: from a base model to one that follows instructions.

data       conversations as token files, and prompts with checks
sft        supervised fine-tuning on them
best-of    fine-tuning on the best of several answers of the model
pairs      preferences among a model's answers, by a verifier or another reward; rate: by you
dpo        learn from preferences
reward-model   learn from preferences what an answer is worth
grpo, ppo  reinforcement learning from a reward
evaluate   how well runs follow instructions
"""

from collections.abc import Sequence

from alignment.evaluate import Evaluate, evaluate
from alignment.prepare import Data, prepare
from common import cli
from common.cli import Module

COMMANDS = {
    "data": (Data, prepare),
    "sft": Module("alignment.sft", "fine-tune on conversations: the first stage"),
    "best-of": Module("alignment.best_of", "fine-tune on the best of several answers: expert iteration"),
    "pairs": Module("alignment.pairs", "make preferences among a run's answers, by their checks"),
    "rate": Module("alignment.rate", "show two answers, and keep which one you prefer"),
    "dpo": Module("alignment.dpo", "learn from pairs of answers, without a reward model"),
    "reward-model": Module("alignment.reward_model", "learn from pairs how good an answer is"),
    "grpo": Module("alignment.grpo", "learn from rewards, compared within a group of answers"),
    "ppo": Module("alignment.ppo", "learn from rewards, compared with what a critic expects"),
    "evaluate": (Evaluate, evaluate),
}


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names."""
    cli.dispatch(COMMANDS, argv, prog="python -m alignment")


if __name__ == "__main__":
    main()
