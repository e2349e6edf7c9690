import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers import SentenceTransformerTrainingArguments as Arguments

from st_simcse import SimCSETrainer, SupSimCSELoss, UnsupSimCSELoss
from st_simcse.demo import tiny_model


def _trainer(sentences, folder, trainer=SimCSETrainer, **options):
    model = tiny_model(sentences, width=32).to("cpu")
    torch.manual_seed(0)
    loss = UnsupSimCSELoss(model, projection_head=True)
    arguments = Arguments(
        str(folder),
        per_device_train_batch_size=4,
        num_train_epochs=3,
        learning_rate=1e-2,
        report_to="none",
        save_strategy="steps",
        save_steps=2,
        use_cpu=True,
        **options,
    )
    return trainer(model=model, args=arguments, train_dataset=Dataset.from_dict({"sentence": sentences}), loss=loss)


def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(sentences, tmp_path):
    whole = _trainer(sentences, tmp_path / "whole")
    whole.train()
    resumed = _trainer(sentences, tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.state.global_step == whole.state.global_step == 6
    expected = whole.loss.state_dict()
    assert any(name.startswith("projection_head") for name in expected)
    for name, weight in resumed.loss.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_resuming_without_the_heads_weights_is_an_error(sentences, tmp_path):
    _trainer(sentences, tmp_path, SentenceTransformerTrainer).train()
    with pytest.raises(FileNotFoundError, match="loss.safetensors is missing.*SimCSETrainer from the start"):
        _trainer(sentences, tmp_path).train(resume_from_checkpoint=True)


def test_losses_by_dataset_are_saved_under_their_names(sentences, tmp_path):
    model = tiny_model(sentences, width=32).to("cpu")
    losses = {"a": UnsupSimCSELoss(model, projection_head=True), "b": SupSimCSELoss(model, projection_head=True)}
    data = {
        "a": Dataset.from_dict({"sentence": sentences}),
        "b": Dataset.from_dict({"anchor": sentences, "positive": sentences}),
    }
    arguments = Arguments(str(tmp_path), max_steps=2, save_steps=2, report_to="none", use_cpu=True)
    trainer = SimCSETrainer(model=model, args=arguments, train_dataset=data, loss=losses)
    trainer.train()
    before = {name: loss.projection_head.dense.weight.detach().clone() for name, loss in losses.items()}
    assert not torch.equal(before["a"], before["b"])
    for loss in losses.values():
        torch.nn.init.zeros_(loss.projection_head.dense.weight)
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint-2"))
    for name, loss in losses.items():
        assert torch.equal(loss.projection_head.dense.weight, before[name])


def test_a_loss_without_weights_adds_no_file(sentences, tmp_path):
    trainer = _trainer(sentences, tmp_path)
    trainer.loss.projection_head = None
    trainer.save_model()
    assert not (tmp_path / "loss.safetensors").exists()
