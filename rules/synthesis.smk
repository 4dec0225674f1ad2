# The images that students are trained on, a job a shard. Synthesis has the network as its only
# input; an image set with source: real reads the few real images that the user names. The inspection
# only has to be there: what it says changes no image.


rule synthesize:
    input:
        teacher=at(layout.TEACHER),
        inspection=ancient(at(layout.INSPECTION)),
    output:
        shard=at(layout.SHARD),
    log:
        f"{LOGS}/synthesize/{SHARD}.log",
    benchmark:
        f"{BENCHMARKS}/{layout.SHARD_SECONDS}"
    wildcard_constraints:
        image_set=image_sets_from("synthesis"),
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=megabytes(3000),
        runtime=minutes(time_of_shard),
        gpu=int(GPUS > 0),
    params:
        classes=classes,
        device=device,
        settings=flags_of("images", "model", "image_set"),
        record=record_of("images", "model", "image_set"),
        code=code("synthesize"),
        made_from=made_from("synthesize"),
    message:
        "Synthesizing {wildcards.shard} of {wildcards.model}"
        " ({wildcards.image_set}, seed {wildcards.seed})."
    shell:
        "python -m synq synthesize --teacher {input.teacher:q} --output {output.shard:q}"
        " --classes {params.classes:q} --seed {wildcards.seed:q} {params.settings:q}"
        " --device {params.device:q} --threads {threads} > {log:q} 2>&1"


rule collect:
    input:
        reads("real", layout.SHARD),
        teacher=at(layout.TEACHER),
        inspection=ancient(at(layout.INSPECTION)),
    output:
        shard=at(layout.SHARD),
    log:
        f"{LOGS}/collect/{SHARD}.log",
    benchmark:
        f"{BENCHMARKS}/{layout.SHARD_SECONDS}"
    wildcard_constraints:
        image_set=image_sets_from("real"),
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=megabytes(3000),
        runtime=minutes(time_of_shard),
        gpu=int(GPUS > 0),
    params:
        classes=classes,
        device=device,
        settings=flags_of("images", "model", "image_set"),
        record=record_of("images", "model", "image_set"),
        code=code("collect"),
        made_from=made_from("collect"),
    message:
        "Collecting real images, {wildcards.shard}, for {wildcards.model}"
        " ({wildcards.image_set}, seed {wildcards.seed})."
    shell:
        "python -m synq collect --teacher {input.teacher:q} --output {output.shard:q}"
        " --classes {params.classes:q} --seed {wildcards.seed:q} {params.settings:q}"
        " --device {params.device:q} --threads {threads} > {log:q} 2>&1"
