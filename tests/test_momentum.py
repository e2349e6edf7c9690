import copy

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from st_simcse import SimCSETrainer, SimCSETrainingArguments, UnsupSimCSELoss
from st_simcse.demo import tiny_model
from st_simcse.momentum import MomentumQueue
from tests.contrast import contrast
from tests.reference import finite_difference, info_nce_loop


def test_shared_negatives_are_hard_negatives_of_every_anchor():
    """M negatives of all rows are M hard negatives of the first row and none of the others, seen by all."""
    generator = torch.Generator().manual_seed(0)
    anchors, positives = (torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    shared = torch.randn(8, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    for symmetric in (False, True):
        # The loop wants N a row; its sum runs over all of them anyway.
        expected = info_nce_loop(anchors, positives, shared.detach().view(4, 2, 5), symmetric=symmetric)
        value = contrast(anchors, positives, symmetric=symmetric, shared=shared)
        assert value.item() == pytest.approx(expected, abs=1e-9)
    gradient = torch.autograd.grad(contrast(anchors, positives, shared=shared), shared)[0]
    loop = finite_difference(lambda moved: info_nce_loop(anchors, positives, moved.view(4, 2, 5)), shared.detach())
    assert torch.allclose(gradient, loop, atol=1e-6)
    keys = [torch.tensor([0, 1, 2, 3])] * 2
    shared_keys = torch.tensor([9, 1, 9, 9, 3, 9, 9, 9])
    expected = info_nce_loop(
        anchors, positives, shared.detach().view(4, 2, 5), keys=[*keys, shared_keys], symmetric=True
    )
    value = contrast(anchors, positives, symmetric=True, shared=shared, keys=[*keys, shared_keys])
    assert value.item() == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ValueError, match=r"shared_negatives must be \(M, d\)"):
        contrast(anchors, positives, shared=torch.zeros(3, 4))


@pytest.mark.parametrize("mini_batch_size", [None, 3])
@pytest.mark.parametrize("head", [False, True])
def test_the_queue_holds_earlier_sentences_embedded_by_a_slow_copy(model, sentences, head, mini_batch_size):
    loss = UnsupSimCSELoss(model, projection_head=head, queue_size=6, mini_batch_size=mini_batch_size).train()
    follower = copy.deepcopy(loss)
    batches = [sentences[:4], sentences[4:], sentences[2:6]]
    expected = torch.zeros(0, 32)
    for number, batch in enumerate(batches):
        assert torch.allclose(loss.queue.negatives()[0], expected, atol=1e-5)
        loss([model.preprocess(batch)]).backward()
        # by hand: the copy follows, then embeds without dropout
        share = 1.0 if number == 0 else 0.005
        with torch.no_grad():
            for part in ("model", "projection_head") if head else ("model",):
                pairs = zip(getattr(follower, part).parameters(), getattr(loss, part).parameters(), strict=True)
                for slow, fast in pairs:
                    slow.copy_((1 - share) * slow + share * fast)
            embeddings = follower.model.eval()(follower.model.preprocess(batch))["sentence_embedding"]
            embeddings = follower.projection_head(embeddings) if head else embeddings
            expected = torch.cat([embeddings, expected])[:6]
            for parameter in (*loss.model.parameters(), *(loss.projection_head.parameters() if head else ())):
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert all(parameter.grad is None for parameter in loss.queue.parameters())


def test_queued_negatives_count_and_equal_texts_do_not(model, sentences):
    torch.manual_seed(5)
    loss = UnsupSimCSELoss(model, queue_size=8).train()
    loss([model.preprocess(sentences)])  # fills the queue
    queued, keys = (tensor.clone() for tensor in loss.queue.negatives())
    seen = []
    original = loss.compute_loss_from_embeddings
    loss.compute_loss_from_embeddings = lambda embeddings, keys: seen.extend(embeddings) or original(embeddings, keys)
    batch = [*sentences[:2], "A dog reads.", "The man sleeps."]
    value = loss([model.preprocess(batch)])
    first, second = (embeddings.detach() for embeddings in seen)
    text = {key: index for index, key in enumerate(keys.tolist())}
    texts = torch.tensor([0, 1, 100, 101])
    expected = info_nce_loop(
        first, second, queued.view(4, 2, -1), keys=[texts, texts, torch.tensor([text[key] for key in keys.tolist()])]
    )
    assert value.item() == pytest.approx(expected, abs=1e-4)
    model.eval()
    with torch.no_grad():
        plain = UnsupSimCSELoss(model)([model.preprocess(batch)])
        assert loss([model.preprocess(batch)]).item() == pytest.approx(plain.item(), abs=1e-5)


def test_a_resumed_run_has_the_queue_of_an_undisturbed_one(sentences, tmp_path):
    def trainer(folder):
        model = tiny_model(sentences, width=32).to("cpu")
        torch.manual_seed(0)
        loss = UnsupSimCSELoss(model, projection_head=True, queue_size=6)
        arguments = SimCSETrainingArguments(
            str(tmp_path / folder),
            num_train_epochs=3,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            save_steps=2,
            report_to="none",
            bf16=False,
        )
        data = Dataset.from_dict({"sentence": sentences})
        return SimCSETrainer(model=model, args=arguments, train_dataset=data, loss=loss)

    whole = trainer("whole")
    whole.train()
    resumed = trainer("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    expected = whole.loss.state_dict()
    assert any(name.startswith("queue.encoder") for name in expected)
    for name, weight in resumed.loss.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    saved = SentenceTransformer(str(tmp_path / "whole" / "checkpoint-6"), device="cpu")
    assert not any("queue" in name for name, _ in saved.named_parameters())


@pytest.mark.parametrize("options", [{"size": 0}, {"size": 4, "momentum": 1.5}])
def test_bad_options(model, options):
    with pytest.raises(ValueError, match="a queue needs a size"):
        MomentumQueue(model, None, **options)
