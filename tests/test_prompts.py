"""Prompts in training: the embeddings are those of encode with the prompt, whatever way a batch takes."""

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model, set_seed

from st_simcse import SimCSETrainer, SimCSETrainingArguments, SupSimCSELoss, UnsupSimCSELoss
from st_simcse.cli import evaluate, train
from st_simcse.data.duplicates import text_keys
from st_simcse.data.prompts import set_prompt
from st_simcse.demo import tiny_model
from tests.inputs import flattened, without_dropout

WAYS = {
    "plain": {},
    "tokenize_once": {"tokenize_once": True},
    "mini_batch_size": {"mini_batch_size": 3},
    "group_by_length": {"group_by_length": True},
}
PROMPTS = {"anchor": "Two dogs run: ", "positive": "A "}


@pytest.fixture(params=["bert", "left-padded decoder"])
def backbone(request, sentences, tmp_path):
    """A model without dropout: what training embeds is what encode gives."""
    model = tiny_model([*sentences, "Two dogs run: A"], width=32).to("cpu")
    if request.param == "bert":
        return without_dropout(model)
    set_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 16,
    }
    config = Qwen3Config(vocab_size=len(model.tokenizer), num_key_value_heads=2, pad_token_id=0, **sizes)
    Qwen3Model(config).save_pretrained(tmp_path)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(
        tokenizer_object=model.tokenizer.backend_tokenizer, padding_side="left", model_max_length=64, **special
    ).save_pretrained(tmp_path)
    return SentenceTransformer(modules=[Transformer(str(tmp_path)), Pooling(32, "mean")], device="cpu")


class _Recorded(SupSimCSELoss):
    def compute_loss_from_embeddings(self, embeddings, keys=None, *others):
        self.columns, self.keys = [column.detach().clone() for column in embeddings], keys
        return super().compute_loss_from_embeddings(embeddings, keys, *others)


def _behind_prompt(model, text, prompt):
    """The mean over the text's own tokens, one text at a time; a word of these prompts is a token."""
    features = model.tokenizer([prompt + text], return_tensors="pt")
    with torch.no_grad():
        tokens = model[0].model(**features).last_hidden_state[0]
    return tokens[1 + len(prompt.replace(":", " :").split()) :].mean(0)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_training_embeds_as_encode_does(backbone, sentences, tmp_path, way):
    model = backbone
    texts = [f"{text} {text}" if row % 3 else text for row, text in enumerate(sentences)]
    data = Dataset.from_dict({"anchor": texts, "positive": texts[1:] + texts[:1]})
    options = dict(WAYS[way])
    loss = _Recorded(model, mini_batch_size=options.pop("mini_batch_size", None))
    for include_prompt, prompts in ((True, "A cat: "), (True, PROMPTS), (False, PROMPTS), (False, {"positive": "A "})):
        model.set_pooling_include_prompt(include_prompt)
        arguments = SimCSETrainingArguments(
            str(tmp_path / "out"), prompts=prompts, bf16=False, max_steps=1, learning_rate=0.0, report_to="none",
            save_strategy="no", per_device_train_batch_size=8, **options
        )  # fmt: skip
        SimCSETrainer(model, arguments, data, loss=loss).train()
        places = []
        for name, got in zip(data.column_names, loss.columns, strict=True):
            prompt = prompts if isinstance(prompts, str) else prompts.get(name, "")
            expected = model.encode(data[name], prompt=prompt, convert_to_tensor=True)
            distances = (got[:, None] - expected).abs().amax(2)
            assert distances.amin(1).max() < 1e-6, (include_prompt, prompts, name)
            places.append(distances.argmin(1))
            if prompt and not include_prompt:
                loop = torch.stack([_behind_prompt(model, text, prompt) for text in data[name]])
                assert torch.allclose(expected, loop, atol=1e-6)
        assert torch.equal(*places)
        assert sorted(places[0].tolist()) == list(range(8))
        # An anchor is the positive of the row before it, which no prompt hides.
        anchors, positives = loss.keys
        assert torch.equal(anchors[places[0].argsort()].roll(-1), positives[places[0].argsort()])


class _AfterPrompt(Module):
    """A pooling of somebody else, which takes the first token after the prompt."""

    def forward(self, features):
        return features | {"sentence_embedding": features["token_embeddings"][:, features["prompt_length"]]}

    def save(self, *args, **options):
        raise NotImplementedError


def test_columns_with_different_prompts_share_a_forward_pass(model, sentences):
    columns = [model.preprocess(sentences, prompt=prompt) for prompt in PROMPTS.values()]
    widths = []
    model[0].register_forward_pre_hook(lambda module, inputs: widths.append(len(inputs[0]["input_ids"])))
    for include_prompt, passes in ((True, [16]), (False, [8, 8]), ("another pooling decides", [8, 8])):
        if isinstance(include_prompt, bool):
            model.set_pooling_include_prompt(include_prompt)
        else:
            model[1] = _AfterPrompt()
        widths.clear()
        SupSimCSELoss(model)(columns)
        assert widths == passes


