"""A small HTTP server on loopback that takes the callbacks of the demo."""

import errno
import json
from typing import Any

import h11
import trio

WANTED_PORT = 8888
LARGEST = 64 << 10


class Receiver:
    """Takes POSTs; each JSON object that arrives is passed on."""

    def __init__(self) -> None:
        self._send, self.arrived = trio.open_memory_channel[dict[str, Any]](16)
        self.port = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started once ``port`` is known."""
        try:
            listeners = await trio.open_tcp_listeners(WANTED_PORT, host="127.0.0.1")
        except OSError as error:
            if error.errno not in {errno.EADDRINUSE, errno.EACCES}:
                raise
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._serve, listeners)
            task_status.started()

    async def _serve(self, stream: trio.SocketStream) -> None:
        """One request per connection."""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LARGEST)
        body = b""
        with trio.move_on_after(10):
            try:
                while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                    if event is h11.NEED_DATA:
                        connection.receive_data(await stream.receive_some(LARGEST))
                    elif isinstance(event, h11.Data):
                        body += event.data
                    elif isinstance(event, h11.ConnectionClosed) or len(body) > LARGEST:
                        return
                document = json.loads(body)
                status = 204 if isinstance(document, dict) else 400
                headers = [("content-length", "0"), ("connection", "close")]
                answer = connection.send(h11.Response(status_code=status, headers=headers))
                await stream.send_all((answer or b"") + (connection.send(h11.EndOfMessage()) or b""))
            except (h11.RemoteProtocolError, ValueError, trio.BrokenResourceError):
                return
            if status == 204:
                await self._send.send(document)
