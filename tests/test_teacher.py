"""What a teacher's embeddings are used for, against loops of the equations."""

import math

import pytest
import torch
from datasets import Dataset, load_from_disk
from sentence_transformers.sentence_transformer.losses import GISTEmbedLoss, MatryoshkaLoss

from st_simcse import (
    GuidedNegatives,
    MomentumQueue,
    RankConsistency,
    RankDistillation,
    SimCSETrainer,
    SimCSETrainingArguments,
    SupSimCSELoss,
    UnsupSimCSELoss,
    add_teacher_embeddings,
)
from st_simcse.data.teacher import check_teacher_columns, teacher_embeddings
from st_simcse.demo import tiny_model
from st_simcse.objective import Batch, Comparison, cross_entropy, info_nce


def _columns(rows=5, width=4, count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(count)]


def _cosines(first, second):
    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    return [[cosine(a, b) for b in second.tolist()] for a in first.tolist()]


def _listnet_loop(student, teacher, temperature, teacher_temperature):
    total = 0.0
    for i, row in enumerate(student):
        others = [j for j in range(len(row)) if j != i]
        wanted = sum(math.exp(teacher[i][j] / teacher_temperature) for j in others)
        had = sum(math.exp(row[j] / temperature) for j in others)
        for j in others:
            share = math.exp(teacher[i][j] / teacher_temperature) / wanted
            total -= share * math.log(math.exp(row[j] / temperature) / had) / len(student)
    return total


def _listmle_loop(student, teacher, temperature):
    total = 0.0
    for i, row in enumerate(student):
        left = [j for j in range(len(row)) if j != i]
        others = len(left)
        while left:
            chance = [math.exp(row[j] / temperature) for j in left]
            nearest = max(range(len(left)), key=lambda k, i=i, left=left: teacher[i][left[k]])
            total -= math.log(chance[nearest] / sum(chance)) / others / len(student)
            left.pop(nearest)
    return total


@pytest.mark.parametrize("method", ["listnet", "listmle"])
@pytest.mark.parametrize("pairs", [False, True])
def test_rank_distillation_is_the_loss_of_the_teachers_ranking(method, pairs):
    """Of one column's labels for both views, and of a label a column."""
    columns, labels = _columns(), torch.stack(_columns(width=3, seed=1), dim=1).float()
    labels = labels if pairs else labels[:, 0]
    term = RankDistillation(1.0, method, 0.3, 0.2).build(None)
    teacher = _cosines(*(labels.double().unbind(1) if pairs else [labels.double()] * 2))
    student = _cosines(*columns)
    loop = _listnet_loop(student, teacher, 0.3, 0.2) if method == "listnet" else _listmle_loop(student, teacher, 0.3)
    assert term.from_embeddings(columns, labels).item() == pytest.approx(loop, abs=1e-6)
    assert torch.autograd.gradcheck(
        lambda *views: term.from_embeddings(list(views), labels), _leaves(columns), atol=1e-4
    )
    assert term.from_embeddings([column[:1] for column in columns], labels[:1]) == 0  # nothing to rank


@pytest.mark.parametrize("option", [RankConsistency(1.0), RankDistillation(1.0)])
def test_rankings_are_those_of_anchors_and_positives(option):
    """Hard negatives, which are further columns, do not count."""
    columns, labels = _columns(count=3), torch.stack(_columns(width=3, count=3, seed=1), dim=1)
    value = option.from_embeddings(columns[:2], labels[:, :2])
    assert option.from_embeddings(columns, labels).item() == pytest.approx(value.item())


def _leaves(columns):
    return [column.detach().requires_grad_() for column in columns]


def test_rank_consistency_is_the_divergence_of_both_rankings():
    columns, total = _columns(), 0.0
    first, second = _cosines(*columns), _cosines(*columns[::-1])
    for one, other in zip(first, second, strict=True):
        shares = [[math.exp(x / 0.3) / sum(math.exp(y / 0.3) for y in row) for x in row] for row in (one, other)]
        for share in shares:
            total += sum(p * math.log(2 * p / (a + b)) for p, a, b in zip(share, *shares, strict=True)) / 2 / len(first)
    term = RankConsistency(1.0, 0.3).build(None)
    assert term.from_embeddings(columns, None).item() == pytest.approx(total, abs=1e-9)
    assert torch.autograd.gradcheck(lambda *views: term.from_embeddings(list(views), None), _leaves(columns))


