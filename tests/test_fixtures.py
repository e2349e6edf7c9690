import os
import tempfile
from pathlib import Path

import datasets
import pytest

from conftest import RealData


def test_the_cache_of_datasets_is_the_sessions_own():
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    assert str(cache) == os.environ["HF_DATASETS_CACHE"]
    assert cache.parent == Path(tempfile.gettempdir())
    assert cache.is_dir()


def test_missing_real_data_skips_or_fails(tmp_path, monkeypatch):
    (tmp_path / "sts").mkdir()
    monkeypatch.delenv("ST_SIMCSE_REQUIRE_DATA", raising=False)
    with pytest.raises(pytest.skip.Exception, match="`st-simcse data --output_dir data` fetches it, or ST_SIMCSE_DATA"):
        RealData(tmp_path) / "sts" / "STS12.tsv"
    monkeypatch.setenv("ST_SIMCSE_REQUIRE_DATA", "1")
    with pytest.raises(pytest.fail.Exception, match="no real data"):
        RealData(tmp_path) / "sts" / "STS12.tsv"
    (tmp_path / "sts" / "STS12.tsv").touch()
    for path in ("sts/STS12.tsv", "sts/raw"):  # `st-simcse data` has no folder "raw"
        assert (RealData(tmp_path) / path).exists()
