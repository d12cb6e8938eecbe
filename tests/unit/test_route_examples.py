"""The examples in docstrings of apportion.route, executed."""

import doctest
import importlib
import pkgutil

import pytest

import apportion.route

MODULES = [found.name for found in pkgutil.walk_packages(apportion.route.__path__, "apportion.route.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
