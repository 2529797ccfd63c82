"""Who is meant by a name: a host that got new keys has a dead node of its name beside the live one."""

import msgspec
import pytest

from edgeorch.errors import ConflictError, NotFoundError
from edgeorch.model import PeerState
from edgeorch.testing.fleet import ADMIN, VirtualFleet

OLD, NEW = "old0000000", "new0000000"


@pytest.fixture
async def asked(tmp_path, autojump_clock, nursery):
    """A node that knows the nodes OLD and NEW, both named b; old came first."""
    fleet = VirtualFleet(tmp_path)
    node = fleet.add("a")
    for name in (OLD, NEW):
        me = fleet.add(name).me
        me.info = msgspec.structs.replace(me.info, name="b")
    for made in fleet.nodes.values():
        await nursery.start(made.host.run)
        await nursery.start(made.run)
    return fleet, node.dispatch


@pytest.mark.parametrize("gone", [PeerState.DEAD, PeerState.LEFT, PeerState.SUSPECT])
@pytest.mark.parametrize(("there", "other"), [(NEW, OLD), (OLD, NEW)])
async def test_a_name_means_the_node_that_is_there(asked, gone, there, other):
    fleet, dispatch = asked
    fleet.set_state(other, gone)
    assert dispatch.node("b").peer.info.id == there
    assert dispatch.node(other).peer.state is gone
    await dispatch.change_node("b", "cordon", ADMIN)
    states = {node.id: node.me.info.state for node in fleet.nodes.values()}
    assert (states[there], states[other]) == ("cordoned", "ready")


async def test_what_is_forgotten_by_name_is_the_node_that_is_gone(asked):
    fleet, dispatch = asked
    forgotten = []
    dispatch.view.membership.forget = forgotten.append
    fleet.set_state(OLD, PeerState.DEAD)
    await dispatch.forget("b", ADMIN)
    assert forgotten == [OLD]
    fleet.set_state(OLD, PeerState.ALIVE)
    with pytest.raises(ConflictError, match="is alive"):
        await dispatch.forget("b", ADMIN)
    with pytest.raises(NotFoundError):
        dispatch.node("c")
