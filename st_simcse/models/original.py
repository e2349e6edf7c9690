"""Recognition of checkpoints of princeton-nlp/SimCSE, and the MLP that its supervised models need."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sentence_transformers.sentence_transformer.modules import Dense
from torch import Tensor, nn
from transformers.modeling_utils import load_state_dict

from st_simcse.models.model_files import cached_file, weights_file

__all__ = ["MLP_NAMES", "Original", "is_mlp", "recognise", "trained_dense"]

# Names of the MLP in a checkpoint: that of the training script, and those of published models, where BERT's pooler is.
MLP_NAMES = ("mlp.dense", "pooler.dense", "bert.pooler.dense", "roberta.pooler.dense")


class Original(NamedTuple):
    """The facts that a checkpoint of the original code reveals.

    Attributes:
        supervised: Whether the MLP stays at inference; None if unknown.
        evidence: How the checkpoint was recognised, for messages.
        has_lost_pooler: Whether it was trained with another pooler than ``cls`` and does not record which.
    """

    supervised: bool | None
    evidence: str
    has_lost_pooler: bool = False


def recognise(name_or_path: str | os.PathLike[str], **options: Any) -> Original | None:
    """Recognises a bare transformer as a checkpoint of the original code. Returns None for other models.

    The training script writes its class (``BertForCL``, ``RobertaForCL``) to the configuration, and its MLP next to the
    transformer. In a published checkpoint the MLP replaces BERT's pooler, so only the name reveals it. The name may be
    any part of the path, such as the folder above ``checkpoint-500`` or a folder of the Hub's cache; the last part is
    tried first. No weight reveals whether a checkpoint is supervised, so this is read from the names in both cases. For
    renamed folders, ``trainer_state.json`` of the training script contains the old name.

    Args:
        name_or_path: A folder, or a model's name on the Hub, that is not a SentenceTransformer.
        **options: The options that the transformer was loaded with.

    Example:
        >>> recognise("princeton-nlp/unsup-simcse-bert-base-uncased")
        Original(supervised=False, evidence='the name unsup-simcse-bert-base-uncased', has_lost_pooler=False)
    """
    file = cached_file(name_or_path, "config.json", **options)
    classes = (json.loads(file.read_bytes()).get("architectures") if file else None) or []
    mlp = [name for name in _weight_names(name_or_path, options) if name.startswith("mlp.")]
    trained = [name for name in classes if name.endswith("ForCL")]
    names = _names(name_or_path)
    if trained or mlp:
        state = cached_file(name_or_path, "trainer_state.json", **options)
        best = json.loads(state.read_bytes()).get("best_model_checkpoint") if state else None
        told, _ = _told_by([*names, *reversed(re.split(r"[/\\]", best or ""))])
        return Original(told, f"{(trained or mlp)[0]} in its files", has_lost_pooler=not mlp)
    told, name = _told_by(names)
    # A model with a head that published checkpoints do not have is another model in a folder of that name.
    if name is None or any("For" in kind for kind in classes):
        return None
    return Original(told, f"the name {name}")


def trained_dense(
    name_or_path: str | os.PathLike[str], names: Sequence[str], subfolder: str = "", **options: Any
) -> Dense | None:
    """Loads a trained layer (Linear + Tanh) from the files of a transformer. Returns None if no file has it.

    Args:
        name_or_path: A folder, or a model's name on the Hub.
        names: Possible names of the layer in the files. The first one found is used.
        subfolder: The subfolder of the transformer.
        **options: The options that the transformer was loaded with.
    """
    found: dict[str, Tensor] = {}
    for path in _files(name_or_path, options, subfolder):
        weights = load_state_dict(path)
        # The tensors are copied because they may be memory-mapped from the file.
        found |= {name: weights[name].clone() for name in weights if name.rpartition(".")[0] in names}
    for name in names:
        if f"{name}.weight" in found:
            weight, bias = found[f"{name}.weight"], found[f"{name}.bias"]
            width_out, width_in = weight.shape
            return Dense(width_in, width_out, activation_function=nn.Tanh(), init_weight=weight, init_bias=bias)
    return None


def is_mlp(module: nn.Module) -> bool:
    """Returns whether a module computes what BERT's pooler does, tanh(Wx + b) and no residual.

    Example:
        >>> is_mlp(Dense(8, 8)), is_mlp(Dense(8, 8, use_residual=True))
        (True, False)
    """
    is_tanh = isinstance(module, Dense) and isinstance(module.activation_function, nn.Tanh)
    return is_tanh and bool(module.bias) and not module.use_residual


def _names(name_or_path: str | os.PathLike[str]) -> list[str]:
    """Returns the parts of a path, last part first, and those of its target if it is a link."""
    path = Path(name_or_path)
    paths = [path.absolute(), path.resolve()] if path.exists() else [path]
    return [part for each in paths for part in reversed(each.parts)]


def _told_by(names: list[str]) -> tuple[bool | None, str | None]:
    """Returns whether the first name with a hint says supervised (None if it says both), and this name."""
    for name in names:
        if kinds := set(re.findall(r"(?:un)?sup-simcse", name.lower().replace("_", "-"))):
            return (kinds == {"sup-simcse"} if len(kinds) == 1 else None), name
    return None, None


def _files(name_or_path: str | os.PathLike[str], options: dict[str, Any], subfolder: str = "") -> list[Path]:
    """Returns the files of the weights, which may be shards."""
    file = weights_file(name_or_path, subfolder, **options)
    if file is None:
        return []
    if not file.name.endswith(".index.json"):
        return [file]
    shards = sorted(set(json.loads(file.read_bytes())["weight_map"].values()))
    return [path for shard in shards if (path := cached_file(name_or_path, shard, subfolder, **options))]


def _weight_names(name_or_path: str | os.PathLike[str], options: dict[str, Any]) -> list[str]:
    """Returns the names of the weights without reading the weights."""
    return [name for path in _files(name_or_path, options) for name in load_state_dict(path, map_location="meta")]
