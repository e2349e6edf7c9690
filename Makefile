# make demo   sets up a virtual environment in .venv and runs the demo
# make test   sets it up with the test tools, then lints, checks types and tests
.PHONY: demo test

.venv/bin/python:
	python3 -m venv .venv

demo: .venv/bin/python
	.venv/bin/pip install --editable .
	.venv/bin/st-simcse demo

test: .venv/bin/python
	.venv/bin/pip install --editable '.[test]'
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/pytest -n auto --dist worksteal
