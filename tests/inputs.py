"""What several tests give to models or make of them."""

from transformers import DataCollatorWithFlattening


def without_dropout(model):
    """The same model, which then embeds in training as in evaluation."""
    for module in model.modules():
        for attribute in ("p", "dropout_prob"):
            if hasattr(module, attribute):
                setattr(module, attribute, 0.0)
    return model


def flattened(model, texts):
    """What ST's preprocess gives for flash attention, which needs a GPU."""
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_tensors="pt")
    rows = [model.tokenizer(text) for text in texts]
    features = collator([{"input_ids": row["input_ids"]} for row in rows])
    features.pop("labels")
    return dict(features)