def test_the_teachers_embeddings_are_added_once(sentences, monkeypatch):
    """By the teacher's own tokenizer; of one column as MSELoss takes them, of several in their order."""
    teacher, other = tiny_model(sentences[:3], width=16), tiny_model(sentences, width=32)
    one = add_teacher_embeddings(Dataset.from_dict({"sentence": sentences}), teacher)
    expected = teacher.encode(sentences, convert_to_tensor=True).cpu()
    assert torch.allclose(torch.tensor(one["label"][:]), expected, atol=1e-6)
    pairs = Dataset.from_dict({"anchor": sentences, "positive": sentences[::-1]})
    both = torch.tensor(add_teacher_embeddings(pairs, [teacher, other], weights=[3, 1])["label"][:])
    assert both.shape == (len(sentences), 2, 48)
    similarities = both[:, 0] @ both[:, 1].T
    parts = [
        model.similarity(*(model.encode(texts) for texts in (sentences, sentences[::-1]))) for model in (teacher, other)
    ]
    assert torch.allclose(similarities, 0.75 * parts[0] + 0.25 * parts[1], atol=1e-5)
    with pytest.raises(ValueError, match="teacher is the name 'a/b': pass the model, SentenceTransformer.'a/b'"):
        add_teacher_embeddings(pairs, "a/b")
    with pytest.raises(ValueError, match="read the data without streaming"):
        add_teacher_embeddings(pairs.to_iterable_dataset(), teacher)
    with pytest.raises(ValueError, match="already has labels: remove the column label"):
        add_teacher_embeddings(one, teacher)
    lists = pairs.add_column("negatives", [["A dog.", "A cat."]] * len(pairs))
    with pytest.raises(ValueError, match="the column 'negatives' is List.*: put lists of hard negatives into columns"):
        add_teacher_embeddings(lists, teacher)
    for teachers, weights in (([], None), ([teacher], [1, 2]), ([teacher, other], [1, 0])):
        with pytest.raises(ValueError, match="one positive weight for each"):
            add_teacher_embeddings(pairs, teachers, weights)


@pytest.mark.parametrize("strategy", ["absolute", "relative"])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("margin", [0.0, 0.01])
def test_guided_negatives_are_those_of_sts_gist_embed_loss(model, sentences, strategy, count, margin, monkeypatch):
    """Where both compare the same rows; in tiles and at once, with gradients."""
    model, guide = model.eval(), tiny_model(sentences, width=32, seed=5).to("cpu").eval()
    texts = [sentences, [f"{text} {sentences[0]}" for text in sentences], sentences[3:] + sentences[:3]][:count]
    directions = ("query_to_doc", "query_to_query", "doc_to_doc") if count == 2 else ("query_to_doc",)
    labels = torch.stack([guide.encode(column, convert_to_tensor=True) for column in texts], dim=1)
    options = {"contrast_anchors": count == 2, "contrast_positives": count == 2}
    theirs = GISTEmbedLoss(model, guide, 0.05, margin_strategy=strategy, margin=margin, **options)
    expected = theirs([model.preprocess(column) for column in texts], None)
    expected.backward()
    weight = model[0].model.embeddings.word_embeddings.weight
    gradient = weight.grad.clone()
    features = [model.preprocess(column) for column in texts]
    ours = {"directions": directions, "mask_duplicates": False}
    plain = SupSimCSELoss(model, **ours)(features)
    assert plain - expected > 1e-3  # the teacher leaves some out, but not all
    loss = SupSimCSELoss(model, options=[GuidedNegatives(margin, strategy)], **ours)
    for rows in (4, 256):
        monkeypatch.setattr(cross_entropy, "EDITED_TILE_ROWS", rows)
        model.zero_grad()
        value = loss(features, labels)
        value.backward()
        assert value.item() == pytest.approx(expected.item(), abs=1e-5)
        assert value > 0.01
        assert torch.allclose(weight.grad, gradient, atol=1e-5)


def _guided_loop(student, teacher, margin, strategy):
    total = 0.0
    for i, row in enumerate(student):
        allowed = teacher[i][i] - margin * (abs(teacher[i][i]) if strategy == "relative" else 1)
        terms = [math.exp(x) for j, x in enumerate(row) if j == i or teacher[i][j] <= allowed]
        total -= math.log(math.exp(row[i]) / sum(terms)) / len(student)
    return total


