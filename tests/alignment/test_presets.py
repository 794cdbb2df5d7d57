"""Every preset of alignment holds settings that its stage knows and takes, and begins where the stage before ends."""

import pytest

from alignment.dpo import DPOConfig
from alignment.grpo import GRPOConfig
from alignment.ppo import PPOConfig
from alignment.reward_model import RewardConfig
from alignment.sft import SFTConfig
from training import config as cfg

KINDS = {
    "best-of": SFTConfig,
    "dpo": DPOConfig,
    "grpo": GRPOConfig,
    "ppo": PPOConfig,
    "reward-model": RewardConfig,
    "sft": SFTConfig,
}


@pytest.mark.parametrize(
    "path", sorted((cfg.PRESETS / "alignment").glob("*.toml")), ids=lambda path: path.stem
)
def test_every_preset_is_valid_and_begins_at_the_stage_before(path):
    config = cfg.read_config(path, KINDS[path.stem])
    assert str(config.init_from) == ("runs/quickstart" if path.stem == "sft" else "runs/sft")
    assert str(config.run) == f"runs/{path.stem}"
