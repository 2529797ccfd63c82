"""Container driver (prepare, start, wait) against ``docker run --rm`` for ``busybox true``, interleaved."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio

from edgeorch.executor.container import ContainerDriver
from edgeorch.executor.driver import Launch
from edgeorch.model import ContainerService

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from docker_images import busybox_image

COMMAND = ("--network", "none")


async def through_driver(driver, number, image):
    service = ContainerService(image=image, options=COMMAND, args=("true",))
    launch = Launch(key=f"bench.{number}", name="bench", service=service, env={}, output_max=1 << 20)
    start = time.perf_counter()
    await driver.prepare(launch, print)
    handle = await driver.start(launch)
    end = await driver.wait(handle)
    took = time.perf_counter() - start
    if end.exit_code != 0:
        raise SystemExit(f"the container failed: {end}")
    await driver.destroy(handle)
    return took


async def through_docker(image):
    start = time.perf_counter()
    await trio.run_process(["docker", "run", "--rm", *COMMAND, image, "true"], stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


async def main(runs):
    image = busybox_image()
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        async with trio.open_nursery() as nursery:
            driver = ContainerDriver("", "benchnode0", "bench", Path(folder))
            await nursery.start(driver.run)
            for number in range(-2, runs):
                pair = await through_driver(driver, number, image), await through_docker(image)
                if number >= 0:  # the first two warm up
                    ours.append(pair[0])
                    theirs.append(pair[1])
            nursery.cancel_scope.cancel()
    medians = statistics.median(ours), statistics.median(theirs)
    print(json.dumps({"driver_s": medians[0], "docker_run_s": medians[1], "ratio": medians[0] / medians[1]}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    trio.run(main, parser.parse_args().runs)