@pytest.mark.parametrize("strategy", ["absolute", "relative"])
@pytest.mark.parametrize("margin", [0.0, 0.4, 1.5])
@pytest.mark.parametrize("mode", ["joint", "per_direction"])
def test_guided_negatives_are_those_of_the_loop(strategy, margin, mode):
    """The teacher finds some pairs far apart, so that a share of their similarity is another margin."""
    columns, taught = _columns(8), [torch.nn.functional.normalize(one) for one in _columns(8, 3, seed=1)]
    both = [(columns, taught), (columns[::-1], taught[::-1])]
    losses = [_guided_loop(_cosines(*student), _cosines(*teacher), margin, strategy) for student, teacher in both]
    directions = ("query_to_doc",) if mode == "joint" else ("query_to_doc", "doc_to_query")
    batch = Batch(*columns, teacher_embeddings=taught)
    value = info_nce(batch, 1.0, [GuidedNegatives(margin, strategy)], Comparison(directions, mode))
    expected = losses[0] if mode == "joint" else sum(losses) / 2
    assert value.item() == pytest.approx(expected, abs=1e-9)


def test_a_negative_as_near_as_the_positive_stays():
    rows, taught = torch.eye(2), [torch.ones(2, 1)] * 2
    value = info_nce(Batch(rows, rows, teacher_embeddings=taught), 1.0, [GuidedNegatives(0.0)])
    assert value.item() == pytest.approx(math.log(math.e + 1) - 1, abs=1e-6)


def test_what_a_teacher_has_not_seen_stays_where_it_finds_the_pairs_far_apart():
    rows, taught = torch.eye(2), [torch.ones(2, 1), -torch.ones(2, 1)]
    batch = Batch(rows, rows, shared_negatives=rows[:1], teacher_embeddings=taught)
    expected = sum(math.log(math.e + 1 + math.exp(other)) - 1 for other in (1.0, 0.0)) / 2
    assert info_nce(batch, 1.0, [GuidedNegatives(0.0)]).item() == pytest.approx(expected, abs=1e-6)


def test_what_a_teacher_has_not_seen_stays():
    """The rows of a queue, also where the teacher leaves out all others."""
    rows = torch.eye(3)
    taught = [torch.ones(3, 2) / 2**0.5] * 2
    batch = Batch(rows, rows, shared_negatives=rows[:1], teacher_embeddings=taught)
    expected = sum(math.log(math.e + math.exp(other)) - 1 for other in (1.0, 0.0, 0.0)) / 3
    assert info_nce(batch, 1.0, [GuidedNegatives(0.1)]).item() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="no teacher embeddings"):
        info_nce(Batch(rows, rows), 1.0, [GuidedNegatives(0.1)])
    with pytest.raises(ValueError, match=r"teacher_embeddings must be one tensor.*of shapes \[\(3,\), \(3,\)\]"):
        Batch(rows, rows, teacher_embeddings=taught[:1])
    for options in ({"margin": -0.1}, {"margin": 0.1, "margin_strategy": "both"}):
        with pytest.raises(ValueError, match="margin"):
            GuidedNegatives(**options)


def test_a_teacher_goes_with_a_queue(model, sentences):
    labels = torch.randn(8, 4)
    loss = UnsupSimCSELoss(model, options=[MomentumQueue(8), GuidedNegatives(0.1), RankDistillation(1.0)])
    for _ in range(2):
        parts = loss([model.preprocess(sentences)], labels)
    assert sorted(parts) == ["contrastive", "rank_distillation"]


