"""Mutation test of the CUDA kernels: each small change of their source must be noticed (docs/kernels/mutation.md).

operators.py makes the changes, cases.py says what a right kernel gives, runner.py builds and judges each change,
report.py counts.
"""
