"""A tiny model of every architecture that people embed with, and what training does to it: the table in the docs.

``python -m tests.backbones`` writes the table into docs/backbones.md; test_backbones.py holds it against models
made anew.
"""

from __future__ import annotations

import random
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    T5EncoderModel,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar

from conftest import SENTENCES
from st_simcse import (
    SimCSETrainer,
    SimCSETrainingArguments,
    SupSimCSELoss,
    UnsupSimCSELoss,
    build_model,
    model_dropout,
    set_dropout,
)
from st_simcse.demo import save_tiny_transformer

PAGE = Path(__file__).parent.parent / "docs" / "backbones.md"
HEADER = [
    "| architecture | `dropout=0.1` sets | 1 - cosine of two views | trains with both losses | gradient | reload |",
    "| --- | --- | --- | --- | --- | --- |",
]
TEMPERATURE = 0.5

# Texts of two to fourteen words, all different, in more rows than one pass of a CPU has.
_random = random.Random(0)
_WORDS = sorted(set(" ".join(SENTENCES).split()))
COLUMNS = [[" ".join(_random.choices(_WORDS, k=_random.randint(2, 14))) for _ in range(20)] for _ in range(3)]

ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
DECODER = ENCODER | {"num_key_value_heads": 1, "head_dim": 16}
BERT = ("hidden_dropout_prob", "attention_probs_dropout_prob")
ATTENTION = ("attention_dropout",)


@dataclass(frozen=True)
class Architecture:
    """Its name in transformers, a small configuration, and what its dropouts are called there."""

    model_type: str
    dropouts: tuple[str, ...]
    config: dict[str, Any] = field(default_factory=lambda: ENCODER)

    def save(self, folder: str | Path) -> None:
        """Random weights and a tokenizer, large enough weights for words to mix."""
        set_seed(0)
        save_tiny_transformer(folder, SENTENCES, width=32, layers=1)
        size = len(AutoTokenizer.from_pretrained(folder))
        special = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
        kind = CONFIG_MAPPING[self.model_type]
        config = kind(vocab_size=size, initializer_range=0.1, **special, **self.config)
        self._model(config).save_pretrained(folder)

    def _model(self, config: Any) -> PreTrainedModel:
        return T5EncoderModel(config) if self.model_type == "t5" else AutoModel.from_config(config)


