import json
from datetime import datetime, timedelta, timezone

import msgspec
import pytest

from edgeorch.client import calls
from edgeorch.client.calls import TaskFilter
from edgeorch.client.steps import Call, Emit, Open, Pause, Read, Reply
from edgeorch.client.streams import EventCursor, OutputCursor, follow_events, follow_output, until
from edgeorch.errors import (
    EdgeorchError,
    KeyReusedError,
    NodeUnreachableError,
    NotFoundError,
    UnavailableError,
)

TASK_ID = "01jc6v1w5m2n9d4z8q7x3k0h6t-7m2k9q4x1c"


def task(state="running", attempts=1, **more):
    return {
        "id": TASK_ID,
        "name": "resize",
        "state": state,
        "created_at": "2026-01-02T03:04:05.678Z",
        "attempts": [
            {"number": n + 1, "node": "7m2k9q4x1c", "node_name": "attic", "state": "running"}
            for n in range(attempts)
        ],
        **more,
    }


def ok(document, status=200):
    return Reply(status, {}, json.dumps(document).encode())


def problem(slug, status, **more):
    document = {"type": f"/docs/problems#{slug}", "title": "t", "status": status, "detail": "d", **more}
    return Reply(status, {}, json.dumps(document).encode())


class Script:
    """Plays the node: answers each step by the next thing in the script, and keeps what was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []
        self.emitted = []

    def play(self, steps):
        try:
            step = next(steps)
            while True:
                if isinstance(step, Emit):
                    self.emitted.append(step.item)
                    step = next(steps)
                    continue
                self.asked.append(step)
                if isinstance(step, Pause):
                    step = next(steps)
                    continue
                answer = self.answers.pop(0)
                step = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
        except StopIteration as end:
            assert not self.answers, "the client stopped before the script ended"
            return end.value


def gone(sent=True):
    return NodeUnreachableError("gone", sent=sent)


def test_submit_asks_the_same_node_with_the_same_key_until_it_answers():
    script = Script(gone(), Reply(503, {"retry-after": "3"}, b""), gone(sent=False), ok(task(), 202))
    found = script.play(calls.submit({"name": "resize"}))
    assert found.id == TASK_ID
    asked = [step for step in script.asked if isinstance(step, Call)]
    assert len(asked) == 4
    assert len({step.headers["idempotency-key"] for step in asked}) == 1
    pauses = [step.seconds for step in script.asked if isinstance(step, Pause)]
    assert pauses[1] >= 3, "Retry-After is obeyed"


def test_submit_gives_up_in_the_end():
    with pytest.raises(NodeUnreachableError):
        Script(*[gone()] * (len(calls.RETRY_PAUSES_S) + 1)).play(calls.submit({}))


def test_a_refusal_is_not_repeated():
    script = Script(problem("idempotency-key-reused", 422))
    with pytest.raises(KeyReusedError):
        script.play(calls.submit({}, key="mine"))
    assert script.asked[0].headers["idempotency-key"] == "mine"


def test_a_batch_is_one_request():
    script = Script(ok({"tasks": [task(), task()]}, 202))
    assert len(script.play(calls.submit_batch([{"name": "a"}, {"name": "b"}]))) == 2
    assert json.loads(script.asked[0].body) == [{"name": "a"}, {"name": "b"}]


def test_secrets_may_be_bytes_and_a_question_does_not_carry_them():
    spec = {"name": "a", "secrets": {"text": "t", "raw": b"\x00\xff"}}
    said = []
    for answer, steps in (
        (task(), calls.submit(spec)),
        ({"tasks": [task()]}, calls.submit_batch([spec])),
        ({"ranking": []}, calls.explain(spec)),
    ):
        script = Script(ok(answer))
        script.play(steps)
        said.append(json.loads(script.asked[0].body))
    one, batch, question = said
    assert one["secrets"] == {"text": "t", "raw": {"base64": "AP8="}}
    assert batch == [one]
    assert question == {"name": "a", "secrets": {"text": None, "raw": None}}
    assert spec["secrets"]["raw"] == b"\x00\xff"


def test_a_read_is_tried_once_more_only_where_it_may_have_been_a_stale_connection():
    assert Script(gone(), ok(task())).play(calls.task(TASK_ID)).name == "resize"
    with pytest.raises(NodeUnreachableError):
        Script(gone(sent=False)).play(calls.task(TASK_ID))


@pytest.mark.parametrize(
    ("reply", "kind", "detail"),
    [
        (problem("not-found", 404, hint="look"), NotFoundError, "d"),
        (problem("something-new", 418), EdgeorchError, "d"),
        (Reply(503, {}, b"<html>"), UnavailableError, "HTTP status 503"),
        (Reply(500, {}, b"[" * 100_000), EdgeorchError, "HTTP status 500"),
        (Reply(400, {}, b"\xff"), EdgeorchError, "HTTP status 400"),
    ],
)
def test_problems_become_their_errors(reply, kind, detail):
    error = calls.error_of(reply)
    assert type(error) is kind
    assert detail in error.detail


def test_an_answer_that_is_none_says_so():
    with pytest.raises(EdgeorchError, match="cannot be understood"):
        Script(ok({"tasks": 7})).play(calls.tasks_page(TaskFilter(), None))


def test_all_tasks_follows_the_cursor():
    script = Script(ok({"tasks": [task()], "cursor": "c1"}), ok({"tasks": [task()], "cursor": None}))
    script.play(calls.all_tasks(TaskFilter(state="running", local=True, limit=1)))
    assert len(script.emitted) == 2
    assert script.asked[0].params == {"state": "running", "local": "true", "limit": "1"}
    assert script.asked[1].params["cursor"] == "c1"


def test_the_audit_trail_is_asked_for_in_utc():
    record = {"id": "x", "at": "2026-01-02T03:04:05.678Z", "node": "n", "action": "drain", "more": 1}
    script = Script(ok({"records": [record], "cursor": "c", "unreachable": []}))
    since = datetime(2026, 1, 2, 3, 4, tzinfo=timezone(timedelta(hours=2)))
    page = script.play(calls.audit(since, limit=5, cursor="b", local=True))
    assert (page.records[0].action, page.cursor) == ("drain", "c")
    assert script.asked[0].path == "/api/v1/audit"
    assert script.asked[0].params == {
        "since": "2026-01-02T01:04:00Z",
        "limit": "5",
        "cursor": "b",
        "local": "true",
    }


def test_ids_cannot_leave_their_place_in_the_path():
    assert calls.task_path("../../nodes") == "/api/v1/tasks/..%2F..%2Fnodes"


# Streams


def line(stream, offset, data, label=""):
    return msgspec.json.encode({"stream": stream, "offset": offset, "data": data, "label": label}) + b"\n"


END = b'{"end":"ended"}\n'


def test_output_goes_on_where_it_broke_without_gap_or_repetition():
    script = Script(
        ok(task()),
        None,
        line("stdout", 0, "one two ") + line("stderr", 0, "warn"),
        gone(),
        None,
        # The less advanced stream sets the offset, so some of stdout comes again, cut elsewhere.
        line("stdout", 4, "two thr") + line("stderr", 4, "ing"),
        END,
        b"",
        ok(task("succeeded")),
    )
    script.play(follow_output(OutputCursor(TASK_ID, follow=True)))
    text = {
        name: b"".join(p.data for p in script.emitted if p.stream == name) for name in ("stdout", "stderr")
    }
    assert text == {"stdout": b"one two thr", "stderr": b"warning"}
    second = [step.call for step in script.asked if isinstance(step, Open)][1]
    assert second.params == {
        "format": "ndjson",
        "stream": "both",
        "follow": "true",
        "attempt": "1",
        "offset": "4",
    }


def test_output_moves_on_to_a_newer_attempt_from_its_start():
    script = Script(
        ok(task()),
        None,
        line("stdout", 0, "first"),
        b"",
        ok(task(attempts=2)),
        None,
        line("stdout", 0, "second"),
        b"",
        ok(task("succeeded", attempts=2)),
    )
    script.play(follow_output(OutputCursor(TASK_ID, follow=True, tail=3)))
    assert [(piece.attempt, piece.data) for piece in script.emitted] == [(1, b"first"), (2, b"second")]
    opened = [step.call.params for step in script.asked if isinstance(step, Open)]
    assert opened[0]["tail"] == "3"
    assert "tail" not in opened[1]
    assert "offset" not in opened[1]


def test_what_is_printed_after_the_node_stopped_sending_is_not_lost():
    script = Script(
        ok(task()),
        None,
        line("stdout", 0, "a"),
        b"",
        ok(task()),  # still running: wait for its end by events
        ok(task()),
        None,
        b'id: 9\nevent: state\ndata: {"type":"state"}\n\n',
        ok(task("succeeded")),
        None,
        line("stdout", 1, "b"),
        b"",
    )
    script.play(follow_output(OutputCursor(TASK_ID, follow=True)))
    assert [piece.data for piece in script.emitted] == [b"a", b"b"]


def test_output_gives_up_when_the_node_stays_away_but_not_while_it_brings_something():
    answers = [ok(task())]
    for index in range(20):
        answers += [None, line("stdout", index, "x"), gone()]
    with pytest.raises(NodeUnreachableError):
        Script(*answers, *[gone()] * 6).play(follow_output(OutputCursor(TASK_ID, follow=True)))


def test_an_error_inside_the_stream_is_raised():
    bad = msgspec.json.encode({"end": "error", "problem": json.loads(problem("not-found", 404).body)}) + b"\n"
    with pytest.raises(NotFoundError):
        Script(ok(task()), None, bad).play(follow_output(OutputCursor(TASK_ID, follow=True)))


def test_bytes_that_are_no_text_and_separators_inside_text_survive():
    cursor = OutputCursor(TASK_ID)
    assert cursor.feed(b'{"stream":"stdout","offset":0,"data_b64":"/wA="}').data == b"\xff\x00"
    script = Script(None, line("stdout", 2, "a\u2028b")[:20], line("stdout", 2, "a\u2028b")[20:], b"")
    from edgeorch.client.streams import read_output

    script.play(read_output(cursor))
    assert script.emitted[0].data == "a\u2028b".encode()


def test_output_of_several_nodes_is_followed_as_one_stream():
    parent = task(attempts=0, spec={"placement": {"mode": "all"}})
    script = Script(
        ok(parent),
        None,
        line("stdout", 0, "x", "attic") + line("stdout", 0, "y", "garage"),
        gone(),
        None,
        line("stdout", 0, "x", "attic") + line("stdout", 0, "yz", "garage"),
        b"",
        ok(parent | {"state": "succeeded"}),
    )
    script.play(follow_output(OutputCursor(TASK_ID, follow=True)))
    assert [(piece.label, piece.data) for piece in script.emitted] == [
        ("attic", b"x"),
        ("garage", b"y"),
        ("garage", b"z"),
    ]


def test_events_resume_after_the_last_one_seen():
    event = b'id: %d\nevent: state\ndata: {"type":"state","task":"t","data":{"state":"running"}}\n\n'
    script = Script(None, b": hello\n\n" + event % 4, event[:9] % 5, gone(), None, event % 5, b"")
    script.play(follow_events(EventCursor(TASK_ID)))
    assert [found.id for found in script.emitted] == ["4", "5"]
    assert script.emitted[0].data == {"state": "running"}
    opened = [step.call.headers.get("last-event-id") for step in script.asked if isinstance(step, Open)]
    assert opened == [None, "4"]


def test_waiting_is_woken_by_events_and_reads_the_task_only_then():
    event = b'id: 1\nevent: %s\ndata: {"type":"%s"}\n\n'
    script = Script(
        ok(task()),
        None,
        event % (b"progress", b"progress"),
        event % (b"state", b"state"),
        ok(task()),
        event % (b"state", b"state"),
        ok(task("failed")),
    )
    assert script.play(until(TASK_ID, calls.ended)).state == "failed"
    assert [type(step) for step in script.asked] == [Call, Open, Read, Read, Call, Read, Call]
