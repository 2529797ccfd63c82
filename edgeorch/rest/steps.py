"""How long a request's steps take here; the later ones are measured where they happen."""

from dataclasses import dataclass, field

from edgeorch.timing import Histogram


@dataclass(frozen=True)
class Steps:
    """What ``/metrics`` shows of all requests together.

    Attributes:
        request: from a request's head to the end of its answer.
        accept: until its route is found, its caller known and its body read.
        decode: a body with tasks into specs.
    """

    request: Histogram = field(default_factory=Histogram)
    accept: Histogram = field(default_factory=Histogram)
    decode: Histogram = field(default_factory=Histogram)
