"""The code of README and docs runs as it stands, on small files and a tiny model under the names that it uses."""

import ast
import contextlib
import dataclasses
import gzip
import inspect
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import CONFIG_MAPPING, AutoModel, AutoTokenizer, LlamaConfig, ModernBertConfig, Qwen3Config, set_seed

import st_simcse
from conftest import CHINESE
from st_simcse import budget, build_model, cli
from st_simcse.cli import runs
from st_simcse.cli.data import SETS
from st_simcse.cli.loss import LossArguments
from st_simcse.cli.serve import ServeArguments
from st_simcse.corpus import generate_corpus
from st_simcse.data.formats import MAX_ROW_BYTES
from st_simcse.data.layouts import _HEAD_LINES
from st_simcse.data.reader import Reader
from st_simcse.data.senteval import STS_ROWS
from st_simcse.demo import save_tiny_transformer
from st_simcse.losses import OPTIONS
from st_simcse.losses.options import SHARDED
from st_simcse.objective.cross_entropy import EDITED_TILE_ROWS, TILE_ELEMENTS, TILE_ROWS
from st_simcse.presets import PRESETS
from st_simcse.search import page as search_page
from tests.backbones import ARCHITECTURES
from tests.forked import torchrun

ROOT = Path(__file__).parent.parent
CHINESE_PAGES = ["README.zh.md", *sorted(f"docs/zh/{path.name}" for path in (ROOT / "docs/zh").glob("*.md"))]
PAGES = ["README.md", *CHINESE_PAGES, *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
# The sections of README.md, and what they are called in README.zh.md, which has one more.
SECTIONS = {
    "Why": "为什么用它",
    "Install": "安装",
    "Quick start": "快速开始",
    "One command: a model for your texts": "一条命令完成领域适应",
    "Results": "结果",
    "Read on": "延伸阅读",
    "Citation": "引用",
}
OF_CHINESE = "中文任务：数据、预设和评测"

# Flags of other programs, which the pages compare with ours or run.
FOREIGN = {
    "docs/many_gpus.md": "num_processes use_fsdp fsdp_version fsdp_auto_wrap_policy fsdp_state_dict_type",
    "docs/migrate.md": "pooler_type mlp_only_train temp hard_negative_weight do_mlm mlm_weight mlm_probability "
    "evaluation_strategy pad_to_max_length overwrite_output_dir",
    "docs/supervised.md": "hard_negative_weight",
    "docs/zh/migrate.md": "train_set_file test_set_file scale dup_rate margin",
}

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 99}
MODERN = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
NAMES = {
    "llama": "princeton-nlp/Sheared-LLaMA-1.3B",
    "qwen3": "Qwen/Qwen3-0.6B",
    "modernbert": "answerdotai/ModernBERT-base",
}


