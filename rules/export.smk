# Files for a runtime, compared with the students that they are made from.


rule export:
    input:
        reads("export", layout.EXPORT),
        teacher=at(layout.TEACHER),
        student=at(layout.STUDENT),
        shards=shards,
    output:
        onnx=at(layout.ONNX),
        packed=at(layout.PACKED),
        record=at(layout.EXPORT),
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
        " --output {output.onnx:q} --packed {output.packed:q} --record {output.record:q}"
        " --threads {threads} > {log:q} 2>&1"
