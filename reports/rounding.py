"""Numbers to text: no more digits than the interval supports."""

from __future__ import annotations

import math

MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EM DASH}"


def decimals(half: float | None, otherwise: int = 1) -> int:
    """Decimals that leave the half-width two digits if it begins with 1, else one; ``otherwise`` if unknown."""
    if not half or not math.isfinite(half):
        return otherwise
    leading = f"{half:.1e}"
    exponent = int(leading.split("e")[1])
    return max(0, -exponent + (1 if leading[0] == "1" else 0))


def fixed(value: float, places: int, signed: bool = False) -> str:
    """With ``places`` decimals, thousands apart and a true minus sign; zero has no sign."""
    rounded = round(value, places) + 0.0  # adding zero turns -0.0 into 0.0
    text = f"{rounded:+,.{places}f}" if signed and rounded else f"{rounded:,.{places}f}"
    return text.replace("-", MINUS)


def plus_minus(value: float, half: float | None, signed: bool = False) -> str:
    """``84.3 ± 1.2``, or the value alone where there is no interval."""
    places = decimals(half)
    return fixed(value, places, signed) + ("" if half is None else f" ± {fixed(half, places)}")


def bracketed(value: float, low: float | None, high: float | None, least: int = 0) -> str:
    """``1.21 [1.18, 1.25]``: for intervals that need not be symmetric; with ``least`` decimals or more."""
    if low is None or high is None:
        return significant(value, 3)
    places = max(least, decimals((high - low) / 2, otherwise=2))
    return f"{fixed(value, places)} [{fixed(low, places)}, {fixed(high, places)}]"


def significant(value: float, digits: int = 2) -> str:
    """Rounded to significant digits; powers of ten outside 0.0001 to 100,000."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    rounded = float(f"{value:.{digits - 1}e}")
    if not 1e-4 <= abs(rounded) < 1e5:
        mantissa, exponent = f"{rounded:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}".replace("-", MINUS, 1 if value < 0 else 0)
    return fixed(rounded, max(0, digits - 1 - math.floor(math.log10(abs(rounded)))))


def rate(value: float) -> str:
    """A learning rate: two digits, no trailing zeros."""
    return _short(value, 2)


def percent(share: float, digits: int = 2) -> str:
    """``95 %``, ``0.3 %``: to significant digits, no trailing zeros."""
    return f"{_short(100 * share, digits)} %"


def _short(value: float, digits: int) -> str:
    text = significant(value, digits)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
