"""What a checkpoint says of its run, so that no run is resumed with another one's data, model or settings."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import logging
import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, IterableDataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module
from transformers import TrainerState, TrainingArguments, set_seed
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from st_simcse.models.dropout import unsaved_dropout
from st_simcse.models.lora import adapters
from st_simcse.training.run_folder import is_cut_off

logger = logging.getLogger(__name__)

RECORD_NAME = "simcse_run.json"

# The training arguments that change the weights; not those of logging, saving, evaluation and the machine.
ARGUMENTS = (
    *("seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps", "world_size"),
    *("num_train_epochs", "max_steps", "learning_rate", "learning_rate_mapping", "lr_scheduler_type"),
    *("lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "weight_decay", "max_grad_norm"),
    *("optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("bf16", "fp16", "tf32", "batch_sampler", "multi_dataset_batch_sampler", "dataloader_drop_last"),
    *("prompts", "router_mapping", "max_length", "views", "neftune_noise_alpha"),
    *("full_determinism", "ignore_data_skip"),
)


def describe_run(
    args: TrainingArguments, model: SentenceTransformer, losses: Mapping[str, torch.nn.Module], data: Any
) -> dict[str, Any]:
    """What makes a run's weights what they are: data, model, objective and training arguments, for JSON.

    Of data in memory or on disk up to a million rows are hashed, of a stream the first row.

    Args:
        args: of the training.
        model: the one that is trained.
        losses: by dataset; a single one under the empty name.
        data: a Dataset or IterableDataset, or several by name.
    """
    objective = {
        ".".join(filter(None, (dataset, "loss", name))): _describe_part(part)
        for dataset, loss in losses.items()
        for name, part in loss.named_modules()
        if hasattr(part, "get_config_dict") and not isinstance(part, (Module, SentenceTransformer))
    }
    return _plain(
        {
            "data": _describe_data(data),
            "model": _describe_model(model),
            "objective": objective,
            "arguments": {name: getattr(args, name, None) for name in ARGUMENTS},
        }
    )


def write_record(folder: Path, run: dict[str, Any], positions: list[tuple[int, int]] | None = None) -> None:
    """Add the run, and which files there are, to a checkpoint that is complete but for this.

    Args:
        folder: of the checkpoint.
        run: of :func:`describe_run`.
        positions: how far each process had read a stream, as passes and batches of the one under way.
    """
    files = sorted(path.name for path in folder.iterdir() if path.suffix != ".md")
    record = {"run": run, "files": files, "positions": positions}
    (folder / RECORD_NAME).write_text(json.dumps(record, indent=1), encoding="utf-8")


def stream_position(checkpoint: str | Path, process: int) -> tuple[int, int]:
    """How far a process had read a stream: passes, and batches of the one under way.

    Raises:
        ValueError: for a checkpoint of another trainer, or of a version that did not save it.
    """
    record = _read_record(Path(checkpoint))
    if not record or not record["positions"]:
        raise ValueError(
            f"{checkpoint} does not say how far the stream had been read, since another trainer saved it, or an "
            "earlier version: train from the start"
        )
    passes, batches = record["positions"][process]
    return passes, batches


def check_resumable(checkpoint: str | Path, run: dict[str, Any], changes_allowed: bool) -> None:
    """Whether training can go on from a checkpoint as if it had never been interrupted.

    Args:
        checkpoint: its folder.
        run: of :func:`describe_run`.
        changes_allowed: differences from the checkpoint's run are logged instead of refused.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if files of it are missing, or another version of transformers or another run has saved it.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        raise FileNotFoundError(f"there is no checkpoint {checkpoint}; save_total_limit=None keeps all")
    if is_cut_off(checkpoint):
        raise ValueError(f"{checkpoint} was cut off while it was saved: resume from an earlier checkpoint")
    state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    if unknown := set(state) - {field.name for field in dataclasses.fields(TrainerState)}:
        raise ValueError(
            f"{checkpoint / TRAINER_STATE_NAME} is of another version of transformers, since this one does not know "
            f"{', '.join(sorted(unknown))}: resume with the version that saved it"
        )
    record = _read_record(checkpoint)
    if missing := _missing_files(checkpoint, run, record):
        raise ValueError(
            f"{checkpoint} is not complete: {', '.join(missing)} is missing, without which training does not go on as "
            "it was: resume from another checkpoint"
        )
    if not any(checkpoint.glob(f"{Path(OPTIMIZER_NAME).stem}*")):
        logger.warning("%s holds the model alone (save_only_model): optimizer and schedule start anew", checkpoint)
    if record is None:
        logger.warning(
            "%s does not say which data, model, objective and arguments it is of, since another trainer saved it: "
            "that they are these is not checked",
            checkpoint,
        )
    elif differences := _differences(record["run"], run):
        if not changes_allowed:
            raise ValueError(
                f"{checkpoint} is of another run, of which this one differs in\n  "
                + "\n  ".join(differences)
                + "\nresume with that run's data and settings, train into another output_dir, or let "
                "resume_with_changes=True (--resume_with_changes) go on with these"
            )
        logger.warning("resuming %s with changes:\n  %s", checkpoint, "\n  ".join(differences))


