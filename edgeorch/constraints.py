"""The constraint language: which nodes a task may run on.

Grammar (EBNF, words separated by white space)::

    constraint = term {"or" term}
    term       = factor {"and" factor}
    factor     = "not" factor | "(" constraint ")" | comparison
    comparison = ATTRIBUTE ("==" | "!=" | "<" | "<=" | ">" | ">=" | "matches") VALUE
               | ATTRIBUTE "in" "(" VALUE {"," VALUE} ")"
    ATTRIBUTE  = "id" | "name" | "arch" | "os" | "cpus" | "memory" | "drivers" | "version" | "labels." NAME
    VALUE      = word | "quoted text" | 'quoted text'

``memory`` takes bytes or a size such as ``512M`` (powers of 1024). ``drivers`` is true where any driver of
the node compares true. ``version`` compares number by number. ``matches`` is a regular expression that must
match the whole value; repeated groups and more than three repetitions are refused, because a pattern that
backtracks for ever would stop the node. A missing label makes every comparison false, ``!=`` included.
"""

import operator
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from edgeorch.errors import ConstraintError
from edgeorch.model import NodeInfo

ATTRIBUTES = ("id", "name", "arch", "os", "cpus", "memory", "drivers", "version")
MAX_LENGTH = 1024
MAX_DEPTH = 32
_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_TOKEN = re.compile(
    r"""\s*(?: (?P<op>==|!=|<=|>=|<|>) | (?P<mark>[(),])
        | "(?P<double>[^"]*)" | '(?P<single>[^']*)' | (?P<word>[^\s()<>=!,"']+) )""",
    re.VERBOSE,
)
_REPEATED_GROUP = re.compile(r"(?<!\\)\)[*+{?]")
_REPETITION = re.compile(r"(?<!\\)[*+{]")

Value: TypeAlias = str | float | tuple[tuple[int, int, str], ...]


@dataclass(frozen=True)
class Comparison:
    """One comparison; ``operator`` as written, ``values`` has one element except for ``in``."""

    attribute: str
    operator: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Not:
    """The opposite."""

    inner: "Expression"


@dataclass(frozen=True)
class Both:
    """``and`` or ``or`` over the parts."""

    word: str
    parts: tuple["Expression", ...]


Expression: TypeAlias = Comparison | Not | Both


@dataclass(frozen=True)
class _Token:
    text: str
    plain: bool
    position: int


@lru_cache(maxsize=1024)
def parse(text: str) -> Expression:
    """The expression of a constraint.

    Raises:
        ConstraintError: with the position and what was expected there.
    """
    if len(text) > MAX_LENGTH:
        raise ConstraintError(f"a constraint has {len(text)} characters; {MAX_LENGTH} are allowed")
    return _Parser(text).whole()


