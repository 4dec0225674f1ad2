# Quantized students, a job a run. Asks for a GPU a process where there are any.


rule finetune:
    input:
        teacher=at(layout.TEACHER),
        shards=shards,
        start=start,
    output:
        student=at(layout.STUDENT),
        snapshots=at(layout.SNAPSHOTS),
    log:
        f"{LOGS}/finetune/{RUN}.log",
    benchmark:
        f"{BENCHMARKS}/{layout.FINETUNE_SECONDS}"
    conda:
        ENVIRONMENT
    threads: threads_of_student
    resources:
        mem_mb=megabytes(4000),
        runtime=within(LIMITS.student, "model", "method"),
        gpu=gpus_of_processes,
    params:
        program=program,
        device=device,
        folder=folder_of_shards,
        shards=names_of_shards,
        image_set=image_set,
        start=flag_of_start,
        settings=flags_of("finetune", "model", "method"),
        record=record_of("finetune", "model", "method"),
        code=code("finetune"),
        made_from=made_from("finetune"),
    message:
        "Quantizing {wildcards.model} to {wildcards.bits}"
        " ({wildcards.method}, seed {wildcards.seed})."
    shell:
        "python {params.program:q} finetune --teacher {input.teacher:q}"
        " --shard-folder {params.folder:q} --shards {params.shards:q}"
        " --bits {wildcards.bits:q} --method {wildcards.method:q} --image-set {params.image_set:q}"
        " --seed {wildcards.seed:q} {params.start:q} {params.settings:q} --output {output.student:q}"
        " --snapshots {output.snapshots:q} --device {params.device:q} --threads {threads} > {log:q} 2>&1"