@pytest.fixture
def folder(tmp_path, monkeypatch, sentences, generated, senteval, senteval_cn):
    """The working folder of somebody who follows the page."""
    monkeypatch.chdir(tmp_path)
    set_seed(0)
    # BERT's poolings need layers to average, and the save of a published checkpoint a pooler.
    save_tiny_transformer("bert-base-uncased", [*sentences, *CHINESE], width=32, layers=2)
    save_tiny_transformer("sentence-transformers/all-MiniLM-L6-v2", sentences, width=32, layers=4)
    Path("princeton-nlp").mkdir()
    for config in (LlamaConfig(**SIZE), Qwen3Config(**SIZE, num_key_value_heads=2), ModernBertConfig(**SIZE, **MODERN)):
        AutoModel.from_config(config).save_pretrained(NAMES[config.model_type])
        AutoTokenizer.from_pretrained("bert-base-uncased").save_pretrained(NAMES[config.model_type])
    for alias in ("bert-base-chinese", "princeton-nlp/sup-simcse-bert-base-uncased"):
        Path(alias).symlink_to(tmp_path / "bert-base-uncased")
    for alias in ("BAAI/bge-small-zh-v1.5", "BAAI/bge-large-zh-v1.5"):
        build_model("bert-base-chinese", pooling="cls").save_pretrained(alias)
    Path("old").mkdir()
    for path in Path("bert-base-uncased").iterdir():
        if path.name == "model.safetensors":
            torch.save(load_file(path), "old/pytorch_model.bin")
        else:
            Path("old", path.name).symlink_to(path.absolute())
    for name in ("sentences.txt", "paragraphs.txt", "wiki1m_for_simcse.txt"):
        Path(name).write_text("\n".join(sentences))
    Path("texts.txt").write_text("\n".join(generate_corpus(size=420).sentences))
    _write_chinese()
    pairs = zip(sentences, sentences[3:] + sentences[:3], strict=True)
    rows = [f"{a}\t{b}\t{score}" for score, (a, b) in enumerate(pairs)]
    for name in ("STSB-dev.tsv", "STSB-test.tsv", "pairs.tsv"):
        Path(name).write_text("\n".join(["sentence1\tsentence2\tscore", *rows]))
    rows = [f"{a},{b},{a} Not." for a, b in zip(sentences, sentences[::-1], strict=True)]
    Path("nli_for_simcse.csv").write_text("\n".join(["sent0,sent1,hard_neg", *rows]))
    rows = [f"{row % 2},Title {row},{text} Number {row}." for row, text in enumerate(sentences * 2)]
    Path("news.csv").write_text("\n".join(["class,title,text", *rows]))
    rows = [f"Ticket {row},{text} Number {row}." for row, text in enumerate(generate_corpus(size=700).sentences)]
    Path("tickets.csv").write_text("\n".join(["subject,body", *rows]))
    for part in range(2):
        Path(f"part-{part}.txt.gz").write_bytes(gzip.compress("\n".join(sentences).encode()))
    # The page's reader has the whole of them.
    monkeypatch.setattr("st_simcse.data.senteval.check_rows", lambda *args, **options: None)
    for module in ("sts", "sts_zh"):
        monkeypatch.setattr(f"st_simcse.evaluation.{module}.check_rows", lambda *args, **options: None)
    Path("senteval_cn").symlink_to(senteval_cn)
    Path("sts").symlink_to(generated / "sts/raw")
    Path("senteval").symlink_to(senteval)
    Path("examples").symlink_to(ROOT / "examples")
    return tmp_path


def _write_chinese():
    """Sentences, questions with answers, and CNSD's files where SimCSE-Chinese-Pytorch has them."""
    Path("zh.txt").write_text("\n".join(CHINESE), encoding="utf-8")
    Path("saved_model").mkdir()
    weights = AutoModel.from_pretrained("bert-base-chinese").state_dict()
    weights["embeddings.position_ids"] = torch.arange(512)[None]  # which transformers saved at that time
    torch.save({f"bert.{name}": weight + 0 for name, weight in weights.items()}, "saved_model/simcse_sup.pt")
    pairs = list(itertools.permutations(CHINESE, 2))
    answers = ["question\tanswer", *("\t".join(pair) for pair in pairs)]
    Path("faq.tsv").write_text("\n".join(answers), encoding="utf-8")
    for name in ("cnsd-snli", "STS-B"):
        Path("datasets", name).mkdir(parents=True)
    for name in ("train", "dev", "test"):
        rows = [f"2012{name}-{row:04}||{one}||{two}||{row % 6}" for row, (one, two) in enumerate(pairs)]
        Path(f"datasets/STS-B/cnsd-sts-{name}.txt").write_text("\n".join(rows), encoding="utf-8")
    rows = [
        {"sentence1": one, "sentence2": two, "gold_label": label}
        for one, two in pairs
        for label in ("entailment", "neutral", "contradiction")
    ]
    triplets = [
        dict(zip(("origin", "entailment", "contradiction"), triplet, strict=True))
        for triplet in itertools.permutations(CHINESE[:4], 3)
    ]
    for name, objects in (("cnsd_snli_v1.0.train.jsonl", rows), ("train.txt", triplets)):
        lines = [json.dumps(row, ensure_ascii=False) for row in objects]
        Path("datasets/cnsd-snli", name).write_text("\n".join(lines), encoding="utf-8")


