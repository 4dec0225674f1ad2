# The images that students are trained on, a job a shard. Synthesis has the network as its only
# input; an image set with source: real reads the few real images that the user names, and a model
# with a relative has its images of that one's shards. The inspection only has to be there: what it
# says changes no image.


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
        model=one_of(sorted({*PLAN.models} - {*PLAN.relatives})),
        image_set=image_sets_from("synthesis"),
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=megabytes(3000),
        runtime=within(LIMITS.shard, "model", "image_set", "shard"),
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
        runtime=within(LIMITS.shard, "model", "image_set", "shard"),
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


rule borrow:
    input:
        lent=lent_shard,
        teacher=at(layout.TEACHER),
        inspection=ancient(at(layout.INSPECTION)),
    output:
        shard=at(layout.SHARD),
    log:
        f"{LOGS}/borrow/{SHARD}.log",
    benchmark:
        f"{BENCHMARKS}/{layout.SHARD_SECONDS}"
    wildcard_constraints:
        model=one_of(PLAN.relatives),
        image_set=image_sets_from("synthesis"),
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=megabytes(3000),
        runtime=within(LIMITS.borrowing, "model", "image_set", "shard"),
        gpu=int(GPUS > 0),
    params:
        device=device,
        record=record_of("images", "model", "image_set"),
        code=code("borrow"),
        made_from=made_from("borrow"),
    message:
        "Borrowing {wildcards.shard} of {input.lent} for {wildcards.model}."
    shell:
        "python -m synq borrow --teacher {input.teacher:q} --lent {input.lent:q}"
        " --output {output.shard:q} --device {params.device:q} --threads {threads} > {log:q} 2>&1"
