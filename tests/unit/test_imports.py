"""Packages that are left out."""

import importlib
import sys

import pytest

from edgeorch.imports import without


def test_a_package_is_missing_inside_the_block_only(tmp_path, monkeypatch):
    (tmp_path / "spare_package.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with without("spare_package"), pytest.raises(ImportError):
        importlib.import_module("spare_package")
    assert importlib.import_module("spare_package")
    del sys.modules["spare_package"]


def test_a_loaded_package_stays(tmp_path, monkeypatch):
    (tmp_path / "loaded_package.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    loaded = importlib.import_module("loaded_package")
    with without("loaded_package"):
        assert importlib.import_module("loaded_package") is loaded
    assert sys.modules.pop("loaded_package") is loaded
