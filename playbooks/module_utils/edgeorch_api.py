"""The REST API of a fleet, for modules and the inventory plugin; standard library only.

Which node, as whom and with which CA is found out as the command line does: arguments, then ``EDGEORCH_URL``,
``EDGEORCH_TOKEN`` and ``EDGEORCH_CA``, then ``~/.config/edgeorch/config.toml`` (``url``, ``token``, ``ca``).
"""

from __future__ import annotations

import ipaddress
import json
import os
import random
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request

DEFAULT_PORT = 56001
DEFAULT_URL = "http://127.0.0.1:56001"
KEYS = ("url", "token", "ca")
ANSWER_S = 30
CONNECT_S = 5
"""For one node of a list to say that it is there."""
WAIT_S = 20
"""One question for the end of a task; the node answers as soon as it has ended."""
PAUSES_S = (0.2, 0.5, 1, 2, 4)
STRANGER = "%s gives an answer that is none of edgeorch: check the URL"
OUTPUT_BYTES = 1 << 20
"""Of each stream, from its end: more does not belong into the result of a task of a play."""

ARGUMENTS = {
    "url": {"type": "list", "elements": "str"},
    "token": {"type": "str", "no_log": True},
    "ca": {"type": "path"},
}
"""Arguments of every module that asks the fleet; in their documentation too."""


class ApiError(Exception):
    """No good answer, in one sentence. ``status`` is 0 without any, -1 where a stranger gave it."""

    def __init__(self, sentence, status=0):
        super().__init__(sentence)
        self.status = status


class Api:
    """A fleet, asked through the first node of a list that answers; all further questions go to that one.

    Args:
        url: node or nodes, each ``HOST``, ``HOST:PORT`` or a URL; None to look where the command line does.
        token: bearer token.
        ca: PEM file with the fleet's CA.
        env: the environment.

    Raises:
        ApiError: a value cannot be used.
    """

    def __init__(self, url=None, token=None, ca=None, env=os.environ):
        given = {"url": list(url or ()), "token": token, "ca": ca}
        said = {key: env.get("EDGEORCH_" + key.upper()) for key in KEYS}
        path = config_path(env)
        kept = _read_config(path) if os.path.exists(path) else {}
        found = {key: given[key] or said[key] or kept.get(key) for key in KEYS}
        urls = found["url"] or DEFAULT_URL
        self.urls = [complete_url(each) for each in ([urls] if isinstance(urls, str) else urls)]
        self._token = found["token"]
        self.url = self.urls[0] if len(self.urls) == 1 else None
        handlers = [urllib.request.ProxyHandler({}), _NoRedirects()]
        if any(each.startswith("https") for each in self.urls):
            handlers.append(urllib.request.HTTPSHandler(context=_tls(found["ca"])))
        self._opener = urllib.request.build_opener(*handlers)

    def get(self, path, timeout=ANSWER_S, **query):
        """The JSON of a route.

        Raises:
            ApiError: no answer, or a refusal.
        """
        return self._json(self.ask("GET", path, query=query, timeout=timeout))

    def nodes(self, name=None):
        """Every node of the fleet by name, or the one with this name or id.

        Raises:
            ApiError: no answer, or a refusal.
        """
        if name:
            return [self.get("/api/v1/nodes/" + urllib.parse.quote(name, safe=""))]
        return sorted(self.get("/api/v1/nodes")["nodes"], key=lambda node: node["name"])

    def submit(self, spec, key, *, dry_run=False):
        """Hand a task in, once however often the answer is lost; the task, or the ranking of a dry run.

        Raises:
            ApiError: no answer, or a refusal.
        """
        query = {"dry_run": "true"} if dry_run else {}
        headers = {"Content-Type": "application/json"}
        if not dry_run:
            headers["Idempotency-Key"] = key
        body = json.dumps(spec, sort_keys=True).encode()
        for pause in (*PAUSES_S, None):
            try:
                return self._json(self.ask("POST", "/api/v1/tasks", body=body, query=query, headers=headers))
            except ApiError as error:
                if error.status not in (0, 503) or pause is None:
                    raise
            time.sleep(pause * random.uniform(1, 1.3))  # noqa: S311  no secret: keeps callers apart
        raise AssertionError("unreachable")

    def ended(self, task, wait_s):
        """The task when it has ended, or as it is after ``wait_s``; a node that restarts is waited for.

        Raises:
            ApiError: a refusal, or no answer until then.
        """
        end = time.monotonic() + wait_s
        while not task["ended_at"]:
            left = end - time.monotonic()
            if left <= 0:
                break
            headers = {"Prefer": "wait=%g" % min(WAIT_S, left)}
            try:
                path = "/api/v1/tasks/" + task["id"]
                task = self._json(self.ask("GET", path, headers=headers, timeout=WAIT_S + ANSWER_S))
            except ApiError as error:
                if error.status not in (0, 503) or time.monotonic() + PAUSES_S[-1] > end:
                    raise
                time.sleep(PAUSES_S[-1])
        return task

    def tasks(self, **query):
        """Every task that matches, newest first, and the names of nodes that could not be asked.

        Raises:
            ApiError: no answer, or a refusal.
        """
        found, away = [], set()
        while True:
            page = self.get("/api/v1/tasks", limit=1000, **query)
            found += page["tasks"]
            away.update(page["unreachable"])
            if not page["cursor"]:
                return found, sorted(away)
            query["cursor"] = page["cursor"]

    def output(self, task_id, stream):
        """The end of what a task wrote, as text.

        Raises:
            ApiError: a refusal other than "there is none".
        """
        try:
            raw = self.ask("GET", "/api/v1/tasks/%s/output" % task_id, query={"stream": stream})
        except ApiError as error:
            if error.status in (404, 410, 503):
                return ""
            raise
        return raw[-OUTPUT_BYTES:].decode("utf-8", "replace")

    def ask(self, method, path, *, body=None, query=None, headers=None, timeout=ANSWER_S):
        """The body of an answer, in bytes.

        Raises:
            ApiError: no answer, or a refusal.
        """
        if self.url is None:
            self.url = self._living()
        whole = path + ("?" + urllib.parse.urlencode(query, doseq=True) if query else "")
        return self._ask(self.url, method, whole, body=body, headers=headers, timeout=timeout)

    def _living(self):
        """The first node of the list that answers."""
        reasons = []
        for url in self.urls:
            try:
                self._ask(url, "GET", "/healthz", timeout=CONNECT_S)
            except ApiError as error:
                reasons.append(str(error))
            else:
                return url
        raise ApiError("no node answers: " + "; ".join(reasons))

    def _json(self, body):
        """What a node answers: an object.

        Raises:
            ApiError: it is no node.
        """
        try:
            found = json.loads(body)
            if isinstance(found, dict):
                return found
        except ValueError:
            pass
        raise ApiError(STRANGER % self.url, -1)

    def _ask(self, url, method, path, *, body=None, headers=None, timeout=ANSWER_S):
        names = {"Authorization": "Bearer " + self._token} if self._token else {}
        # complete_url lets http and https through alone.
        request = urllib.request.Request(url + path, body, {**names, **(headers or {})}, method=method)  # noqa: S310
        try:
            with self._opener.open(request, timeout=timeout) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise ApiError(_refusal(url, error.code, error.read()), error.code) from None
        except (OSError, ValueError) as error:  # URLError and http.client's are among them, or wrap one
            raise _no_answer(url, error) from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A node never redirects, and a token must not follow one."""

    def redirect_request(self, *_arguments):
        return None


def complete_url(text):
    """``HOST``, ``HOST:PORT`` or a URL, as a URL without a path.

    Raises:
        ApiError: it is none, or would send a token in clear text to another machine.
    """
    scheme, separator, rest = text.strip().rpartition("://")
    rest = rest.rstrip("/")
    if rest.count(":") > 1 and "[" not in rest:
        rest = "[" + rest + "]"
    try:
        parts = urllib.parse.urlsplit((scheme or "https") + "://" + rest)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ApiError("%r is not a node's address: %s" % (text, error)) from None
    if not host or parts.path or parts.query or parts.username or scheme not in ("", "http", "https"):
        raise ApiError("%r is not a node's address: write HOST, HOST:PORT or https://HOST:PORT" % text)
    if not separator:
        scheme = "http" if _is_loopback(host) else "https"
    if scheme == "http" and not _is_loopback(host):
        raise ApiError("%r: plain http works on the node itself only: write https://" % text)
    return "%s://%s:%d" % (scheme, "[%s]" % host if ":" in host else host, port or DEFAULT_PORT)


def config_path(env=os.environ):
    """Where a user's own settings are (XDG base directories)."""
    base = env.get("XDG_CONFIG_HOME") or os.path.join(env.get("HOME") or os.path.expanduser("~"), ".config")
    return os.path.join(base, "edgeorch", "config.toml")


