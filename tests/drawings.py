"""Whether two drawings are one: processors differ in the last digit of a mean."""

from __future__ import annotations

import re

LEAST_VISIBLE_PT = 0.01
NUMBER, HASH = re.compile(r"-?\d+(?:\.\d+)?"), re.compile(r"\b[pmCh][0-9a-f]{10}\b")


def is_same_drawing(one: str, other: str) -> bool:
    """Of SVG. Names that are made of coordinates may differ as these may."""
    one, other = HASH.sub("", one), HASH.sub("", other)
    if NUMBER.sub("", one) != NUMBER.sub("", other):
        return False
    pairs = zip(NUMBER.findall(one), NUMBER.findall(other), strict=True)
    return all(abs(float(a) - float(b)) <= LEAST_VISIBLE_PT for a, b in pairs)