def holds(expression: Expression, node: NodeInfo) -> bool:
    """Whether the node satisfies the expression."""
    if isinstance(expression, Comparison):
        return _compare(expression, node)
    if isinstance(expression, Not):
        return not holds(expression.inner, node)
    parts = (holds(part, node) for part in expression.parts)
    return all(parts) if expression.word == "and" else any(parts)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = self._split(text)
        self.at = 0

    @staticmethod
    def _split(text: str) -> list[_Token]:
        tokens = []
        position = 0
        end = len(text.rstrip())
        while position < end:
            found = _TOKEN.match(text, position)
            if found is None:
                stray = text[position:].lstrip()[:1]
                raise ConstraintError(f"constraint {text!r}: unexpected {stray!r} at position {position + 1}")
            kind = found.lastgroup or ""
            tokens.append(_Token(found[kind], kind not in ("double", "single"), found.start(kind) + 1))
            position = found.end()
        return tokens

    def whole(self) -> Expression:
        expression = self._either(0)
        if self.at < len(self.tokens):
            raise self._expected("'and', 'or' or the end")
        return expression

    def _expected(self, what: str) -> ConstraintError:
        if self.at >= len(self.tokens):
            return ConstraintError(f"constraint {self.text!r}: expected {what} at the end")
        token = self.tokens[self.at]
        return ConstraintError(
            f"constraint {self.text!r}: expected {what} at position {token.position}, found {token.text!r}"
        )

    def _take(self, text: str) -> bool:
        if self.at < len(self.tokens) and self.tokens[self.at].plain and self.tokens[self.at].text == text:
            self.at += 1
            return True
        return False

    def _either(self, depth: int) -> Expression:
        parts = [self._all(depth)]
        while self._take("or"):
            parts.append(self._all(depth))
        return parts[0] if len(parts) == 1 else Both("or", tuple(parts))

    def _all(self, depth: int) -> Expression:
        parts = [self._factor(depth)]
        while self._take("and"):
            parts.append(self._factor(depth))
        return parts[0] if len(parts) == 1 else Both("and", tuple(parts))

    def _factor(self, depth: int) -> Expression:
        if depth > MAX_DEPTH:
            raise ConstraintError(f"constraint {self.text[:60]!r}…: nested deeper than {MAX_DEPTH}")
        if self._take("not"):
            return Not(self._factor(depth + 1))
        if self._take("("):
            inner = self._either(depth + 1)
            if not self._take(")"):
                raise self._expected("')'")
            return inner
        return self._comparison()

    def _comparison(self) -> Comparison:
        attribute = self._word("an attribute")
        if attribute not in ATTRIBUTES and not (attribute.startswith("labels.") and len(attribute) > 7):
            raise ConstraintError(
                f"constraint {self.text!r}: unknown attribute {attribute!r}",
                hint=f"known: {', '.join(ATTRIBUTES)}, labels.NAME",
            )
        if self._take("in"):
            if not self._take("("):
                raise self._expected("'(' and a list")
            values = [self._word("a value")]
            while self._take(","):
                values.append(self._word("a value"))
            if not self._take(")"):
                raise self._expected("',' or ')'")
            return self._checked(Comparison(attribute, "in", tuple(values)))
        for symbol in (*_COMPARE, "matches"):
            if self._take(symbol):
                return self._checked(Comparison(attribute, symbol, (self._word("a value"),)))
        raise self._expected("==, !=, <, <=, >, >=, in or matches")

    def _word(self, what: str) -> str:
        token = self.tokens[self.at] if self.at < len(self.tokens) else None
        if token is None or (token.plain and (token.text in _COMPARE or token.text in "(),")):
            raise self._expected(what)
        self.at += 1
        return token.text

    def _checked(self, comparison: Comparison) -> Comparison:
        """The comparison, if its values are of the attribute's kind."""
        for value in comparison.values:
            if comparison.operator == "matches":
                if _REPEATED_GROUP.search(value) or len(_REPETITION.findall(value)) > 3:
                    raise ConstraintError(
                        f"constraint {self.text!r}: {value!r} repeats too much",
                        hint="no repeated groups, at most three of * + {}",
                    )
                if value.count("(") > MAX_DEPTH:
                    # The compiler recurses; how deep it may depends on who calls, so nodes would differ.
                    raise ConstraintError(f"constraint {self.text[:60]!r}…: more than {MAX_DEPTH} groups")
                try:
                    _pattern(value)
                except (re.error, OverflowError) as error:
                    raise ConstraintError(f"constraint {self.text!r}: {value!r}: {error}") from None
            elif comparison.attribute in ("cpus", "memory"):
                try:
                    _number(value)
                except ValueError:
                    raise ConstraintError(
                        f"constraint {self.text!r}: {comparison.attribute} needs a number, not {value!r}"
                    ) from None
        return comparison


@lru_cache(maxsize=256)
def _pattern(text: str) -> re.Pattern[str]:
    with warnings.catch_warnings(action="ignore"):  # of what Python may once read otherwise
        return re.compile(text)


def _number(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.lower())
    if not found:
        raise ValueError(text)
    return float(found[1]) * _SIZES[found[2]]


def _version(text: str) -> tuple[tuple[int, int, str], ...]:
    """Numbers compare as numbers and come before letters."""
    parts = re.findall(r"\d+|[a-z]+", text)
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts)


def _kept(attribute: str, node: NodeInfo) -> tuple[str, ...]:
    """The node's values of an attribute as text; empty for a missing label."""
    if attribute.startswith("labels."):
        value = node.labels.get(attribute[7:])
        return () if value is None else (value,)
    if attribute == "drivers":
        return tuple(node.drivers)
    return (str(getattr(node, attribute)),)


def _typed(attribute: str, text: str, other: str) -> tuple[Value, Value]:
    """Both sides as comparable values: numbers and versions where the attribute is one, or both texts are."""
    if attribute == "version":
        return _version(text), _version(other)
    try:
        return _number(text), _number(other)
    except ValueError:
        return text, other


def _compare(comparison: Comparison, node: NodeInfo) -> bool:
    found = _kept(comparison.attribute, node)
    if not found:
        return False
    if comparison.operator == "matches":
        return any(_pattern(comparison.values[0]).fullmatch(text) for text in found)
    if comparison.operator == "in":
        return any(
            left == right
            for text in found
            for left, right in (_typed(comparison.attribute, text, value) for value in comparison.values)
        )
    test = _COMPARE[comparison.operator]
    pairs = [_typed(comparison.attribute, text, comparison.values[0]) for text in found]
    # "drivers != native" means that no driver is native.
    results = [test(left, right) for left, right in pairs]
    return all(results) if comparison.operator == "!=" else any(results)
