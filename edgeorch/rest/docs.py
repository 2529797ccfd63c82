"""Pages for people, all from this package: nothing is loaded from the internet."""

import html
import importlib.resources
import inspect
import re
from collections.abc import Sequence

import msgspec

from edgeorch.errors import problem_types
from edgeorch.rest.openapi import document
from edgeorch.rest.routes import Answer, Asked, Route, Shown

_HTML = "text/html; charset=utf-8"
_PAGE_HEADERS = {
    # Scripts and styles come as files of our own, so an injected one does not run.
    "Content-Security-Policy": (
        "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "Cache-Control": "no-cache",
}
_FILES = {
    "docs.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
}


class DocsRoutes:
    """Serves ``/``, ``/docs``, the problem types and the OpenAPI document.

    Args:
        described: the routes that the document describes.
    """

    def __init__(self, described: Sequence[Route]) -> None:
        # Our docstrings write code as reStructuredText does, OpenAPI as CommonMark.
        self._openapi = msgspec.json.encode(document([*described, *self._table()])).replace(b"``", b"`")
        self._pages = {"/": read_file("index.html"), "/docs": read_file("docs.html")}
        self._pages["/docs/problems"] = problems_page(read_file("problems.html").decode()).encode()
        self._files = {name: read_file(name) for name in _FILES}

    async def openapi(self, asked: Asked) -> Answer:  # noqa: ARG002  every handler takes it
        """The OpenAPI document."""
        return Answer(body=self._openapi, headers={"Cache-Control": "no-cache"})

    def routes(self) -> tuple[Route, ...]:
        """The table; pages and their files have no place in the OpenAPI document."""
        pages = tuple(
            _page(path, f"page{index}", Answer(body=body, media=_HTML, headers=_PAGE_HEADERS))
            for index, (path, body) in enumerate(self._pages.items())
        )
        files = tuple(
            _page(
                f"/docs/{name}",
                name.replace(".", "_"),
                Answer(body=body, media=_FILES[name], headers=_PAGE_HEADERS),
            )
            for name, body in self._files.items()
        )
        return (*self._table(), *pages, *files)

    def _table(self) -> tuple[Route, ...]:
        return (
            Route(
                "GET",
                "/openapi.json",
                "openapi",
                "none",
                self.openapi,
                "This document",
                {200: Shown("OpenAPI 3.1.", dict)},
            ),
        )


def _page(path: str, name: str, page: Answer) -> Route:
    async def show(asked: Asked) -> Answer:  # noqa: ARG001
        return page

    return Route("GET", path, name, "none", show, path, {})


def read_file(name: str) -> bytes:
    """A file of the package's ``web`` folder."""
    return (importlib.resources.files("edgeorch") / "web" / name).read_bytes()


def problems_page(frame: str) -> str:
    """The page of problem types; each has its slug as id, so ``type`` URIs lead to it."""
    rows = []
    for kind in sorted(problem_types().values(), key=lambda kind: (kind.status, kind.slug)):
        text = inspect.cleandoc((kind.__doc__ or "").partition("\n\nAttributes:")[0])
        again = "The same request may succeed later." if kind.retryable else ""
        rows.append(
            f'<section id="{html.escape(kind.slug)}"><h2>{html.escape(kind.title)}</h2>'
            f'<p><code>{html.escape(kind.slug)}</code> <span class="status">{kind.status}</span></p>'
            f"<p>{_marked(text)} {again}</p></section>"
        )
    return frame.replace("<!-- problems -->", "\n".join(rows))


def _marked(text: str) -> str:
    """A docstring's text as HTML."""
    return re.sub(r"``(.*?)``", r"<code>\1</code>", html.escape(text))
