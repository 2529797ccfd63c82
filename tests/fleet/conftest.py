"""Real hosts, deployed by the real playbooks; what a machine lacks for that skips the test with its name."""

import contextlib
import faulthandler
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from controller import Controller
from hosts import Hosts

FLEET = 4
NEEDS_HOSTS = {"fleet", "new_hosts", "module_hosts"}
TIMEOUT_S = 900
"""The first test also makes the image and the fleet."""


@functools.cache
def why_no_hosts():
    """What is missing for test hosts and how to get it; empty where they can be made."""
    if os.geteuid() != 0:
        return "test hosts need root: sudo make test"
    packages = {
        "docker": "docker.io",
        "debootstrap": "debootstrap",
        "ssh": "openssh-client",
        "ip": "iproute2",
    }
    missing = [package for command, package in packages.items() if not shutil.which(command)]
    if missing:
        return f"test hosts need more programs: apt-get install {' '.join(missing)}"
    if subprocess.run(["docker", "info"], capture_output=True, timeout=20, check=False).returncode != 0:
        return "no Docker Engine answers: start dockerd (package docker.io)"
    if not Path(sys.executable).with_name("ansible-playbook").exists():
        return "no ansible-playbook beside this Python: pip install -e '.[dev]'"
    return ""


def pytest_collection_modifyitems(items):
    for item in items:
        if NEEDS_HOSTS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("fleet")
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(TIMEOUT_S))
            if why_no_hosts():
                item.add_marker(pytest.mark.skip(reason=why_no_hosts()))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Plays take minutes: the stacks that pytest shows after two of them would say nothing."""
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def figures(request):
    """Call it with what was measured, seconds, and the limit if there is one: printed after the test run."""
    lines = request.config.stash.setdefault(_FIGURES, [])

    def add(what, seconds, limit=None):
        lines.append(f"{what}: {seconds:.1f} s" + (f" (limit {limit} s)" if limit else ""))

    return add


_FIGURES = pytest.StashKey[list]()


def pytest_terminal_summary(terminalreporter, config):
    if lines := config.stash.get(_FIGURES, []):
        terminalreporter.section("fleet figures")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def fleet(figures):
    """A ``Controller`` whose hosts n1 to n4 were deployed once. A test leaves it as it found it.

    n1 and n2 have a Docker Engine that runs, which edgeorch does not use.
    """
    with Hosts() as hosts:
        hosts.add(2, docker=True)
        hosts.add(FLEET - 2)
        controller = Controller(hosts)
        _LIVE.append(controller)
        _DEPLOYED.append(controller)
        figures(f"deploy of {FLEET} hosts from nothing", controller.play("deploy").seconds, 120)
        second = controller.play("deploy")
        figures(f"second deploy, {second.tasks} tasks, {second.changed} changed", second.seconds, 40)
        yield controller
        _DEPLOYED.remove(controller)
        _LIVE.remove(controller)


@pytest.fixture(scope="session")
def programs():
    """A ``Controller`` that has installed edgeorch, for ``take_over``: the fleet's once there is one."""
    if _DEPLOYED:
        yield _DEPLOYED[0]
        return
    with Hosts() as hosts:
        hosts.add(1)
        controller = Controller(hosts)
        controller.play("deploy", "--tags", "preflight,install")
        yield controller


@pytest.fixture
def new_hosts(request):
    """Call it with a number: a ``Controller`` of bare hosts; see ``host_maker``."""
    yield from host_maker(request)


@pytest.fixture(scope="module")
def module_hosts(request):
    """The same, for hosts that the tests of a module share."""
    yield from host_maker(request)


def host_maker(request):
    """Yield ``make(count)``; ``docker=True``: with an Engine each, ``installed=True``: with the programs."""
    with contextlib.ExitStack() as stack:

        def make(count, *, docker=False, installed=False):
            hosts = stack.enter_context(Hosts())
            hosts.add(count, docker=docker)
            controller = Controller(hosts)
            _LIVE.append(controller)
            stack.callback(_LIVE.remove, controller)
            if installed:
                controller.take_over(request.getfixturevalue("programs"))
            return controller

        yield make


_DEPLOYED = []
"""The fleet of this session, once it is there."""
_LIVE = []
"""Controllers whose hosts exist now."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Show what the nodes said when a test failed."""
    report = yield
    if report.failed and call.when != "teardown":
        for controller in _LIVE:
            for host in controller.hosts.by_name.values():
                with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                    said = controller.hosts.run(
                        host.name,
                        *("journalctl", "-u", "edgeorch*", "-n", "60", "--no-pager", "-o", "short-precise"),
                        check=False,
                        timeout=10,
                    )
                    report.sections.append((f"journal of {host.container}", said.stdout))
    return report
