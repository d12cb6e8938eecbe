"""Every example in a docstring of core and bits runs and gives what it shows."""

import doctest
import importlib
import pkgutil

import pytest

import apportion.bits
import apportion.core

MODULES = [
    module.name
    for package in (apportion.core, apportion.bits)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