def _blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, folder):
    blocks = _blocks(page, "python")
    assert len(blocks) == (ROOT / page).read_text().count("```python")
    if page == "docs/search.md":  # which begins where docs/adapt.md ends
        shutil.copytree("sentence-transformers/all-MiniLM-L6-v2", "adapted/model")
    for block in blocks:
        namespace = {}  # of its own: each runs by itself, in the folder that the ones before it left
        exec(compile(block, page, "exec"), namespace)
        trainer = namespace.get("trainer")
        if trainer is not None and trainer.evaluator is not None:
            assert any(key.endswith("spearman_cosine") for entry in trainer.state.log_history for key in entry)
    for line in "\n".join(_blocks(page, "bash")).replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            _run(words)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if "bert-base-uncased" in (ROOT / page).read_text()])
def test_the_code_of_a_page_trains_a_real_model(page, folder, pretrained):
    """Whose dimensions are of very different size, two of them constant; random weights show nothing of that."""
    for name in ("bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2"):
        shutil.rmtree(name)
        Path(name).symlink_to(pretrained)
    for block in _blocks(page, "python"):
        if "bert-base-uncased" in block:
            namespace = {}
            exec(compile(block, page, "exec"), namespace)
            if isinstance(model := namespace.get("model"), SentenceTransformer):
                assert torch.tensor(model.encode(["A man plays a guitar."])).isfinite().all()


def test_a_variant_is_short():
    edit, term = _blocks("docs/variants.md", "python")
    assert len(edit.splitlines()) < 20
    assert len(term.splitlines()) < 40


def _run(words):
    """What a person types, cut short: one step, the presets' large model being the tiny one here."""
    match words:
        case ["pip", *_] | ["make", *_]:
            pass  # what CI does before it comes here
        case ["cat", *_]:
            subprocess.run(" ".join(words), shell=True, check=True)
        case ["st-simcse", "serve" | "demo" | "data", *_]:
            pass  # test_serve, test_demo, test_data
        case ["st-simcse", "train", *options]:
            with contextlib.redirect_stdout(None):
                cli.main(["train", *options, "--max_steps", "1", "--report_to", "none", "--use_cpu", "--bf16", "false"])
        case ["st-simcse", "compare", *options]:  # each run here instead of in a process of its own
            with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(None):
                patch.setattr(runs, "in_a_process", lambda one, keep_model: runs.train_and_measure(one))
                cli.main(["compare", *options, "--max_steps", "1", "--use_cpu", "--bf16", "false", "--seeds", "0"])
        case ["st-simcse", "adapt", *options]:  # in place too, with one seed
            with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(None):
                patch.setattr(runs, "in_a_process", lambda one, keep_model: runs.train_and_measure(one))
                patch.setattr(budget, "SEEDS", 1)
                patch.setattr(budget, "FEWEST_SEEDS", 1)
                cli.main(["adapt", *options])
        case ["st-simcse", *rest]:
            cli.main(rest)
        case ["torchrun", "--nproc_per_node=2", *options]:
            torchrun(2, [*options, *SHORT], Path("torchrun.txt"), Path.cwd(), CUDA_VISIBLE_DEVICES="")
        case ["accelerate", "launch", *options]:
            as_on_gpus = ["--multi_gpu", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
            _launch(["-m", "accelerate.commands.launch", "--main_process_port=0", *as_on_gpus, *options])
        case _:
            pytest.fail(f"no way to run {words}")


SHORT = ["--batch", "4", "--max_steps", "1"]


def _launch(command):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *command, *SHORT]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", (ROOT / page).read_text()):
            assert link.startswith("https://") or (ROOT / page).parent.joinpath(link).exists(), (page, link)


def test_every_public_name_is_in_the_reference():
    pages = "".join(path.read_text() for path in (ROOT / "docs/api").glob("*.md"))
    lacking = set(st_simcse.__all__) - set(re.findall(r"^::: st_simcse\.(\w+)$", pages, re.MULTILINE))
    assert not lacking, f"add `::: st_simcse.NAME` to a page of docs/api for {lacking}"


