"""Text to token ids, with the base model's own `tokenizer.json`. No torch, safe in any thread."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer as FastTokenizer

from server.errors import BaseModelError, InvalidInput, TextTooLong

Side = Literal["left", "right"]

Text = str | tuple[int, ...]
"""A text, or the token ids of one, special tokens included."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids and segment ids of one text or pair, special tokens included."""

    token_ids: tuple[int, ...]
    type_ids: tuple[int, ...]


class Tokenizer:
    """The base model's fast tokenizer, without the padding and truncation its file may ask for."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise BaseModelError(f"`{folder}` has no tokenizer.json; save the tokenizer there with save_pretrained()")
        self._whole = FastTokenizer.from_file(str(path))
        self._whole.no_padding()
        self._whole.no_truncation()

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest id that a text can be cut into."""
        return self._whole.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, text_pair: str | None, max_length: int, truncate: bool, field: str) -> Encoded:
        """Tokenise one text or pair for an adapter. Raises TextTooLong and InvalidInput, which name `field`."""
        whole = self.encode_whole(text, text_pair, field)
        return self.fit(whole, text, text_pair, max_length, truncate, field)

    def encode_whole(self, text: Text, text_pair: str | None, field: str) -> Encoded:
        """Tokenise one text or pair, however long. InvalidInput if it has no tokens at all, or unknown ones."""
        if not isinstance(text, str):
            most = self.vocabulary_size - 1
            unknown = [one for one in text if not 0 <= one <= most]
            if unknown:
                raise InvalidInput(field, f"`{field}` holds the token id {unknown[0]}; the base model has 0 to {most}")
            return Encoded(tuple(text), (0,) * len(text))
        # as a batch of one: the library lets other threads run meanwhile only for batches
        [encoding] = self._whole.encode_batch([text if text_pair is None else (text, text_pair)])
        if not encoding.ids:
            raise InvalidInput(field, f"`{field}` has no token that the base model knows")
        return Encoded(tuple(encoding.ids), tuple(encoding.type_ids))

    def fit(
        self,
        encoded: Encoded,
        text: Text,
        text_pair: str | None,
        max_length: int,
        truncate: bool,
        field: str,
        side: Side = "right",
    ) -> Encoded:
        """The same in at most max_length tokens: cut (the longer of a pair first) if `truncate`, else TextTooLong.

        side: the end of a text that is cut off.
        """
        if len(encoded.token_ids) <= max_length:
            return encoded
        num_tokens = len(encoded.token_ids)
        if not truncate:
            raise TextTooLong(
                field,
                f"`{field}` has {num_tokens} tokens, this adapter takes {max_length}; shorten it or ask for truncation",
            )
        cut = self._cut(text, text_pair, max_length, side)
        if cut is None or len(cut.token_ids) > max_length:
            raise TextTooLong(
                field, f"`{field}` has {num_tokens} tokens, of which nothing is left if it is cut to {max_length}"
            )
        return cut

    def _cut(self, text: Text, text_pair: str | None, max_length: int, side: Side) -> Encoded | None:
        """What the library's own truncation gives, without a copy of the tokenizer for every length and side.

        None if only special tokens would be left.
        """
        special = 0 if not isinstance(text, str) else self._whole.num_special_tokens_to_add(text_pair is not None)
        room = max_length - special
        if room < 1:
            return None
        if not isinstance(text, str):
            kept = text[:room] if side == "right" else text[-room:]
            return Encoded(kept, (0,) * len(kept))
        parts = self._whole.encode_batch([text] if text_pair is None else [text, text_pair], add_special_tokens=False)
        for part, num_kept in zip(parts, _shares([len(part.ids) for part in parts], room), strict=True):
            part.truncate(num_kept, direction=side)
        encoding = self._whole.post_process(parts[0], parts[1] if len(parts) == 2 else None)
        return Encoded(tuple(encoding.ids), tuple(encoding.type_ids))


def _shares(lengths: list[int], room: int) -> list[int]:
    """How much of a text, or of each of a pair, is kept: the shorter keeps up to half of the room."""
    if len(lengths) == 1:
        return [min(lengths[0], room)]
    shorter = min(*lengths, room // 2)
    return [shorter, room - shorter] if lengths[0] <= lengths[1] else [room - shorter, shorter]
