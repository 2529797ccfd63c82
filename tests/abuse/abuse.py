"""Crowds at a real node while a healthy client goes on: ``make abuse`` prints what each of them found.

Held means: every healthy request was answered well, the node kept to its memory, gave its file descriptors
back, logged no traceback, and lost no task that it had accepted. Latency depends on the machine; it is
printed with its goal, and with how long the node waited for a CPU that others had, and decides nothing.
"""

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from xml.etree import ElementTree as ET

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "node")]

from real_fleet import PATIENCE_S, RealFleet, eventually  # noqa: E402

CROWDS = Path(__file__).with_name("crowds.py")
ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`((?:\w+/)+test_\w+\.py)::(test_\w+)`")
"""A test, as SECURITY.md names it."""
GOAL_RSS_MB = 300
GOAL_P99_MS = 250
ENDED = ("succeeded", "failed", "cancelled", "timed_out", "lost")


@dataclass(frozen=True)
class Case:
    """One crowd: what it does, how many, and from how many addresses."""

    kind: str
    says: str
    count: int
    addresses: int = 1
    wire: bool = False
    """At the port for nodes instead of REST's."""


CASES = (
    Case("open_many", "connections opened at once from one address", 10_000),
    Case("open_many", "connections opened at once from twenty addresses", 10_000, addresses=20),
    Case("open_many", "connections opened at once at the port for nodes", 10_000, addresses=5, wire=True),
    Case("slow_heads", "heads sent a byte at a time, half over TLS", 500, addresses=5),
    Case("slow_bodies", "bodies sent a byte at a time", 500, addresses=5),
    Case("deaf_followers", "followers of endless output that never read", 900, addresses=3),
    Case("full_speed", "clients at full speed on all routes", 64),
)


@dataclass
class Healthy:
    """A client that wants little and wants it always; ``with`` it, it goes on asking in a thread."""

    node: object
    times: list = field(default_factory=list)
    failed: list = field(default_factory=list)
    accepted: list = field(default_factory=list)
    rss_mb: float = 0.0

    def __enter__(self):
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        number, kept = 0, self._connect()
        while not self._stop.is_set():
            number += 1
            # Every second request comes on a connection of its own, which must get in first.
            connection = kept if number % 2 else self._connect()
            begun = time.perf_counter()
            try:
                self._ask(connection, number)
                self.times.append((time.perf_counter() - begun) * 1000)
            except (OSError, HTTPException) as error:
                self.failed.append(repr(error))
                kept.close()
            finally:
                if connection is not kept:
                    connection.close()
            self.rss_mb = max(self.rss_mb, resident_mb(self.node.process.pid))
            self._stop.wait(0.02)
        kept.close()

    def _connect(self):
        # An address of its own, as another machine would have.
        source = (f"127.249.{self.node.fleet.api % 250}.1", 0)
        return HTTPConnection(self.node.host, self.node.fleet.api, timeout=PATIENCE_S, source_address=source)

    def _ask(self, connection, number):
        headers = {"Host": "localhost", "Content-Type": "application/json"}
        if number % 10 in (1, 6):
            spec = {"name": "healthy", "service": [{"driver": "native", "argv": ["true"]}]}
            connection.request("POST", "/api/v1/tasks", json.dumps(spec), headers)
        else:
            connection.request("GET", ("/healthz", "/api/v1/nodes", "/api/v1/tasks?limit=5")[number % 3])
        answer = connection.getresponse()
        body = answer.read()
        if answer.status not in (200, 202):
            self.failed.append(f"{answer.status} {body[:200]!r}")
        elif answer.status == 202:
            self.accepted.append(json.loads(body)["id"])


