import ast
import copy
import json
import random
import sys
from dataclasses import dataclass
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from datasets import Dataset, Features, IterableDataset, Value
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from transformers import AutoModel, AutoTokenizer, LlamaConfig, TrainerCallback

from st_simcse import (
    MaskedLanguageModel,
    MomentumQueue,
    RankConsistency,
    SimCSETrainer,
    SimCSETrainingArguments,
    SupSimCSELoss,
    UnsupSimCSELoss,
    build_model,
    set_dropout,
)
from st_simcse.demo import tiny_model
from st_simcse.losses import TermOption
from st_simcse.training.resume import describe_run
from st_simcse.training.trainer import texts_without_embedding
from tests.inputs import flattened


def _trainer(sentences, folder, trainer=SimCSETrainer, head=True, **options):
    model = tiny_model(sentences, width=32).to("cpu")
    torch.manual_seed(0)
    loss = UnsupSimCSELoss(model, projection_head=head)
    arguments = Arguments(
        str(folder),
        num_train_epochs=3,
        report_to="none",
        save_strategy="steps",
        save_steps=2,
        use_cpu=True,
        **{"per_device_train_batch_size": 4, "learning_rate": 1e-2, **options},
    )
    return trainer(model=model, args=arguments, train_dataset=Dataset.from_dict({"sentence": sentences}), loss=loss)


@pytest.mark.parametrize(
    ("trainer", "tokenize_once"), [(SimCSETrainer, False), (SimCSETrainer, True), (SentenceTransformerTrainer, False)]
)
def test_training_cuts_texts_shorter_than_the_saved_model(sentences, tmp_path, trainer, tokenize_once, caplog):
    caplog.set_level("INFO", "st_simcse")
    model = tiny_model(sentences, width=32).to("cpu")
    widths = []
    model[0].register_forward_pre_hook(lambda module, inputs: widths.append(inputs[0]["input_ids"].shape[1]))
    arguments = SimCSETrainingArguments(
        str(tmp_path), max_length=7, max_steps=2, report_to="none", save_strategy="no", tokenize_once=tokenize_once
    )
    dataset = Dataset.from_dict({"sentence": [f"{text} {text}" for text in sentences]})
    trainer(model=model, args=arguments, train_dataset=dataset, loss=UnsupSimCSELoss(model)).train()
    assert set(widths) == {7}
    assert ("first 7 tokens of a text, but the model reads up to 64" in caplog.text) == (trainer is SimCSETrainer)
    model.save_pretrained(str(tmp_path))
    assert SentenceTransformer(str(tmp_path)).max_seq_length == 64


def test_training_reads_no_more_than_the_model(sentences, tmp_path, caplog):
    caplog.set_level("INFO", "st_simcse")
    model = tiny_model(sentences, width=32).to("cpu")
    model.max_seq_length = 6
    arguments = SimCSETrainingArguments(str(tmp_path), report_to="none")
    trainer = SimCSETrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"sentence": sentences}),
        loss=UnsupSimCSELoss(model),
    )
    assert next(iter(trainer.get_train_dataloader()))["sentence_input_ids"].shape[1] == 6
    assert "max_length is 6 instead of 32" in caplog.text
    arguments.max_length = 0
    with pytest.raises(ValueError, match="max_length=0 leaves no room for text"):
        SimCSETrainer(model, arguments, Dataset.from_dict({"sentence": sentences}))


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
    _trainer(sentences, tmp_path, SentenceTransformerTrainer, max_steps=1).train()
    with pytest.raises(FileNotFoundError, match="loss.safetensors is missing.*SimCSETrainer from the start"):
        _trainer(sentences, tmp_path).train(resume_from_checkpoint=True)


def test_resuming_from_a_checkpoint_that_is_not_there(sentences, tmp_path):
    with pytest.raises(FileNotFoundError, match="The checkpoint .*checkpoint-9 does not exist.*save_total_limit=None"):
        _trainer(sentences, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))


@pytest.mark.parametrize("cached", [None, 3])
def test_texts_without_an_embedding_are_listed(sentences, tmp_path, cached):
    model = tiny_model(sentences, width=32).to("cpu")
    with torch.no_grad():
        for word in ("guitar", "horse"):
            model[0].model.embeddings.word_embeddings.weight[model.tokenizer.vocab[word]] = float("nan")
    dataset = Dataset.from_dict({"anchor": sentences, "positive": sentences[1:] + sentences[:1]})
    arguments = SimCSETrainingArguments(str(tmp_path), report_to="none", bf16=False)
    trainer = SimCSETrainer(model, arguments, dataset, loss=SupSimCSELoss(model, mini_batch_size=cached))
    with pytest.raises(ValueError, match="NaN or infinite") as caught:
        trainer.train()
    listed = str(caught.value).split("The texts: ")[1]
    expected = {sentence for sentence in sentences if "guitar" in sentence or "horse" in sentence}
    assert {text.lower() for text in expected} == {
        text.replace(" .", ".") for text in ast.literal_eval(f"[{listed.lower()}]")
    }
    with torch.no_grad():
        model[0].model.embeddings.word_embeddings.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"The texts: ('[^']*', ){4}'[^']*' and 3 more$"):
        trainer.train()
    assert texts_without_embedding(model, [flattened(model, sentences)]) == []  # of one row nobody knows which


