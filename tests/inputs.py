"""What several tests give to models or make of them."""

from tokenizers.normalizers import BertNormalizer
from tokenizers.processors import TemplateProcessing
from transformers import DataCollatorWithFlattening


def without_dropout(model):
    """The same model, which then embeds in training as in evaluation."""
    for module in model.modules():
        for attribute in ("p", "dropout_prob"):
            if hasattr(module, attribute):
                setattr(module, attribute, 0.0)
    return model


def without_special_tokens(model):
    """The same model, whose tokenizer makes no token of an empty text, as Qwen's and GPT-2's do not."""
    model.tokenizer.backend_tokenizer.normalizer = BertNormalizer()  # which removes signs that nobody sees
    plain = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    model.tokenizer.backend_tokenizer.post_processor = plain
    return model


def flattened(model, texts):
    """What ST's preprocess gives for flash attention, which needs a GPU."""
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_tensors="pt")
    rows = [model.tokenizer(text) for text in texts]
    features = collator([{"input_ids": row["input_ids"]} for row in rows])
    features.pop("labels")
    return dict(features)