def _read_record(checkpoint: Path) -> dict[str, Any] | None:
    path = checkpoint / RECORD_NAME
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {"run": record["run"], "files": record["files"], "positions": record.get("positions")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read and is probably damaged ({error})") from error


def _missing_files(checkpoint: Path, run: dict[str, Any], record: dict[str, Any] | None) -> list[str]:
    if record is not None:
        return [name for name in record["files"] if not (checkpoint / name).exists()]
    ranks = range(run["arguments"]["world_size"])
    random_states = [f"rng_state_{rank}.pth" for rank in ranks] if len(ranks) > 1 else ["rng_state.pth"]
    expected = [OPTIMIZER_NAME, SCHEDULER_NAME, *random_states]
    missing = [name for name in expected if not (checkpoint / name).exists()]
    return missing if len(missing) < len(expected) else []  # none at all: save_only_model


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in dict.fromkeys([*old, *new])
            for line in _differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{name}: {json.dumps(old)} -> {json.dumps(new)}"]


def _describe_data(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {name: _describe_data(dataset) for name, dataset in data.items()}
    if isinstance(data, Dataset):
        return {"columns": data.column_names, "rows": len(data), "hash of the rows": _hash_rows(data)}
    if isinstance(data, IterableDataset):
        with _random_states_aside():
            first = next(iter(data), None)
        return {"columns": data.column_names, "hash of the first row": _hash(repr(first).encode())}
    return type(data).__name__


def _hash_rows(data: Dataset, block: int = 1000, blocks: int = 1000) -> str:
    """Of blocks that are spread evenly over the rows; of all rows while there are at most block x blocks."""
    tables, hashed = data.with_format("arrow"), hashlib.blake2b(digest_size=8)
    for start in range(0, len(data), block * max(1, len(data) // (block * blocks))):
        table = tables[start : start + block]
        for name in [
            name for name, kind in zip(table.column_names, table.schema.types, strict=True) if _is_array(kind)
        ]:
            values = table[name].combine_chunks()
            while _is_array(values.type):
                values = values.flatten()
            hashed.update(values.to_numpy(zero_copy_only=False).tobytes())
            table = table.drop_columns([name])
        hashed.update(repr(table.to_pydict()).encode())
    return hashed.hexdigest()


def _is_array(kind: pa.DataType) -> bool:
    """Such as the embeddings of a teacher, which are too many to be written out."""
    return pa.types.is_fixed_size_list(kind)


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


@contextmanager
def _random_states_aside() -> Iterator[None]:
    """A fixed seed, so that a stream that is augmented at random begins alike, and the states of before after it."""
    states = random.getstate(), np.random.get_state()
    accelerator = torch.accelerator.current_accelerator() or torch.device("cuda")
    with torch.random.fork_rng(device_type=accelerator.type):
        try:
            set_seed(0)
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _describe_model(model: SentenceTransformer) -> dict[str, Any]:
    transformer = model.transformers_model
    config = {} if transformer is None else transformer.config.to_diff_dict()
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    dropout = unsaved_dropout(model)
    described = {name: _describe_adapter(adapter) for name, adapter in adapters(model).items()}
    return {
        **({"adapters": described} if described else {}),
        "max_seq_length": getattr(model, "max_seq_length", None),
        "modules": {name: _describe_part(module) for name, module in model.named_children()},
        "transformer": {name: config[name] for name in config if name not in ("_name_or_path", "transformers_version")},
        "hash of the weights' shapes": _hash(json.dumps(shapes).encode()),
        **({"dropout": dropout} if dropout else {}),
    }


def _describe_adapter(config: Any) -> dict[str, Any]:
    of_loading = ("base_model_name_or_path", "inference_mode", "peft_version", "revision")
    return {name: value for name, value in config.to_dict().items() if name not in of_loading}


def _describe_part(part: Any) -> dict[str, Any]:
    return {"class": type(part).__name__, **(part.get_config_dict() if hasattr(part, "get_config_dict") else {})}


def _plain(value: Any) -> Any:
    """What JSON knows, and the same in every process: no addresses."""
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, str):
        return re.sub(r" at 0x[0-9a-fA-F]+", "", value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(part) for part in (sorted(value, key=str) if isinstance(value, (set, frozenset)) else value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"class": type(value).__name__, **_plain(fields)}
    if isinstance(value, partial):
        return [_plain(value.func), _plain(value.args), _plain(value.keywords)]
    if isinstance(value, (torch.dtype, torch.device, Path)):
        return str(value)
    return getattr(value, "__qualname__", type(value).__qualname__)
