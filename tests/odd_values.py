"""Values that a type allows and nobody expects: extremes, NaN, empty and huge texts, ids of others."""

import enum
import random

import msgspec

INTEGERS = (0, 1, -1, 2, 255, 65_536, 70_000, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -(2**63))
FLOATS = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1e-300,
    1e9,
    1e18,
    1e300,
    -1e300,
    float("inf"),
    float("-inf"),
    float("nan"),
)
TEXTS = (
    *("", " ", "a", "\0", "²", ".", "..", "../../x", "a.b", ".1", "a.²", "é" * 70, "\u2028", "%s", "{}"),
    *("127.0.0.1", "127.0.0.1\0", "::1", "0.0.0.0", "255.255.255.255", "x" * 64, "x" * 300, "1" * 5000),
)
BLOBS = (b"", b"\0", b"{}", b"[]", b"null", b"\xff" * 40, b"[" * 3000, b'{"a":' * 3000, b"x" * 5000)


def odd(rng: random.Random, kind, *, words=(), blobs=BLOBS, fixed=None):
    """A value of ``kind``, as what JSON and MessagePack know.

    Args:
        rng: chooses.
        kind: a type that msgspec knows.
        words: texts that mean something where the value is going, such as ids; every second text is one.
        blobs: what bytes may be.
        fixed: values by field name, used instead of chance.
    """
    return _Odd(rng, tuple(words), blobs, fixed or {}).of(msgspec.inspect.type_info(kind))


class _Odd:
    def __init__(self, rng, words, blobs, fixed):
        self.rng, self.words, self.blobs, self.fixed = rng, words, blobs, fixed

    def of(self, info):
        return getattr(self, "_" + type(info).__name__.removesuffix("Type").lower())(info)

    def _several(self, make):
        return [make() for _ in range(self.rng.choice((0, 1, 1, 2, 5)))]

    def _any(self, _):
        return self.rng.choice((None, True, 1, 1.5, "a", [], {}))

    def _none(self, _):
        return None

    def _bool(self, _):
        return self.rng.random() < 0.5

    def _int(self, info):
        return self._within(info, INTEGERS)

    def _float(self, info):
        return self._within(info, FLOATS)

    def _within(self, info, numbers):
        """Mostly what the type's own limits let pass, which is where code begins."""
        fit = [
            number
            for number in numbers
            if (info.ge is None or number >= info.ge) and (info.le is None or number <= info.le)
        ]
        return self.rng.choice(fit if fit and self.rng.random() < 0.9 else numbers)

    def _str(self, _):
        if self.words and self.rng.random() < 0.5:
            return self.rng.choice(self.words) + self.rng.choice(
                ("", "", "", ".1", ".²", "." + "9" * 30, "\0")
            )
        return self.rng.choice(TEXTS)

    def _bytes(self, _):
        return self.rng.choice(self.blobs)

    def _raw(self, _):
        return None

    def _enum(self, info):
        values = [member.value for member in info.cls if isinstance(member, enum.Enum)]
        return self.rng.choice(values)

    def _literal(self, info):
        return self.rng.choice(info.values)

    def _union(self, info):
        return self.of(self.rng.choice(info.types))

    def _vartuple(self, info):
        return self._several(lambda: self.of(info.item_type))

    _list = _vartuple

    def _tuple(self, info):
        return [self.of(item) for item in info.item_types]

    def _dict(self, info):
        return dict(self._several(lambda: (self.of(info.key_type), self.of(info.value_type))))

    def _struct(self, info):
        made = {} if info.tag is None else {info.tag_field: info.tag}
        for field in info.fields:
            if field.name in self.fixed:
                made[field.encode_name] = self.fixed[field.name]
            elif field.required or self.rng.random() < 0.7:
                made[field.encode_name] = self.of(field.type)
        return made
