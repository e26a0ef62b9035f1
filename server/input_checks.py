"""What a request's texts must be, said of the one that is wrong. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic_core import PydanticCustomError

from server.errors import InvalidInput

MOST_INPUTS = 10_000
"""Above every server's own limit, and checked before each input is looked at."""


def by_hand(check: Callable[[], object], value: object) -> object:
    """Check in a validator, so that an error names the one part that is wrong rather than every union branch."""
    try:
        check()
    except InvalidInput as error:
        raise PydanticCustomError(
            "invalid_input", "{message}", {"message": str(error), "field": error.field}
        ) from error
    return value


def check_inputs(path: str, value: object) -> None:
    """A text, a pair, or a list of these. Raises InvalidInput."""
    if isinstance(value, list):
        check_count(path, value)
        for index, one in enumerate(value):
            _check_input(f"{path}[{index}]", one)
    else:
        _check_input(path, value)


def check_adapters(path: str, value: object) -> None:
    """A list of names. Raises InvalidInput; what is no list is left to who declares the field."""
    if not isinstance(value, list):
        return
    check_count(path, value, "names")
    for index, one in enumerate(value):
        check_text(f"{path}[{index}]", one)


def check_count(path: str, values: Sequence[object], noun: str = "texts") -> None:
    """Raises InvalidInput."""
    if not 1 <= len(values) <= MOST_INPUTS:
        raise InvalidInput(path, f"`{path}` has {len(values)} {noun}; send 1 to {MOST_INPUTS}")


def check_text(path: str, text: object) -> str:
    """The text, if it is one with something in it. Raises InvalidInput."""
    if not isinstance(text, str):
        raise InvalidInput(path, f"`{path}` must be a text, not {kind_of(text)}")
    if not text.strip():
        raise InvalidInput(path, f"`{path}` is an empty text; send at least one character that is not a space")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInput(
            path, f"`{path}` holds half a surrogate pair at position {error.start}, which is no character"
        ) from error
    return text


def kind_of(value: object) -> str:
    """What JSON calls it."""
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)


def _check_input(path: str, value: object) -> None:
    if isinstance(value, str):
        check_text(path, value)
        return
    if not isinstance(value, dict):
        raise InvalidInput(path, f'`{path}` must be a text or {{"text": ..., "text_pair": ...}}, not {kind_of(value)}')
    unknown = sorted(str(key) for key in set(value) - {"text", "text_pair"})
    if unknown:
        raise InvalidInput(path, f"`{path}` has the unknown field {unknown[0]!a}; allowed: text, text_pair")
    if "text" not in value:
        raise InvalidInput(f"{path}.text", f"`{path}.text` is missing")
    check_text(f"{path}.text", value["text"])
    if value.get("text_pair") is not None:
        check_text(f"{path}.text_pair", value["text_pair"])
