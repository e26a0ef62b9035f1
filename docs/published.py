"""Results of other people's papers, as printed there, and what follows from them when it is computed anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean

NOTHING = "–"
NORMAL_95 = 1.959964

HU, MAO, LIU, HE, HOULSBY_2019 = (
    "@hu2022lora",
    "@mao2022unipelt",
    "@liu2022fewshot",
    "@he2022unified",
    "@houlsby2019adapters",
)
"""Keys of `references.bib`."""

GLUE = ("MNLI", "SST-2", "MRPC", "CoLA", "QNLI", "QQP", "RTE", "STS-B")
"""The order of columns in Hu et al. 2022, table 2."""
LORA_PAPER = {
    "FT": (87.6, 94.8, 90.2, 63.6, 92.8, 91.9, 78.7, 91.2),
    "LoRA": (87.5, 95.1, 89.7, 63.4, 93.3, 90.8, 86.6, 91.5),
    "AdptP 3M, large": (90.2, 96.1, 90.2, 68.3, 94.8, 91.9, 83.8, 92.1),
    "LoRA, large": (90.6, 96.2, 90.2, 68.2, 94.8, 91.6, 85.2, 92.3),
}
"""Hu et al. 2022, table 2: RoBERTa-base, and the matched block of RoBERTa-large."""

UNIPELT_TASKS = ("SST-2", "MRPC", "CoLA", "RTE", "QNLI", "STS-B", "MNLI", "QQP")
UNIPELT = {
    100: {
        "FT": (79.61, 81.81, 16.56, 55.88, 69.25, 74.07, 42.56, 60.41),
        "BitFit": (62.94, 81.09, 2.71, 47.65, 42.46, 54.53, 38.16, 59.56),
        "bottleneck": (80.48, 81.40, 2.02, 52.78, 72.25, 77.32, 38.81, 60.88),
        "prefix": (60.87, 81.22, 0.0, 55.96, 71.91, 57.69, 40.58, 15.68),
        "LoRA": (81.56, 81.66, 13.31, 55.02, 73.52, 49.35, 39.60, 0.09),
    },
    500: {
        "FT": (85.67, 83.34, 36.47, 59.64, 77.30, 84.96, 55.84, 68.23),
        "BitFit": (83.44, 82.16, 3.32, 61.88, 69.15, 76.30, 40.82, 65.29),
        "bottleneck": (84.54, 82.53, 38.65, 59.35, 77.39, 83.52, 50.04, 68.12),
        "prefix": (83.65, 82.96, 38.16, 63.18, 78.50, 79.75, 58.06, 54.34),
        "LoRA": (84.98, 82.53, 39.86, 63.03, 79.46, 65.05, 56.54, 55.46),
    },
    1000: {
        "FT": (86.54, 84.87, 43.26, 62.31, 79.03, 86.39, 61.95, 71.09),
        "BitFit": (83.99, 83.95, 22.44, 62.89, 77.43, 79.04, 52.87, 69.50),
        "bottleneck": (85.60, 84.49, 42.33, 61.81, 79.68, 85.52, 57.86, 70.32),
        "prefix": (85.09, 83.66, 44.07, 66.71, 80.34, 82.38, 63.59, 68.58),
        "LoRA": (86.26, 86.04, 45.50, 65.63, 81.00, 81.56, 61.32, 70.89),
    },
}
"""Mao et al. 2022, table 1: BERT-base after training on so many rows, means of five seeds."""

T_FEW = {
    "FT": (81.0, 46.4, 93.8, 56.5, 65.4, 57.7, 79.8, 87.5, 46.6, 41.3, 40.2),
    "BitFit": (75, 29.5, 88.6, 49.6, 61.5, 51.7, 72.2, 57.1, 36.5, 35.3, 36.6),
    "bottleneck": (84, 41.9, 91.7, 54.7, 65.4, 55.5, 76.2, 87.5, 45.1, 40.4, 35.3),
    "prefix": (71, 42.1, 90.2, 52.0, 56.7, 54.2, 68.6, 84.0, 43.3, 37.5, 36.5),
    "LoRA": (88, 47.1, 93.6, 56.8, 60.6, 55.2, 78.3, 85.7, 45.1, 41.0, 39.5),
    "IA3": (87, 49.4, 94.7, 59.8, 68.3, 56.0, 78.0, 87.5, 48.6, 40.8, 40.8),
}
"""Liu et al. 2022, table 4: T0-3B on eleven held-out sets, medians of five seeds; BitFit with layer norms."""

HOULSBY = {
    "FT": (92.8, 83.6, 92.5, 85.3, 82.1, 38.4, 84.2, 80.9, 75.2, 38.9, 36.9, 71.6, 63.8, 75.3, 55.9, 96.3, 99.3),
    "bottleneck": (
        91.7,
        84.5,
        92.9,
        84.1,
        82.5,
        38.7,
        82.7,
        79.0,
        75.9,
        44.1,
        33.9,
        71.7,
        60.6,
        77.3,
        55.4,
        96.2,
        95.1,
    ),
}
"""Houlsby et al. 2019, table 2: BERT-base on 17 further classification sets, test accuracy."""


@dataclass(frozen=True, slots=True)
class Result:
    """A mean as printed in a paper, for the methods that it has."""

    setting: str
    reported: str
    source: str
    scores: Mapping[str, float]


COLUMNS = ("FT", "BitFit", "IA3", "LoRA", "bottleneck", "prefix")
PRINTED = (
    Result(
        "BERT-base, GLUE, 8 tasks",
        "best run, development set",
        MAO,
        {"FT": 82.67, "LoRA": 82.20, "bottleneck": 83.02, "prefix": 82.07},
    ),
    Result(
        "RoBERTa-base, GLUE, 8 tasks",
        "best epoch on the development set",
        HU,
        {"FT": 86.4, "BitFit": 85.2, "LoRA": 87.2, "bottleneck": 85.4},
    ),
    Result(
        "RoBERTa-base, MNLI",
        "development set, median of 5",
        HE,
        {"FT": 87.6, "BitFit": 84.7, "LoRA": 87.2, "bottleneck": 87.2, "prefix": 86.3},
    ),
    Result("BERT-base, 17 other sets", "test set", HOULSBY_2019, {"FT": 73.7, "bottleneck": 73.3}),
    Result(
        "GPT-3 175B, MNLI",
        "development set",
        HU,
        {"FT": 89.5, "BitFit": 91.0, "LoRA": 91.7, "bottleneck": 91.5, "prefix": 89.5},
    ),
)
FEW = (
    Result("GPT-3 175B, MNLI, 100 rows", "development set", HU, {"FT": 60.2, "LoRA": 63.8, "prefix": 48.3}),
    Result("Llama-3-8B, 27 sets", "one run", "@belanec2025bench", {"IA3": 74.7, "LoRA": 80.1, "prefix": 45.9}),
)

GSM8K_QUESTIONS = 1319
GSM8K = (
    ("IA3, rate 1e-4 (default)", 31.1),
    ("IA3, rate 1e-3", 39.8),
    ("IA3, rate 5e-3, all attention", 45.5),
    ("prefix, rate 1e-3", 18.6),
    ("prefix, rate 5e-3, zero init", 35.8),
    ("prefix, rate 5e-3, text init", 41.6),
    ("LoRA, $r=32$, query and value", 47.8),
    ("LoRA, $r=64$, rsLoRA", 51.3),
    ("full fine-tuning", 47.2),
)
"""Accuracies in Hugging Face's PEFT comparison (MetaMathQA, Llama-3.2-3B), each of one run."""


