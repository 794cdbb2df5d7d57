"""Scaling laws: given this much compute, which model should be trained, on how many tokens, and how good will it be?

Reading order: fit.py (the three approaches of Chinchilla).
"""
