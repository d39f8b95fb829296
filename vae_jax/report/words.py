"""Values as short texts for a reader, and names from data made safe to print and to draw."""

import math
import numbers
import re
from typing import Any

# Control characters, line and paragraph separators, marks that turn the direction of text, and
# the surrogates that stand for bytes of a file name that is not UTF-8.
INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def _escape_character(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode()


def visible(text: str) -> str:
    r"""The text with characters that cannot be shown as escapes: ``"a\\nb"`` for a line break."""
    return INVISIBLE.sub(_escape_character, text)


def title(key: str) -> str:
    """``"rate_of_change"`` as ``"Rate of change"``."""
    text = key.replace("_", " ").strip()
    return text[:1].upper() + text[1:]


def minus(text: str) -> str:
    """The text with the minus sign of print in place of the hyphen."""
    return text.replace("-", "−")


def short(value: Any) -> str:
    """Any value as short text: separators in whole numbers, four digits of others."""
    if value is None:
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{key} {short(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(short, value)) or "none"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return str(value)
    if isinstance(value, numbers.Integral):
        return minus(f"{value:,}")
    if 1e4 <= abs(value) < 1e15:
        return minus(f"{value:,.0f}")
    return minus(f"{value:.4g}")


def setting(value: Any) -> str:
    """A config's value as it would be typed: no separators, no rounding."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value) or "''"


def duration(seconds: float) -> str:
    """``"12.3 s"``, ``"2 min 5 s"`` or ``"1 h 2 min"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    hours, rest = divmod(whole, 3600)
    if hours:
        return f"{hours} h {rest // 60} min"
    return f"{rest // 60} min {rest % 60} s"


def number(value: Any) -> float:
    """A finite number from what a row of JSON may hold; NaN for all else."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return float(value) if real and math.isfinite(value) else math.nan
