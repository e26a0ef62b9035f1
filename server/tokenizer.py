"""Text to token ids, with the base model's own `tokenizer.json`. No torch, safe in any thread."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer

from server.errors import BaseModelError, TextTooLong


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

    def encode(self, text: str, text_pair: str | None, max_length: int, truncate: bool, field: str) -> Encoded:
        """Tokenise one text or pair.

        A text of more than max_length tokens is cut (the longer of a pair first) if `truncate`,
        otherwise TextTooLong names `field`.
        """
        encoding = self._whole.encode(text, text_pair)
        if len(encoding.ids) > max_length:
            if not truncate:
                raise TextTooLong(
                    field,
                    f"`{field}` has {len(encoding.ids)} tokens, this adapter takes {max_length}; "
                    'shorten it or send "truncate": true',
                )
            encoding = self._cutter(max_length).encode(text, text_pair)
        return Encoded(tuple(encoding.ids), tuple(encoding.type_ids))

    def _cutter(self, max_length: int) -> FastTokenizer:
        with self._lock:
            if max_length not in self._cutting:
                cutter = FastTokenizer.from_str(self._whole.to_str())
                cutter.enable_truncation(max_length)
                self._cutting[max_length] = cutter
            return self._cutting[max_length]
