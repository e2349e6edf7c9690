"""Dropout, gradients and saving on tiny models of the architectures that people embed with."""

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dropout, Normalize
from torch import nn
from transformers import AutoConfig

from st_simcse import (
    SimCSETrainer,
    SimCSETrainingArguments,
    SupSimCSELoss,
    UnsupSimCSELoss,
    build_model,
    model_dropout,
    set_dropout,
)
from tests.backbones import ARCHITECTURES, HEADER, PAGE, examine, known, two_views


@pytest.mark.parametrize("name", known())
def test_the_table_of_the_docs(name, tmp_path):
    row = examine(name, tmp_path)
    assert row.trains
    assert row.reloads
    assert row.gradient_error < 1e-4
    table = PAGE.read_text().split(HEADER[0])[1]
    lines = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    assert len(lines) == 1, "python -m tests.backbones writes the table"
    written, found = ([cell.strip() for cell in line.split("|")] for line in (lines[0], str(row)))
    assert float(written.pop(3)) == pytest.approx(float(found.pop(3)), rel=0.5)  # other releases, other random numbers
    assert written == found


@pytest.mark.parametrize("name", known())
def test_dropout_is_what_the_configuration_would_make(name, tmp_path):
    """The very same two views as with the configuration's fields set by hand, each of which does something."""
    architecture = ARCHITECTURES[name]
    architecture.save(tmp_path)
    own = AutoConfig.from_pretrained(tmp_path)
    for dropped in [*architecture.dropouts, None]:
        fields = {field: 0.2 if dropped in (field, None) else 0.0 for field in architecture.dropouts}
        assert set(fields) <= set(own.to_dict())
        by_hand = SentenceTransformer(str(tmp_path), device="cpu", config_kwargs=fields)
        first, second = two_views(by_hand)
        assert torch.equal(first, second) == (not fields)
        assert model_dropout(by_hand) == fields
    model = build_model(tmp_path, pooling="mean", device="cpu", dropout=0.2)
    assert not model[0].model.training
    if architecture.dropouts:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(two_views(model), (first, second), strict=True))
        drops = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
        assert drops == [module.p for module in by_hand.modules() if isinstance(module, nn.Dropout)]
    else:
        assert isinstance(model[2], Dropout)
        assert not torch.equal(*two_views(model))
    model.save(str(tmp_path / "saved"))
    saved = AutoConfig.from_pretrained(tmp_path / "saved").to_dict()
    assert [saved[field] for field in architecture.dropouts] == [getattr(own, field) for field in architecture.dropouts]


def test_dropout_of_a_model_without_any(static_model, sentences, tmp_path):
    """ST's module behind the pooling; it is saved, without the dropout, and found again."""
    del static_model[1]
    static_model.append(Normalize())
    static_model.save(str(tmp_path / "plain"))
    model = build_model(tmp_path / "plain", dropout=0.0)
    assert [type(module).__name__ for module in model] == ["StaticEmbedding", "Normalize"]
    set_dropout(model, 0.3)
    assert [type(module).__name__ for module in model] == ["StaticEmbedding", "Dropout", "Normalize"]
    assert model_dropout(model) == {"Dropout": 0.3}
    assert (model.encode(sentences) == static_model.eval().encode(sentences)).all()
    model.save(str(tmp_path / "saved"))
    assert (SentenceTransformer(str(tmp_path / "saved")).encode(sentences) == model.encode(sentences)).all()
    again = build_model(tmp_path / "saved")
    assert model_dropout(again) == {"Dropout": 0.0}
    set_dropout(again, 0.1)
    assert len(again) == 3
    assert model_dropout(again) == {"Dropout": 0.1}


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_dropout_out_of_range(tiny_bert, dropout):
    with pytest.raises(ValueError, match="dropout must be at least 0 and below 1"):
        build_model(tiny_bert, dropout=dropout)


def test_two_dropouts_contradict_each_other(tiny_bert):
    with pytest.raises(ValueError, match="hidden_dropout_prob in config_kwargs both set dropout"):
        build_model(tiny_bert, dropout=0.1, config_kwargs={"hidden_dropout_prob": 0.2})


def test_a_run_with_dropout_resumes_exactly_and_with_no_other(tiny_bert, sentences, tmp_path):
    def train(dropout, folder, resume=None):
        model = build_model(tiny_bert, pooling="mean", device="cpu", dropout=dropout)
        arguments = SimCSETrainingArguments(
            str(folder),
            max_steps=4,
            save_steps=2,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        data = Dataset.from_dict({"sentence": sentences})
        SimCSETrainer(model, arguments, data, loss=UnsupSimCSELoss(model)).train(resume_from_checkpoint=resume)
        return model

    through = train(0.3, tmp_path / "through")
    checkpoint = str(tmp_path / "through/checkpoint-2")
    resumed = train(0.3, tmp_path / "resumed", checkpoint)
    for name, weight in through.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    assert model_dropout(SentenceTransformer(checkpoint)) == {
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }
    with pytest.raises(ValueError, match=r"model.dropout.hidden_dropout_prob: 0.3 -> 0.2"):
        train(0.2, tmp_path / "other", checkpoint)


@pytest.mark.parametrize("name", ["BERT", "ModernBERT", "Mamba"])
def test_equal_views_are_told_the_remedy(name, sentences, tmp_path, caplog):
    ARCHITECTURES[name].save(tmp_path)

    def remedy(model):
        caplog.clear()
        UnsupSimCSELoss(model)([dict(model.preprocess(sentences))])
        messages = [record.getMessage() for record in caplog.records if "no dropout is active" in record.message]
        return messages[0].split("learn from. ")[1] if messages else None

    fields = dict.fromkeys(ARCHITECTURES[name].dropouts, 0.1)
    expected = f"config_kwargs={fields}" if fields else "Append sentence_transformers' Dropout(0.1) module"
    found = remedy(build_model(tmp_path, pooling="mean", device="cpu", dropout=0.0).train())
    assert all(part in found for part in expected.replace("{", "|").replace("}", "|").replace(", ", "|").split("|"))
    model = build_model(tmp_path, pooling="mean", device="cpu", dropout=0.1)
    assert remedy(model) == "Call model.train()."
    assert remedy(model.train()) is None


def test_dropout_before_weights_that_begin_at_zero_is_no_alarm(model, sentences, caplog):
    """As LoRA's: a second matrix of zeros, so that the dropout before the first shows after a step."""

    class Adapted(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.dropout = base, nn.Dropout(0.1)
            self.down, self.up = nn.Linear(32, 2, bias=False), nn.Linear(2, 32, bias=False)
            nn.init.zeros_(self.up.weight)

        def forward(self, states):
            return self.base(states) + self.up(self.down(self.dropout(states)))

    set_dropout(model, 0.0)
    model.requires_grad_(False)
    for layer in model[0].model.encoder.layer:
        layer.attention.self.query = Adapted(layer.attention.self.query)
    UnsupSimCSELoss(model.train())([dict(model.preprocess(sentences))])
    assert "no dropout is active" not in caplog.text
    UnsupSimCSELoss(model.eval())([dict(model.preprocess(sentences))])
    assert "no dropout is active" in caplog.text


def test_mini_batches_of_what_reads_padding_are_refused(tmp_path):
    ARCHITECTURES["ConvBERT"].save(tmp_path)
    model = build_model(tmp_path, pooling="mean", device="cpu")
    for loss in (UnsupSimCSELoss, SupSimCSELoss):
        with pytest.raises(ValueError, match="convbert reads padding"):
            loss(model, mini_batch_size=2)
