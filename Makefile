# make demo   sets up a virtual environment in .venv and runs the demo
# make test   sets it up with the test tools, then checks code, types and prose and runs the fast tests
# make test-all   the same with all tests
# make coverage   sets it up with the test tools, and prints the coverage by the fast tests, then by all
# make docs   sets it up with the site's tools and builds the site, in build/site
.PHONY: demo test test-all coverage checks docs

.venv/bin/python:
	python3 -m venv .venv

demo: .venv/bin/python
	.venv/bin/pip install --editable .
	.venv/bin/st-simcse demo

checks: .venv/bin/python
	.venv/bin/pip install --editable '.[test]'
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python -m tests.prose
	.venv/bin/codespell

test: checks
	@echo 'Now the fast tests, some minutes on two cores. For one file while you work: .venv/bin/pytest tests/test_losses.py'
	.venv/bin/pytest -n auto --dist worksteal

test-all: checks
	@echo 'Now all tests: 12 to 19 minutes on two cores, and five more with real data. Without it, its tests are skipped; the'
	@echo 'end says which, why, and what fetches it.'
	.venv/bin/pytest -n auto --dist worksteal -m ''

coverage: .venv/bin/python
	.venv/bin/pip install --editable '.[test]'
	@echo 'The lines and branches that the fast tests cover. "Missing" names the others: 12->15 is a branch.'
	.venv/bin/pytest -n auto --dist worksteal --cov
	@echo 'Now those that all tests cover.'
	.venv/bin/pytest -n auto --dist worksteal --cov -m ''

docs: .venv/bin/python
	.venv/bin/pip install --editable '.[docs]'
	.venv/bin/mkdocs build --strict
	@echo "The site is in build/site. To read it: .venv/bin/python -m http.server --bind 127.0.0.1 --directory build/site"
