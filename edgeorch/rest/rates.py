"""Requests per second of each token."""

from edgeorch.errors import TooManyRequestsError


class Rates:
    """A bucket per token that fills with ``per_second`` and holds one second's worth, one request at least.

    Args:
        per_second: 0 means no limit.
    """

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._size = max(1.0, per_second)
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, token: str, now: float) -> None:
        """Count one request.

        Args:
            token: the token's name; there are as many entries as tokens.
            now: monotonic seconds.

        Raises:
            TooManyRequestsError: the bucket is empty.
        """
        if not self._per_second:
            return
        left, since = self._left.get(token, (self._size, now))
        left = min(self._size, left + (now - since) * self._per_second)
        if left < 1:
            self._left[token] = (left, now)
            raise TooManyRequestsError(
                f"the token {token!r} sends more than {self._per_second:g} requests per second",
                hint="send batches, or ask for a higher api.requests_per_second",
            )
        self._left[token] = (left - 1, now)
