"""Pulling an image from a registry on loopback."""

import io
import os
import shutil
import socket
import subprocess
import tarfile
from functools import partial

import pytest
import trio
from docker_images import docker

from edgeorch.errors import DriverError
from edgeorch.executor.container import ContainerDriver
from edgeorch.executor.driver import Launch
from edgeorch.model import ContainerService

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(
        shutil.which("docker-registry") is None,
        reason="no docker-registry command: apt-get install docker-registry",
    ),
]

CONFIG = """
version: 0.1
log: {{level: info}}
storage: {{filesystem: {{rootdirectory: {folder}/registry}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@pytest.fixture
async def registry(tmp_path, nursery):
    """Address of an empty registry."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "registry.yml"
    config.write_text(CONFIG.format(folder=tmp_path, port=port))
    run = partial(
        trio.run_process, ["docker-registry", "serve", str(config)], stderr=subprocess.PIPE, check=False
    )
    process = await nursery.start(run)
    said = b""
    with trio.fail_after(20):
        while b"listening on" not in said:
            said += await process.stderr.receive_some()
    nursery.start_soon(drain, process.stderr)
    yield f"127.0.0.1:{port}"
    process.kill()


async def drain(stream):
    async for _ in stream:
        pass


@pytest.fixture
def image(registry):
    """An image that only the registry has."""
    name = f"{registry}/folder/image:v1"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("noise")
        entry.size = 3 << 20
        tar.addfile(entry, io.BytesIO(os.urandom(entry.size)))
    subprocess.run(
        ["docker", "import", "-", name], input=archive.getvalue(), stdout=subprocess.DEVNULL, check=True
    )
    docker("push", name)
    docker("rmi", name)
    yield name
    docker("rmi", "-f", name, check=False)


async def test_pull_when_absent(image, tmp_path, nursery):
    driver = ContainerDriver("", "testnode00", "pull", tmp_path)
    await nursery.start(driver.run)

    def launch(reference):
        return Launch(key="p.1", name="p", service=ContainerService(image=reference), env={}, output_max=1)

    lines = []
    with trio.fail_after(30):
        await driver.prepare(launch(image), lines.append)
        assert lines[0] == f"pulling {image}"
        assert lines[-1] == f"pulled {image}"
        assert any("of 1 layers" in line for line in lines)
        await driver.prepare(launch(image), lines.append)
        assert lines.count(f"pulled {image}") == 1
        with pytest.raises(DriverError, match="not found") as info:
            await driver.prepare(launch(image.replace(":v1", ":v2")), lines.append)
    assert info.value.reason == "image_unavailable"
    nursery.cancel_scope.cancel()