def test_other_errors_of_a_loss_stay_as_they_are(sentences, tmp_path):
    model = tiny_model(sentences, width=32).to("cpu")
    dataset = Dataset.from_dict({"sentence": sentences})
    arguments = SimCSETrainingArguments(str(tmp_path), report_to="none", bf16=False)
    with pytest.raises(ValueError, match="Use UnsupSimCSELoss for single sentences.$"):
        SimCSETrainer(model, arguments, dataset, loss=SupSimCSELoss(model)).train()


@pytest.mark.slow
def test_a_plain_trainers_checkpoint_resumes_with_a_warning(sentences, tmp_path, caplog):
    _trainer(sentences, tmp_path / "plain", SentenceTransformerTrainer, head=False).train()
    whole = _trainer(sentences, tmp_path / "whole", head=False)
    whole.train()
    resumed = _trainer(sentences, tmp_path / "resumed", head=False)
    resumed.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-2"))
    assert "does not say which data, model, objective and arguments" in caplog.text
    expected = whole.model.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in resumed.model.state_dict().items())


def test_changes_take_effect_where_they_are_asked_for(sentences, tmp_path, caplog):
    _trainer(sentences, tmp_path).train()
    rates = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer, **kwargs):
            rates.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]))

    changed = _trainer(sentences, tmp_path, learning_rate=2e-2, weight_decay=0.5)
    changed.args.resume_with_changes = True
    changed.add_callback(Watch())
    changed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert rates == [(pytest.approx(2e-2 * left / 6), 0.5) for left in (2, 1)]
    assert "arguments.learning_rate: 0.01 -> 0.02" in caplog.text


