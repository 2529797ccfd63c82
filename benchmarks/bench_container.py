"""A container from its start to its exit (``busybox true``): the driver against ``docker run --rm``."""

import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import count
from pathlib import Path

import trio
import trio.from_thread
from _rounds import compare, options, show

from edgeorch.executor.container import ContainerDriver
from edgeorch.executor.driver import Launch
from edgeorch.model import ContainerService

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from docker_images import busybox_image

COMMAND = ("--network", "none")
NUMBERS = count()


async def through_driver(driver: ContainerDriver, image: str) -> float:
    """Seconds."""
    service = ContainerService(image=image, options=COMMAND, args=("true",))
    key = f"bench.{next(NUMBERS)}"
    launch = Launch(key=key, name="bench", service=service, env={}, output_max=1 << 20)
    start = time.perf_counter()
    await driver.prepare(launch, print)
    handle = await driver.start(launch)
    end = await driver.wait(handle)
    took = time.perf_counter() - start
    if end.exit_code != 0:
        raise SystemExit(f"the container failed: {end}")
    await driver.destroy(handle)
    return took


def through_docker(image: str) -> float:
    """Seconds."""
    start = time.perf_counter()
    subprocess.run(["docker", "run", "--rm", *COMMAND, image, "true"], stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


async def measure(rounds: int) -> list[object]:
    """The comparison, in a thread beside the driver's loop."""
    image = busybox_image()
    with tempfile.TemporaryDirectory(prefix="edgeorch-bench-") as folder:
        async with trio.open_nursery() as nursery:
            driver = ContainerDriver("", "benchnode0", "bench", Path(folder))
            await nursery.start(driver.run)
            row = await trio.to_thread.run_sync(
                partial(
                    compare,
                    "container, start to exit",
                    "s",
                    partial(trio.from_thread.run, through_driver, driver, image),
                    "docker run --rm",
                    partial(through_docker, image),
                    goal="<= 1.05",
                    rounds=rounds,
                )
            )
            nursery.cancel_scope.cancel()
    return [row]


def main() -> int:
    """Measure 20 rounds, or as many as asked for."""
    parser = options(__doc__)
    parser.set_defaults(rounds=20)
    given = parser.parse_args()
    return show(trio.run(measure, given.rounds), given)


if __name__ == "__main__":
    raise SystemExit(main())
