"""A training that stops on a signal and resumes ends like one that was never interrupted."""

import pytest
import torch
from datasets import Dataset
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from transformers import TrainerCallback

from conftest import SENTENCES
from st_simcse import SimCSETrainer, SimCSETrainingArguments
from st_simcse.demo import tiny_model
from st_simcse.training.stop_on_signal import StopOnSignal


class Scores(SentenceEvaluator):
    """Gives the next of these scores at each call."""

    def __init__(self, *scores):
        super().__init__()
        self.scores = list(scores)
        self.primary_metric = "score"

    def __call__(self, model, *args, **kwargs):
        return {"score": self.scores.pop(0)}


class SignalAt(TrainerCallback):
    """A signal that arrives in the middle of a step."""

    def __init__(self, stop, step):
        self.stop, self.step = stop, step

    def on_step_begin(self, args, state, control, **kwargs):
        self.stop.requested |= state.global_step + 1 == self.step


def _trained(folder, scores, stop_at=None, resume=None, **options):
    """The trainer after training, and whether it was stopped. An epoch of the data has four steps."""
    model = tiny_model(SENTENCES, width=32).to("cpu")
    arguments = SimCSETrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_score",
        greater_is_better=True,
        report_to="none",
        bf16=False,
        disable_tqdm=True,
        **options,
    )
    stop = StopOnSignal()
    trainer = SimCSETrainer(
        model,
        arguments,
        Dataset.from_dict({"sentence": SENTENCES[:8]}),
        evaluator=Scores(*scores),
        callbacks=[stop, SignalAt(stop, stop_at)],
    )
    trainer.train(resume_from_checkpoint=resume and str(resume))
    return trainer, stop.has_stopped


def _same_weights(first, second):
    for name, weight in first.model.state_dict().items():
        torch.testing.assert_close(weight, second.model.state_dict()[name], rtol=0, atol=0)


STEPS = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1, "max_steps": 4}
EPOCHS = {"eval_strategy": "epoch", "save_strategy": "epoch", "num_train_epochs": 2}


@pytest.mark.parametrize("limit", [1, 2])
def test_the_checkpoint_of_the_last_step_stays_beside_the_best(tmp_path, limit):
    whole, _ = _trained(tmp_path / "whole", [3, 2, 1, 0], **STEPS)
    _, has_stopped = _trained(tmp_path / "out", [3, 2, 1], stop_at=3, save_total_limit=limit, **STEPS)
    assert has_stopped
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-3"}
    resumed, _ = _trained(tmp_path / "out", [0], resume=tmp_path / "out/checkpoint-3", **STEPS)
    assert resumed.state.best_global_step == whole.state.best_global_step == 1
    _same_weights(resumed, whole)


def test_an_epoch_that_is_cut_off_is_not_evaluated(tmp_path):
    whole, _ = _trained(tmp_path / "whole", [1, 2], **EPOCHS)
    _, has_stopped = _trained(tmp_path / "out", [], stop_at=3, **EPOCHS)  # an evaluation would find no score
    assert has_stopped
    resumed, _ = _trained(tmp_path / "out", [1, 2], resume=tmp_path / "out/checkpoint-3", **EPOCHS)
    assert resumed.state.best_global_step == 8
    _same_weights(resumed, whole)


def test_the_best_checkpoint_is_found_after_the_folder_has_moved(tmp_path):
    whole, _ = _trained(tmp_path / "whole", [3, 2, 1, 0], **STEPS)
    _trained(tmp_path / "before", [3, 2], stop_at=2, **STEPS)
    (tmp_path / "before").rename(tmp_path / "after")
    resumed, _ = _trained(tmp_path / "after", [1, 0], resume=tmp_path / "after/checkpoint-2", **STEPS)
    assert resumed.state.best_model_checkpoint == str(tmp_path / "after/checkpoint-1")
    _same_weights(resumed, whole)
