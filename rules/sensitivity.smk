# Which layers cost accuracy. Nothing asks for it but its file names.


rule sensitivity:
    input:
        teacher=at(layout.TEACHER),
        shards=shards,
    output:
        record=f"{at(layout.SENSITIVITY)}.json",
        others=multiext(at(layout.SENSITIVITY), ".csv", ".md"),
    log:
        f"{LOGS}/sensitivity/{RUN}.log",
    benchmark:
        f"{BENCHMARKS}/sensitivity/{RUN}.tsv"
    conda:
        ENVIRONMENT
    threads: 2
    resources:
        mem_mb=megabytes(4000),
        runtime=within(LIMITS.sensitivity, "model", "method"),
        gpu=int(GPUS > 0),
    params:
        device=device,
        folder=folder_of_shards,
        shards=names_of_shards,
        image_set=image_set,
        settings=flags_of("sensitivity", "model", "method"),
        record=record_of("sensitivity", "model", "method"),
        code=code("sensitivity"),
        made_from=made_from("sensitivity"),
    message:
        "Quantizing each layer of {wildcards.model} alone at {wildcards.bits}"
        " ({wildcards.method}, seed {wildcards.seed})."
    shell:
        "python -m synq sensitivity --teacher {input.teacher:q}"
        " --shard-folder {params.folder:q} --shards {params.shards:q}"
        " --bits {wildcards.bits:q} --method {wildcards.method:q} --image-set {params.image_set:q}"
        " --seed {wildcards.seed:q} {params.settings:q} --output {output.record:q}"
        " --device {params.device:q} --threads {threads} > {log:q} 2>&1"


rule sensitivity_figure:
    input:
        record=f"{at(layout.SENSITIVITY)}.json",
    output:
        figure=f"{at(layout.SENSITIVITY)}.svg",
    log:
        f"{LOGS}/sensitivity_figure/{RUN}.log",
    benchmark:
        f"{BENCHMARKS}/sensitivity_figure/{RUN}.tsv"
    retries: 0
    localrule: True
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=megabytes(1000),
        runtime=minutes(10),
    params:
        code=code("sensitivity"),
        made_from=made_from("sensitivity"),
    message:
        "Drawing {output.figure}."
    shell:
        "python -m synq sensitivity-figure --sensitivity {input.record:q}"
        " --output {output.figure:q} > {log:q} 2>&1"
