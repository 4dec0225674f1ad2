# Full-precision networks. All rules end in the same file, so the other stages do not care. What runs
# where snakemake does is killed by no scheduler, and what failed would fail again: retries: 0.


rule fetch:
    input:
        reads("model", layout.TEACHER),
    output:
        teacher=at(layout.TEACHER),
        download=ensure(
            at(layout.DOWNLOAD),
            non_empty=True,
            sha256=lambda wildcards: PLAN.models[wildcards.model].sha256.lower(),
        ),
    log:
        f"{LOGS}/fetch/{{model}}.log",
    benchmark:
        f"{BENCHMARKS}/fetch/{{model}}.tsv"
    wildcard_constraints:
        model=models_from(*FILES),
    retries: 0
    localrule: True
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=megabytes(2000),
        runtime=minutes(30),
    params:
        settings=flags_of("model", "model"),
        record=record_of("model", "model"),
        factory=factory,
        code=code("fetch"),
    message:
        "Fetching the pretrained {wildcards.model}."
    shell:
        "python -m synq fetch --name {wildcards.model:q} {params.settings:q}"
        " --download {output.download:q} --output {output.teacher:q} > {log:q} 2>&1"


# A zoo's file stays in the store, which other models and other folders share.
rule fetch_zoo:
    output:
        teacher=at(layout.TEACHER),
    log:
        f"{LOGS}/fetch_zoo/{{model}}.log",
    benchmark:
        f"{BENCHMARKS}/fetch_zoo/{{model}}.tsv"
    wildcard_constraints:
        model=models_from(*ZOOS),
    retries: 0
    localrule: True
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=megabytes(2000),
        runtime=minutes(30),
    params:
        settings=flags_of("model", "model"),
        record=record_of("model", "model"),
        code=code("fetch"),
    message:
        "Fetching the pretrained {wildcards.model} of the zoo."
    shell:
        "python -m synq fetch-zoo --name {wildcards.model:q} {params.settings:q}"
        " --output {output.teacher:q} > {log:q} 2>&1"


# Whether the network fits the methods of the grid, in seconds and before any image is made. No record
# is kept of the parameters: what an inspection reruns for is a new teacher. Where it has run before,
# `misfits` looks what it found, for methods that came later.
rule inspect:
    input:
        teacher=at(layout.TEACHER),
    output:
        inspection=at(layout.INSPECTION),
    log:
        f"{LOGS}/inspect/{{model}}.log",
    benchmark:
        f"{BENCHMARKS}/inspect/{{model}}.tsv"
    retries: 0
    localrule: True
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=megabytes(3000),
        runtime=minutes(10),
    params:
        required=lambda wildcards, threads: needs(PLAN, wildcards.model),
        recipe=lambda wildcards, threads: PROVENANCE.inspected(wildcards.model),
    message:
        "Looking whether {wildcards.model} fits."
    shell:
        "python -m synq inspect --teacher {input.teacher:q} --require {params.required:q}"
        " --recipe {params.recipe:q} --json {output.inspection:q} > {log:q} 2>&1"
