"""The order of the folders: the package keeps to it, and what does not is found."""

import pytest

from tests.architecture import ORDER, PACKAGE, faults


def test_the_package_keeps_to_the_order():
    assert faults() == []


def test_every_folder_has_a_place():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == {*ORDER} - {""}


@pytest.mark.parametrize(
    ("file", "code", "fault"),
    [
        (
            "data/readers.py",
            "def read():\n    from st_simcse.losses import base",
            "st_simcse.data.readers imports st_simcse.losses.base",
        ),
        (
            "data/readers.py",
            "if TYPE_CHECKING:\n    from st_simcse.cli.train import run",
            "imports st_simcse.cli.train, which comes after",
        ),
        ("data/readers.py", "from st_simcse import build_model", "imports from st_simcse: import from the module"),
        ("objective/batch.py", "from st_simcse.objective import problem", "a circle of imports: "),
        ("losses/base.py", "x = 1\n" * 200, "losses/base.py has 202 lines, over 200"),
        (
            "losses/base.py",
            f"def long():\n{'    x = 1' + chr(10)}" + "    x = 1\n" * 60,
            "st_simcse.losses.base.long has 61 lines",
        ),
    ],
)
def test_what_is_against_the_order_is_found(tmp_path, file, code, fault):
    package = tmp_path / "st_simcse"
    for name in ("data/readers.py", "losses/base.py", "cli/train.py", "objective/batch.py", "objective/problem.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text('"""A module."""\n')
    (package / "objective/problem.py").write_text('"""A module."""\nfrom st_simcse.objective import batch\n')
    assert faults(package) == []
    (package / file).write_text(f'"""A module."""\n{code}\n')
    assert fault in "\n".join(faults(package))
