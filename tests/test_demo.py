import pytest
from scipy.stats import spearmanr

from st_simcse.corpus import generate_corpus
from st_simcse.demo import run_demo


@pytest.mark.slow
def test_demo_learns_both_ways(capsys):
    scores = run_demo()
    assert scores["before"] + 0.03 < scores["unsupervised"]
    assert scores["unsupervised"] + 0.2 < scores["supervised"]
    output = capsys.readouterr().out
    assert f"supervised    {100 * scores['supervised']:6.2f}" in output
    assert "Nearest neighbours of held-out sentences after both trainings" in output
    assert "--train_file sentences.txt" in output.splitlines()[-1]


def test_corpus_is_seeded_and_holds_out_its_pairs():
    corpus = generate_corpus(size=400, seed=3)
    assert corpus == generate_corpus(size=400, seed=3)
    assert corpus != generate_corpus(size=400, seed=4)
    seen = {*corpus.sentences, *(text for triplet in corpus.triplets for text in triplet)}
    assert seen.isdisjoint(text for first, second, _ in corpus.scored_pairs for text in (first, second))
    assert len(corpus.sentences) == len(corpus.triplets) == 4 * len(corpus.scored_pairs) == 400


def test_gold_scores_are_more_than_word_overlap():
    """Scores span the scale and correlate with shared words, but far from perfectly: there is something to learn."""
    pairs = generate_corpus(size=2000).scored_pairs
    scores = [score for _, _, score in pairs]
    assert 0 <= min(scores) < 1
    assert 4 < max(scores) <= 5
    overlap = [len({*first.split()} & {*second.split()}) for first, second, _ in pairs]
    assert 0.1 < spearmanr(scores, overlap)[0] < 0.8
