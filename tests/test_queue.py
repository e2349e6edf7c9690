import copy

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from transformers import TrainerCallback

from st_simcse import (
    DropoutFreeNegatives,
    MomentumQueue,
    SimCSETrainer,
    SimCSETrainingArguments,
    SupSimCSELoss,
    UnsupSimCSELoss,
)
from st_simcse.demo import tiny_model
from tests.contrast import contrast
from tests.inputs import without_dropout
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
    loss = UnsupSimCSELoss(
        model, projection_head=head, options=[MomentumQueue(6)], mini_batch_size=mini_batch_size
    ).train()
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    follower = copy.deepcopy(loss)
    batches = [sentences[:4], sentences[4:], sentences[2:6]]
    expected = torch.zeros(0, 32)
    for number, batch in enumerate(batches):
        assert torch.allclose(loss.sources["momentum_queue"].negatives()[0], expected, atol=1e-5)
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
        optimizer.step()
    assert all(parameter.grad is None for parameter in loss.sources["momentum_queue"].parameters())


@pytest.mark.parametrize("optimizer", ["sgd", "adafactor"])
def test_the_copy_moves_once_a_step_of_the_optimizer(model, sentences, tmp_path, optimizer):
    """Also where several batches make a step."""
    loss = UnsupSimCSELoss(model, options=[MomentumQueue(4)])
    seen = []

    class Weights(TrainerCallback):
        def on_substep_end(self, *args, **kwargs):
            seen.append([tensor.detach().clone() for tensor in loss.sources["momentum_queue"].encoder.parameters()])

        def on_optimizer_step(self, *args, **kwargs):
            seen.append([tensor.detach().clone() for tensor in model.parameters()])

    arguments = SimCSETrainingArguments(
        str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        optim=optimizer,
        report_to="none",
        save_strategy="no",
        bf16=False,
        use_cpu=True,
    )
    data = Dataset.from_dict({"sentence": sentences * 2})
    SimCSETrainer(model, arguments, data, loss=loss, callbacks=[Weights()]).train()
    expected = seen[0]
    for copies, weights in zip(seen[2::2], seen[1::2], strict=False):
        expected = [0.995 * slow + 0.005 * fast for slow, fast in zip(expected, weights, strict=True)]
        for tensor, by_hand in zip(copies, expected, strict=True):
            assert torch.allclose(tensor, by_hand, atol=1e-6)
    assert len(seen) == 6


def test_the_copy_of_half_precision_weights_moves(sentences):
    model = tiny_model(sentences, width=32).to("cpu", torch.bfloat16).train()
    loss = UnsupSimCSELoss(model, options=[MomentumQueue(4)], projection_head=True)
    loss([model.preprocess(sentences)]).backward()
    assert loss.sources["momentum_queue"].negatives()[0].isfinite().all()
    leader, follower = (
        model[0].model.embeddings.LayerNorm.weight,
        loss.sources["momentum_queue"].encoder[0].model.embeddings.LayerNorm.weight,
    )
    assert follower.eq(1).all()
    optimizer = torch.optim.SGD([leader], lr=1.0)
    leader.grad = torch.full_like(leader, -0.1)
    optimizer.step()
    target = leader.detach().double()  # 1.1 in bfloat16
    leader.grad = torch.zeros_like(leader)
    for _ in range(99):
        optimizer.step()
    assert torch.allclose(follower.double(), target + (1 - target) * 0.995**100, atol=1e-4)


@pytest.mark.parametrize("mini_batch_size", [None, 3])
def test_each_dimension_of_matryoshka_loss_has_the_queue_of_earlier_batches(model, sentences, mini_batch_size):
    without_dropout(model)
    loss = UnsupSimCSELoss(model, options=[MomentumQueue(6)], mini_batch_size=mini_batch_size, mask_duplicates=False)
    wrapped = MatryoshkaLoss(model, loss, [32, 8], [1.0, 0.5])
    wrapped([model.preprocess(sentences[:2])], None)
    wrapped([model.preprocess(sentences[:4])], None)
    queued, _ = loss.sources["momentum_queue"].negatives()
    # Newest first: of a batch every sentence once.
    first, second = (model.encode(sentences[:rows], convert_to_tensor=True).cpu() for rows in (2, 4))
    assert torch.allclose(queued, torch.cat([second, first]), atol=1e-5)
    queued = queued.clone()
    value = wrapped([model.train().preprocess(sentences[4:7])], None)
    views = model.encode(sentences[4:7], convert_to_tensor=True).cpu()
    expected = sum(
        weight * info_nce_loop(views[:, :width], views[:, :width], queued[:, :width].reshape(3, 2, width))
        for width, weight in ((32, 1.0), (8, 0.5))
    )
    assert value.item() == pytest.approx(expected, abs=1e-3)


