"""Masked language modelling as an auxiliary objective on the transformer that a loss trains."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling

from st_simcse.losses.options import SHARDED, Term, TermOption
from st_simcse.models.unwrapping import unwrapped

__all__ = ["MaskedLanguageModel"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskedLanguageModel(TermOption):
    """The cross-entropy of masked tokens: the auxiliary objective of the paper, appendix A (ablation: table D.2).

    The prediction head is that of the pretrained checkpoint where it has one, a new one otherwise; it belongs to the
    loss and is no part of the saved model. Its output embedding is tied to the model's input embedding. Within a
    MatryoshkaLoss or AdaptiveLayerLoss the term counts once, with the weight of the largest dimension and the last
    layer.

    Args:
        weight: the paper's λ, 0.1 in its ablation.
        probability: share of the tokens to predict, of which 80% become the mask token, 10% a random one.

    Raises:
        ValueError: for a weight or probability out of range; in a loss, if the model has no transformer, or its
            tokenizer no mask token.

    Example:
        >>> from st_simcse import UnsupSimCSELoss
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."]).train()
        >>> loss = UnsupSimCSELoss(model, options=[MaskedLanguageModel(0.1, probability=0.5)])
        >>> sorted(loss([model.preprocess(["Two dogs run."] * 8)]))
        ['contrastive', 'masked_language_model']
    """

    weight: float = field(metadata={"help": "Factor of the masked-language-model loss.", "least": 0})
    probability: float = field(
        default=0.15, metadata={"help": "Share of the tokens that it predicts.", "above": 0, "below": 1}
    )
    # Its forward pass takes the whole batch, and goes past the model's, which gathers sharded weights.
    incompatible: ClassVar[frozenset[str]] = frozenset({"mini_batch_size", *SHARDED})

    def build(self, model: SentenceTransformer) -> _MaskedLanguageModel:
        return _MaskedLanguageModel(self, model)


class _MaskedLanguageModel(Term):
    def __init__(self, option: MaskedLanguageModel, model: SentenceTransformer) -> None:
        super().__init__(option)
        transformer = None if model.transformers_model is None else unwrapped(model.transformers_model)
        if transformer is None or getattr(model.tokenizer, "mask_token", None) is None:
            raise ValueError("masked language modelling needs a transformer whose tokenizer has a mask token")
        try:
            # The transformer came from there a moment ago, so nothing needs to be downloaded.
            whole, loaded = AutoModelForMaskedLM.from_pretrained(
                transformer.config._name_or_path,
                local_files_only=True,
                dtype=transformer.dtype,
                output_loading_info=True,
            )
            _zero_biases(whole, loaded["missing_keys"])
        except OSError:
            logger.warning("The transformer's checkpoint is gone: the masked language model's head starts anew")
            whole = AutoModelForMaskedLM.from_config(transformer.config)
            whole = whole.to(transformer.dtype)
        setattr(whole, whole.base_model_prefix, transformer)
        whole.tie_weights()
        whole.to(transformer.device)
        # In a list, so that the transformer inside does not count as a part of this module too.
        self._whole = [whole]
        self.head = nn.ModuleDict({name: child for name, child in whole.named_children() if child is not transformer})
        self.collator = DataCollatorForLanguageModeling(model.tokenizer, mlm_probability=option.probability)

    def from_features(self, columns: list[dict[str, Any]]) -> Tensor:
        """The mean over the columns."""
        return torch.stack([self._of_column(column) for column in columns]).mean()

    def _of_column(self, features: dict[str, Any]) -> Tensor:
        """The mean cross-entropy over the masked tokens of the rows: a scalar, 0 if no token was drawn.

        Args:
            features: a column as the model's tokenizer gives it, padded or flattened for flash attention.
        """
        if "cu_seq_lens_q" in features:
            features = _padded(features, self.collator.tokenizer.pad_token_id)
        ids = features["input_ids"]
        masked_ids, labels = self.collator.torch_mask_tokens(ids.cpu().clone())
        if not (labels != -100).any():
            return torch.zeros((), device=ids.device)
        inputs = {name: features[name] for name in ("attention_mask", "token_type_ids") if name in features}
        outputs = self._whole[0](input_ids=masked_ids.to(ids.device), labels=labels.to(ids.device), **inputs)
        loss: Tensor = outputs.loss
        return loss


def _zero_biases(model: nn.Module, missing: Collection[str]) -> None:
    """Some architectures, such as FNet, leave a head's bias that no checkpoint has as the memory was."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in missing and name.endswith("bias"):
            nn.init.zeros_(parameter)


def _padded(features: dict[str, Any], pad_token: int) -> dict[str, Tensor]:
    """One row a text again: flattened, a text would attend to its neighbours."""
    lengths = features["cu_seq_lens_q"].diff().tolist()
    flat: dict[str, Tensor] = {name: features[name][0] for name in ("input_ids", "token_type_ids") if name in features}
    flat["attention_mask"] = torch.ones_like(flat["input_ids"])
    padding = {"input_ids": pad_token}
    return {
        name: pad_sequence(list(torch.split(values, lengths)), batch_first=True, padding_value=padding.get(name, 0))
        for name, values in flat.items()
    }
