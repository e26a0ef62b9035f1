"""Small data sets whose labels can be learnt from their words."""

from __future__ import annotations

import csv
import random
from pathlib import Path

TOPICS = {"animals": range(40), "boats": range(40, 80), "cheese": range(80, 120)}


def write_corpus(folder: Path, num_rows: int = 360, seed: int = 0) -> Path:
    """Texts whose words come from the topic they are labelled with, with some noise."""
    rng, folder = random.Random(seed), folder / "topics"
    folder.mkdir()
    for split, count in (("train", num_rows), ("test", 60)):
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for index in range(count):
                label = list(TOPICS)[index % 3]
                words = rng.choices(TOPICS[label], k=5) + rng.choices(range(120, 500), k=rng.randint(1, 8))
                rng.shuffle(words)
                writer.writerow([" ".join(f"word{word}" for word in words), label])
    return folder


def write_attributes(folder: Path) -> Path:
    """Texts with two attributes that know nothing of each other, and a number in a unit of its own: 300 to 400."""
    rng, folder = random.Random(0), folder / "attributes"
    folder.mkdir()
    for split, count in (("train", 360), ("test", 60)):
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "text_pair", "labels", "score"])
            for index in range(count):
                labels = [name for bit, name in enumerate(("animals", "boats")) if index % 4 >> bit & 1]
                count_of_cheese = rng.randint(0, 4)
                words = [word for name in labels for word in rng.choices(TOPICS[name], k=6)]
                words += [80] * count_of_cheese + rng.choices(range(120, 500), k=4)
                rng.shuffle(words)
                text = [f"word{word}" for word in words]
                row = [" ".join(text[:3]), " ".join(text[3:]), "|".join(labels), 300 + 25 * count_of_cheese]
                writer.writerow(row)
    return folder
