"""What the machine can run: tests that need more are skipped, with the reason and what to install."""

import functools
import os
import shutil
import subprocess

import pytest
from hypothesis import settings

# By itself it fails an example that takes 0.2 s, which any may on a machine that has something else to do.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@functools.cache
def why_no_docker() -> str:
    if not shutil.which("docker"):
        return "no docker command: apt-get install docker.io"
    try:
        answer = subprocess.run(["docker", "info"], capture_output=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return "docker info hangs: restart dockerd"
    return "" if answer.returncode == 0 else "no Docker Engine answers: start dockerd (package docker.io)"


@functools.cache
def why_no_namespaces() -> str:
    if os.geteuid() != 0:
        return "needs root: sudo make test"
    if not shutil.which("ip"):
        return "no ip command: apt-get install iproute2"
    return ""


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("docker") and why_no_docker():
            item.add_marker(pytest.mark.skip(reason=why_no_docker()))
        if item.get_closest_marker("root") and why_no_namespaces():
            item.add_marker(pytest.mark.skip(reason=why_no_namespaces()))
