.PHONY: setup format check test bench site

setup:
	python -m pip install -e '.[dev]'

format:
	ruff format .
	ruff check --fix .
	snakefmt .

check:
	ruff format --check .
	ruff check .
	snakefmt --check .
	mypy
	snakemake --lint
	$(MAKE) site

test:
	pytest

# The banner of MkDocs' theme is about a future version.
site:
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

bench:
	python -m benchmarks