ARCHITECTURES = {
    "BERT": Architecture("bert", BERT),
    "RoBERTa": Architecture("roberta", BERT),
    "XLM-R": Architecture("xlm-roberta", BERT),
    "DistilBERT": Architecture(
        "distilbert", ("dropout", "attention_dropout"), {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    ),
    "MPNet": Architecture("mpnet", BERT),
    "ELECTRA": Architecture("electra", BERT, ENCODER | {"embedding_size": 16}),
    "ALBERT": Architecture("albert", BERT, ENCODER | {"embedding_size": 16}),
    "DeBERTa": Architecture(
        "deberta", BERT, ENCODER | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0}
    ),
    "DeBERTa v2, v3": Architecture(
        "deberta-v2",
        BERT,
        ENCODER
        | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8, "conv_kernel_size": 3},
    ),
    "ModernBERT": Architecture(
        "modernbert",
        ("attention_dropout", "embedding_dropout", "mlp_dropout"),
        ENCODER | {"global_attn_every_n_layers": 2, "local_attention": 8},
    ),
    "EuroBERT": Architecture("eurobert", ATTENTION, DECODER),
    "Nomic": Architecture("nomic_bert", BERT),
    "T5 encoder": Architecture(
        "t5", ("dropout_rate",), {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_kv": 16, "d_ff": 64}
    ),
    "Qwen3": Architecture("qwen3", ATTENTION, DECODER),
    "Llama": Architecture("llama", ATTENTION, DECODER),
    "Mistral": Architecture("mistral", ATTENTION, DECODER),
    "Gemma": Architecture("gemma", ATTENTION, DECODER),
    "Gemma 2": Architecture("gemma2", ATTENTION, DECODER),
    "Gemma 3": Architecture("gemma3_text", ATTENTION, DECODER),
    "GPT-2": Architecture(
        "gpt2", ("embd_pdrop", "attn_pdrop", "resid_pdrop"), {"n_embd": 32, "n_layer": 2, "n_head": 2}
    ),
    "FNet": Architecture("fnet", ("hidden_dropout_prob",)),
    "ConvBERT": Architecture("convbert", BERT, ENCODER | {"embedding_size": 32, "conv_kernel_size": 3}),
    "Mamba": Architecture("mamba", (), {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
}


@dataclass(frozen=True)
class Row:
    """What was found out about an architecture; ``views`` is 1 - cosine."""

    name: str
    dropouts: tuple[str, ...]
    views: float
    trains: bool
    gradient_error: float
    is_sorted: bool
    reloads: bool

    def __str__(self) -> str:
        gradient = "equal" if self.gradient_error < 1e-4 else f"off by {self.gradient_error:.0e}"
        cells = [
            self.name,
            ", ".join(f"`{name}`" for name in self.dropouts) if self.dropouts != ("Dropout",) else "the Dropout module",
            f"{self.views:.2g}",
            "yes" if self.trains else "no",
            gradient if self.is_sorted else f"{gradient}, batches as they came",
            "exact" if self.reloads else "other embeddings",
        ]
        return f"| {' | '.join(cells)} |"


def known() -> list[str]:
    """Those that the installed transformers have."""
    return [name for name, architecture in ARCHITECTURES.items() if architecture.model_type in CONFIG_MAPPING]


def examine(name: str, folder: str | Path) -> Row:
    """Train a tiny model with dropout, save it, load it with plain sentence-transformers; gradients without dropout."""
    folder = Path(folder)
    ARCHITECTURES[name].save(folder)
    model = build_model(folder, pooling="mean", device="cpu", dropout=0.1)
    dropouts = model_dropout(model)
    assert set(dropouts.values()) == {0.1}, (name, dropouts)
    views = (1 - F.cosine_similarity(*two_views(model))).mean().item()
    trains = all(_trains(model, loss, columns, folder) for loss, columns in ((UnsupSimCSELoss, 1), (SupSimCSELoss, 3)))
    model.save(str(folder / "saved"))
    reloaded = SentenceTransformer(str(folder / "saved"), device="cpu")
    reloads = bool((reloaded.encode(SENTENCES) == model.encode(SENTENCES)).all())
    error, is_sorted = _gradient_error(model)
    return Row(name, tuple(dropouts), views, trains, error, is_sorted, reloads)


def two_views(model: SentenceTransformer) -> tuple[Tensor, Tensor]:
    """The same sentences twice, as training embeds them."""
    model.train()
    torch.manual_seed(0)
    with torch.no_grad():
        return tuple(model(_tokens(model, COLUMNS[0]))["sentence_embedding"] for _ in range(2))


def _tokens(model: SentenceTransformer, texts: list[str]) -> dict[str, Tensor]:
    return {key: value for key, value in model.preprocess(texts).items() if isinstance(value, Tensor)}


def _trains(model: SentenceTransformer, loss: Any, columns: int, folder: Path) -> bool:
    """Whether a step moves all weights that the embeddings depend on, and none to nowhere."""
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    arguments = SimCSETrainingArguments(
        str(folder / "output"),
        max_steps=1,
        per_device_train_batch_size=20,
        learning_rate=0.01,
        bf16=False,
        max_length=None,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    data = Dataset.from_dict({str(column): COLUMNS[column] for column in range(columns)})
    SimCSETrainer(model, arguments, data, loss=loss(model)).train()
    moved = [name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])]
    return len(moved) > len(before) / 2 and all(weight.isfinite().all() for weight in model.parameters())


def _gradient_error(model: SentenceTransformer) -> tuple[float, bool]:
    """How far our gradient is from that of one plain pass a column, relative to it; and whether rows were sorted."""
    model.train()
    set_dropout(model, 0.0)
    features = [_tokens(model, column) for column in COLUMNS]
    anchors, positives, negatives = (
        F.normalize(model(dict(column))["sentence_embedding"].double()) for column in features
    )
    similarities = anchors @ torch.cat([positives, negatives]).T
    expected = _gradients(model, F.cross_entropy(similarities / TEMPERATURE, torch.arange(len(anchors))))
    passes: list[Tensor] = []
    hook = model[0].register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0]["input_ids"].shape))
    found = _gradients(model, SupSimCSELoss(model, TEMPERATURE)(features))
    hook.remove()
    is_sorted = passes != [column["input_ids"].shape for column in features]
    return ((found - expected).norm() / expected.norm()).item(), is_sorted


def _gradients(model: SentenceTransformer, loss: Tensor) -> Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def main() -> None:
    disable_progress_bar()
    rows = []
    for name in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(str(examine(name, folder)))
        print(rows[-1], flush=True)
    page = PAGE.read_text()
    table = re.compile(re.escape(HEADER[0]) + r"\n(\|.*\n)*")
    PAGE.write_text(table.sub(lambda _: "\n".join([*HEADER, *rows]) + "\n", page))


if __name__ == "__main__":
    sys.exit(main())