def test_a_checkpoint_that_cannot_be_pushed_stays(sentences, tmp_path, monkeypatch):
    def fail(*args):
        raise ConnectionError("no network")

    monkeypatch.setattr("transformers.Trainer._push_from_checkpoint", fail)
    trainer = _trainer(sentences, tmp_path)
    trainer.args.push_to_hub, trainer.push_in_progress = True, None
    with pytest.raises(ConnectionError, match="no network"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (tmp_path / "simcse_run.json").exists()
    resumed = _trainer(sentences, tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6


def test_a_record_knows_rows_and_streams_and_leaves_the_random_state_alone(sentences):
    model = tiny_model(sentences, width=32)

    def record(data):
        return describe_run(Arguments("out", use_cpu=True), model, {"": UnsupSimCSELoss(model)}, data)["data"]

    def stream(texts):
        def rows():
            for text in texts:
                yield {"sentence": " ".join(random.sample(text.split(), len(text.split())))}

        return IterableDataset.from_generator(rows)

    rows = sentences * 300
    data = Dataset.from_dict({"sentence": rows})
    assert record(data) == record(Dataset.from_list([{"sentence": text} for text in rows]))
    assert record(data) == record(Dataset.from_dict({"sentence": rows[::-1]}).select(range(len(rows) - 1, -1, -1)))
    for row in (0, 1234, len(rows) - 1):
        changed = [*rows[:row], rows[row] + "!", *rows[row + 1 :]]
        assert record(data) != record(Dataset.from_dict({"sentence": changed}))
    states = random.getstate(), torch.get_rng_state()
    assert record(stream(sentences)) == record(stream(sentences)) != record(stream(sentences[1:]))
    assert states[0] == random.getstate()
    assert torch.equal(states[1], torch.get_rng_state())


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
    trainer.train()
    assert (tmp_path / "checkpoint-2" / "optimizer.pt").exists()
    assert not (tmp_path / "checkpoint-2" / "loss.safetensors").exists()


def test_the_loss_stays_in_the_checkpoints(sentences, tmp_path, monkeypatch):
    trainer = _trainer(sentences, tmp_path)
    trainer.train()
    assert (tmp_path / "checkpoint-2" / "loss.safetensors").exists()
    trainer.save_model(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert not (tmp_path / "model" / "loss.safetensors").exists()
    # What is pushed from a checkpoint is copied to the output folder first.
    monkeypatch.setattr("transformers.Trainer._push_from_checkpoint", lambda *args: None)
    trainer.push_in_progress = None
    trainer._push_from_checkpoint(str(tmp_path / "checkpoint-2"))
    assert (tmp_path / "modules.json").exists()
    assert not (tmp_path / "loss.safetensors").exists()


def test_model_and_head_are_clipped_by_one_norm(sentences, tmp_path):
    norms = []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            gradients = [
                parameter.grad.double() for parameter in trainer.loss.parameters() if parameter.grad is not None
            ]
            norms.append(sum(float(gradient.pow(2).sum()) for gradient in gradients) ** 0.5)
            assert trainer.loss.projection_head.dense.weight.grad.any()

    trainer = _trainer(sentences, tmp_path / "free", max_grad_norm=0, logging_steps=1, max_steps=1)
    trainer.add_callback(Watch())
    trainer.train()
    free = norms.pop()
    assert trainer.state.log_history[0]["grad_norm"] == pytest.approx(free, rel=1e-5)

    trainer = _trainer(sentences, tmp_path / "clipped", max_grad_norm=0.1 * free, logging_steps=1, max_steps=1)
    trainer.add_callback(Watch())
    trainer.train()
    assert norms == [pytest.approx(0.1 * free, rel=1e-4)]
    assert trainer.state.log_history[0]["grad_norm"] == pytest.approx(free, rel=1e-5)


def test_takes_what_sts_trainer_takes(sentences, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny_model(sentences, width=32).to("cpu")
    one = Dataset.from_dict({"sentence": sentences})
    two = Dataset.from_dict({"anchor": sentences, "positive": sentences})
    by_position = SimCSETrainer(model, Arguments("out", use_cpu=True), one, one, UnsupSimCSELoss(model))
    assert by_position.eval_dataset is one
    defaults = SimCSETrainer(model, train_dataset=one)
    assert type(defaults.loss) is UnsupSimCSELoss
    assert (defaults.args.per_device_train_batch_size, defaults.args.learning_rate) == (64, 3e-5)
    assert type(SimCSETrainer(model, train_dataset=two).loss) is SupSimCSELoss
    losses = SimCSETrainer(model, train_dataset={"one": one, "two": two}).loss
    assert [type(loss) for loss in losses.values()] == [UnsupSimCSELoss, SupSimCSELoss]
    with pytest.raises(ValueError, match="do not use the column score"):
        SimCSETrainer(model, train_dataset=two.add_column("score", [1.0] * len(sentences)))
    arguments = Arguments("out", max_steps=1, report_to="none", use_cpu=True)
    trainer = SimCSETrainer(args=arguments, train_dataset=one, model_init=lambda: tiny_model(sentences, width=32))
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("wrapped", [False, True])
def test_eval_loss_compares_two_dropout_masks(sentences, tmp_path, wrapped):
    model = tiny_model(sentences, width=32).to("cpu")
    inner = UnsupSimCSELoss(model)
    loss = MatryoshkaLoss(model, inner, [32]) if wrapped else inner
    data = Dataset.from_dict({"sentence": sentences})
    arguments = Arguments(str(tmp_path), per_device_eval_batch_size=8, report_to="none", use_cpu=True, seed=5)
    trainer = SimCSETrainer(model, arguments, None, data, loss)
    value = trainer.evaluate()["eval_loss"]
    batch = next(iter(trainer.get_eval_dataloader()))
    state = torch.get_rng_state()
    single, *_ = trainer.prediction_step(model, batch, prediction_loss_only=True)
    assert torch.equal(state, torch.get_rng_state())
    assert trainer.evaluate()["eval_loss"] == value
    assert not model.training
    model.train()
    torch.manual_seed(5)
    with torch.no_grad():
        features, _ = trainer.collect_features(batch)
        assert float(single) == pytest.approx(float(UnsupSimCSELoss(model)(features)), rel=1e-5)


def test_supervised_eval_loss_is_without_dropout(sentences, tmp_path):
    model = tiny_model(sentences, width=32).to("cpu")
    data = Dataset.from_dict({"anchor": sentences, "positive": sentences[1:] + sentences[:1]})
    arguments = Arguments(str(tmp_path), report_to="none", use_cpu=True)
    value = SimCSETrainer(model, arguments, None, data, SupSimCSELoss(model)).evaluate()["eval_loss"]
    columns = [model.eval().preprocess(data[name]) for name in data.column_names]
    assert value == pytest.approx(float(SupSimCSELoss(model)(columns)), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("several", [False, True])
def test_trials_are_independent(sentences, tmp_path, several):
    def make_loss(model):
        return UnsupSimCSELoss(model, options=[MomentumQueue(8), MaskedLanguageModel(0.5)], projection_head=True)

    def trainer():
        data = Dataset.from_dict({"sentence": sentences})
        arguments = Arguments(
            str(tmp_path),
            per_device_train_batch_size=4,
            num_train_epochs=3,
            learning_rate=1e-2,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
        )
        return SimCSETrainer(
            args=arguments,
            train_dataset={"a": data} if several else data,
            loss={"a": make_loss} if several else make_loss,
            model_init=lambda: tiny_model(sentences, width=32).to("cpu"),
        )

    def losses(trainer):
        trainer.train()
        loss = trainer.loss["a"] if several else trainer.loss
        assert loss.terms["masked_language_model"]._whole[0].base_model is trainer.model.transformers_model
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    fresh = losses(trainer())
    tried = trainer()
    assert losses(tried) == fresh
    assert losses(tried) == fresh
    assert fresh[0] != fresh[-1]


def test_a_loss_with_weights_of_its_own_is_refused_with_model_init(sentences, tmp_path):
    def trainer(**options):
        model = tiny_model(sentences, width=32).to("cpu")
        return SimCSETrainer(
            args=Arguments(str(tmp_path), use_cpu=True),
            train_dataset=Dataset.from_dict({"sentence": sentences}),
            loss=UnsupSimCSELoss(model, **options),
            model_init=lambda: model,
        )

    trainer()
    for options in (
        {"projection_head": True},
        {"options": [MomentumQueue(8)]},
        {"options": [MaskedLanguageModel(0.5)]},
    ):
        with pytest.raises(ValueError, match="pass a function that creates the loss"):
            trainer(**options)


def test_accelerates_own_ways_of_dealing_out_are_refused(sentences, tmp_path, monkeypatch):
    monkeypatch.setattr(Arguments, "world_size", 2)
    for name in ("split_batches", "dispatch_batches"):
        arguments = Arguments(str(tmp_path), use_cpu=True, accelerator_config={name: True})
        with pytest.raises(ValueError, match=f"SimCSETrainer does not support {name}"):
            SimCSETrainer(tiny_model(sentences), arguments, Dataset.from_dict({"sentence": sentences}))


def test_rows_for_half_of_the_processes_are_refused_if_incomplete_batches_are_dropped(sentences, tmp_path, monkeypatch):
    monkeypatch.setattr(Arguments, "world_size", 2)
    options = {"per_device_train_batch_size": 8, "dataloader_drop_last": True, "use_cpu": True}
    with pytest.raises(ValueError, match="drops all 8 rows of train_dataset, because a step needs 16"):
        SimCSETrainer(
            tiny_model(sentences), Arguments(str(tmp_path), **options), Dataset.from_dict({"sentence": sentences})
        )


@pytest.mark.parametrize("sampler", [{"group_by_length": True}, {"batch_sampler": "no_duplicates"}])
def test_data_seed_is_the_seed_of_the_order_alone(sentences, tmp_path, sampler):
    """The order is that of a run whose general seed is this number."""

    def order(**seeds):
        options = {"per_device_train_batch_size": 2, "report_to": "none", "use_cpu": True, **sampler, **seeds}
        data = Dataset.from_dict({"sentence": sentences})
        trainer = SimCSETrainer(tiny_model(sentences), SimCSETrainingArguments(str(tmp_path), **options), data)
        return [batch["sentence_input_ids"].tolist() for batch in trainer.get_train_dataloader()]

    assert order(seed=1, data_seed=7) == order(seed=7) != order(seed=1)


class _Study:
    """As much of optuna's study as transformers uses, over given values."""

    def __init__(self, values):
        self.values, self.best_trial = values, None

    def optimize(self, objective, **options):
        for number, value in enumerate(self.values):
            trial = SimpleNamespace(number=number, params={"learning_rate": value}, value=None)
            trial.value = objective(trial)
            self.best_trial = min(filter(None, [self.best_trial, trial]), key=lambda done: done.value)

    def _is_multi_objective(self):
        return False


@pytest.mark.slow
def test_a_search_has_trials_of_its_own_and_training_goes_on_after_it(sentences, tmp_path, monkeypatch):
    rates = [1e-3, 1e-2, 1e-3]
    optuna = ModuleType("optuna")
    optuna.__spec__ = ModuleSpec("optuna", None)
    optuna.Trial, optuna.trial = SimpleNamespace, SimpleNamespace(BaseTrial=SimpleNamespace)
    optuna.create_study = lambda **options: _Study(rates)
    monkeypatch.setitem(sys.modules, "optuna", optuna)

    def trainer(folder, rate=5e-5):
        data = Dataset.from_dict({"sentence": sentences})
        options = {"max_steps": 3, "report_to": "none", "use_cpu": True, "save_strategy": "steps", "save_steps": 3}
        return SimCSETrainer(
            args=Arguments(str(tmp_path / folder), learning_rate=rate, **options),
            train_dataset=data,
            eval_dataset=data,
            loss=lambda model: UnsupSimCSELoss(model, projection_head=True),
            model_init=lambda: tiny_model(sentences, width=32).to("cpu"),
        )

    def alone(rate):
        one = trainer(f"alone-{rate}", rate)
        one.train()
        return one.evaluate()["eval_loss"]

    values = []
    searching = trainer("search")
    best = searching.hyperparameter_search(
        hp_space=lambda trial: trial.params,
        compute_objective=lambda metrics: values.append(metrics["eval_loss"]) or metrics["eval_loss"],
        backend="optuna",
    )
    assert values == [alone(rate) for rate in rates]
    assert best.objective == min(values)
    records = [
        json.loads((tmp_path / "search" / f"run-{run}/checkpoint-3/simcse_run.json").read_text()) for run in "012"
    ]
    assert [record["run"]["arguments"]["learning_rate"] for record in records] == rates
    searching.train()
    assert searching.evaluate()["eval_loss"] == values[-1]


@pytest.mark.slow
def test_a_decoder_whose_configuration_names_no_padding_token_resumes(sentences, tiny_bert, tmp_path):
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(**size, vocab_size=60, intermediate_size=64, attention_dropout=0.1)
    assert config.pad_token_id is None
    AutoModel.from_config(config).save_pretrained(tmp_path / "decoder")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "decoder")

    def trainer(folder):
        model = build_model(str(tmp_path / "decoder"), "mean", device="cpu")
        arguments = Arguments(str(tmp_path / folder), max_steps=3, save_steps=1, report_to="none", use_cpu=True)
        return SimCSETrainer(model, arguments, Dataset.from_dict({"sentence": sentences}))

    whole = trainer("whole")
    whole.train()
    assert whole.model.config.pad_token_id == 0  # of the tokenizer
    expected = {name: weight.clone() for name, weight in whole.model.state_dict().items()}
    for again in (trainer("resumed"), whole):
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
        assert again.state.global_step == 3
        for name, weight in again.model.state_dict().items():
            assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize(
    ("columns", "loss", "options", "message"),
    [
        (["sentence", "source"], None, {}, "dataset.select_columns.'sentence'."),
        (["text", "title"], None, {}, "dataset.select_columns.'text'."),
        (["source"], None, {}, "All rows of the training data have the same source, 'wiki'"),
        (["anchor", "source"], SupSimCSELoss, {}, "the same source, 'wiki', so no row has a negative"),
        (["source"], partial(UnsupSimCSELoss, mask_duplicates=False), {}, "'wiki', so nothing tells a positive"),
        (["sentence"], UnsupSimCSELoss, {"per_device_train_batch_size": 1}, "1 leaves no negatives"),
    ],
)
def test_data_and_batches_without_negatives_are_refused(sentences, tmp_path, columns, loss, options, message):
    model = tiny_model(sentences, width=32).to("cpu")
    data = {name: {"source": ["wiki"] * 8, "title": [""] * 8}.get(name, sentences) for name in columns}
    arguments = SimCSETrainingArguments(str(tmp_path), use_cpu=True, bf16=False, **options)
    for several in (False, True):
        train_dataset, losses = Dataset.from_dict(data), loss and loss(model)
        if several:
            train_dataset, losses = {"a": train_dataset}, losses and {"a": losses}
        with pytest.raises(ValueError, match=message):
            SimCSETrainer(model, arguments, train_dataset, loss=losses)


def test_what_else_trains_and_whatever_has_a_negative_is_not_refused(sentences, tmp_path, caplog):
    model = tiny_model(sentences, width=32).to("cpu")
    arguments = SimCSETrainingArguments(str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=1)
    one, same = Dataset.from_dict({"sentence": sentences}), ["A dog."] * 8
    SimCSETrainer(model, arguments, one, loss=UnsupSimCSELoss(model, options=[MomentumQueue(8)]))
    triplets = Dataset.from_dict({"anchor": same, "positive": same, "negative": sentences})
    SimCSETrainer(model, arguments, triplets)
    assert "leaves no negatives" not in caplog.text
    SimCSETrainer(model, arguments, one, loss=UnsupSimCSELoss(model, options=[MaskedLanguageModel(0.1)]))
    assert "1 leaves no negatives" in caplog.text
    assert "Only masked_language_model trains" in caplog.text


@pytest.mark.parametrize("head", [False, True])
def test_a_frozen_model_is_refused(sentences, tmp_path, head):
    trainer = _trainer(sentences, tmp_path, head=head)
    trainer.model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"All weights of the model are frozen.*build_model\(..., dense=True\)"):
        trainer.train()
    next(trainer.model.parameters()).requires_grad_(True)
    trainer.train()


def test_an_optimizer_has_the_weights_of_model_and_loss(sentences, tmp_path):
    model = tiny_model(sentences, width=32).to("cpu")
    loss = UnsupSimCSELoss(model, projection_head=True)
    data, sgd = Dataset.from_dict({"sentence": sentences}), torch.optim.SGD

    def train(**options):
        arguments = Arguments(str(tmp_path), max_steps=1, report_to="none", use_cpu=True, save_strategy="no")
        SimCSETrainer(model, arguments, data, loss=loss, **options).train()

    lacking = "does not have all weights of the loss.*AdamW.loss.parameters"
    with pytest.raises(ValueError, match=lacking):
        train(optimizers=(sgd(model.parameters(), lr=0.1), None))
    with pytest.raises(ValueError, match=lacking):
        train(optimizer_cls_and_kwargs=(sgd, {"lr": 0.1}))
    with pytest.raises(ValueError, match="none of the model's trained weights.*AdamW.loss.parameters"):
        train(optimizers=(sgd(loss.projection_head.parameters(), lr=0.1), None))
    before = loss.projection_head.dense.weight.clone()
    train(optimizers=(sgd(loss.parameters(), lr=0.1), None))
    assert not torch.equal(before, loss.projection_head.dense.weight)


def test_an_evaluation_has_the_negatives_of_a_training_batch(sentences, tmp_path, caplog):
    """Without dropout the loss of the same rows is the same number in both."""
    rows = sentences + [text.replace("A ", "The ") + " Today." for text in sentences]
    data = Dataset.from_dict({"anchor": rows, "positive": rows[1:] + rows[:1]})

    def losses(kind, **options):
        model = tiny_model(rows, width=32).to("cpu")
        set_dropout(model, 0.0)
        arguments = kind(str(tmp_path), max_steps=1, logging_steps=1, report_to="none", use_cpu=True, **options)
        trainer = SimCSETrainer(model, arguments, data, data, SupSimCSELoss(model))
        evaluated = trainer.evaluate()["eval_loss"]
        trainer.train()
        return evaluated, trainer.state.log_history[-2]["loss"]

    evaluated, trained = losses(SimCSETrainingArguments, bf16=False)
    assert evaluated == pytest.approx(trained, abs=1e-4)
    evaluated, trained = losses(SimCSETrainingArguments, bf16=False, per_device_eval_batch_size=8)
    assert evaluated < trained - 0.1
    assert "eval_loss uses batches" not in caplog.text
    losses(Arguments, per_device_train_batch_size=16)
    assert "eval_loss uses batches of 8 rows, but the training loss uses batches of 16" in caplog.text


@pytest.mark.parametrize("kind", ["cpu", "mps", "xpu"])
def test_an_evaluation_leaves_the_random_state_of_every_accelerator(sentences, tmp_path, monkeypatch, kind):
    model = tiny_model(sentences, width=32).to("cpu")
    arguments = Arguments(str(tmp_path), use_cpu=True)
    trainer = SimCSETrainer(model, arguments, Dataset.from_dict({"sentence": sentences}), loss=UnsupSimCSELoss(model))
    states = {"cpu": None, kind: "of training"}
    if kind != "cpu":
        module = torch.get_device_module(kind)
        monkeypatch.setattr(module, "get_rng_state", lambda device: states[torch.device(device).type])
        monkeypatch.setattr(module, "set_rng_state", lambda state, device: states.update({device.type: state}))
    monkeypatch.setattr(Arguments, "device", torch.device(kind))
    monkeypatch.setattr(torch, "manual_seed", lambda seed: states.update({kind: "of the evaluation"}))
    monkeypatch.setattr(SentenceTransformerTrainer, "prediction_step", lambda *args, **kwargs: states[kind])
    assert trainer.prediction_step(model, {}, True) == "of the evaluation"
    assert states[kind] == ("of training" if kind != "cpu" else "of the evaluation")


@pytest.mark.slow
def test_batches_shrink_until_they_fit(sentences, tmp_path, caplog):
    """Down to 3 rows, where 8 were asked for; trained and resumed as if 3 had been."""

    def train(folder, fits=8, resume=None, **options):
        trainer = _trainer(sentences, tmp_path / folder, **options)
        set_dropout(trainer.model, 0.0)  # whose random numbers the attempts before have moved on
        whole = trainer.loss.forward

        def forward(features, labels=None):
            if len(next(iter(features))["input_ids"]) > fits:
                raise RuntimeError("CUDA out of memory. Tried to allocate")
            return whole(features, labels)

        trainer.loss.forward = forward
        trainer.train(resume)
        assert trainer.args.per_device_train_batch_size == options["per_device_train_batch_size"]
        return trainer

    options = {"per_device_train_batch_size": 8, "auto_find_batch_size": True}
    found = train("found", 3, **options)
    assert "Batches of 8 rows do not fit into memory, so training uses batches of 3" in caplog.text
    expected = train("expected", per_device_train_batch_size=3)
    resumed = train("resumed", 3, str(tmp_path / "found" / "checkpoint-4"), **options)
    assert found.state.global_step == expected.state.global_step == resumed.state.global_step == 9
    for name, weight in expected.loss.state_dict().items():
        assert torch.equal(weight, found.loss.state_dict()[name]), name
        assert torch.equal(weight, resumed.loss.state_dict()[name]), name


def test_batches_do_not_shrink_once_weights_are_trained(sentences, tmp_path, monkeypatch):
    trainer = _trainer(sentences, tmp_path, auto_find_batch_size=True)
    forward, calls = trainer.loss.forward, []

    def fails_later(features, labels=None):
        calls.append(None)
        if len(calls) == 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return forward(features, labels)

    trainer.loss.forward = fails_later
    with pytest.raises(RuntimeError, match="Step 3 ran out of memory.*Lower per_device_train_batch_size"):
        trainer.train()
    monkeypatch.setattr(Arguments, "world_size", 2)
    with pytest.raises(ValueError, match="auto_find_batch_size only works in a single process"):
        _trainer(sentences, tmp_path, auto_find_batch_size=True)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}])
