"""Why the mixed forward is ours: what plain peft does with `adapter_names` (stated in the README)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftConfig, get_peft_model

from tests.seeded import peft_configs
from training.model import PooledClassifier


@pytest.mark.parametrize(("name", "is_right"), [("lora-qv", True), ("ia3-paper", False), ("bitfit", False)])
def test_peft_answers_a_mixed_batch_rightly_for_lora_only(
    name: str, is_right: bool, base_folders: dict[str, Path]
) -> None:
    """Row 1 asks for `second` while `first` is active. Where peft ignores that, `first` answers, unwarned."""
    config: PeftConfig = peft_configs("bert")[name]
    model = get_peft_model(PooledClassifier.load(str(base_folders["bert"]), 3, "native"), config, "first")
    model.add_adapter("second", config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if ".first" in parameter_name or ".second" in parameter_name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.eval()
        ids = torch.tensor([[2, 40, 41, 3]] * 2)
        mixed = model(input_ids=ids, adapter_names=["first", "second"]).logits[1]
        alone = {}
        for adapter in ("first", "second"):
            model.set_adapter(adapter)
            alone[adapter] = model(input_ids=ids[:1]).logits[0]
        assert (alone["first"] - alone["second"]).abs().max() > 0.05
        model.set_adapter("first")
    torch.testing.assert_close(mixed, alone["second" if is_right else "first"], rtol=1e-5, atol=1e-5)
