"""``docker run`` arguments to the body of an Engine API call, without Docker and without I/O.

``split`` takes a ``docker run`` line apart, ``parse`` turns options, image and arguments into the body of
``POST /containers/create`` and into the facts that the node's policy judges. ``OPTIONS`` and ``UNSUPPORTED``
list what is understood and what is refused by name.
"""

from edgeorch.docker_options.body import Body, parse
from edgeorch.docker_options.files import ReadFile
from edgeorch.docker_options.flags import split
from edgeorch.docker_options.table import OPTIONS, UNSUPPORTED, Option

__all__ = ["OPTIONS", "UNSUPPORTED", "Body", "Option", "ReadFile", "parse", "split"]
