.PHONY: setup format check test bench demo

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

# The documentation as HTML. What the variable leaves out is a banner about a future version.
.PHONY: site
site:
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

test:
	pytest

bench:
	python -m benchmarks

# What the browser demo needs, and the page, of the results of the default.
demo:
	npm ci --prefix docs/demo --ignore-scripts --no-audit --no-fund
	python docs/demo/make.py results