def test_a_stream_resumes_in_any_pass(sentences, tmp_path, options):
    """Of 8 rows in batches of 3: three batches a pass, shuffled anew in each."""

    def train(folder, resume=None):
        model = tiny_model(sentences, width=32).to("cpu")
        arguments = Arguments(
            str(tmp_path / folder),
            per_device_train_batch_size=3,
            max_steps=8,
            save_steps=1,
            learning_rate=1e-2,
            report_to="none",
            use_cpu=True,
            **options,
        )
        features = Features({"sentence": Value("string")})
        stream = IterableDataset.from_generator(lambda: ({"sentence": text} for text in sentences), features)
        stream = stream.shuffle(seed=3, buffer_size=5)
        SimCSETrainer(model, arguments, stream, loss=UnsupSimCSELoss(model)).train(resume)
        return model.state_dict()

    whole = train("whole")
    for step in (2, 3, 4, 5, 6, 7, 8):
        resumed = train(f"from-{step}", str(tmp_path / "whole" / f"checkpoint-{step}"))
        for name, weight in whole.items():
            assert torch.equal(weight, resumed[name]), (step, name)

    checkpoint = tmp_path / "whole" / "checkpoint-7"
    record = json.loads((checkpoint / "simcse_run.json").read_text())
    (checkpoint / "simcse_run.json").write_text(json.dumps(record | {"positions": None}))
    with pytest.raises(
        ValueError, match="checkpoint-7 does not record how far the stream had been read.*from the start"
    ):
        train("refused", str(checkpoint))


