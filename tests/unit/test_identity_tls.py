"""Real TLS handshakes between identities, over a socket pair."""

import ssl
import time

import pytest
import trio
import trustme

from edgeorch.config import Api, Config, Loaded
from edgeorch.errors import IdentityError
from edgeorch.identity import WIRE_ALPN, Authority, handshake_error, load_identity

DAY = 86_400.0


def loaded(folder, **sections):
    return Loaded(config=Config(**sections), path=folder / "edgeorch.toml", origins={})


def node(authority, folder, name, *, at=None, **wish):
    """An identity issued and loaded at a time of its own; OpenSSL's clock is the real one."""
    wall = time.time if at is None else lambda: at
    Authority.open(authority.folder, wall=wall).issue(name, ["127.0.0.1"], **wish).write(folder)
    return load_identity(loaded(folder), wall=wall)


@pytest.fixture
def home(tmp_path):
    return Authority.create(tmp_path / "ca", "home", wall=lambda: time.time() - 800 * DAY)


async def handshake(client_context, server_context):
    """What each side saw: its stream, or the error of its handshake."""
    left, right = trio.socket.socketpair()
    client = trio.SSLStream(trio.SocketStream(left), client_context, https_compatible=True)
    server = trio.SSLStream(trio.SocketStream(right), server_context, server_side=True, https_compatible=True)
    seen = {}

    async def side(name, stream):
        try:
            await stream.do_handshake()
            if name == "client":
                # In TLS 1.3 the client is done before the server has looked at its certificate.
                await stream.receive_some(1)
            else:
                await stream.send_all(b"x")
            seen[name] = stream
        except trio.BrokenResourceError as error:
            seen[name] = error
            await trio.aclose_forcefully(stream)

    try:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(side, "client", client)
                nursery.start_soon(side, "server", server)
    finally:
        await trio.aclose_forcefully(client)
        await trio.aclose_forcefully(server)
    return seen


async def test_two_nodes_know_each_other(home, tmp_path):
    one, two = node(home, tmp_path / "1", "one"), node(home, tmp_path / "2", "two")
    seen = await handshake(one.client_context(), two.server_context())
    client, server = seen["client"], seen["server"]
    assert client.version() == server.version() == "TLSv1.3"
    assert client.selected_alpn_protocol() == server.selected_alpn_protocol() == WIRE_ALPN
    peer = one.verify_peer(client.getpeercert(binary_form=True))
    assert (peer.node_id, peer.name, peer.fleet) == (two.node_id, "two", "home")
    assert two.verify_peer(server.getpeercert(binary_form=True)).node_id == one.node_id


@pytest.mark.parametrize(("days_from_now", "reason"), [(-500, "expired"), (30, "clock")])
@pytest.mark.parametrize("bad_side", ["client", "server"])
async def test_dates_are_left_to_us_on_both_sides(home, tmp_path, days_from_now, reason, bad_side):
    good = node(home, tmp_path / "good", "good")
    bad = node(home, tmp_path / "bad", "bad", at=time.time() + days_from_now * DAY)
    client, server = (bad, good) if bad_side == "client" else (good, bad)
    seen = await handshake(client.client_context(), server.server_context())
    shown = seen["server" if bad_side == "client" else "client"].getpeercert(binary_form=True)
    with pytest.raises(IdentityError) as caught:
        good.verify_peer(shown)
    assert caught.value.reason == reason


@pytest.mark.parametrize("bad_side", ["client", "server"])
async def test_another_ca_of_the_same_name_is_refused(home, tmp_path, bad_side):
    good = node(home, tmp_path / "good", "good")
    other = Authority.create(tmp_path / "ca2", "home")
    other.issue("bad").write(tmp_path / "bad")
    # The bad one trusts both CAs, so that it is the good one that refuses.
    (tmp_path / "bad" / "pki" / "ca.pem").write_bytes(other.ca_pem + home.ca_pem)
    bad = load_identity(loaded(tmp_path / "bad"), wall=time.time)
    client, server = (bad, good) if bad_side == "client" else (good, bad)
    seen = await handshake(client.client_context(), server.server_context())
    error = handshake_error(seen["server" if bad_side == "client" else "client"])
    assert error is not None
    assert error.reason == "wrong_ca"