def test_a_text_has_the_same_key_behind_every_prompt(model, sentences):
    keys = text_keys(model.preprocess(sentences, prompt="A "))
    longer = model.preprocess(sentences, prompt="Two dogs run in the park. ")
    assert torch.equal(keys, text_keys(longer))
    assert torch.equal(keys, text_keys(longer | {"prompt_length": torch.full((8,), longer["prompt_length"])}))
    assert torch.equal(keys, text_keys(flattened(model, ["A " + text for text in sentences]) | {"prompt_length": 2}))
    assert len(set(keys.tolist())) == len(sentences)
    # A tokenizer that takes the space at the end of a prompt into the text's first word measures one token too many.
    spoilt = text_keys(longer | {"prompt_length": longer["prompt_length"] + 1})
    assert len(set(spoilt.tolist())) == len(sentences)
    assert not set(spoilt.tolist()) & set(keys.tolist())


def test_prompts_that_cannot_be_meant_are_refused(model, sentences, tmp_path, caplog):
    data = Dataset.from_dict({"anchor": sentences, "positive": sentences[::-1]})

    def trainer(prompts, data=data, **options):
        arguments = SimCSETrainingArguments(str(tmp_path), prompts=prompts, bf16=False, **options)
        return SimCSETrainer(model, arguments, data, loss=None if isinstance(data, dict) else UnsupSimCSELoss(model))

    for prompts, columns in (({"query": "A "}, data), ({"all": {"query": "A "}}, {"all": data})):
        with pytest.raises(
            ValueError, match=r"there is no column or dataset query for a prompt: the data has .*anchor, positive"
        ):
            trainer(prompts, columns)
    with pytest.raises(ValueError, match=r"'A cat: ' takes up all 5 tokens .* max_length"):
        trainer("A cat: ", max_length=5)
    for prompts in ("A cat: ", {"anchor": "A cat: "}):
        caplog.clear()
        trainer(prompts, max_length=6)
        assert "does not store the prompt 'A cat: '" in caplog.text
    caplog.clear()
    model.prompts["query"], model.default_prompt_name = "A cat: ", "query"
    trainer({"all": {"anchor": "A cat: "}}, {"all": data})
    assert "prompt" not in caplog.text
    trainer(None)
    assert "default prompt 'A cat: ' is used by encode and in evaluation, but not in training" in caplog.text


@pytest.mark.slow
def test_the_command_line_trains_and_saves_with_prompts(tmp_path, tiny_bert, sentences, generated):
    (tmp_path / "a.txt").write_text("\n".join(sentences))
    files = ["--train_file", str(tmp_path / "a.txt"), "--output_dir", str(tmp_path / "out"), "--max_steps", "1"]
    options = ["--pooling", "mean", "--prompts", "A cat: ", "--include_prompt", "false", "--report_to", "none"]
    known = ["--model_prompts", '{"query": "A cat: ", "passage": ""}', "--default_prompt_name", "query"]
    train.run(["--model_name_or_path", tiny_bert, *files, *options, *known])
    saved = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert saved.prompts["query"] == "A cat: "
    assert not saved[1].include_prompt
    plain = saved.encode(sentences)
    assert (plain == saved.encode(sentences, prompt="A cat: ")).all()
    assert (plain != saved.encode(sentences, prompt_name="passage")).any()
    for wrong, message in (("[1]", "--model_prompts must be JSON"), ("query: ", "--model_prompts must be JSON")):
        with pytest.raises(ValueError, match=message):
            train.run(["--model_name_or_path", tiny_bert, *files, "--model_prompts", wrong])
    with pytest.raises(ValueError, match="'passage' not found"):
        train.run(["--model_name_or_path", tiny_bert, *files, "--default_prompt_name", "passage"])

    sts = ["--model", str(tmp_path / "out"), "--sts_dir", str(generated / "sts/raw"), "--allow_partial"]
    scores = {option: evaluate.run([*sts, *option]) for option in ((), ("--prompt", ""), ("--prompt", "A cat: "))}
    assert scores[()] == scores["--prompt", "A cat: "] != scores["--prompt", ""]
    assert evaluate.run([*sts, "--prompt_name", "passage"]) == scores["--prompt", ""]
    with pytest.raises(ValueError, match="no prompt 'absent': choose one of query.*passage"):
        evaluate.run([*sts, "--prompt_name", "absent"])
    with pytest.raises(ValueError, match="not both"):
        set_prompt(saved, "A ", "query")
