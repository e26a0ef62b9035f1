"""Text to tokens: what is cut off, and from which end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer

from server.classification import Question, Tokens
from server.errors import InvalidInput, TextTooLong
from server.tokenizer import Encoded, Side, Text, Tokenizer

NUM_WORDS = st.integers(1, 40)


@pytest.mark.parametrize("side", ["right", "left"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(num_first=NUM_WORDS, num_second=st.none() | NUM_WORDS, length=st.integers(4, 50))
def test_a_cut_text_has_the_tokens_that_the_library_gives_it(
    model_type: str,
    base_folders: dict[str, Path],
    side: Side,
    num_first: int,
    num_second: int | None,
    length: int,
) -> None:
    folder = base_folders[model_type]
    first = " ".join(f"word{index}" for index in range(num_first))
    second = None if num_second is None else " ".join(f"word{100 + index}" for index in range(num_second))
    cutting = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    cutting.enable_truncation(length, direction=side)
    expected = cutting.encode(first, second)
    tokenizer = Tokenizer(folder)
    whole = tokenizer.encode_whole(first, second, "text")
    cut = tokenizer.fit(whole, first, second, length, True, "text", side)
    assert cut == Encoded(tuple(expected.ids), tuple(expected.type_ids))


def test_token_ids_are_taken_as_they_are_and_cut_at_the_named_end(base_folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer(base_folders["bert"])
    ids = tuple(range(5, 25))
    whole = tokenizer.encode_whole(ids, None, "input")
    assert whole == Encoded(ids, (0,) * 20)
    assert tokenizer.fit(whole, ids, None, 8, True, "input").token_ids == ids[:8]
    assert tokenizer.fit(whole, ids, None, 8, True, "input", "left").token_ids == ids[-8:]
    with pytest.raises(TextTooLong, match="20 tokens, this adapter takes 8"):
        tokenizer.fit(whole, ids, None, 8, False, "input")


@pytest.mark.parametrize("unknown", [-1, 597])
def test_a_token_id_that_the_base_model_does_not_have_is_refused(base_folders: dict[str, Path], unknown: int) -> None:
    tokenizer = Tokenizer(base_folders["bert"])
    assert tokenizer.encode_whole((0, 596), None, "input").token_ids == (0, 596)
    with pytest.raises(InvalidInput, match=f"token id {unknown}; the base model has 0 to 596"):
        tokenizer.encode_whole((1, unknown), None, "input")


@pytest.mark.parametrize(("text", "length"), [("word1 word2", 2), ("word1 word2", 0), ((5, 6), 0)])
def test_a_text_is_never_cut_to_nothing(
    base_folders: dict[str, Path], text: str | tuple[int, ...], length: int
) -> None:
    tokenizer = Tokenizer(base_folders["bert"])
    whole = tokenizer.encode_whole(text, None, "text")
    assert tokenizer.fit(whole, text, None, 3, True, "text").token_ids[:2] in ((2, 6), (5, 6))
    with pytest.raises(TextTooLong, match=f"nothing is left if it is cut to {length}"):
        tokenizer.fit(whole, text, None, length, True, "text")


def test_a_text_is_tokenised_once_however_many_adapters_come_for_it_together(base_folders: dict[str, Path]) -> None:
    class Counting(Tokenizer):
        num_calls = 0

        def encode_whole(self, text: Text, text_pair: str | None, field: str) -> Encoded:
            self.num_calls += 1
            return super().encode_whole(text, text_pair, field)

    tokenizer = Counting(base_folders["bert"])
    tokens = Tokens(tokenizer, [Question("inputs", "word1 word2 " * 20_000)], truncate=True)
    with ThreadPoolExecutor(8) as pool:
        fitted = list(pool.map(tokens.fitted, range(8, 40)))
    assert [len(one.token_ids) for [one] in fitted] == list(range(8, 40))
    assert tokenizer.num_calls == 1
