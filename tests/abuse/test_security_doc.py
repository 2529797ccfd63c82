"""SECURITY.md names tests; a test that was renamed or removed must not leave a claim behind."""

import ast

from abuse import NAMED, ROOT


def test_every_test_that_it_names_exists():
    found = set(NAMED.findall((ROOT / "SECURITY.md").read_text()))
    assert len(found) > 40
    for file, name in found:
        tree = ast.parse((ROOT / "tests" / file).read_text())
        functions = {
            node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert name in functions, f"{file}::{name}"


def test_nothing_that_looks_like_a_test_escapes_the_check():
    text = (ROOT / "SECURITY.md").read_text()
    assert text.count("::test_") == len(NAMED.findall(text))