def results_table() -> str:
    rows = ["| setting | reported | source | " + " | ".join(COLUMNS) + " |", "|---|---|---|" + "--:|" * len(COLUMNS)]
    few_shot = Result("T0-3B, few-shot, 11 sets", "median of 5 seeds", LIU, _means(T_FEW))
    for result in (*PRINTED, *_low_data(), few_shot, *FEW):
        cells = [f"{result.scores[name]:.1f}" if name in result.scores else NOTHING for name in COLUMNS]
        rows.append(f"| {result.setting} | {result.reported} | [{result.source}] | {' | '.join(cells)} |")
    caption = (
        "Means as printed in the papers; in the rows of 100 to 1,000 training rows and of T0-3B computed from the "
        "tables by task. Every row has its own protocol: compare along rows, not down columns. FT: full fine-tuning; "
        "BitFit of T0-3B with layer norms; Llama-3-8B: IA3 and prefix were set up wrongly ([@sec:traps])."
    )
    return "\n".join(rows) + f"\n\n: {caption} {{#tbl:results}}\n"


def recomputed_table() -> str:
    without_rte = [index for index, task in enumerate(GLUE) if task != "RTE"]
    trained = [index for index, task in enumerate(UNIPELT_TASKS) if task not in ("STS-B", "QQP")]
    roberta, large, few = LORA_PAPER, "LoRA − bottleneck, RoBERTa-large, GLUE", "T0-3B, 11 sets"
    rows = [
        "| difference of means | source | as published | recomputed | |",
        "|---|---|--:|--:|---|",
        _left_out("LoRA − FT, RoBERTa-base, GLUE", HU, roberta["LoRA"], roberta["FT"], without_rte, "RTE"),
        _left_out(large, HU, roberta["LoRA, large"], roberta["AdptP 3M, large"], without_rte, "RTE"),
        _left_out(
            "LoRA − FT, BERT-base, 100 rows", MAO, UNIPELT[100]["LoRA"], UNIPELT[100]["FT"], trained, "STS-B, QQP"
        ),
        _tested("LoRA − FT, BERT-base, 1,000 rows", MAO, UNIPELT[1000]["LoRA"], UNIPELT[1000]["FT"]),
        _tested("bottleneck − FT, BERT-base, 17 other sets", HOULSBY_2019, HOULSBY["bottleneck"], HOULSBY["FT"]),
        _tested(f"IA3 − FT, {few}", LIU, T_FEW["IA3"], T_FEW["FT"]),
        _tested(f"IA3 − LoRA, {few}", LIU, T_FEW["IA3"], T_FEW["LoRA"]),
        _tested(f"IA3 − bottleneck, {few}", LIU, T_FEW["IA3"], T_FEW["bottleneck"]),
        _tested(f"LoRA − prefix, {few}", LIU, T_FEW["LoRA"], T_FEW["prefix"]),
    ]
    caption = (
        "Published differences of means in points, recomputed from the tables by task. $p$: two-sided Wilcoxon "
        "signed-rank test over tasks, not corrected for several tests."
    )
    return "\n".join(rows) + f"\n\n: {caption} {{#tbl:recomputed}}\n"