def test_the_options_table_has_every_flag_and_what_is_refused():
    tables = runpy.run_path(str(ROOT / "docs/mkdocs/hooks.py"))["options_tables"]()
    described, goes_with = (
        {line.split("`")[1]: line for line in table.splitlines()[2:]} for table in tables.split("\n\n")
    )
    flags = set(re.findall(r"`--(\w+)`", tables))
    of_losses = {"temperature", "symmetric", "directions", "partition_mode", "projection_head", "mini_batch_size"}
    of_losses |= {"gather_across_devices", "mask_duplicates"}
    assert flags == {field.name for field in dataclasses.fields(LossArguments)} - of_losses
    assert (
        "*Improving Contrastive Learning of Sentence Embeddings with Focal InfoNCE*, 2023" in described["FocalMargin"]
    )
    assert "`--momentum_queue_momentum`: " in described["MomentumQueue"]
    assert "Default: `0.995`." in described["MomentumQueue"]
    columns = {name: [cell.strip() for cell in line.strip("|").split("|")[1:]] for name, line in goes_with.items()}
    assert columns.keys() == described.keys()
    assert columns["FocalMargin"] == ["yes"] * 5
    assert columns["OwnNegativeWeight"] == ["refused", "yes", "yes", "yes", "yes"]
    assert columns["MomentumQueue"] == ["yes", "yes", "yes", "yes", "refused"]
    assert columns["DropoutFreeNegatives"] == ["yes", "refused", "refused", "yes", "yes"]


def test_the_options_table_is_in_the_page_itself():
    """For who reads the file; on the site the names lead to the reference."""
    hooks = runpy.run_path(str(ROOT / "docs/mkdocs/hooks.py"))
    page = (ROOT / "docs/options.md").read_text()
    assert page == hooks["with_options"](page), "python docs/mkdocs/hooks.py writes the tables of docs/options.md"
    assert "\n| `OwnNegativeWeight` | refused | yes | yes | yes | yes |\n" in page
    assert "][st_simcse." not in page
    on_site = hooks["on_page_markdown"](
        page, SimpleNamespace(file=SimpleNamespace(src_uri="options.md")), SimpleNamespace(repo_url=""), None
    )
    assert "\n| [`OwnNegativeWeight`][st_simcse.OwnNegativeWeight] | refused | yes | yes | yes | yes |" in on_site
    assert on_site.count("OwnNegativeWeight`") == 2  # once a table: in place of the page's own


def test_the_options_table_comes_back_after_an_edit():
    with_options = runpy.run_path(str(ROOT / "docs/mkdocs/hooks.py"))["with_options"]
    page = (ROOT / "docs/options.md").read_text()
    assert with_options(page.replace("| refused |", "| yes |")) == page


def test_examples_are_what_a_reader_can_type():
    """Not with pytest's fixtures: conftest.py gives the models and data that they name."""
    for path in (ROOT / "st_simcse").rglob("*.py"):
        assert "getfixture" not in path.read_text(), path


def test_code_wraps_on_the_site():
    rules = dict(re.findall(r"^(\S[^{\n]*) \{ (.*) \}$", (ROOT / "docs/site.css").read_text(), re.MULTILINE))
    assert rules[".md-typeset pre > code"] == "white-space: pre-wrap; overflow-wrap: anywhere;"
    # Names and flags stay whole. Listings with numbers are no tables, where they would be a single line.
    assert [selector for selector, rule in rules.items() if "nowrap" in rule] == [".md-typeset td code"]
    assert "linenums_style: pymdownx-inline" in (ROOT / "mkdocs.yml").read_text()


