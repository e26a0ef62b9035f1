"""Tables of what adapters weigh and what work they add, from the formulas and from this project's own counts.

Letters: L layers, d width, d_kv width of keys and values, f width of the feed-forward layer, g its matrices (2, or 3
with a gate), n tokens, r rank, m bottleneck, p prefix, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from server.families import family_of
from server.methods import methods
from training.footprint import PARAMETER_BYTES, footprint
from training.recipe import Recipe

MEASURED = Path(__file__).parent.parent / "benchmarks" / "results" / "latest.json"
GIB = 2**30
NUM_TOKENS = 128
"""A text's, for the share of attention in the base's work."""
REDUCTION = 16
"""Width over bottleneck, the default of the AdapterHub library."""
NOTHING = "–"


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a base model, by the letters above."""

    title: str
    model_type: str
    L: int
    d: int
    d_kv: int
    f: int
    g: int
    vocabulary: int
    heads: int

    def config(self) -> PretrainedConfig:
        sizes: dict[str, Any] = {
            "hidden_size": self.d,
            "num_hidden_layers": self.L,
            "intermediate_size": self.f,
            "num_attention_heads": self.heads,
            "vocab_size": self.vocabulary,
        }
        if self.model_type == "llama":
            head_width = self.d // self.heads
            sizes |= {"num_key_value_heads": self.d_kv // head_width, "tie_word_embeddings": True, "pad_token_id": 0}
        return AutoConfig.for_model(self.model_type, **sizes)

    @property
    def flops_per_token(self) -> int:
        """Of all layers over a text of NUM_TOKENS, two for a multiply and add; a causal mask saves nothing here."""
        projections = 2 * self.d * self.d + 2 * self.d * self.d_kv
        return self.L * (2 * (projections + self.g * self.d * self.f) + 4 * NUM_TOKENS * self.d)


MINILM = Shape("MiniLM-L6", "bert", 6, 384, 384, 1536, 2, 30522, 12)
BERT = Shape("BERT-base", "bert", 12, 768, 768, 3072, 2, 30522, 12)
LLAMA = Shape("Llama-3.2-1B", "llama", 16, 2048, 512, 8192, 3, 128256, 32)
SHAPES = (MINILM, BERT, LLAMA)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A method with its options, as the tables show it.

    formula: of its parameters. work: of the operations it adds to a token, two for a multiply and add.
    measured: its name in the benchmark's file, where that has run this very candidate on MiniLM.
    """

    title: str
    method: str
    options: Callable[[Shape], Mapping[str, float]]
    formula: str
    work: str
    flops: Callable[[Shape], int]
    measured: str | None = None


CANDIDATES = (
    Candidate(
        "LoRA, query and value, $r=8$",
        "lora",
        lambda s: {"rank": 8},
        "$Lr(3d+d_{kv})$",
        "$2Lr(3d+d_{kv})$",
        lambda s: 2 * s.L * 8 * (3 * s.d + s.d_kv),
        measured="lora",
    ),
    Candidate(
        "LoRA, all linear layers, $r=8$",
        "lora",
        lambda s: {"rank": 8, "all_linears": 1},
        "$Lr(6d+2d_{kv}+g(d+f))$",
        "$2Lr(6d+2d_{kv}+g(d+f))$",
        lambda s: 2 * s.L * 8 * (6 * s.d + 2 * s.d_kv + s.g * (s.d + s.f)),
    ),
    Candidate(
        "Bottleneck ×2, $m=d/16$",
        "bottleneck",
        lambda s: {"size": s.d // REDUCTION},
        "$2L(2dm+m+d)$",
        "$8Ldm$",
        lambda s: 8 * s.L * s.d * (s.d // REDUCTION),
        measured="bottleneck",
    ),
    Candidate(
        "Bottleneck ×1, $m=d/16$",
        "bottleneck",
        lambda s: {"size": s.d // REDUCTION, "after_attention": 0},
        "$L(2dm+m+d)$",
        "$4Ldm$",
        lambda s: 4 * s.L * s.d * (s.d // REDUCTION),
    ),
    Candidate(
        "Prefix, $p=20$",
        "prefix",
        lambda s: {"length": 20},
        "$2Lpd_{kv}$",
        "$4Lpd$",
        lambda s: 4 * s.L * 20 * s.d,
        measured="prefix",
    ),
    Candidate(
        "IA3",
        "ia3",
        lambda s: {},
        "$L(2d_{kv}+f)$",
        "$L(2d_{kv}+f)$",
        lambda s: s.L * (2 * s.d_kv + s.f),
        measured="ia3",
    ),
    Candidate(
        "BitFit, linear layers",
        "bitfit",
        lambda s: {},
        "$L(3d+2d_{kv}+(g-1)f)$",
        "$L(3d+2d_{kv}+(g-1)f)$",
        lambda s: s.L * (3 * s.d + 2 * s.d_kv + (s.g - 1) * s.f),
    ),
)


def num_parameters(candidate: Candidate, shape: Shape) -> int:
    """Trained, without the head: as `adaptermux-train run` would train it."""
    base, method = shape.config(), methods()[candidate.method]
    plan = Recipe(options=dict(candidate.options(shape))).settle(method, family_of(base.model_type), 100, 512)
    return footprint(method, base, plan.options, plan.pooling, num_labels=2).num_adapter_parameters


@cache
def num_base_parameters(shape: Shape) -> int:
    """Embeddings and pooler included, without a head."""
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(shape.config())
    return sum(weight.numel() for weight in model.parameters())


def footprints_table() -> str:
    """Parameters of every candidate on every base, and how many a GiB holds."""
    rows = [
        "| method | parameters | " + " | ".join(f"{shape.title} | in a GiB" for shape in SHAPES) + " |",
        "|---|---|" + "--:|--:|" * len(SHAPES),
    ]
    for candidate in CANDIDATES:
        counts = [num_parameters(candidate, shape) for shape in SHAPES]
        rows.append(f"| {candidate.title} | {candidate.formula} | {' | '.join(map(_count_and_room, counts))} |")
    whole = [_count_and_room(num_base_parameters(shape)) for shape in SHAPES]
    rows.append(f"| a model of its own | | {' | '.join(whole)} |")
    caption = (
        f"Trained parameters without the head, and how many adapters a GiB holds in float32 ({PARAMETER_BYTES} bytes a "
        "parameter; twice as many in half precision). ×2: behind both sub-layers, ×1: behind the feed-forward part. "
        "Counted from the configurations with this project's code, which is tested against the formulas and against "
        f"what the PEFT library trains; $(L,d,d_{{kv}},f,g)$ is {_letters(MINILM)}, {_letters(BERT)} and "
        f"{_letters(LLAMA)}. A linear head adds $C(d+1)$."
    )
    return "\n".join(rows) + f"\n\n: {caption} {{#tbl:footprints}}\n"


def costs_table() -> str:
    """The work that each candidate adds, and the time that our engine took longer for it."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    rows = [
        "| method | operations a token | " + " | ".join(shape.title for shape in SHAPES) + " | measured, MiniLM-L6 |",
        "|---|---|" + "--:|" * len(SHAPES) + "--:|",
    ]
    for candidate in CANDIDATES:
        shares = [f"{100 * candidate.flops(shape) / shape.flops_per_token:.2f} %" for shape in SHAPES]
        time = NOTHING
        if candidate.measured is not None:
            time = _slower(measured["ratios"][f"{candidate.measured}_vs_base"])
        rows.append(f"| {candidate.title} | {candidate.work} | {' | '.join(shares)} | {time} |")
    rows.append(f"| the four measured, in one batch | | {' | '.join('' for _ in SHAPES)} | "
                f"{_slower(measured['ratios']['mix_vs_base'])} |")  # fmt: skip
    texts, machine = measured["texts"], measured["machine"]
    caption = (
        f"Operations that an unmerged adapter adds, as a share of the base's at $n={NUM_TOKENS}$ tokens, and the time "
        "that a packed batch of 64 texts took longer than with the bare base: this project's engine, 64 adapters, "
        f"texts of {texts['skewed_mean_tokens']:.0f} tokens in the mean, one thread of an "
        f"{_plain(machine['processor'])}, torch {measured['versions']['torch'].partition('+')[0]}, float32, "
        f"{measured['date'][:10]}; medians (quartiles) of {measured['rounds']} interleaved rounds (`make bench`)."
    )
    return "\n".join(rows) + f"\n\n: {caption} {{#tbl:costs}}\n"


def _count_and_room(count: int) -> str:
    return f"{count:,} | {GIB // (PARAMETER_BYTES * count):,}"


def _letters(shape: Shape) -> str:
    return f"({shape.L}, {shape.d}, {shape.d_kv}, {shape.f}, {shape.g})"


def _slower(ratio: Mapping[str, float]) -> str:
    """From speeds as multiples of the base's."""
    middle, low, high = (100 * (1 / ratio[name] - 1) for name in ("median", "high", "low"))
    return f"{middle:+.0f} % ({low:+.0f} to {high:+.0f})".replace("-", "−")


def _plain(processor: str) -> str:
    return processor.replace("(R)", "").replace(" Processor", "")