@pytest.mark.parametrize(
    ("loss", "columns", "labels", "message"),
    [
        (UnsupSimCSELoss, 1, None, r"no column label: pass add_teacher_embeddings\(dataset, teacher\)"),
        (UnsupSimCSELoss, 1, torch.zeros(8, dtype=torch.int64), r"expected floats of shape \(8, d\)"),
        (UnsupSimCSELoss, 1, torch.ones(8, 3, 4), r"got torch.float32 of shape \(8, 3, 4\)"),
        (
            UnsupSimCSELoss,
            1,
            torch.ones(8, 2, 4),
            r"of the 1 column .*\(8, d\), got torch.float32 of shape \(8, 2, 4\)",
        ),
        (UnsupSimCSELoss, 1, torch.ones(8, 8).triu(1), r"zero in row\(s\) \[7\] of 8"),
        (SupSimCSELoss, 2, torch.zeros(8, 2, 4), r"zero in row\(s\) \[0, 1, 2"),
        (SupSimCSELoss, 2, torch.ones(8, 4), r"embeddings of the 2 columns.*got torch.float32 of shape \(8, 4\)"),
        (SupSimCSELoss, 2, torch.ones(7, 2, 4), r"expected floats of shape \(8, 2, d\)"),
        (SupSimCSELoss, 2, torch.full((8, 2, 4), torch.nan), "the teacher's embeddings has NaN"),
    ],
)
def test_labels_that_are_no_teachers_embeddings_are_refused(model, sentences, loss, columns, labels, message):
    loss = loss(model, options=[RankDistillation(1.0)])
    with pytest.raises(ValueError, match=message):
        loss([model.preprocess(sentences)] * columns, labels)


def test_a_teachers_embeddings_are_no_classes(sentences, tmp_path):
    model = tiny_model(sentences, width=32)
    dataset = add_teacher_embeddings(Dataset.from_dict({"sentence": sentences}), tiny_model(sentences, width=16))
    arguments = SimCSETrainingArguments(str(tmp_path), batch_sampler="group_by_label", report_to="none")
    loss = UnsupSimCSELoss(model, options=[RankDistillation(1.0)])
    with pytest.raises(
        ValueError, match="the embeddings of a teacher, which RankDistillation needs. Leave batch_sampl"
    ):
        SimCSETrainer(model, arguments, dataset, loss=loss)


def test_bad_rankings_are_refused():
    for options in ({"weight": -1}, {"temperature": 0}, {"teacher_temperature": 0}, {"method": "listwise"}):
        with pytest.raises(ValueError, match="needs a finite|unknown method"):
            RankDistillation(**{"weight": 1.0} | options)
    assert RankDistillation(0.0) == RankDistillation(0.0, "listmle", 0.05, 0.025)  # the bounds and documented defaults
    assert RankConsistency(0.0) == RankConsistency(0.0, 0.05)


