# Files for a runtime, compared with the students that they are made from.


rule export:
    input:
        teacher=f"{RESULTS}/models/{{model}}/teacher.safetensors",
        student=f"{RESULTS}/runs/{RUN}/student.safetensors",
        shards=shards,
    output:
        onnx=f"{RESULTS}/runs/{RUN}/student.onnx",
        record=f"{RESULTS}/runs/{RUN}/export.json",
    log:
        f"{LOGS}/export/{RUN}.log",
    benchmark:
        f"{BENCHMARKS}/export/{RUN}.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=megabytes(3000),
        runtime=minutes(60),
    params:
        folder=folder_of_shards,
        shards=names_of_shards,
        settings=flags_of("export", "model"),
        record=record_of("export", "model"),
        code=code("export"),
        made_from=made_from("export"),
    message:
        "Exporting {wildcards.model} at {wildcards.bits}"
        " ({wildcards.method}, seed {wildcards.seed}) to ONNX."
    shell:
        "python -m synq export --teacher {input.teacher:q} --student {input.student:q}"
        " --shard-folder {params.folder:q} --shards {params.shards:q} {params.settings:q}"
        " --output {output.onnx:q} --record {output.record:q} --threads {threads} > {log:q} 2>&1"