@dataclass(frozen=True)
class RootOfZero(TermOption):
    """Finite itself, with an infinite gradient."""

    weight = 1.0

    def from_embeddings(self, columns, labels):
        return (columns[0] * 0).sum().sqrt()


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
@pytest.mark.parametrize("several", [False, True])
def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(
    model, sentences, tmp_path, max_grad_norm, several
):
    loss = UnsupSimCSELoss(model, options=[RankConsistency(0.1), RootOfZero()])
    data = Dataset.from_dict({"sentence": sentences})
    args = SimCSETrainingArguments(str(tmp_path), report_to="none", bf16=False, max_grad_norm=max_grad_norm)
    trainer = SimCSETrainer(model, args, {"a": data} if several else data, loss={"a": loss} if several else loss)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"gradient of step 1 is NaN or infinite, .* the loss term root_of_zero\."):
        trainer.train()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0)


def test_a_gradient_that_is_not_finite_stops_a_loss_of_one_number_too(model, sentences, tmp_path):
    """The loss of ST's gradient cache is one number: its summands cannot be told apart."""
    loss = UnsupSimCSELoss(model, mini_batch_size=4)
    model[0].model.embeddings.word_embeddings.weight.register_hook(lambda gradient: gradient * float("nan"))
    args = SimCSETrainingArguments(str(tmp_path), report_to="none", bf16=False)
    trainer = SimCSETrainer(model, args, Dataset.from_dict({"sentence": sentences}), loss=loss)
    with pytest.raises(ValueError, match="The gradient of step 1 is NaN or infinite. Training stopped"):
        trainer.train()


