"""The line that `systemctl status` shows, and what makes a node not ready."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from structlog.testing import capture_logs

from edgeorch import health
from edgeorch.config import Config, Loaded, Node
from edgeorch.executor.driver import Available
from edgeorch.health import Health, Work
from edgeorch.model import NodeInfo, Peer, PeerState

NOW = 1_800_000_000.0


def peer(name, state="alive"):
    return Peer(info=NodeInfo(id=name, name=name, fleet="f", version="1"), state=PeerState(state), since=NOW)


class World:
    """A node of which everything can be turned."""

    def __init__(self, monkeypatch, *, origins=(), volatile=False):
        monkeypatch.setattr(health, "why_volatile", lambda folder: f"{folder} is in memory (tmpfs)")
        self.store = SimpleNamespace(problem="", set_aside=None)
        self.me = SimpleNamespace(
            info=SimpleNamespace(state="ready", drivers={"native": "1"}),
            drivers={"native": SimpleNamespace(available=Available(version="1"))},
            problems=lambda: [
                f"{name}: {driver.available.reason}"
                for name, driver in self.me.drivers.items()
                if driver.available.reason
            ],
        )
        self.days = 89.4
        self.peers = []
        self.work = Work()
        self.score = 7.41
        self.clock = True
        config = Config(node=Node(volatile=volatile))
        self.health = Health(
            Loaded(config=config, path=None, origins=dict.fromkeys(origins, "file")),
            store=self.store,
            me=self.me,
            expires_at=lambda: NOW + self.days * 86_400,
            refused=lambda: "the node's certificate has expired" if self.days < 0 else "",
            peers=lambda: self.peers,
            work=lambda: self.work,
            score=lambda: self.score,
            wall=lambda: NOW,
            clock=lambda: self.clock,
        )

    def without(self, name, reason):
        self.me.drivers[name] = SimpleNamespace(available=Available(reason=reason))
        self.me.info.drivers.pop(name, None)

    def failing(self):
        return {name for name, wrong in self.health.ready().items() if wrong}


@pytest.fixture
async def world(monkeypatch):
    return World(monkeypatch, volatile=True)


async def test_a_node_that_is_well(world):
    world.peers = [peer(f"n{number}") for number in range(5)] + [peer("nuc-3", "suspect")]
    world.work = Work(["resize", "ffmpeg"])
    assert world.health.status() == (
        "ready: 5 peers alive, 1 suspect (nuc-3); 2 running, 0 waiting; score 7.4; certificate 89 d"
    )
    assert not world.failing()


async def test_missing_nodes_are_named_but_not_all_of_them(world):
    world.peers = [peer(f"pi-{number}", "dead") for number in (5, 2, 4, 3, 1)] + [peer("old", "left")]
    assert "0 peers alive, 5 dead (pi-1, pi-2, pi-3 and 2 more); " in world.health.status()


async def test_bad_news_come_first(world):
    world.store.problem = "store stalled 12 s"
    world.days = 12
    assert world.health.status().startswith(
        "DEGRADED store stalled 12 s; WARNING certificate ends in 12 d; 0 peers alive; 0 running"
    )
    assert world.failing() == {"store"}
    world.days = -1
    assert world.health.status().startswith(
        "DEGRADED store stalled 12 s, the node's certificate has expired; "
    )
    assert world.failing() == {"store", "certificate"}


@pytest.mark.parametrize(("days", "warns"), [(60.1, False), (59.9, True), (0.2, True)])
async def test_a_certificate_is_warned_of_from_60_days(world, days, warns):
    world.days = days
    assert world.health.status().startswith("WARNING certificate ends in ") is warns
    assert not world.failing()


async def test_a_database_that_was_damaged_is_told_until_the_next_start(world):
    world.store.set_aside = Path("/var/lib/edgeorch/edgeorch.db.corrupt-20270115T080000Z")
    assert world.health.status().startswith("WARNING the database was damaged")
    assert "edgeorch.db.corrupt-20270115T080000Z" in world.health.status()


async def test_while_draining_the_line_says_what_is_waited_for(world):
    world.me.info.state = "draining"
    world.work = Work(["resize", "ffmpeg"], 0, 1)
    assert world.health.status().startswith(
        "draining: 2 running (resize, ffmpeg), 1 to be reported; 0 peers alive; "
    )
    world.work = Work()
    assert world.health.status().startswith("draining: nothing runs; 0 peers alive; ")
    assert world.failing() == {"state"}
    world.store.problem = "the disk is full"
    assert world.health.status().startswith("DEGRADED the disk is full; draining: nothing runs")


async def test_a_machine_that_never_had_an_engine_is_no_bad_news(world):
    world.without("container", "no Docker Engine")
    assert world.health.status().endswith("; no container driver")
    assert world.health.status().startswith("ready: ")


async def test_an_engine_that_has_gone_is_bad_news(world):
    world.me.info.drivers["container"] = "28"
    world.health.status()
    world.without("container", "no Docker Engine")
    assert world.health.status().startswith("DEGRADED container: no Docker Engine; ")


async def test_a_driver_that_was_asked_for_must_work(monkeypatch):
    world = World(monkeypatch, origins=["executor.drivers"])
    world.without("container", "no Docker Engine")
    assert world.health.status().startswith("DEGRADED container: no Docker Engine; ")
    assert not world.failing()


async def test_without_any_driver_the_node_is_not_ready(world):
    world.without("native", "no runner")
    assert world.failing() == {"drivers"}
    assert world.health.status().startswith("DEGRADED native: no runner; ")


async def test_what_a_reload_left_undone_is_shown(world):
    world.health.restart = ("api.port", "wire.port")
    assert world.health.status().endswith("; needs a restart: api.port, wire.port")
    world.health.settings = "new settings not in force: edgeorch.toml: not valid TOML"
    assert world.health.status().startswith(
        "WARNING new settings not in force: edgeorch.toml: not valid TOML; ready: 0 peers"
    )


async def test_the_score_does_not_change_the_line_all_the_time(world, autojump_clock):
    assert "score 7.4" in world.health.status()
    world.score = 3.0
    assert "score 7.4" in world.health.status()
    await trio.sleep(health.SCORE_EVERY_S)
    assert "score 3.0" in world.health.status()


async def test_the_clock_is_followed(world, nursery, autojump_clock):
    world.clock = False
    with capture_logs() as said:
        await nursery.start(world.health.run)
        assert world.health.status().endswith("; clock not synchronised")
        assert not world.failing()
        world.clock = True
        await trio.sleep(health.CLOCK_EVERY_S + 1)
    assert "clock" not in world.health.status()
    assert [line["event"] for line in said] == [
        "this machine's clock is not synchronised",
        "the state of the clock changed",
    ]
    nursery.cancel_scope.cancel()


async def test_a_clock_of_which_nothing_is_known_is_not_spoken_of(world, nursery, autojump_clock):
    world.clock = None
    with capture_logs() as said:
        await nursery.start(world.health.run)
    assert "clock" not in world.health.status()
    assert not said
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("accepted", [False, True])
async def test_a_state_folder_in_memory_is_pointed_out(monkeypatch, nursery, autojump_clock, accepted):
    world = World(monkeypatch, volatile=accepted)
    with capture_logs() as said:
        await nursery.start(world.health.run)
    assert world.health.status().endswith("; /var/lib/edgeorch is in memory (tmpfs)") is not accepted
    assert bool(said) is not accepted
    nursery.cancel_scope.cancel()
