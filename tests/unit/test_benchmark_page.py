"""The page of benchmarks is made from what each harness measured last, and from nothing else."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ROW = {"what": "turns", "unit": "/s", "ours": 3000.0, "against": "stock", "other": 1000.0}
ROW |= {"ratio": 3.0, "low": 2.9, "high": 3.1, "goal": ">= 2"}


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("_page", "_rounds"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("_page", BENCHMARKS / "_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nobody_has_edited_the_page_by_hand(page):
    results = json.loads((BENCHMARKS / "results.json").read_text("utf-8"))
    assert (BENCHMARKS / "README.md").read_text("utf-8") == page.page(results)


def test_each_harness_keeps_the_others_part(page, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "HERE", tmp_path)
    monkeypatch.setattr(page, "RESULTS", tmp_path / "results.json")
    page.RESULTS.write_text("{}")
    row, other = page.Row(**ROW), page.Row(**ROW | {"against": "Celery", "ratio": 1.5})
    original = {"single_ms": 2.0, "single": 500.0, "crowd": 900.0, "answered": 9000}
    page.write("parts", page.section([row]))
    more = {"versions": {"celery": "5.7.0"}, "tasks": 2000, "left_out": {"Ray": "no wheel"}}
    page.write("peers", page.section([other], original=original, **more))
    page.write("parts", page.section([page.Row(**ROW | {"against": "bare"})]))
    text = (tmp_path / "README.md").read_text()
    assert "| turns | 3,000 /s | bare: 1,000 /s | 3.00 (2.90 to 3.10) | >= 2 | met |" in text
    assert "| Celery: 1,000 /s | 1.50 (2.90 to 3.10) | >= 2 | **missed** |" in text
    assert "stock" not in text
    assert "celery 5.7.0" in text
    assert "Left out: Ray, no wheel." in text


def test_a_profile_says_what_bounds_the_rate(page):
    cpu = {"the node's loop": 1.0, "its store's thread": 0.25, "its runner": 0.0}
    layers = {"Trio": 0.75, "logs": 0.25}
    loads = [
        {"what": "202", "rate": 900.0, "cpu": cpu, "steps": {"commit": 0.5, "run": 0.0}, "layers": {}},
        {
            "what": "all",
            "rate": 700.0,
            "cpu": cpu | {"its runner": 0.5},
            "steps": {"commit": 1.0, "run": 0.6},
            "layers": layers,
        },
    ]
    steps = {"commit": "commit: changes on disk", "run": "run: start to end"}
    text = page.page({"profile": page.section([], loads=loads, child_ms=0.75, cpus=2, steps=steps)})
    assert "`xargs` spends 0.75 ms for a child:\n0.60 of its rate would leave 0.50 ms" in text
    assert "| all of it, with the child | 1.25 | 2.5 |" in text
    assert "| so at most, /s | 1,600 | 800 |" in text
    assert "| run: start to end |  | 0.6 |" in text
    assert "| Trio | 75 % |" in text


def test_a_large_fleet_shows_whose_code_takes_more(page):
    small = {"what": "100 nodes", "messages": 16.0, "links": 0.0, "cpu": 4.0, "together": 5.0}
    small["layers"] = {"Trio": 2.5, "table": 1.5}
    large = small | {"what": "1,000 nodes", "links": 1.4, "cpu": 5.0, "layers": {"Trio": 2.0, "table": 3.0}}
    text = page.page({"membership": page.section([], fleets=[small, large])})
    assert "| | 100 nodes | 1,000 nodes | ratio |" in text
    assert "| links that it opens, /s | 0 | 1.4 |  |" in text
    assert "| CPU time of a lone node, ms/s | 4 | 5 | 1.25 |" in text
    assert text.index("| of it: table | 1.5 | 3 | 2 |") < text.index("| of it: Trio | 2.5 | 2 | 0.8 |")


def test_a_soak_shows_what_grows(page):
    figures = {"minutes": 10.0, "capacity_per_s": 500.0, "offered_per_s": 400.0, "tasks": 240_000}
    figures |= {"slow": 1_200, "slow_seconds": 7, "seconds": 600.0}
    thirds = [("node's memory, MB", 80.0, 81.0, True), ("p99, ms", 20.0, 40.0, False)]
    text = page.page({"soak": page.section([], **figures, thirds=thirds)})
    assert "## 10 minutes at 80% of what it can do" in text
    assert (
        "240,000 tasks (`/bin/true`) came at random moments, 400 a second; 64 clients had got\n500 out of"
        in text
    )
    assert "1,200 of them took\nover half a second; they were due in 7 of the 600 seconds." in text
    assert "| node's memory, MB | 80 | 81 | 1.01 | flat |" in text
    assert "| p99, ms | 20 | 40 | 2.00 | **grows** |" in text
