import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeorch import config
from edgeorch.errors import ConfigError, PolicyError
from edgeorch.model import Caller, ContainerFacts, ContainerService, TaskSpec
from edgeorch.policy import Policy
from edgeorch.policy.images import load_images

D = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32


def allowed(image, *entries):
    return load_images(entries)[0].refusal(image) == ""


@pytest.mark.parametrize(
    ("entry", "yes", "no"),
    [
        ("*", ["alpine", "x.example/a/b:1", f"a@{D}", "cafe", D], []),
        ("**", ["alpine", "x.example/a/b:1", "cafe"], []),
        (
            "alpine",
            ["alpine", "alpine:3", f"alpine@{D}", "docker.io/alpine", "index.docker.io/library/alpine:1"],
            [
                "alpine2",
                "acme/alpine",
                "x.example/alpine",
                "localhost/alpine",
                "x:1/library/alpine",
                "a/b/alpine",
            ],
        ),
        (
            "alpine:3.*",
            ["alpine:3.20", "docker.io/library/alpine:3."],
            ["alpine", "alpine:30", f"alpine:3.20@{D}"],
        ),
        ("alpine:latest", ["alpine"], ["alpine:3"]),
        (
            "ghcr.io/acme/*",
            ["ghcr.io/acme/a:1", f"ghcr.io/acme/a@{D}"],
            [
                "ghcr.io/acme/a/b",
                "ghcr.io/acme",
                "x.io/ghcr.io/acme/a",
                "ghcr.io:443/acme/a",
                "ghcr.io/acme2/a",
            ],
        ),
        ("ghcr.io/acme/**", ["ghcr.io/acme/a/b"], ["ghcr.io/evil/acme/a"]),
        ("*.acme.com/*", ["r.acme.com/a"], ["evil.com/r.acme.com/a", "r.acme.com/a/b", "racme.com/a"]),
        ("acme/*", ["acme/a", "docker.io/acme/a:2"], ["a", "x.io/acme/a"]),
        ("localhost:5000/a", ["localhost:5000/a:1"], ["localhost/a", "a:1"]),
        (D, [f"alpine@{D}", f"x.io/a/b:1@{D}", D], ["alpine", f"alpine@{OTHER}", OTHER]),
        ("AB" * 32, [f"alpine@{D}", D], [f"alpine@{OTHER}", "ab" * 32]),
        (f"alpine@{D}", [f"alpine@{D}", f"alpine:1@{D}"], ["alpine", f"alpine@{OTHER}", f"busybox@{D}"]),
        ("acme/*@sha256:*", [f"acme/a@{D}", f"acme/a@{OTHER}"], ["acme/a:1", f"a@{D}"]),
        ("a.b", ["a.b"], ["aXb"]),
        # Docker takes these for the start of an image's id.
        ("docker.io/library/*", ["cafe:1", "docker.io/cafe"], ["cafe", "0", "ab" * 32, D, "sha256:abab"]),
    ],
)
def test_entries(entry, yes, no):
    for image in yes:
        assert allowed(image, entry), image
    for image in no:
        assert not allowed(image, entry), image


def test_nothing_is_listed():
    assert not any(allowed(image) for image in ("alpine", f"a@{D}", "cafe"))


@pytest.mark.parametrize("entry", ["", "a b", "a\n", "sha256:abc", "sha256:" + "g" * 64, "sha256:*"])
def test_an_entry_that_is_none(entry):
    with pytest.raises(ConfigError, match=r"policy\.images"):
        Policy(config.Policy(images=(entry,)))


def test_the_originals_white_list_and_other_files(tmp_path):
    original, more = tmp_path / "containerwhitelist.txt", tmp_path / "more"
    original.write_text("ab" * 32 + "\n" + "CD" * 32 + "\n")
    more.write_text("# ours\n\nalpine:3.20  # tested\nnot an image\n")
    images, warnings = load_images(("ghcr.io/acme/*", str(original), str(more), str(tmp_path / "none")))
    for image in ("ghcr.io/acme/a", f"x@{D}", f"y@{OTHER}", "alpine:3.20"):
        assert images.refusal(image) == ""
    assert images.refusal("alpine") == "does not list alpine"
    assert len(warnings) == 2
    assert warnings[0].startswith(f"{more}: line 4: 'not an image'")
    assert warnings[1] == f"{tmp_path}/none: No such file or directory; no image of it is listed"


@pytest.mark.parametrize("content", [b"\xff", b"#" * (1 << 21)])
def test_a_file_that_cannot_be_used_lists_nothing(tmp_path, content):
    (tmp_path / "list").write_bytes(content)
    images, warnings = load_images((str(tmp_path / "list"),))
    assert len(warnings) == 1
    assert images.refusal("alpine")


def test_a_refusal_names_key_and_image():
    policy = Policy(config.Policy(images=("ghcr.io/acme/*",), privileged=True), node="kitchen")
    service = ContainerService(image="alpine")
    with pytest.raises(PolicyError) as caught:
        policy.check(
            TaskSpec(name="x", service=(service,)),
            service,
            Caller(token="t", role="admin"),
            runner_is_other_user=True,
            container=ContainerFacts(),
        )
    assert caught.value.detail == "policy.images does not list alpine"
    assert caught.value.hint == "add it in edgeorch.toml on kitchen"
    assert caught.value.extra == {"key": "policy.images"}


part = st.from_regex(r"[a-z0-9]+([._-][a-z0-9]+)*", fullmatch=True)


@given(st.lists(part, min_size=1, max_size=4), st.sampled_from(["", ":1", ":latest", f"@{D}", f":1@{D}"]))
def test_only_what_starts_with_the_registry_is_its_own(parts, end):
    image = "/".join(parts) + end
    assert allowed(image, "ghcr.io/acme/**") == (parts[:2] == ["ghcr.io", "acme"] and len(parts) > 2)
    assert not allowed(image, "ghcr.io/**") or parts[0] == "ghcr.io"


@given(st.text(max_size=30), st.text(max_size=30))
def test_no_text_crashes_it(entry, image):
    try:
        images, _ = load_images((entry.lstrip("/"),))
    except ConfigError:
        return
    images.refusal(image)
