"""Inputs of models that the tests do not run."""

from transformers import DataCollatorWithFlattening


def flattened(model, texts):
    """What ST's preprocess gives for flash attention, which needs a GPU."""
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_tensors="pt")
    rows = [model.tokenizer(text) for text in texts]
    features = collator([{"input_ids": row["input_ids"]} for row in rows])
    features.pop("labels")
    return dict(features)