class Embeddings(BaseEvaluator):
    """Notes the embeddings of the model that it is given."""

    def __init__(self, texts):
        super().__init__()
        self.texts, self.seen = texts, []

    def __call__(self, model, *args, **kwargs):
        self.seen.append((model.encode(self.texts), copy.deepcopy(model.state_dict())))
        return {"score": 0.0}


def test_mixed_precision_is_for_training_alone(sentences, tmp_path):
    model = tiny_model(sentences, width=32).to("cpu")
    inside = []
    model[0].register_forward_pre_hook(
        lambda module, inputs: inside.append((module.training, torch.is_autocast_enabled("cpu")))
    )
    arguments = SimCSETrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=4,
        max_steps=2,
        report_to="none",
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="no",
        bf16=True,
        use_cpu=True,
        learning_rate=1e-2,
    )
    evaluator = Embeddings(sentences)
    data = Dataset.from_dict({"sentence": sentences})
    trainer = SimCSETrainer(model, arguments, data, loss=UnsupSimCSELoss(model), evaluator=evaluator)
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    for _ in range(2):
        trainer.train()  # once more, from these weights
    SimCSETrainer(model, arguments, data, loss=UnsupSimCSELoss(model), evaluator=evaluator).train()
    assert [autocast for training, autocast in inside if training] == [True] * 8
    assert {autocast for training, autocast in inside if not training} == {False}
    assert len(evaluator.seen) == 10
    fresh = tiny_model(sentences, width=32).to("cpu")
    for embeddings, weights in evaluator.seen:
        fresh.load_state_dict(weights)
        assert (fresh.encode(sentences) == embeddings).all()
    trainer.save_model()
    saved = SentenceTransformer(str(tmp_path), device="cpu")
    assert (saved.encode(sentences) == model.encode(sentences)).all()


