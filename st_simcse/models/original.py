"""Checkpoints of princeton-nlp/SimCSE: what a folder is, and the MLP that its supervised models need."""

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

__all__ = ["MLP_NAMES", "Original", "recognise", "trained_dense"]

# Where the MLP lies in a checkpoint: as the training script writes it, and as published, in place of BERT's own pooler.
MLP_NAMES = ("mlp.dense", "pooler.dense", "bert.pooler.dense", "roberta.pooler.dense")


class Original(NamedTuple):
    """What a checkpoint of the original code says of itself.

    Attributes:
        supervised: whether the MLP stays at inference; None if nothing tells.
        evidence: what tells that it is one, for messages.
        has_lost_pooler: whether it was trained with another pooler than ``cls``, and does not say with which.
    """

    supervised: bool | None
    evidence: str
    has_lost_pooler: bool = False


def recognise(name_or_path: str | os.PathLike[str], **options: Any) -> Original | None:
    """What a bare transformer has of the original code; None for any other.

    The training script leaves its class (``BertForCL``, ``RobertaForCL``) in the configuration and its MLP beside the
    transformer. A published checkpoint has the MLP in the place of BERT's own pooler, so that its name alone tells:
    any part of the path, the nearest first, such as the folder above ``checkpoint-500`` or one of the hub's cache.
    Whether it is supervised is in no weight, so the names tell that of both; ``trainer_state.json`` of the training
    script holds the name that a renamed folder had.

    Args:
        name_or_path: a folder, or a model's name on the hub, that is no SentenceTransformer.
        **options: those that the transformer was loaded with a moment ago.

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
    # Another head than the published ones' is another model's, in a folder of that name.
    if name is None or any("For" in kind for kind in classes):
        return None
    return Original(told, f"the name {name}")


def trained_dense(
    name_or_path: str | os.PathLike[str], names: Sequence[str], subfolder: str = "", **options: Any
) -> Dense | None:
    """A trained layer (Linear + Tanh) from the files that the transformer was loaded from; None if it is in none.

    Args:
        name_or_path: a folder, or a model's name on the hub.
        names: of the layer in the files, of which the first that is there is taken.
        subfolder: of the transformer.
        **options: those that the transformer was loaded with a moment ago.
    """
    found: dict[str, Tensor] = {}
    for path in _files(name_or_path, options, subfolder):
        weights = load_state_dict(path)
        # Copies: what is read may be the file itself, mapped.
        found |= {name: weights[name].clone() for name in weights if name.rpartition(".")[0] in names}
    for name in names:
        if f"{name}.weight" in found:
            weight, bias = found[f"{name}.weight"], found[f"{name}.bias"]
            width_out, width_in = weight.shape
            return Dense(width_in, width_out, activation_function=nn.Tanh(), init_weight=weight, init_bias=bias)
    return None


def _names(name_or_path: str | os.PathLike[str]) -> list[str]:
    """The parts of a path, the nearest first, and of what a link leads to."""
    path = Path(name_or_path)
    paths = [path.absolute(), path.resolve()] if path.exists() else [path]
    return [part for each in paths for part in reversed(each.parts)]


def _told_by(names: list[str]) -> tuple[bool | None, str | None]:
    """Whether the first name that tells says supervised, None if it says both; and that name."""
    for name in names:
        if kinds := set(re.findall(r"(?:un)?sup-simcse", name.lower().replace("_", "-"))):
            return (kinds == {"sup-simcse"} if len(kinds) == 1 else None), name
    return None, None


def _files(name_or_path: str | os.PathLike[str], options: dict[str, Any], subfolder: str = "") -> list[Path]:
    """The files of the weights, which may be shards."""
    file = weights_file(name_or_path, subfolder, **options)
    if file is None:
        return []
    if not file.name.endswith(".index.json"):
        return [file]
    shards = sorted(set(json.loads(file.read_bytes())["weight_map"].values()))
    return [path for shard in shards if (path := cached_file(name_or_path, shard, subfolder, **options))]


def _weight_names(name_or_path: str | os.PathLike[str], options: dict[str, Any]) -> list[str]:
    """The names of the weights, which are not read."""
    return [name for path in _files(name_or_path, options) for name in load_state_dict(path, map_location="meta")]
