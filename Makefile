.PHONY: setup format check test bench

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
