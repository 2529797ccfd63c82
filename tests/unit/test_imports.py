"""Packages that are left out."""

import importlib
import sys

import pytest

from edgeorch.imports import stand_in, without


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


def test_a_stand_in_has_the_classes_but_none_can_be_made(monkeypatch):
    for name in ("never_there", "never_there.inner"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)
    stand_in("never_there")
    stand_in("never_there.inner", "Spoken")
    module = importlib.import_module("never_there")
    assert module.inner.Spoken.__name__ == "Spoken"
    with pytest.raises(AssertionError, match=r"never_there\.inner\.Spoken was left out"):
        module.inner.Spoken(1, key=2)
    with pytest.raises(ImportError):
        importlib.import_module("never_there.other")


def test_what_is_loaded_already_has_no_stand_in():
    before = sys.modules["json"]
    stand_in("json", "Other")
    assert sys.modules["json"] is before
    assert not hasattr(before, "Other")
