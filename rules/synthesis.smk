# Synthetic images, a job a shard. The only input is the network.


rule synthesize:
    input:
        teacher=f"{RESULTS}/models/{{model}}/teacher.safetensors",
    output:
        shard=f"{RESULTS}/synthetic/{SHARD}.h5",
    log:
        f"{LOGS}/synthesize/{SHARD}.log",
    benchmark:
        f"{BENCHMARKS}/synthesize/{SHARD}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=megabytes(3000),
        runtime=minutes(120),
    params:
        classes=classes,
        settings=lookup(within=FLAGS, dpath="synthesis/{model}/{image_set}"),
        code=digest("stages.synthesize"),
    message:
        "Synthesizing {wildcards.shard} of {wildcards.model}"
        " ({wildcards.image_set}, seed {wildcards.seed})."
    shell:
        "python -m synq synthesize --teacher {input.teacher:q} --output {output.shard:q}"
        " --classes {params.classes:q} --seed {wildcards.seed} {params.settings:q}"
        " --threads {threads} > {log:q} 2>&1"
