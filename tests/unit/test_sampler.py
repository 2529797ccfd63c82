"""What the sampler reads and when; the machine itself is real in one test only."""

import itertools
import random
import threading
import time

import pytest
import trio
from membership_world import sample

from edgeorch.membership import ExecutorLoad, Machine, Sampler
from edgeorch.membership import sampler as module
from edgeorch.membership.cgroup import cpu_limit, memory_limit, memory_used
from edgeorch.membership.sampler import cpu_mhz, hottest
from edgeorch.seams import Seams

SEAMS = Seams(rng=random.Random(1))


class Counted:
    def __init__(self):
        self.threads = []
        self.failing = False

    def measure(self):
        self.threads.append(threading.current_thread())
        if self.failing:
            raise OSError(5, "Input/output error")
        return sample(at=float(len(self.threads)))


async def test_nothing_is_known_before_the_first_sample_and_all_after(nursery):
    sampler = Sampler(Counted(), lambda: ExecutorLoad(slots=4), SEAMS)
    assert sampler.current() is None
    await nursery.start(sampler.run)
    assert sampler.current().slots == 4
    nursery.cancel_scope.cancel()


async def test_executor_numbers_are_fresh_without_measuring():
    machine, load = Counted(), ExecutorLoad(slots=4)
    sampler = Sampler(machine, lambda: load, SEAMS)
    await sampler.refresh()
    load = ExecutorLoad(slots=4, slots_used=3, cpus_promised=1.5, memory_promised=7, queued=2)
    now = sampler.current()
    assert (now.slots_used, now.cpus_promised, now.memory_promised, now.queued) == (3, 1.5, 7, 2)
    assert len(machine.threads) == 1
    assert machine.threads[0] is not threading.current_thread()


async def test_what_attempts_use_is_brought_up_to_those_that_run_now():
    load = ExecutorLoad(slots=8)
    machine = Counted()
    machine.measure = lambda: sample(cpu_busy=0.5, cpus=4)
    sampler = Sampler(machine, lambda: load, SEAMS)
    for used in (2, 2):
        load = ExecutorLoad(slots=8, slots_used=used)
        await sampler.refresh()
    assert sampler.current().cpus_wanted == 2.0
    load = ExecutorLoad(slots=8, slots_used=1)
    assert sampler.current().cpus_wanted == 1.0


async def test_a_failing_machine_keeps_its_last_sample():
    machine = Counted()
    sampler = Sampler(machine, lambda: ExecutorLoad(slots=4), SEAMS)
    await sampler.refresh()
    before = sampler.last_ok
    machine.failing = True
    await sampler.refresh()
    assert sampler.current().at == 1.0
    assert sampler.last_ok == before
    machine.failing = False
    await sampler.refresh()
    assert sampler.current().at == 3.0


async def test_the_schedule_is_absolute(autojump_clock, nursery, monkeypatch):
    """A slow reading shifts no later one: it is left out where its time has passed."""
    at, enough = [], trio.Event()

    class Slow(Sampler):
        async def refresh(self):
            at.append(trio.current_time())
            if len(at) == 6:
                enough.set()
            await trio.sleep(0.5 if len(at) != 3 else 4.5)

    sampler = Slow(Counted(), lambda: ExecutorLoad(slots=4), SEAMS)
    await nursery.start(sampler.run)
    await enough.wait()
    nursery.cancel_scope.cancel()
    gaps = [after - before for before, after in itertools.pairwise(at[1:])]
    assert gaps[:4] == pytest.approx([2.0, 6.0, 2.0, 2.0])


def test_the_real_machine(tmp_path):
    machine = Machine(tmp_path, lambda: ("lo", "no such interface"), time.time)
    machine.measure()
    found = machine.measure()
    assert 0 <= found.cpu_busy <= 1
    assert found.cpus >= 1
    assert 0 < found.memory_available <= found.memory_total
    assert found.disk_free > 0
    assert found.load1 >= 0
    assert abs(found.at - time.time()) < 60


def test_cpu_busy_is_the_difference_between_two_samples(tmp_path, monkeypatch):
    real = module.psutil.cpu_times()
    kind = type(real)
    rest = [0.0] * (len(real) - 5)
    first, second = kind(10, 0, 10, 100, 0, *rest), kind(14, 0, 11, 112, 3, *rest)
    readings = [first, second, second]
    monkeypatch.setattr(module.psutil, "cpu_times", lambda: readings.pop(0))
    machine = Machine(tmp_path, list, time.time)
    assert machine.measure().cpu_busy == pytest.approx(0.25)
    # No time has passed: the share is unknown and stays as it was.
    assert machine.measure().cpu_busy == pytest.approx(0.25)


def test_the_speed_of_a_cpu_is_found_somewhere(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some CPU E5 @ 2.40GHz\n")
    freq = type("freq", (), {"current": 1500.0, "max": 1800.0})
    monkeypatch.setattr(module.psutil, "cpu_freq", lambda: freq)
    assert cpu_mhz(cpuinfo) == 1800
    freq.max = 0.0
    assert cpu_mhz(cpuinfo) == 1500
    monkeypatch.setattr(module.psutil, "cpu_freq", lambda: None)
    assert cpu_mhz(cpuinfo) == 2400
    cpuinfo.write_text("model name\t: Board\n")
    assert cpu_mhz(cpuinfo) == cpu_mhz(tmp_path / "none") == 0


def test_sensors_that_make_no_sense_are_left_out(monkeypatch):
    def sensors(*celsius):
        entries = [type("entry", (), {"current": value}) for value in celsius]
        monkeypatch.setattr(module.psutil, "sensors_temperatures", lambda: {"cpu": entries}, raising=False)
        return hottest()

    assert sensors(41.5, 63.0, -128.0, 255.0, 0.0, None) == 63.0
    assert sensors(-128.0) is None
    assert sensors() is None


def test_limits_of_a_container(tmp_path):
    v2, v1, host = tmp_path / "v2", tmp_path / "v1", tmp_path / "host"
    files = {
        v2 / "memory.max": "1000",
        v2 / "memory.current": "600",
        v2 / "memory.stat": "anon 400\ninactive_file 150\n",
        v2 / "cpu.max": "150000 100000",
        v1 / "memory/memory.limit_in_bytes": "2000",
        v1 / "memory/memory.usage_in_bytes": "900",
        v1 / "memory/memory.stat": "total_inactive_file 100\n",
        v1 / "cpu/cpu.cfs_quota_us": "50000",
        v1 / "cpu/cpu.cfs_period_us": "100000",
        host / "memory.max": "max",
        host / "memory/memory.limit_in_bytes": "9223372036854771712",
        host / "cpu.max": "max 100000",
        host / "cpu/cpu.cfs_quota_us": "-1",
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert (memory_limit(v2), memory_used(v2), cpu_limit(v2)) == (1000, 450, 1.5)
    assert (memory_limit(v1), memory_used(v1), cpu_limit(v1)) == (2000, 800, 0.5)
    assert (memory_limit(host), cpu_limit(host)) == (None, None)
    assert (memory_limit(tmp_path), memory_used(tmp_path), cpu_limit(tmp_path)) == (None, 0, None)
