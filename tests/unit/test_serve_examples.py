"""The examples in docstrings of apportion.serve, executed."""

import doctest
import importlib
import pkgutil

import pytest

import apportion.serve

MODULES = [found.name for found in pkgutil.walk_packages(apportion.serve.__path__, "apportion.serve.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
