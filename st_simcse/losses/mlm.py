"""Masked language modelling as an auxiliary objective for the transformer that a loss trains."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling

from st_simcse.losses.options import SHARDED, Term, TermOption
from st_simcse.models.unwrapping import unwrapped

__all__ = ["MaskedLanguageModel"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskedLanguageModel(TermOption):
    """Masked language modelling, the auxiliary objective of the paper's appendix A (ablation: table D.2).

    The term is the cross-entropy of masked tokens. The prediction head comes from the pretrained checkpoint if it has
    one, and is newly initialized otherwise. The head belongs to the loss and is not saved with the model. Its output
    embedding is tied to the model's input embedding. Within a MatryoshkaLoss or AdaptiveLayerLoss the term counts once,
    with the weight of the largest dimension and the last layer.

    Args:
        weight: The paper's λ, 0.1 in its ablation.
        probability: The share of tokens to predict. 80% of them become the mask token and 10% a random token.

    Raises:
        ValueError: If the weight or probability is out of range. A loss with this option raises it if the model has no
            transformer, its tokenizer has no mask token, or it has a Router.

    Example:
        >>> from st_simcse import UnsupSimCSELoss
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."]).train()
        >>> loss = UnsupSimCSELoss(model, options=[MaskedLanguageModel(0.1, probability=0.5)])
        >>> sorted(loss([model.preprocess(["Two dogs run."] * 8)]))
        ['contrastive', 'masked_language_model']
    """

    weight: float = field(metadata={"help": "Weight of the masked-language-model loss.", "least": 0})
    probability: float = field(
        default=0.15, metadata={"help": "Share of the tokens to mask and predict.", "above": 0, "below": 1}
    )
    # It embeds the whole batch at once, and bypasses the model's forward pass, which gathers sharded weights.
    incompatible: ClassVar[frozenset[str]] = frozenset({"mini_batch_size", *SHARDED})

    def build(self, model: SentenceTransformer) -> _MaskedLanguageModel:
        return _MaskedLanguageModel(self, model)


class _MaskedLanguageModel(Term):
    def __init__(self, option: MaskedLanguageModel, model: SentenceTransformer) -> None:
        super().__init__(option)
        if any(isinstance(part, Router) for part in model):
            raise ValueError(
                "masked language modelling trains one transformer, but the model has a Router with several routes: "
                "remove MaskedLanguageModel (--masked_language_model)"
            )
        transformer = None if model.transformers_model is None else unwrapped(model.transformers_model)
        if transformer is None or getattr(model.tokenizer, "mask_token", None) is None:
            raise ValueError("masked language modelling needs a transformer whose tokenizer has a mask token")
        try:
            # The transformer was loaded from there, so nothing needs to be downloaded.
            whole, loaded = AutoModelForMaskedLM.from_pretrained(
                transformer.config.name_or_path,
                local_files_only=True,
                dtype=transformer.dtype,
                output_loading_info=True,
            )
            _zero_biases(whole, loaded["missing_keys"])
        except OSError:
            logger.warning("The transformer's checkpoint is gone, so the masked-language-model head starts untrained.")
            whole = AutoModelForMaskedLM.from_config(transformer.config)
            whole = whole.to(transformer.dtype)
        setattr(whole, whole.base_model_prefix, transformer)
        whole.tie_weights()
        whole.to(transformer.device)
        # The list keeps the transformer inside from being registered as a part of this module.
        self._whole = [whole]
        self.head = nn.ModuleDict({name: child for name, child in whole.named_children() if child is not transformer})
        self.collator = DataCollatorForLanguageModeling(model.tokenizer, mlm_probability=option.probability)

    def from_features(self, columns: list[dict[str, Any]]) -> Tensor:
        """Returns the mean loss of the columns."""
        return torch.stack([self._of_column(column) for column in columns]).mean()

    def _of_column(self, features: dict[str, Any]) -> Tensor:
        """Returns the mean cross-entropy of the masked tokens as a scalar, 0 if no token was drawn.

        Args:
            features: A column as the model's tokenizer returns it, padded or flattened for flash attention.
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
    """Zeroes biases that are missing in the checkpoint: some architectures, such as FNet, leave them uninitialized."""
    for name, parameter in model.named_parameters():
        if name in missing and name.endswith("bias"):
            nn.init.zeros_(parameter)


def _padded(features: dict[str, Any], pad_token: int) -> dict[str, Tensor]:
    """Returns flattened texts as padded rows, because a flattened text would attend to its neighbours here."""
    lengths = features["cu_seq_lens_q"].diff().tolist()
    flat: dict[str, Tensor] = {name: features[name][0] for name in ("input_ids", "token_type_ids") if name in features}
    flat["attention_mask"] = torch.ones_like(flat["input_ids"])
    padding = {"input_ids": pad_token}
    return {
        name: pad_sequence(list(torch.split(values, lengths)), batch_first=True, padding_value=padding.get(name, 0))
        for name, values in flat.items()
    }
