"""What the REST listener takes for a request, and the bytes of its answers."""

import gc

import pytest

from edgeorch.rest.http1 import HEAD_MAX, BadRequestError, Reader
from edgeorch.rest.problems import problem_of_status
from edgeorch.rest.reply import Part, Reply

HOST = b"Host: localhost"
CHUNKED = b"Transfer-Encoding: chunked"


def head(*lines, first=b"GET / HTTP/1.1"):
    return b"\r\n".join([first, *lines, b"", b""])


def post(*lines, body=b"", version=b"1.1"):
    return head(HOST, *lines, first=b"POST /x HTTP/" + version) + body


def read(data, *, step=0):
    """All requests in these bytes as (method, path, headers, body), given at once or so many at a time."""
    reader, found = Reader(), []
    for start in range(0, len(data), step or len(data)):
        reader.received(data[start : start + (step or len(data))])
        while True:
            reader.advance()
            if not reader.complete:
                break
            call = reader.call
            body = b"".join(event["body"] for event in call.events)
            assert [event["more_body"] for event in call.events] == [True] * (len(call.events) - 1) + [False]
            found.append((call.scope["method"], call.scope["path"], call.scope["headers"], body))
            reader.done()
            if not reader.unparsed:
                break
    assert reader.call is None, "the last request is not complete"
    return found


