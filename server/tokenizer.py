"""Text to token ids, with the base model's own `tokenizer.json`. No torch, safe in any thread."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer

from server.errors import BaseModelError, InvalidInput, TextTooLong


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
        self._lock = threading.Lock()
        self._whole = FastTokenizer.from_file(str(path))
        self._whole.no_padding()
        self._whole.no_truncation()
        self._cutting: dict[int, FastTokenizer] = {}

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest id that a text can be cut into."""
        return self._whole.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, text_pair: str | None, max_length: int, truncate: bool, field: str) -> Encoded:
        """Tokenise one text or pair for an adapter. Raises TextTooLong and InvalidInput, which name `field`."""
        whole = self.encode_whole(text, text_pair, field)
        return self.fit(whole, text, text_pair, max_length, truncate, field)

    def encode_whole(self, text: str, text_pair: str | None, field: str) -> Encoded:
        """Tokenise one text or pair, however long. InvalidInput if it has no tokens at all."""
        encoded = _encode(self._whole, text, text_pair)
        if not encoded.token_ids:
            raise InvalidInput(field, f"`{field}` has no token that the base model knows")
        return encoded

    def fit(
        self, encoded: Encoded, text: str, text_pair: str | None, max_length: int, truncate: bool, field: str
    ) -> Encoded:
        """The same in at most max_length tokens: cut (the longer of a pair first) if `truncate`, else TextTooLong."""
        if len(encoded.token_ids) <= max_length:
            return encoded
        if truncate:
            cut = _encode(self._cutter(max_length), text, text_pair)
            if 1 <= len(cut.token_ids) <= max_length:
                return cut
        hint = "not even an empty text fits" if truncate else 'shorten it or send "truncate": true'
        raise TextTooLong(
            field, f"`{field}` has {len(encoded.token_ids)} tokens, this adapter takes {max_length}; {hint}"
        )

    def _cutter(self, max_length: int) -> FastTokenizer:
        with self._lock:
            if max_length not in self._cutting:
                cutter = FastTokenizer.from_str(self._whole.to_str())
                cutter.enable_truncation(max_length)
                self._cutting[max_length] = cutter
            return self._cutting[max_length]


def _encode(tokenizer: FastTokenizer, text: str, text_pair: str | None) -> Encoded:
    """Encode as a batch of one: the library lets other threads run meanwhile only for batches."""
    [encoding] = tokenizer.encode_batch([text if text_pair is None else (text, text_pair)])
    return Encoded(tuple(encoding.ids), tuple(encoding.type_ids))
