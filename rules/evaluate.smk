# Accuracy on the real test images, which no earlier stage has seen. Runs where snakemake runs, beside
# the test set; a profile that puts these rules into groups sends them to the cluster's nodes. The full-
# precision network comes before all that takes long, and a doubt about the test set goes to the terminal.


rule evaluate_teacher:
    input:
        reads("test", layout.TEACHER_METRICS),
        teacher=at(layout.TEACHER),
    output:
        metrics=at(layout.TEACHER_METRICS),
    log:
        f"{LOGS}/evaluate_teacher/{{model}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate_teacher/{{model}}.tsv"
    priority: 1
    localrule: True
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=megabytes(3000),
        runtime=within(LIMITS.evaluation, "model"),
        gpu=int(GPUS > 0),
    params:
        device=device,
        test=flags_of("test", "model"),
        settings=flags_of("evaluation", "model"),
        test_record=record_of("test", "model"),
        record=record_of("evaluation", "model"),
        code=code("evaluate_teacher"),
        made_from=made_from("evaluate_teacher"),
    message:
        "Evaluating {wildcards.model} in full precision."
    shell:
        "python -m synq evaluate-teacher --teacher {input.teacher:q} {params.test:q}"
        " {params.settings:q} --output {output.metrics:q}"
        " --device {params.device:q} --threads {threads} > {log:q} 2>&1"
        " && (grep '^warning: ' {log:q} >&2 || true)"


rule evaluate:
    input:
        reads("test", layout.METRICS),
        teacher=at(layout.TEACHER),
        reference=at(layout.TEACHER_METRICS),
        snapshots=at(layout.SNAPSHOTS),
        shards=shards_to_agree_on,
    output:
        metrics=at(layout.METRICS),
    log:
        f"{LOGS}/evaluate/{RUN}.log",
    benchmark:
        f"{BENCHMARKS}/{layout.EVALUATE_SECONDS}"
    localrule: True
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=megabytes(3000),
        runtime=within(LIMITS.evaluation, "model", "method"),
        gpu=int(GPUS > 0),
    params:
        folder=folder_of_shards,
        shards=names_of_shards,
        device=device,
        test=flags_of("test", "model"),
        settings=flags_of("evaluation", "model"),
        test_record=record_of("test", "model"),
        record=record_of("evaluation", "model"),
        code=code("evaluate"),
        made_from=made_from("evaluate"),
    message:
        "Evaluating {wildcards.model} at {wildcards.bits}"
        " ({wildcards.method}, seed {wildcards.seed})."
    shell:
        "python -m synq evaluate --teacher {input.teacher:q} --teacher-metrics {input.reference:q}"
        " --snapshots {input.snapshots:q} --shard-folder {params.folder:q}"
        " --shards {params.shards:q} {params.test:q} {params.settings:q}"
        " --output {output.metrics:q} --device {params.device:q} --threads {threads} > {log:q} 2>&1"
