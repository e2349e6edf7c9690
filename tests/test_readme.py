"""The README's code runs as it stands, on small files and a tiny model under its names."""

import gzip
import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_readmes_code_runs(tmp_path, monkeypatch, tiny_bert, sentences):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert-base-uncased").symlink_to(tiny_bert)
    (tmp_path / "sentences.txt").write_text("\n".join(sentences))
    rows = [
        f"{a}\t{b}\t{score}" for score, (a, b) in enumerate(zip(sentences, sentences[3:] + sentences[:3], strict=True))
    ]
    (tmp_path / "STSB-dev.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]))
    rows = [f"{a},{b},{a} Not." for a, b in zip(sentences, sentences[::-1], strict=True)]
    (tmp_path / "nli_for_simcse.csv").write_text("\n".join(["sent0,sent1,hard_neg", *rows]))
    for part in range(2):
        (tmp_path / f"part-{part}.txt.gz").write_bytes(gzip.compress("\n".join(sentences).encode()))
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 5
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["model"].get_embedding_dimension() == 32
    assert next(iter(namespace["stream"]))["sentence"] in sentences
