"""Mutation test of the CUDA kernels: the tests must notice each small change of the source (docs/kernels/mutation.md).

operators.py makes the changes, cases.py defines the tests, runner.py builds and judges each change, report.py counts.
"""
