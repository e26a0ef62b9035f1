"""Names for methods that PEFT does not bring."""

from __future__ import annotations

from typing import Any

from peft.utils.peft_types import PeftType


def extend_peft_type(name: str) -> Any:
    """PEFT refuses names outside its enumeration of methods, so it gets one more. Returns the member."""
    if name in PeftType.__members__:
        return PeftType[name]
    member: Any = str.__new__(PeftType, name)
    member._name_, member._value_, member.__objclass__ = name, name, PeftType
    member._sort_order_ = len(PeftType)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    return member