def test_links_of_the_site_lead_to_its_pages_or_to_the_repository():
    hook = runpy.run_path(str(ROOT / "docs/mkdocs/hooks.py"))["on_page_markdown"]

    def rewritten(page, text, address=""):
        config = SimpleNamespace(repo_url=address)
        return hook(text, SimpleNamespace(file=SimpleNamespace(src_uri=page)), config, None)

    assert rewritten("index.md", "[a](docs/pooling.md#look-at-the-space)") == "[a](pooling.md#look-at-the-space)"
    assert rewritten("pooling.md", "[a](../README.md) [b](migrate.md)") == "[a](index.md) [b](migrate.md)"
    assert rewritten("index.md", "[a](examples/distributed.py)") == "[a](examples.md#distributedpy)"
    assert (
        rewritten("zh/migrate.md", "[a](../pooling.md) [b](../../README.zh.md)") == "[a](../pooling.md) [b](index.md)"
    )
    assert rewritten("zh/index.md", "[a](docs/zh/migrate.md) [b](README.md)") == "[a](migrate.md) [b](../index.md)"
    assert rewritten("pooling.md", "![a](../benchmarks/growth.png)") == "![a](benchmarks/growth.png)"
    source = "[a](../tests/combinations.py)"
    assert rewritten("variants.md", source) == "a"
    assert rewritten("variants.md", source, "https://example.org/me/it/") == (
        "[a](https://example.org/me/it/blob/main/tests/combinations.py)"
    )
    assert rewritten("index.md", "[a](https://arxiv.org) `x[0](y)`") == "[a](https://arxiv.org) `x[0](y)`"


def _sections(page):
    """Each section's heading, and what its code has: languages, our names, commands."""
    names = set(st_simcse.__all__)
    for section in (ROOT / page).read_text(encoding="utf-8").split("\n## ")[1:]:
        languages = re.findall(r"```(\w+)\n", section)
        code = "".join(re.findall(r"```.*?```", section, re.DOTALL))
        commands = re.findall(r"^st-simcse \w+", code, re.MULTILINE)
        yield section.partition("\n")[0], (languages, commands, names & set(re.findall(r"\w+", code)))


def test_the_chinese_readme_has_the_sections_and_the_code_of_the_english_one():
    english = {SECTIONS[heading]: code for heading, code in _sections("README.md")}
    chinese = dict(_sections("README.zh.md"))
    assert chinese.pop(OF_CHINESE)[1] == [f"st-simcse {command}" for command in ("data", "train", "train", "evaluate")]
    assert list(chinese) == list(english) == list(SECTIONS.values())
    assert chinese == english


def test_chinese_pages_are_in_the_site_and_say_their_language():
    hooks = runpy.run_path(str(ROOT / "docs/mkdocs/hooks.py"))
    pages = re.findall(r"zh/\w+\.md", (ROOT / "mkdocs.yml").read_text())
    assert {"README.zh.md", *(f"docs/{page}" for page in pages[1:])} == set(CHINESE_PAGES)
    assert hooks["PAGES"]["README.zh.md"] == pages[0]
    for page, language in (("zh/migrate.md", "zh-Hans"), ("migrate.md", "en")):
        found = hooks["on_post_page"]('<html lang="en">', SimpleNamespace(file=SimpleNamespace(src_uri=page)), None)
        assert found == f'<html lang="{language}">'


@pytest.mark.parametrize("page", CHINESE_PAGES)
def test_chinese_pages_are_set_as_chinese_is(page):
    """Full-width punctuation beside Chinese characters, and no line breaks inside paragraphs, which would be spaces."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"`[^`]*`|\]\([^)]*\)", "`", text)
    assert re.findall(r"[\u4e00-\u9fff][,;:!?()].{0,9}|.{0,9}[,;:!?()][\u4e00-\u9fff]", text) == []
    kinds = [line[:1] if line[:1] in ("", "#", "|", "-") else "text" for line in text.splitlines()]
    assert ("text", "text") not in set(itertools.pairwise(kinds))


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_a_page_is_short_and_opens_with_a_summary(page):
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200
    heading, summary = "\n".join(lines).split("\n\n")[:2]
    assert re.fullmatch("# .+", heading)
    assert len(summary.splitlines()) <= 3
    assert not summary.startswith(("#", "|", "```", "-"))


def _text(page):
    """A page's text in one line, so that phrases are found across line breaks."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def _flags_of_scripts():
    """The flags of the scripts of benchmarks/ and examples/, and torchrun's."""
    scripts = [path.read_text() for folder in ("benchmarks", "examples") for path in (ROOT / folder).glob("*.py")]
    pattern = r'"--(\w+)"|^    (\w+): .*field\('
    return {name for text in scripts for pair in re.findall(pattern, text, re.MULTILINE) for name in pair} | {
        "nproc_per_node"
    }


