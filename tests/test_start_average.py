"""Averages of the weights before and after a training, against the trained weights of the same run without them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from conftest import SENTENCES
from st_simcse import SimCSETrainer, SimCSETrainingArguments, UnsupSimCSELoss
from st_simcse.demo import tiny_model
from st_simcse.training.start_average import StartAverage

TEXTS = [f"{first} {second}" for first in SENTENCES for second in SENTENCES][:24]


def _trained(folder, resume=False, **options):
    """The weights after six steps, in float64; resumed from the fourth if asked."""
    model = tiny_model(TEXTS, width=32)
    arguments = SimCSETrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        save_strategy="steps",
        save_steps=2,
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    data = Dataset.from_dict({"sentence": TEXTS})
    trainer = SimCSETrainer(model=model, args=arguments, train_dataset=data, loss=UnsupSimCSELoss(model))
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4") if resume else None)
    return _weights(model)


def _weights(model):
    return {name: weight.detach().numpy().astype(np.float64) for name, weight in model.named_parameters()}


def test_the_model_card_has_no_scores_of_weights_that_are_not_saved(tmp_path):
    pairs = EmbeddingSimilarityEvaluator(TEXTS[:4], TEXTS[4:8], [0.1, 0.2, 0.3, 0.4], name="dev")
    cards = {}
    for weight in (0.0, 0.5):
        model = tiny_model(TEXTS, width=32)
        arguments = SimCSETrainingArguments(
            str(tmp_path), max_steps=1, eval_strategy="steps", start_weight=weight, report_to="none"
        )
        trainer = SimCSETrainer(model, arguments, Dataset.from_dict({"sentence": TEXTS}), evaluator=pairs)
        trainer.train()
        trainer.save_model()
        cards[weight] = Path(tmp_path, "README.md").read_text()
    assert "### Metrics" in cards[0.0]
    assert "### Metrics" not in cards[0.5]


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.25, 0.5])
def test_the_average_is_that_of_the_start_and_the_trained_weights(tmp_path, weight):
    before, after = _weights(tiny_model(TEXTS, width=32)), _trained(tmp_path / "plain")
    averaged = _trained(tmp_path / "averaged", start_weight=weight)
    assert max(abs(after[name] - before[name]).max() for name in before) > 1e-3
    for name, found in averaged.items():
        np.testing.assert_allclose(found, weight * before[name] + (1 - weight) * after[name], rtol=0, atol=1e-7)
    resumed = _trained(tmp_path / "averaged", resume=True, start_weight=weight)
    for name, found in resumed.items():
        np.testing.assert_array_equal(found, averaged[name])


def test_weights_in_half_precision_are_averaged_in_float32():
    model = tiny_model(TEXTS, width=32).to(torch.bfloat16)
    average, weight = StartAverage(model, 0.5), next(model.parameters())
    before = weight.detach().double().numpy()
    with torch.no_grad():
        weight.mul_(3)
    average.apply(model)
    np.testing.assert_allclose(weight.detach().double().numpy(), 2 * before, rtol=2**-7)


def test_what_cannot_be_averaged_is_refused(tmp_path):
    data = Dataset.from_dict({"sentence": TEXTS})

    def trainer(weight, model=None, **options):
        model = model or tiny_model(TEXTS, width=32)
        arguments = SimCSETrainingArguments(str(tmp_path), start_weight=weight, report_to="none")
        return SimCSETrainer(args=arguments, train_dataset=data, **({"model": model} | options))

    for weight in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"must be at least 0 and below 1, got {weight}"):
            trainer(weight)
    adapted = tiny_model(TEXTS, width=32)
    adapted.add_adapter(LoraConfig(r=2, target_modules=["query"]))
    with pytest.raises(ValueError, match="LoRA does not change them. Leave out start_weight"):
        trainer(0.5, adapted)
    with pytest.raises(ValueError, match="model_init makes new models. Leave out start_weight"):
        trainer(0.5, None, model_init=lambda: tiny_model(TEXTS, width=32), loss=UnsupSimCSELoss)