def test_weights_in_half_precision_are_warned_of(sentences, tmp_path, caplog):
    model = tiny_model(sentences, width=32).to("cpu", torch.bfloat16)
    arguments = SimCSETrainingArguments(str(tmp_path), report_to="none", bf16=False)
    data = Dataset.from_dict({"sentence": sentences})
    SimCSETrainer(model, arguments, data, loss=UnsupSimCSELoss(model))
    assert (
        "weights of the model are in bfloat16, where small updates are rounded to zero. Call model.float()"
        in caplog.text
    )
    caplog.clear()
    model.float()
    SimCSETrainer(model, arguments, data, loss=UnsupSimCSELoss(model))
    assert "small steps" not in caplog.text


def test_one_loss_for_several_datasets_is_saved_once(sentences, tmp_path):
    model = tiny_model(sentences, width=32).to("cpu")
    loss = UnsupSimCSELoss(model, projection_head=True)
    data = Dataset.from_dict({"sentence": sentences})
    arguments = SimCSETrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, max_steps=1, save_steps=1, report_to="none", use_cpu=True
    )
    trainer = SimCSETrainer(model, arguments, {"a": data, "b": data}, loss={"a": loss, "b": loss})
    trainer.train()
    trained = {name: weight.clone() for name, weight in loss.projection_head.named_parameters()}
    torch.nn.init.zeros_(loss.projection_head.dense.weight)
    trainer.train(resume_from_checkpoint=True)
    assert all(torch.equal(weight, trained[name]) for name, weight in loss.projection_head.named_parameters())