def test_flags_that_pages_name_exist(capsys):
    flags = {}
    for command in cli.COMMANDS:
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        flags[command] = set(re.findall(r"--(\w+)", capsys.readouterr().out))
    for command in ("adapt", "compare"):  # which pass what they do not know on to train
        flags[command] |= flags["train"]
    known = _flags_of_scripts().union(*flags.values())
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
        named = set(re.findall(r"(?<![\w-])--([a-z]\w*)", text))
        assert named - known - set(FOREIGN.get(page, "").split()) == set(), page
        for command, options in re.findall(r"st-simcse (\w+)((?: +[^`#\n]+(?:\n(?=--))?)*)", text):
            if command in flags:
                assert set(re.findall(r"(?<![\w-])--([a-z]\w*)", options)) <= flags[command], (page, command, options)


def _defaults():
    """By the name of an argument or field, the defaults that the public classes, functions and methods give it."""
    public = [getattr(st_simcse, name) for name in st_simcse.__all__]
    public += [
        method for one in public if inspect.isclass(one) for method in vars(one).values() if inspect.isfunction(method)
    ]
    found = {}
    for one in public:
        with contextlib.suppress(TypeError, ValueError):
            for name, parameter in inspect.signature(one).parameters.items():
                if parameter.default is not inspect.Parameter.empty:
                    found.setdefault(name, []).append(parameter.default)
    return found


def _value(words):
    try:
        return ast.literal_eval(words)
    except (SyntaxError, ValueError):
        return words


def _defaults_named_on(page):
    """Names and values: those of tables with a column of defaults, and those of sentences."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for header, rows in re.findall(r"^(\|.*)\n\|[- |]+\|\n((?:\|.*\n)+)", text, re.MULTILINE):
        columns = [cell.strip() for cell in header.strip("|").split("|")]
        for row in rows.splitlines():
            cells = dict(zip(columns, (cell.strip() for cell in row.strip("|").split("|")), strict=False))
            yield from re.findall(r"`(\w+)=([^`]+)`", cells.get("fields and defaults", ""))
            if "default" in cells:
                values = [value.strip("` ") for value in cells["default"].split(",")]
                # Beside a name, the flag for it may stand in parentheses.
                yield from zip(re.findall(r"`(\w+)`", cells[columns[0]]), values, strict=True)
    plain = " ".join(text.split())
    yield from re.findall(r"`(\w+)=([^`]+)`,? (?:which is )?the default\b", plain)
    yield from re.findall(r"by default \(`(\w+)=([^`]+)`\)", plain)


def test_defaults_that_pages_name_are_those_of_the_code():
    defaults = _defaults()
    named = [(page, *default) for page in PAGES for default in _defaults_named_on(page)]
    assert named
    assert [each for each in named if _value(each[2]) not in defaults.get(each[1], [])] == []


def _preset(name, *phrases):
    """The phrases, with the preset's options in their places; numbers as the pages write them."""
    values = {}
    for option, value in PRESETS[name].items():
        number = _value(value)
        is_small = isinstance(number, float) and 0 < number < 0.001
        values[option] = f"{number:.0e}".replace("e-0", "e-") if is_small else value
    return [phrase.format(**values, steps=f"{_value(values.get('max_steps', '0')):,}") for phrase in phrases]