def test_a_truncated_model_trains_in_full_width_with_a_queue_and_a_head(model, sentences):
    model.truncate_dim = 8
    loss = UnsupSimCSELoss(model, options=[MomentumQueue(6)], projection_head=True)
    loss([model.preprocess(sentences)]).backward()
    assert loss.projection_head.dense.weight.shape == (32, 32)
    assert loss.sources["momentum_queue"].negatives()[0].shape == (6, 32)


def test_queued_negatives_count_and_equal_texts_do_not(model, sentences):
    torch.manual_seed(5)
    loss = UnsupSimCSELoss(model, options=[MomentumQueue(8)]).train()
    loss([model.preprocess(sentences)])  # fills the queue
    queued, keys = (tensor.clone() for tensor in loss.sources["momentum_queue"].negatives())
    seen = []
    original = loss.compute_loss_from_embeddings
    loss.compute_loss_from_embeddings = lambda columns, *rest: seen.extend(columns) or original(columns, *rest)
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


def test_the_supervised_loss_has_earlier_positives_as_negatives(model, sentences):
    without_dropout(model)
    loss = SupSimCSELoss(model, options=[MomentumQueue(8)], projection_head=True)
    earlier = [sentences, sentences[4:] + sentences[:4], sentences[1:] + sentences[:1]]
    loss([model.preprocess(column) for column in earlier])

    def embedded(texts):
        return loss.projection_head(model(model.preprocess(texts))["sentence_embedding"]).detach()

    queued = loss.sources["momentum_queue"].negatives()[0].clone()
    assert torch.allclose(queued, embedded(earlier[1]), atol=1e-5)
    columns = [sentences[:4], sentences[2:6], ["A dog reads.", *sentences[5:]]]
    value = loss([model.preprocess(column) for column in columns])
    anchors, positives, negatives = map(embedded, columns)
    texts = sorted({text for column in (*columns, *earlier) for text in column})
    keys = [torch.tensor([texts.index(text) for text in column]) for column in (*columns, earlier[1])]
    # Whose row they are makes no difference, since all weigh 1.
    others = torch.cat([negatives[:, None], queued.view(4, 2, -1)], 1)
    other_keys = torch.cat([keys[2][:, None], keys[3].view(4, 2)], 1)
    expected = info_nce_loop(anchors, positives, others, keys=[*keys[:2], other_keys])
    assert value.item() == pytest.approx(expected, abs=1e-4)
    assert value.item() > info_nce_loop(anchors, positives, negatives[:, None], keys=keys[:3]) + 0.1


def test_sources_can_stand_in_any_order(model, sentences):
    values = []
    for options in ([DropoutFreeNegatives(), MomentumQueue(8)], [MomentumQueue(8), DropoutFreeNegatives()]):
        torch.manual_seed(1)
        loss = UnsupSimCSELoss(model, options=options)
        values.append([loss([model.preprocess(sentences)]).item() for _ in range(2)])
    assert values[0] == values[1]
    assert values[0][1] > values[0][0] + 0.1  # the queue counts