def test_the_terms_of_an_evaluation_are_logged_apart_from_those_of_training(sentences, tmp_path):
    model = tiny_model(sentences, width=32).to("cpu")
    options = {"learning_rate": 0.0, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    arguments = Arguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=4, report_to="none", save_strategy="no", **options
    )
    loss = UnsupSimCSELoss(model, options=[RankConsistency(1.0)])
    equal = Dataset.from_dict({"sentence": sentences[:1] * 4})  # without negatives
    trainer = SimCSETrainer(model, arguments, Dataset.from_dict({"sentence": sentences}), equal, loss)
    trainer.train()
    history = trainer.state.log_history
    for prefix, count in (("", 1), ("eval_", 2)):
        entries = [entry for entry in history if f"{prefix}loss" in entry]
        assert len(entries) == count
        for entry in entries:
            terms = entry[f"{prefix}contrastive"] + entry[f"{prefix}rank_consistency"]
            assert terms == pytest.approx(entry[f"{prefix}loss"], abs=2e-4)


@pytest.mark.parametrize("kind", [UnsupSimCSELoss, SupSimCSELoss])
def test_an_evaluation_leaves_the_head_in_evaluation_mode(sentences, tmp_path, kind):
    model = tiny_model(sentences, width=32).to("cpu")
    head = torch.nn.Sequential(torch.nn.BatchNorm1d(32), torch.nn.Dropout(0.5))
    data = Dataset.from_dict({"anchor": sentences, "positive": sentences[1:] + sentences[:1]})
    data = data.select_columns(["anchor"]) if kind is UnsupSimCSELoss else data
    arguments = Arguments(str(tmp_path), report_to="none", use_cpu=True)
    trainer = SimCSETrainer(model, arguments, None, data, kind(model, projection_head=head))
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]
    assert not head[0].running_mean.any()
    assert head.training
    assert head[1].training


def test_an_evaluation_has_the_same_views_in_every_epoch(sentences, tmp_path):
    model = tiny_model(sentences, width=32).to("cpu")
    arguments = SimCSETrainingArguments(
        str(tmp_path),
        num_train_epochs=3,
        learning_rate=0.0,
        eval_strategy="epoch",
        save_strategy="no",
        views="token_cutoff",
        report_to="none",
        bf16=False,
        use_cpu=True,
    )
    data = Dataset.from_dict({"sentence": sentences})
    trainer = SimCSETrainer(model, arguments, data, data, UnsupSimCSELoss(model))
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    values = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert values == [before] * 3
    assert trainer.data_collator.preprocess_fn.epoch == 2  # training has others


def test_a_run_with_another_start_weight_does_not_resume(sentences, tmp_path):
    def trainer(start_weight):
        model = tiny_model(sentences, width=32).to("cpu")
        arguments = SimCSETrainingArguments(
            str(tmp_path),
            max_steps=2,
            save_steps=1,
            start_weight=start_weight,
            report_to="none",
            bf16=False,
            use_cpu=True,
        )
        return SimCSETrainer(model, arguments, Dataset.from_dict({"sentence": sentences}))

    trainer(0.5).train()
    checkpoint = tmp_path / "checkpoint-1"
    with pytest.raises(ValueError, match=r"arguments.start_weight: 0.5 -> 0.0"):
        trainer(0.0).train(resume_from_checkpoint=str(checkpoint))
