"""Builds the project: everything that pyproject.toml names."""

from setuptools import setup

setup()
