"""Values of options as ``docker`` writes them: sizes, durations, numbers, addresses, comma-separated fields.

Every function takes the text and returns the value, or raises ValueError with what is wrong. The syntaxes are
those of Go's ``strconv`` and ``time.ParseDuration`` and of github.com/docker/go-units, which docker uses.
"""

import ipaddress
import re
from fractions import Fraction

INT64_MAX = (1 << 63) - 1

_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_INTEGER = re.compile(r"([+-]?)(0[xX][0-9a-fA-F]+|0[oO][0-7]+|0[bB][01]+|[0-9]+)", re.ASCII)
_DECIMAL_INTEGER = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_RATIO = re.compile(r"[+-]?\d{1,30}/\d{1,30}", re.ASCII)
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_MAC = re.compile(
    r"[0-9a-fA-F]{2}(?:(:|-)[0-9a-fA-F]{2})(?:\1[0-9a-fA-F]{2})*|[0-9a-fA-F]{4}(?:\.[0-9a-fA-F]{4})+",
    re.ASCII,
)
_DOMAIN = re.compile(
    r"([a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*)\.?\s*"
)
_FIELD = re.compile(r'(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\Z)')
_SIZE_UNITS = {"k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_NANOSECONDS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}


def boolean(text: str) -> bool:
    """``true`` or ``false`` in Go's spellings."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError("must be true or false")


def integer(text: str, *, low: int = -INT64_MAX - 1, high: int = INT64_MAX) -> int:
    """An integer; ``0x``, ``0o``, ``0b`` and a leading zero (octal) work as in Go."""
    match = _INTEGER.fullmatch(text.replace("_", "") if text[:1] == "0" else text)
    if match is None or len(text) > 80:
        raise ValueError("must be a whole number")
    sign, digits = match.groups()
    octal = len(digits) > 1 and digits[0] == "0" and digits.isdigit()
    try:
        number = int(digits, 8 if octal else 0)
    except ValueError:
        raise ValueError("must be a whole number") from None
    number = -number if sign == "-" else number
    if not low <= number <= high:
        raise ValueError(f"must be between {low} and {high}")
    return number


def size(text: str) -> int:
    """Bytes, with ``b``, ``k``, ``m``, ``g``, ``t`` or ``p`` (1024 each; also ``kb``, ``KiB``)."""
    last_digit = max((text.rfind(char) for char in "0123456789. "), default=-1)
    number, unit = text[: last_digit + 1], text[last_digit + 1 :].lower()
    number = number.removesuffix(" ")
    if not _NUMBER.fullmatch(number) or len(number) > 64:
        raise ValueError("must be a size such as 64m, 1g or a number of bytes")
    exact = Fraction(number)
    if unit and unit != "b":
        if unit[0] not in _SIZE_UNITS or unit[1:] not in ("", "b", "ib"):
            raise ValueError("has an unknown unit; use b, k, m, g, t or p")
        exact *= 1 << _SIZE_UNITS[unit[0]]
    if not 0 <= exact <= INT64_MAX:
        raise ValueError("is out of range")
    return int(exact)


def swap(text: str) -> int:
    """A size, or -1 for unlimited."""
    return -1 if text == "-1" else size(text)


def duration(text: str) -> int:
    """Nanoseconds from ``1h30m``, ``1.5s``, ``300ms`` and the like."""
    body = text[1:] if text[:1] in ("+", "-") else text
    if body == "0":
        return 0
    total, position = Fraction(0), 0
    while position < len(body):
        match = _DURATION_PART.match(body, position)
        if match is None or len(match[1]) > 64:
            break
        total += Fraction(match[1]) * _NANOSECONDS[match[2]]
        position = match.end()
    if not body or position < len(body):
        raise ValueError("must be a duration such as 30s, 1m30s or 500ms")
    if total > INT64_MAX:
        raise ValueError("is out of range")
    return -int(total) if text[0] == "-" else int(total)


def nano_cpus(text: str) -> int:
    """Billionths of a CPU from ``0.5``, ``2`` or ``1/4``."""
    if len(text) > 64 or not (_NUMBER.fullmatch(text) or _RATIO.fullmatch(text)):
        raise ValueError("must be a number of CPUs such as 0.5")
    try:
        nano = Fraction(text) * 10**9
    except ZeroDivisionError:
        raise ValueError("divides by zero") from None
    if nano.denominator != 1:
        raise ValueError("is too precise; nine digits after the point at most")
    if abs(nano) > INT64_MAX:
        raise ValueError("is out of range")
    return int(nano)


def ip_address(text: str) -> str:
    """An IP address in its normal form."""
    try:
        address = ipaddress.ip_address(text.strip())
    except ValueError:
        raise ValueError("must be an IP address") from None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise ValueError("must be an IP address without a zone")
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
    return str(address)


def mac_address(text: str) -> str:
    """A hardware address of 6, 8 or 20 bytes."""
    bare = text.strip()
    if not _MAC.fullmatch(bare) or sum(char not in ":-." for char in bare) not in (12, 16, 40):
        raise ValueError("must be a MAC address such as 92:d0:c6:0a:29:33")
    return text


def search_domain(text: str) -> str:
    """A domain for name lookups, or ``.`` for none."""
    bare = text.strip(" ")
    if bare == ".":
        return bare
    match = _DOMAIN.fullmatch(bare) if len(bare) < 512 else None
    if match is None or not re.search("[a-zA-Z]", bare) or len(match[1]) >= 255:
        raise ValueError("must be a domain name, or . for none")
    return match[1]


def decimal(text: str) -> int:
    """A decimal integer, without Go's prefixes."""
    if not _DECIMAL_INTEGER.fullmatch(text) or abs(int(text)) > INT64_MAX:
        raise ValueError(f"{text[:40]!r} must be a whole number")
    return int(text)


def fields(text: str) -> list[str]:
    """Comma-separated fields of one line; a field may stand in double quotes (RFC 4180)."""
    if not text:
        raise ValueError("is empty")
    found: list[str] = []
    position = 0
    while True:
        match = _FIELD.match(text, position)
        if match is None:
            raise ValueError("is not a line of comma-separated fields: check its quotes")
        quoted, plain, comma = match.groups()
        found.append(plain if quoted is None else quoted.replace('""', '"'))
        if not comma:
            return found
        position = match.end()


def pair(text: str) -> tuple[str, str]:
    """Key and value around the first ``=``; no ``=`` gives an empty value."""
    key, _, value = text.partition("=")
    return key, value
