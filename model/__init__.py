"""The GPT: configuration, layers, the model itself, generation, and GPT-2's weights in and out.

basics/gpt.py with every variant, exact and fast. Reading order: config, layers, attention, gpt, cache, generate,
beam, pack, pretrained, accounting.
"""

from model.config import PRESETS, GPTConfig
from model.gpt import GPT

__all__ = ["GPT", "PRESETS", "GPTConfig"]
