# Full-precision networks. All rules end in the same file, so the other stages do not care.


rule fetch:
    output:
        teacher=f"{RESULTS}/models/{{model}}/teacher.safetensors",
        download=ensure(
            f"{RESULTS}/models/{{model}}/download",
            non_empty=True,
            sha256=lambda wildcards: PLAN.models[wildcards.model].sha256.lower(),
        ),
    log:
        f"{LOGS}/fetch/{{model}}.log",
    benchmark:
        f"{BENCHMARKS}/fetch/{{model}}.tsv"
    wildcard_constraints:
        model=models_from(*FILES),
    retries: 1
    localrule: True
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=megabytes(2000),
        runtime=minutes(30),
    params:
        settings=flags_of("model", "model"),
        factory=flags_of("factory", "model"),
        code=code("fetch"),
    message:
        "Fetching the pretrained {wildcards.model}."
    shell:
        "python -m synq fetch --name {wildcards.model:q} {params.settings:q}"
        " --download {output.download:q} --output {output.teacher:q} > {log:q} 2>&1"


# A zoo's file stays in the store, which other models and other folders share.
rule fetch_zoo:
    output:
        teacher=f"{RESULTS}/models/{{model}}/teacher.safetensors",
    log:
        f"{LOGS}/fetch_zoo/{{model}}.log",
    benchmark:
        f"{BENCHMARKS}/fetch_zoo/{{model}}.tsv"
    wildcard_constraints:
        model=models_from(*ZOOS),
    retries: 1
    localrule: True
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=megabytes(2000),
        runtime=minutes(30),
    params:
        settings=flags_of("model", "model"),
        places=places,
        code=code("fetch"),
    message:
        "Fetching the pretrained {wildcards.model} of the zoo."
    shell:
        "python -m synq fetch-zoo --name {wildcards.model:q} {params.settings:q}"
        " {params.places:q} --output {output.teacher:q} > {log:q} 2>&1"