def node_of(task):
    """Name of the node where the newest attempt of a task is or was; empty before the first."""
    return task["attempts"][-1]["node_name"] if task["attempts"] else ""


def _is_loopback(host):
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_config(path):
    try:
        import tomllib
    except ImportError:
        raise ApiError("%s can only be read by Python 3.11 or newer: set url, token and ca" % path) from None
    try:
        with open(path, "rb") as file:
            tree = tomllib.load(file)
    except OSError as error:
        raise ApiError("%s: %s: check its permissions" % (path, error.strerror)) from None
    except ValueError as error:
        raise ApiError("%s: not valid TOML: %s" % (path, error)) from None
    for key, value in tree.items():
        if key not in KEYS or not isinstance(value, str):
            raise ApiError("%s: %r is not known here; known, all text: %s" % (path, key, ", ".join(KEYS)))
    if tree.get("ca"):
        tree["ca"] = os.path.join(os.path.dirname(path), os.path.expanduser(tree["ca"]))
    return tree


def _tls(ca):
    try:
        return ssl.create_default_context(cafile=os.path.expanduser(ca) if ca else None)
    except OSError as error:
        raise ApiError("ca %s: %s: give the fleet's ca.pem" % (ca, error.strerror or error)) from None


def _refusal(url, status, body):
    """The node's own words (RFC 9457) as one sentence."""
    try:
        problem = json.loads(body)
        words = [problem["detail"], problem.get("hint") or ""]
    except (ValueError, KeyError, TypeError):
        return STRANGER % url + " (it answers %d)" % status
    if status == 401:
        words = [words[0], "set token, EDGEORCH_TOKEN, or token in " + config_path()]
    return ": ".join(word.rstrip(".") for word in words if word)


def _no_answer(url, error):
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        sentence = "its certificate is not of this fleet or not for this name (%s): set ca, or EDGEORCH_CA"
        return ApiError(url + ": " + sentence % reason.verify_message, -1)
    if isinstance(reason, socket.timeout):
        return ApiError(url + " does not answer: is the node running?")
    return ApiError("%s cannot be reached: %s" % (url, getattr(reason, "strerror", None) or reason))