def test_a_resumed_run_has_the_queue_of_an_undisturbed_one(sentences, tmp_path):
    def trainer(folder):
        model = tiny_model(sentences, width=32).to("cpu")
        torch.manual_seed(0)
        loss = UnsupSimCSELoss(model, projection_head=True, options=[MomentumQueue(6)])
        arguments = SimCSETrainingArguments(
            str(tmp_path / folder),
            num_train_epochs=3,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            save_steps=2,
            save_total_limit=None,
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
    assert any(name.startswith("sources.momentum_queue.encoder") for name in expected)
    for name, weight in resumed.loss.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    saved = SentenceTransformer(str(tmp_path / "whole" / "checkpoint-6"), device="cpu")
    assert not any("queue" in name for name, _ in saved.named_parameters())


def test_the_queue_of_a_copied_loss_follows_the_copied_model(model, sentences):
    loss = copy.deepcopy(UnsupSimCSELoss(model, options=[MomentumQueue(8, momentum=0.75)]))
    queue = loss.sources["momentum_queue"]
    loss([loss.model.preprocess(sentences[:4])]).backward()
    before = next(loss.model.parameters()).detach().clone()
    torch.optim.SGD(loss.parameters(), lr=1.0).step()
    after = next(loss.model.parameters()).detach()
    assert not torch.equal(before, after)
    assert torch.allclose(next(queue.encoder.parameters()), 0.75 * before + 0.25 * after, atol=1e-6)
    assert queue.train() is queue


def test_a_model_of_one_module_has_a_queue(static_model, sentences):
    model = SentenceTransformer(modules=[static_model[0]], device="cpu")
    loss = SupSimCSELoss(model, options=[MomentumQueue(8)])
    loss([model.preprocess(sentences), model.preprocess(sentences[::-1])]).backward()
    assert torch.allclose(
        loss.sources["momentum_queue"].negatives()[0],
        model(model.preprocess(sentences[::-1]))["sentence_embedding"],
        atol=1e-6,
    )


@pytest.mark.parametrize("options", [{"size": 0}, {"size": 2.5}, {"size": "4"}, {"size": 4, "momentum": 1.5}])
def test_bad_options(options):
    with pytest.raises(ValueError, match="MomentumQueue needs (an integer size|a finite momentum) of at least"):
        MomentumQueue(**options)


def test_the_queue_is_as_wide_as_what_the_head_gives(model, sentences):
    head = torch.nn.Linear(32, 16, dtype=torch.float64)
    loss = UnsupSimCSELoss(model.double(), options=[MomentumQueue(4)], projection_head=head)
    assert not any(parameter.requires_grad for parameter in loss.sources["momentum_queue"].parameters())
    loss([model.preprocess(sentences)])
    embeddings, _ = loss.sources["momentum_queue"].negatives()
    expected = loss.projection_head(model.eval()(model.preprocess(sentences))["sentence_embedding"])
    assert torch.allclose(embeddings, expected[:4].float(), atol=1e-5)


def test_the_queue_is_on_the_device_of_the_model(model):
    """Here it is the device without memory, which every machine has."""
    head = torch.nn.Linear(32, 8).to("meta")
    queue = MomentumQueue(3).build(model.to("meta"), head)
    assert {tensor.device.type for tensor in queue.state_dict().values()} == {"meta"}
    assert queue.embeddings.shape == (3, 8)
    assert queue.keys.dtype == queue.filled.dtype == torch.int64  # a number of rows that no precision rounds


def test_the_copy_begins_as_the_model_of_the_first_batch(model, sentences):
    """Several processes make their heads equal after the losses are built."""
    loss = UnsupSimCSELoss(model, options=[MomentumQueue(8)], projection_head=True)
    for parameter in (*model.parameters(), *loss.projection_head.parameters()):
        parameter.data.mul_(1.5)
    loss([model.preprocess(sentences)])
    embeddings, _ = loss.sources["momentum_queue"].negatives()
    expected = loss.projection_head(model.eval()(model.preprocess(sentences))["sentence_embedding"])
    assert torch.allclose(embeddings, expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["evaluation", "no gradient"])
def test_the_queue_is_for_training_alone(model, sentences, mode):
    loss = UnsupSimCSELoss(model, options=[MomentumQueue(4)])
    model.train(mode != "evaluation")
    with torch.set_grad_enabled(mode == "evaluation"):
        loss([model.preprocess(sentences)])
    assert len(loss.sources["momentum_queue"].negatives()[0]) == 0


def test_a_resumed_queue_follows_while_other_datasets_train(model, sentences):
    """A queue that has rows follows every step, although its loss has not seen a batch since it was built."""
    loss = UnsupSimCSELoss(model, options=[MomentumQueue(4, momentum=0.5)], projection_head=True)
    loss([model.preprocess(sentences)])
    resumed = UnsupSimCSELoss(model, options=[MomentumQueue(4, momentum=0.5)], projection_head=True)
    resumed.load_state_dict(loss.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    UnsupSimCSELoss(model)([model.preprocess(sentences)]).backward()
    before = [weight.detach().clone() for weight in model.parameters()]
    optimizer.step()
    for queue in (loss.sources["momentum_queue"], resumed.sources["momentum_queue"]):
        for follower, old, new in zip(queue.encoder.parameters(), before, model.parameters(), strict=True):
            assert torch.allclose(follower, 0.5 * old + 0.5 * new, atol=1e-6)
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