def test_a_student_learns_its_teachers_ranking(sentences, tmp_path):
    """Tokenized once and grouped by length, as with any other data; and its record knows the teacher."""
    texts = [f"{first} {second}" for first in sentences for second in sentences]
    teacher, model = tiny_model(texts, width=32, seed=3), tiny_model(texts, width=32)
    dataset = add_teacher_embeddings(Dataset.from_dict({"sentence": texts}), teacher)
    arguments = SimCSETrainingArguments(
        str(tmp_path),
        num_train_epochs=3,
        per_device_train_batch_size=16,
        learning_rate=2e-3,
        tokenize_once=True,
        group_by_length=True,
        logging_steps=1,
        bf16=False,
        report_to="none",
        use_cpu=True,
    )
    loss = UnsupSimCSELoss(model, options=[RankDistillation(1.0)])
    trainer = SimCSETrainer(model, arguments, dataset, loss=loss)
    trainer.train()
    logged = [log["rank_distillation"] for log in trainer.state.log_history if "rank_distillation" in log]
    assert sum(logged[-4:]) < sum(logged[:4]) - 0.2
    another = add_teacher_embeddings(dataset.remove_columns("label"), tiny_model(texts, width=32, seed=4))
    trainer = SimCSETrainer(model, arguments, another, loss=loss)
    with pytest.raises(ValueError, match="hash of the rows"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("several", [False, True])
def test_data_without_a_teacher_is_refused_before_training(model, sentences, tmp_path, several):
    """Not at the first evaluation, which may come hours later."""
    bare = Dataset.from_dict({"sentence": sentences})
    labelled = add_teacher_embeddings(bare, tiny_model(sentences, width=16))
    loss = UnsupSimCSELoss(model, options=[GuidedNegatives(0.1), RankDistillation(1.0)])
    losses, name = ({"news": loss}, r"\['news'\]") if several else (loss, "")
    arguments = SimCSETrainingArguments(str(tmp_path), bf16=False, report_to="none")
    for data, place in (((bare, labelled), "train_dataset"), ((labelled, bare), "eval_dataset")):
        given = [{"news": dataset} for dataset in data] if several else data
        message = f"GuidedNegatives and RankDistillation .* but {place}{name} has no column label"
        with pytest.raises(ValueError, match=message):
            SimCSETrainer(model, arguments, *given, loss=losses)
    SimCSETrainer(model, arguments, labelled, labelled, loss=loss)


def test_views_of_one_text_share_its_embedding():
    labels = torch.randn(3, 4)
    first, second = teacher_embeddings(labels, rows=3, columns=2)
    assert torch.equal(first, second)
    assert torch.allclose(first.norm(dim=1), torch.ones(3))


def test_labels_know_which_columns_they_are_of(model, sentences, tmp_path):
    """In whatever way the dataset went on; two columns' labels are not one's, nor in another order."""
    teacher = tiny_model(sentences, width=16)
    data = Dataset.from_dict({"anchor": sentences, "positive": sentences[::-1]})
    labelled = add_teacher_embeddings(data, teacher)
    one = add_teacher_embeddings(data.select_columns("anchor"), teacher)
    labelled.to_parquet(str(tmp_path / "labelled.parquet"))
    labelled.save_to_disk(str(tmp_path / "labelled"))
    read = Dataset.from_parquet(str(tmp_path / "labelled.parquet"), cache_dir=str(tmp_path / "cache"))
    for fine in (labelled, labelled.shuffle(seed=0).select(range(4)), one, {"a": labelled, "b": one}, read):
        check_teacher_columns(fine, None)
    wrong = {
        "positive, anchor": labelled.select_columns(["positive", "anchor", "label"]),
        "anchor": labelled.remove_columns("positive"),
        "anchor, other": labelled.rename_column("positive", "other"),
        "positive, anchor ": load_from_disk(str(tmp_path / "labelled")).select_columns(["positive", "anchor", "label"]),
        "positive,  anchor": read.select_columns(["positive", "anchor", "label"]),
    }
    for columns, dataset in wrong.items():
        message = (
            f"embeddings of anchor, positive, but the data has {' '.join(columns.split())}: restore .* select_columns"
        )
        with pytest.raises(ValueError, match=message):
            check_teacher_columns(dataset)
    with pytest.raises(ValueError, match="embeddings of anchor, but the data has anchor, positive"):
        check_teacher_columns(one.add_column("positive", sentences).select_columns(["anchor", "positive", "label"]))
    arguments = SimCSETrainingArguments(str(tmp_path / "out"), bf16=False, tokenize_once=True)
    loss = SupSimCSELoss(model, options=[RankDistillation(1.0)])
    SimCSETrainer(model, arguments, labelled, loss=loss)
    for data in ((wrong["positive, anchor"], None), (labelled, wrong["positive, anchor"])):
        with pytest.raises(ValueError, match="the data has positive, anchor"):
            SimCSETrainer(model, arguments, *data, loss=loss)


def test_a_text_without_an_embedding_is_named(sentences):
    teacher = tiny_model(sentences, width=16)
    encode = teacher.encode
    teacher.encode = lambda texts, **options: (
        encode(texts, **options) if isinstance(texts, str) else encode(texts, **options).cpu() * _ALL_BUT_THE_FOURTH
    )
    with pytest.raises(ValueError, match=f"embedding of the text '{sentences[3]}' is zero or not finite"):
        add_teacher_embeddings(Dataset.from_dict({"sentence": sentences}), teacher)


@pytest.mark.parametrize("mini_batch_size", [None, 3])
@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("option", [RankDistillation(1.0), GuidedNegatives(0.1)])
def test_matryoshka_loss_does_not_cut_a_teacher_as_wide_as_the_model(
    model, sentences, option, per_column, mini_batch_size
):
    """A column of zeros changes no cosine similarity, but the labels are then wider and MatryoshkaLoss keeps them."""
    loss = UnsupSimCSELoss(model.eval(), options=[option], mini_batch_size=mini_batch_size)
    wrapped = MatryoshkaLoss(model, loss, [model.get_embedding_dimension(), 16, 8])
    columns = _columns(len(sentences), model.get_embedding_dimension(), seed=3)
    labels = torch.stack(columns, dim=1).float() if per_column else columns[0].float()
    padded = torch.nn.functional.pad(labels, (0, 1))
    texts = [sentences, sentences] if per_column else [sentences]

    def computed(given):
        return float(wrapped([model.preprocess(column) for column in texts], given))

    assert computed(labels) == pytest.approx(computed(padded), abs=1e-6)


_ALL_BUT_THE_FOURTH = torch.tensor([1.0, 1, 1, 0, 1, 1, 1, 1])[:, None]
