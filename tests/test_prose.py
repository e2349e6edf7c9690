"""The prose check finds phrases in every kind of text that users read, and the texts of this project have none."""

import pytest

from tests.prose import ROOT, found_in


def test_there_is_nothing_to_find():
    assert list(found_in(ROOT)) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("README.md", "Some words.\nOf two models the better is\nkept."),
        ("docs/page.md", "- An item.\n- Words. Of two models the better is kept."),
        ("docs/page.md", "| a | b |\n| --- | --- |\n| Of two models | c |"),
        ("st_simcse/cli/module.py", '"""Of two models the better is kept."""'),
        (
            "st_simcse/module.py",
            'def f():\n    """Returns it.\n\n    Args:\n        a: Of two models the better.\n    """',
        ),
        ("st_simcse/module.py", 'raise ValueError(f"Of {number} models the better is kept.")'),
        ("examples/module.py", 'help = "Of two models the better."'),
    ],
)
def test_a_phrase_is_found_wherever_it_is(tmp_path, path, text):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text)
    (found,) = found_in(tmp_path)
    assert found.startswith(f"{path}:")
    assert "begin with the subject" in found


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("README.md", "```\nOf two models\n```\n\n# Of mice and men\n\n`Of two` models."),
        ("docs/zh/page.md", "Of two models the better is kept."),
        ("README.zh.md", "Of two models the better is kept."),
        ("tests/test_module.py", '"""Of two models the better is kept."""'),
        ("st_simcse/module.py", 'def f():\n    """Returns it.\n\n    >>> print("Of two models")\n    """'),
    ],
)
def test_code_headings_and_other_languages_are_left_out(tmp_path, path, text):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text)
    assert list(found_in(tmp_path)) == []