def resident_mb(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


def scheduled_s(pid):
    """Seconds that a process's main thread ran, and was ready to run but had no CPU."""
    return [int(word) / 1e9 for word in Path(f"/proc/{pid}/schedstat").read_text().split()[:2]]


def descriptors(pid):
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def run_case(case, folder, seconds, count=None, env=None):
    """One crowd at a new node; what was found, as JSON would have it."""
    fleet = RealFleet(folder, "kitchen")
    with contextlib.ExitStack() as stack:
        stack.callback(fleet.close)
        node = fleet.nodes["kitchen"].start(env=env)
        pid, task = node.process.pid, ""
        if case.kind == "deaf_followers":
            task = node.submit("sh", "-c", "yes 0123456789 & sleep 600", timeout_s=seconds + 60)["id"]
            eventually(lambda: node.get(f"/api/v1/tasks/{task}")["state"] == "running", "it prints")
        before, begun, cpu = descriptors(pid), time.monotonic(), scheduled_s(pid)
        command = [sys.executable, CROWDS, case.kind, node.host, str(fleet.wire if case.wire else fleet.api)]
        command += ["--count", str(count or case.count), "--seconds", str(seconds)]
        command += ["--addresses", str(case.addresses), "--task", task]
        with Healthy(node) as healthy:
            said = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=seconds + 120)
        crowd = json.loads(said.stdout)
        ran, waited = (
            (now - then) / (time.monotonic() - begun) for now, then in zip(scheduled_s(pid), cpu, strict=True)
        )
        begun = time.monotonic()
        eventually(lambda: descriptors(pid) <= before + 20, "the node gives its descriptors back")
        accepted = [*healthy.accepted, *crowd["accepted"]]
        lost = unfinished(node, accepted)
        if task:
            node.request("DELETE", f"/api/v1/tasks/{task}")
        times = healthy.times or [float("inf")]
        found = {
            "case": f"{count or case.count} {case.says}",
            "crowd": crowd["counts"],
            "healthy_answered": len(healthy.times),
            "healthy_failed": healthy.failed[:5],
            "healthy_p50_ms": round(statistics.median(times), 1),
            "healthy_p99_ms": round(sorted(times)[int(len(times) * 0.99) - 1], 1),
            "max_rss_mb": round(healthy.rss_mb, 1),
            "node_ran": round(ran, 2),
            "node_waited_for_cpu": round(waited, 2),
            "descriptors_back_s": round(time.monotonic() - begun, 1),
            "accepted": len(accepted),
            "lost": len(lost),
            "tracebacks": node.log().count("Traceback"),
            "alive": node.process.poll() is None,
        }
        found["held"] = bool(
            found["alive"]
            and len(healthy.times) > seconds
            and not healthy.failed
            and not lost
            and not found["tracebacks"]
            and healthy.rss_mb <= GOAL_RSS_MB
        )
        return found


def unfinished(node, accepted):
    """Which of these tasks do not end; those that still wait for their turn get the time for it."""
    left = set(accepted)
    end = time.monotonic() + PATIENCE_S + len(accepted) * 0.1
    while left and time.monotonic() < end:
        ended = {one for one in left if node.get(f"/api/v1/tasks/{one}")["state"] in ENDED}
        left -= ended
        time.sleep(0.5 if left else 0)
    return left


def show(found):
    """A case in three lines."""
    verdict = "held" if found["held"] else "NOT HELD"
    slow = "" if found["healthy_p99_ms"] <= GOAL_P99_MS else f" (goal {GOAL_P99_MS} MISSED)"
    print(f"{verdict}: {found['case']}")
    print(f"    {', '.join(f'{name}: {count}' for name, count in found['crowd'].items())}")
    print(
        f"    healthy client: {found['healthy_answered']} answered, {len(found['healthy_failed'])} not, "
        f"p50 {found['healthy_p50_ms']:g} ms, p99 {found['healthy_p99_ms']:g} ms{slow}; "
        f"node: at most {found['max_rss_mb']:g} MB, ran {found['node_ran']:.0%} of the time and waited "
        f"{found['node_waited_for_cpu']:.0%} of it for a CPU; "
        f"tasks accepted {found['accepted']}, lost {found['lost']}",
        flush=True,
    )
    if found["healthy_failed"]:
        print(f"    {found['healthy_failed']}")


def run_named_tests(folder):
    """The tests that SECURITY.md names, other than those of crowds: (tried, held, skipped)."""
    named = dict.fromkeys(NAMED.findall((ROOT / "SECURITY.md").read_text()))
    ids = [f"tests/{file}::{name}" for file, name in named if not file.startswith("abuse/")]
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not fleet", f"--junitxml={report}"]
    subprocess.run([*command, *ids], cwd=ROOT, check=False)
    suite = ET.parse(report).getroot()[0]
    skipped = int(suite.get("skipped"))
    tried = int(suite.get("tests")) - skipped
    return tried, tried - int(suite.get("failures")) - int(suite.get("errors")), skipped


def main(options):
    """Run every case, then the tests that SECURITY.md names; the exit code says whether all held."""
    found = []
    for case in CASES:
        if options.kind in ("", case.kind):
            with tempfile.TemporaryDirectory(prefix="edgeorch-abuse-") as folder:
                found.append(run_case(case, Path(folder), options.seconds))
            show(found[-1])
    tried, held = len(found), sum(one["held"] for one in found)
    print(f"crowds tried: {tried}, held: {held}", flush=True)
    if not options.kind:
        with tempfile.TemporaryDirectory(prefix="edgeorch-abuse-") as folder:
            more, more_held, skipped = run_named_tests(Path(folder))
        tried, held = tried + more, held + more_held
        print(f"abuse cases tried: {tried}, held: {held}, skipped on this machine: {skipped}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return 0 if tried == held else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="that each crowd stays")
    kinds = sorted({case.kind for case in CASES})
    parser.add_argument("--kind", default="", choices=kinds, help="only crowds of this kind")
    parser.add_argument("--json", type=Path, help="also write what was found to this file")
    sys.exit(main(parser.parse_args()))