GOOD = {
    "small": (head(HOST), [("GET", "/", b"")]),
    "old without host": (head(first=b"GET / HTTP/1.0"), [("GET", "/", b"")]),
    "absolute": (head(HOST, first=b"GET http://a:1/b%20c?d HTTP/1.1"), [("GET", "/b c", b"")]),
    "absolute root": (head(HOST, first=b"GET HTTPS://a?d HTTP/1.1"), [("GET", "/", b"")]),
    "body": (post(b"Content-Length: 5", body=b"hello"), [("POST", "/x", b"hello")]),
    "zeros": (post(b"Content-Length: 0005", body=b"hello"), [("POST", "/x", b"hello")]),
    "end of a head in a body": (
        post(b"Content-Length: 8", body=b"\r\n\r\n\r\n\r\n") + head(HOST),
        [("POST", "/x", b"\r\n" * 4), ("GET", "/", b"")],
    ),
    "chunks": (
        post(CHUNKED, body=b"3\r\na\nb\r\nA;x=y\r\n\r\n\r\n\r\n\r\n\n\n\r\n0\r\nTrailer: x\r\n\r\n")
        + head(HOST),
        [("POST", "/x", b"a\nb" + b"\r\n" * 4 + b"\n\n"), ("GET", "/", b"")],
    ),
    "upgrade with a body": (
        post(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 5", body=b"hello") + head(HOST),
        [("POST", "/x", b"hello"), ("GET", "/", b"")],
    ),
    "pipelined": (head(HOST) * 3, [("GET", "/", b"")] * 3),
}


@pytest.mark.parametrize("name", GOOD)
def test_requests_are_the_same_however_they_are_cut(name):
    data, expected = GOOD[name]
    whole = read(data)
    assert [(method, path, body) for method, path, _, body in whole] == expected
    for step in (1, 2, 3, 7):
        assert read(data, step=step) == whole


def test_headers_come_in_lower_case_and_without_blanks_around():
    ((_, _, headers, _),) = read(head(HOST, b"X-A: \t b c \t", b"x-a:d", b"Empty:", b"High: \xff"))
    assert headers == [
        (b"host", b"localhost"),
        *((b"x-a", b"b c"), (b"x-a", b"d"), (b"empty", b""), (b"high", b"\xff")),
    ]


BAD = {
    "garbage": b"garbage\r\n\r\n",
    "garbage in capitals": b"GARBAGE\r\n\r\n",
    "garbage that goes on": b"hello",
    "TLS": b"\x16\x03\x01\x02\x00",
    "an empty line before": b"\r\n" + head(HOST),
    "a blank before": b" " + head(HOST),
    "unknown method": head(HOST, first=b"FOO / HTTP/1.1"),
    "method in small letters": head(HOST, first=b"HeAD / HTTP/1.1"),
    "CONNECT": head(HOST, first=b"CONNECT a:1 HTTP/1.1"),
    "HTTP/2": head(first=b"PRI * HTTP/2.0"),
    "HTTP/0.9": b"GET /\r\n\r\n",
    "two blanks": head(HOST, first=b"GET  / HTTP/1.1"),
    "tab": head(HOST, first=b"GET\t/ HTTP/1.1"),
    "blank at the end": head(HOST, first=b"GET / HTTP/1.1 "),
    "blank in the target": head(HOST, first=b"GET /a b HTTP/1.1"),
    "no path": head(HOST, first=b"GET a HTTP/1.1"),
    "star": head(HOST, first=b"OPTIONS * HTTP/1.1"),
    "other scheme": head(HOST, first=b"GET ftp://a/b HTTP/1.1"),
    "high byte in the target": head(HOST, first=b"GET /\xc3\xa9 HTTP/1.1"),
    "high byte in the query": head(HOST, first=b"GET /?\xc3\xa9 HTTP/1.1"),
    "nul in the target": head(HOST, first=b"GET /\0 HTTP/1.1"),
    **{
        f"HTTP/{one}": head(HOST, first=f"GET / HTTP/{one}".encode())
        for one in ("1.2", "2.0", "9.9", "1.10", "01.1", "1")
    },
    "no host": head(b"A: b"),
    "two hosts": head(HOST, HOST),
    "two hosts, old": head(HOST, HOST, first=b"GET / HTTP/1.0"),
    **{f"host {host}": head(b"Host: " + host) for host in (b".", b"a" * 64, b"a..b:80", b"\xdf" * 60)},
    "lines end with LF": b"GET / HTTP/1.1\nHost: localhost\n\n",
    "one line ends with LF": b"GET / HTTP/1.1\r\nHost: localhost\nA: b\r\n\r\n",
    "lines end with CR": b"GET / HTTP/1.1\rHost: localhost\r\r\n\r\n",
    "CR in a value": head(HOST, b"A: b\rc"),
    "folded line": head(HOST, b"A: b", b" c"),
    "line folded with a tab": head(HOST, b"A: b", b"\tTransfer-Encoding: chunked"),
    "blank before the first header": head(b" A: b", HOST),
    "blank before the colon": head(HOST, b"Content-Length : 5"),
    "no colon": head(HOST, b"A"),
    "no name": head(HOST, b": b"),
    "odd name": head(HOST, b"A(b): c"),
    "high byte in a name": head(HOST, b"\xc3: c"),
    **{f"{char} in a value": head(HOST, b"A: " + char) for char in (b"\0", b"\1", b"\x0b", b"\x7f")},
    "both lengths": post(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n"),
    "both lengths, the other way": post(CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n"),
    "two lengths": post(b"Content-Length: 5", b"Content-Length: 6", body=b"hello"),
    "the same length twice": post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"),
    **{
        f"length {value}": post(b"Content-Length: " + value.encode(), body=b"hello")
        for value in (
            *("5, 5", "5, 6", "+5", "-5", "0x5", "5 5", "", "1_0", "5.0", "\u0665", "9" * 20, "9" * 5000),
        )
    },
    **{
        f"coding {value}": post(b"Transfer-Encoding: " + value, body=b"0\r\n\r\n")
        for value in (
            *(b"gzip", b"gzip, chunked", b"chunked, chunked", b"identity", b"xchunked", b"\x0bchunked", b""),
        )
    },
    "coding twice": post(CHUNKED, CHUNKED, body=b"0\r\n\r\n"),
    "coding in HTTP/1.0": post(CHUNKED, body=b"0\r\n\r\n", version=b"1.0"),
    "upgrade with chunks": post(CHUNKED, b"Connection: upgrade", b"Upgrade: h2c", body=b"0\r\n\r\n"),
    **{
        f"chunks {body}": post(CHUNKED, body=body + b"\r\n0\r\n\r\n")
        for body in (
            *(b"5\nhello", b"5\r\nhello\n0", b"5\r\nhello0", b"5\r\nhelloo", b"0x5\r\nhello", b"5 \r\nhello"),
            *(b" 5\r\nhello", b"-5\r\nhello", b"\r\nhello", b"1_0\r\n" + b"a" * 16, b"f" * 17 + b"\r\nhello"),
            *(b"5;a\nb\r\nhello", b"5;a\rb\r\nhello", b"zz\r\n"),
        )
    },
    "trailer without a colon": post(CHUNKED, body=b"0\r\nA b\r\n\r\n"),
    "chunks that end with LF": post(CHUNKED, body=b"0\r\n\n"),
    "endless extension": post(CHUNKED, body=b"5;" + b"a" * HEAD_MAX),
    "endless trailers": post(CHUNKED, body=b"0\r\n" + b"A: b\r\n" * (HEAD_MAX // 6 + 1)),
}  # fmt: skip


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("name", BAD)
def test_what_is_no_request_is_refused(name, step):
    with pytest.raises(BadRequestError) as caught:
        read(BAD[name], step=step)
    assert caught.value.status in (400, 501)


@pytest.mark.parametrize("step", [0, 1000])
@pytest.mark.parametrize("ends", [True, False])
def test_a_long_head_is_refused_whether_it_ends_or_not(ends, step):
    data = head(HOST, b"A: " + b"a" * HEAD_MAX)
    with pytest.raises(BadRequestError) as caught:
        read(data if ends else data[:-4], step=step)
    assert caught.value.status == 431
    short = head(HOST, b"A: ")
    assert len(read(head(HOST, b"A: " + b"a" * (HEAD_MAX - len(short))))) == 1


def test_who_has_a_reason_is_told_to_go_on():
    def hesitates(*lines, version=b"1.1"):
        reader = Reader()
        reader.received(post(*lines, b"Content-Length: 5", version=version))
        reader.advance()
        return reader.call.hesitates

    assert hesitates(b"Expect: 100-Continue")
    assert hesitates(b"Expect: 100-Continue", b"Connection: close"), "or it waits until it is too late"
    assert not hesitates(b"Expect: else")
    assert not hesitates()
    assert not hesitates(b"Expect: 100-continue", version=b"1.0")


@pytest.mark.parametrize(
    ("value", "kept"),
    [(b"close", False), (b"Upgrade, CLOSE", False), (b"keep-alive", True), (b"not-close", True)],
)
def test_connection_says_whether_it_goes_on(value, kept):
    reader = Reader()
    reader.received(head(HOST, b"Connection: " + value))
    reader.advance()
    assert reader.call.keep_alive is kept


def test_requests_leave_no_garbage():
    read(post(CHUNKED, body=b"1\r\na\r\n0\r\n\r\n"))
    gc.collect()
    gc.disable()
    try:
        read(head(HOST) * 5 + post(CHUNKED, body=b"1\r\na\r\n0\r\n\r\n"))
        assert gc.collect() == 0
    finally:
        gc.enable()


# Answers


def reply(*, stopping=False, **given):
    sent = []

    async def flush(data):
        sent.append(data)

    made = Reply(flush, lambda: stopping, **{"head_only": False, "keep_alive": True, **given})
    return made, sent


async def answered(made, headers, *pieces, status=200):
    await made.send({"type": "http.response.start", "status": status, "headers": headers})
    for number, piece in enumerate(pieces, 1):
        more = number < len(pieces)
        await made.send({"type": "http.response.body", "body": piece, "more_body": more})


async def test_an_answer_of_known_length_leaves_in_one_piece():
    made, sent = reply()
    await answered(made, [(b"content-length", b"5"), (b"a", b"b")], b"hello")
    (data,) = sent
    assert data.startswith(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\na: b\r\ndate: ")
    assert data.endswith(b" GMT\r\n\r\nhello")
    assert made.part is Part.NOTHING
    assert made.keep_alive


async def test_a_stream_leaves_piece_by_piece():
    made, sent = reply()
    await answered(made, [], b"hello", b"", b"x" * 20, b"")
    assert b"\r\ntransfer-encoding: chunked\r\n" in sent[0]
    assert sent[1:] == [b"5\r\nhello\r\n", b"14\r\n" + b"x" * 20 + b"\r\n", b"0\r\n\r\n"]


async def test_a_stream_for_http_1_0_ends_with_the_connection():
    made, sent = reply(version="1.0", keep_alive=False)
    await answered(made, [], b"hello", b"")
    assert b"chunked" not in sent[0]
    assert sent[0].endswith(b"connection: close\r\n\r\n")
    assert sent[1:] == [b"hello"]


LENGTH = [(b"content-length", b"5")]


@pytest.mark.parametrize(
    ("headers", "status", "head_only"),
    [(LENGTH, 200, True), ([], 200, True), ([], 204, False), (LENGTH, 304, False), ([], 304, False)],
)
async def test_answers_without_a_body(headers, status, head_only):
    made, sent = reply(head_only=head_only)
    await answered(made, headers, b"hello" if head_only else b"", status=status)
    assert b"".join(sent).endswith(b"\r\n\r\n")
    assert made.part is Part.NOTHING
    assert made.keep_alive


@pytest.mark.parametrize("piece", [b"hell", b"hello!"])
async def test_an_answer_of_another_length_than_it_says_is_a_defect(piece):
    made, sent = reply()
    with pytest.raises(RuntimeError, match="as long as it says"):
        await answered(made, [(b"content-length", b"5")], piece)
    assert not sent


@pytest.mark.parametrize("value", [b"a\r\nb: c", b"a\nb", b"a\rb", b"\0"])
async def test_a_line_break_in_a_header_is_a_defect(value):
    made, sent = reply()
    with pytest.raises(RuntimeError, match="line break"):
        await answered(made, [(b"a", value)], b"")
    assert not sent


async def test_messages_out_of_turn_are_a_defect():
    made, _ = reply()
    with pytest.raises(RuntimeError, match="turn"):
        await made.send({"type": "http.response.body", "body": b""})
    await answered(made, [(b"content-length", b"0")], b"")
    with pytest.raises(RuntimeError, match="turn"):
        await answered(made, [], b"")


async def test_a_stopping_server_and_an_application_can_end_the_connection():
    for made, headers in ((reply(stopping=True), []), (reply(), [(b"connection", b"close")])):
        await answered(made[0], [(b"content-length", b"0"), *headers], b"")
        assert made[1][0].count(b"connection: close\r\n") == 1
        assert not made[0].keep_alive


async def test_a_refusal_is_said_once_and_not_into_an_answer():
    made, sent = reply()
    await made.refuse(problem_of_status(408))
    await made.refuse(problem_of_status(400))
    (data,) = sent
    assert data.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close\r\n" in data
    made, sent = reply()
    await answered(made, [], b"", b"")
    await made.refuse(problem_of_status(500))
    assert sent[-1] == b"0\r\n\r\n"
    assert not made.keep_alive
