"""The GPT: configuration, layers, the model itself, generation, and GPT-2's weights in and out.

Reading order: config, layers, attention, gpt, loss, rules, cache, generate, beam, pack, pretrained.
"""

from model.config import PRESETS, GPTConfig
from model.gpt import GPT

__all__ = ["GPT", "PRESETS", "GPTConfig"]