def settings_table() -> str:
    rows = ["| configuration | accuracy, % | 95 % interval |", "|---|--:|--:|"]
    for title, accuracy in GSM8K:
        low, high = wilson(accuracy / 100, GSM8K_QUESTIONS)
        rows.append(f"| {title} | {accuracy:.1f} | {100 * low:.1f}–{100 * high:.1f} |")
    caption = (
        f"One model, one task, one seed: runs of the PEFT library's own comparison [@mangrulkar2022peft] "
        f"(Llama-3.2-3B, MetaMathQA, GSM8K test of {GSM8K_QUESTIONS:,} questions); Wilson intervals computed here."
    )
    return "\n".join(rows) + f"\n\n: {caption} {{#tbl:settings}}\n"


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share among so many (Wilson 1927)."""
    square = NORMAL_95**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = NORMAL_95 / (1 + square / count) * sqrt(share * (1 - share) / count + square / (4 * count**2))
    return centre - half, centre + half


def wilcoxon_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided, of the signed ranks over tasks."""
    from scipy.stats import wilcoxon

    differences = [round(one - other, 6) for one, other in zip(first, second, strict=True)]
    return float(wilcoxon(differences).pvalue)


def _low_data() -> list[Result]:
    inference = [index for index, task in enumerate(UNIPELT_TASKS) if task in ("RTE", "QNLI", "MNLI")]
    all_tasks = [
        Result(f"BERT-base, {count:,} rows, 8 tasks", "mean of 5 seeds", MAO, _means(scores))
        for count, scores in UNIPELT.items()
    ]
    pairs = [
        Result(
            f"BERT-base, {count:,} rows, RTE, QNLI, MNLI",
            "mean of 5 seeds",
            MAO,
            _means({name: [values[index] for index in inference] for name, values in scores.items()}),
        )
        for count, scores in UNIPELT.items()
    ]
    return all_tasks + pairs


def _means(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: fmean(values) for name, values in scores.items()}


def _difference(first: Sequence[float], second: Sequence[float]) -> str:
    return f"{fmean(first) - fmean(second):+.2f}".replace("-", "−")


def _left_out(
    title: str, source: str, first: Sequence[float], second: Sequence[float], kept: Sequence[int], what: str
) -> str:
    less = _difference([first[index] for index in kept], [second[index] for index in kept])
    return f"| {title} | [{source}] | {_difference(first, second)} | {less} | without {what} |"


def _tested(title: str, source: str, first: Sequence[float], second: Sequence[float]) -> str:
    wins = sum(one > other for one, other in zip(first, second, strict=True))
    p = wilcoxon_p(first, second)
    return f"| {title} | [{source}] | {_difference(first, second)} | $p={p:.3f}$ | better on {wins} of {len(first)} |"
