"""An image pull in words for people."""

from typing import Any

LINE_EVERY_S = 1.0


class PullProgress:
    """Turns the Engine's progress objects into a line now and then."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._layers: dict[str, tuple[int, int]] = {}
        self._done: set[str] = set()
        self._next = 0.0

    def feed(self, message: dict[str, Any], now: float) -> str:
        """A new line, or nothing. ``now``: monotonic seconds."""
        layer, status = message.get("id", ""), message.get("status", "")
        if not layer or status.startswith("Pulling from"):
            return ""
        self._layers.setdefault(layer, (0, 0))
        detail = message.get("progressDetail") or {}
        if status == "Downloading" and detail.get("total"):
            self._layers[layer] = (int(detail.get("current", 0)), int(detail["total"]))
        elif status in ("Pull complete", "Already exists"):
            self._done.add(layer)
        elif status == "Download complete":
            self._layers[layer] = (self._layers[layer][1], self._layers[layer][1])
        if now < self._next:
            return ""
        self._next = now + LINE_EVERY_S
        return self._line()

    def _line(self) -> str:
        current = sum(done for done, _ in self._layers.values())
        total = sum(size for _, size in self._layers.values())
        share = f", {100 * current // total} % of {total / 1e6:.1f} MB" if total else ""
        return f"pulling {self._image}: {len(self._done)} of {len(self._layers)} layers{share}"
