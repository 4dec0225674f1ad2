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

test:
	pytest

bench:
	python -m benchmarks

# What the browser demo needs, and the page, of the results of the default.
demo:
	npm ci --prefix docs/demo --ignore-scripts --no-audit --no-fund
	python docs/demo/make.py results
