"""JSON that another program hands to a command on its standard input."""

import sys
from typing import TypeVar

import msgspec

from edgeorch.errors import InvalidRequestError

Document = TypeVar("Document")


def read_document(kind: type[Document]) -> Document:
    """The document on stdin.

    Raises:
        InvalidRequestError: it is not JSON of this kind.
    """
    text = sys.stdin.buffer.read()
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(
            f"standard input: {error}", hint="it must be the JSON that --help shows"
        ) from None