NUMBERS = {
    "docs/large_batches.md": [
        f"{TILE_ROWS:,} rows and 2^{TILE_ELEMENTS.bit_length() - 1} elements ({TILE_ELEMENTS * 4 // 2**20} MiB)",
        f"at most {EDITED_TILE_ROWS} rows",
    ],
    "docs/command_line.md": [
        f"http://127.0.0.1:{ServeArguments.port}",
        f"queries of up to {search_page.MAX_QUERY_LENGTH:,} characters",
        f"up to {search_page.MAX_PAIRS} lines",
        f"up to {search_page.MAX_BATCH_SIZE} at a time",
    ],
    "docs/data_formats.md": [f"first {_HEAD_LINES} lines", f"more than {MAX_ROW_BYTES // 2**20} MiB"],
    "docs/zh/data_formats.md": [f"前 {_HEAD_LINES} 行", f"超过 {MAX_ROW_BYTES // 2**20} MiB"],
    "docs/reproduce.md": [
        f"test set of {STS_ROWS['SICK-R']:,} pairs",
        *_preset(
            "unsup-bert-base",
            "evaluation every {eval_steps} steps",
            "temperature {temperature}",
            "{max_seq_length} tokens",
        ),
        *_preset("sup-bert-base", "or {num_train_epochs} (supervised)", "batches of {per_device_train_batch_size}"),
    ],
    "docs/llms.md": [
        *_preset(
            "llm2vec",
            "batch size {per_device_train_batch_size}, learning rate {learning_rate}, {steps} steps",
            "{max_seq_length} tokens, temperature {temperature}",
            "r {lora_r}, gradient checkpointing, a checkpoint every {save_steps} steps",
            "| dropout {dropout} |",
            "| alpha {lora_alpha}, adapters on all seven linear layers of a block, with a dropout of {lora_dropout} |",
        ),
        *_preset(
            "modernbert",
            "learning rate {learning_rate}, batches of {per_device_train_batch_size}",
            "in mini-batches of {mini_batch_size} rows",
            "temperature {temperature}",
            "{max_seq_length} tokens, an evaluation every {eval_steps} steps, and a dropout of {dropout}",
        ),
        f"{float(PRESETS['modernbert']['warmup_steps']):.0%} warm-up",
    ],
    "docs/recipes.md": _preset("language-model", "power {whiten_power}", "`{views}` at learning rate {learning_rate}"),
}


@pytest.mark.parametrize("page", NUMBERS)
def test_numbers_that_pages_name_are_those_of_the_code(page):
    text = _text(page)
    assert [phrase for phrase in NUMBERS[page] if phrase not in text] == []


def test_pages_name_all_commands_presets_columns_and_sets():
    commands = (ROOT / "docs/command_line.md").read_text()
    assert [command for command in cli.COMMANDS if f"\nst-simcse {command}" not in commands] == []
    pages = "".join((ROOT / page).read_text() for page in PAGES)
    papers = [name for name in PRESETS if re.fullmatch("(unsup|sup)-(bert|roberta)-(base|large)", name)]
    assert len(papers) == 8
    assert "The eight settings of the paper" in _text("docs/reproduce.md")
    assert [name for name in PRESETS.keys() - set(papers) if f"`{name}`" not in pages] == []
    formats = (ROOT / "docs/data_formats.md").read_text()
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`\n]+`", formats))))
    usual = {name for reader in Reader.__subclasses__() for columns in reader.usual for name in columns}
    of_sick = {"sentence_A", "sentence_B", "relatedness_score", "entailment_label", "entailment_judgment"}
    assert usual - of_sick - named == set()
    assert [name for name in SETS if f"\n| `{name}` |" not in formats] == []


def test_pages_say_what_options_do_not_go_with():
    variants = (ROOT / "docs/variants.md").read_text()
    names = {name for option in OPTIONS for name in getattr(option, "incompatible", ())}
    assert [name for name in names if f"`{name}`" not in variants.split("| name in `incompatible`")[1]] == []
    refused = next(line for line in (ROOT / "docs/many_gpus.md").read_text().splitlines() if "`torch_compile`" in line)
    sharded = {option.__name__ for option in OPTIONS if getattr(option, "incompatible", frozenset()) >= SHARDED}
    assert {option.__name__ for option in OPTIONS if f"`{option.__name__}`" in refused} == sharded


def test_architectures_without_dropout_are_those_that_the_page_names():
    (names,) = re.findall(r"dropout of 0\.1\. (.*?) have none by default", _text("docs/backbones.md"))
    names = re.split(r", | and ", names)
    for name, architecture in ARCHITECTURES.items():
        config = CONFIG_MAPPING[architecture.model_type]()
        values = [getattr(config, field) for field in architecture.dropouts]
        assert not values or any(values) != any(one in name for one in names), name