async def test_a_client_without_a_certificate_is_refused(home, tmp_path):
    server = node(home, tmp_path / "1", "one")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(tmp_path / "1" / "pki" / "ca.pem")
    seen = await handshake(context, server.server_context())
    assert handshake_error(seen["server"]).reason == "no_identity"


async def test_a_foreign_ca_is_refused(home, tmp_path):
    server = node(home, tmp_path / "1", "one")
    foreign = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    foreign.issue_cert("one").configure_cert(context)
    seen = await handshake(context, server.server_context())
    assert handshake_error(seen["server"]).reason == "wrong_ca"


async def test_tls_1_2_is_refused_between_nodes(home, tmp_path):
    one, two = node(home, tmp_path / "1", "one"), node(home, tmp_path / "2", "two")
    old = one.client_context()
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    seen = await handshake(old, two.server_context())
    assert isinstance(seen["server"], trio.BrokenResourceError)
    assert handshake_error(seen["server"]) is None


async def test_a_revoked_node_passes_openssl_and_is_refused_by_us(home, tmp_path):
    one, two = node(home, tmp_path / "1", "one"), node(home, tmp_path / "2", "two")
    Authority.open(home.folder).revoke("one")
    assert two.take_crl((home.folder / "crl.pem").read_bytes())
    seen = await handshake(one.client_context(), two.server_context())
    with pytest.raises(IdentityError) as caught:
        two.verify_peer(seen["server"].getpeercert(binary_form=True))
    assert caught.value.reason == "revoked"
    assert "one" in caught.value.detail


async def test_a_reload_counts_for_new_connections_only(home, tmp_path):
    one, two = node(home, tmp_path / "1", "one"), node(home, tmp_path / "2", "two")
    before = one.client_context()
    seen = await handshake(before, two.server_context())
    old = two.verify_peer(seen["server"].getpeercert(binary_form=True)).serial
    Authority.open(home.folder).issue("one", node_id=one.node_id).write(tmp_path / "1")
    one.reload()
    again = await handshake(before, two.server_context())
    assert two.verify_peer(again["server"].getpeercert(binary_form=True)).serial == old
    fresh = await handshake(one.client_context(), two.server_context())
    assert two.verify_peer(fresh["server"].getpeercert(binary_form=True)).serial != old


@pytest.mark.parametrize("own_files", [True, False])
async def test_rest_shows_a_server_certificate_and_asks_for_none(home, tmp_path, own_files):
    identity = node(home, tmp_path / "2", "two")
    ca = tmp_path / "2" / "pki" / "ca.pem"
    if own_files:
        foreign = trustme.CA()
        chain = foreign.issue_cert("127.0.0.1")
        chain.cert_chain_pems[0].write_to_path(tmp_path / "2" / "api.pem")
        chain.private_key_pem.write_to_path(tmp_path / "2" / "api.key")
        ca = tmp_path / "web-ca.pem"
        foreign.cert_pem.write_to_path(ca)
        api = Api(tls_cert="api.pem", tls_key="api.key")
        identity = load_identity(loaded(tmp_path / "2", api=api), wall=time.time)
    context = ssl.create_default_context(cafile=ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    left, right = trio.socket.socketpair()
    client = trio.SSLStream(trio.SocketStream(left), context, server_hostname="127.0.0.1")
    server = trio.SSLStream(trio.SocketStream(right), identity.api_context(), server_side=True)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.do_handshake)
            nursery.start_soon(server.do_handshake)
    assert server.getpeercert() is None
    await trio.aclose_forcefully(client)
    await trio.aclose_forcefully(server)


def test_an_alert_of_the_peer_says_that_we_were_refused(home, tmp_path):
    server_side = node(home, tmp_path / "1", "one").server_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(to_client, to_server)
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    with pytest.raises(ssl.SSLError) as refused:
        server.do_handshake()
    assert handshake_error(refused.value).reason == "no_identity"
    with pytest.raises(ssl.SSLError) as alert:
        client.read(1)
    about = handshake_error(alert.value)
    assert about.reason == "refused"
    assert "certificate required" in about.detail


def test_handshake_errors_that_are_not_about_certificates():
    assert handshake_error(OSError("reset")) is None
    assert handshake_error(trio.BrokenResourceError()) is None
