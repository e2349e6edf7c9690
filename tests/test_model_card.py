from pathlib import Path

import pytest
from datasets import Dataset

from st_simcse import SimCSETrainer, SimCSETrainingArguments
from st_simcse.demo import tiny_model


@pytest.mark.parametrize("columns", [["sentence"], ["anchor", "positive"]])
def test_the_readme_of_a_saved_model_shows_no_text_of_the_data_unless_asked(sentences, tmp_path, columns, capsys):
    dataset = Dataset.from_dict({column: sentences for column in columns})
    shown = {}
    for asked in (False, True):
        args = SimCSETrainingArguments(
            str(tmp_path / str(asked)), report_to="none", bf16=False, texts_in_model_card=asked, max_steps=1
        )
        trainer = SimCSETrainer(tiny_model(sentences), args, dataset, dataset)
        trainer.save_model()
        text = Path(args.output_dir, "README.md").read_text()
        assert "dataset_size:8" in text  # the rest of the card is there
        shown[asked] = [sentence for sentence in sentences if sentence.rstrip(".") in text]
        assert ("Computing widget examples" in capsys.readouterr().err) == asked
    assert shown[False] == []
    assert len(shown[True]) > 2


def test_examples_of_the_users_own_stay(sentences, tmp_path):
    model = tiny_model(sentences)
    model.model_card_data.widget = [{"source_sentence": "A bird.", "sentences": ["A plane."]}]
    args = SimCSETrainingArguments(str(tmp_path), report_to="none", bf16=False)
    SimCSETrainer(model, args, Dataset.from_dict({"sentence": sentences})).save_model()
    assert "source_sentence: A bird." in Path(tmp_path, "README.md").read_text()
