# What people read.


rule accuracy:
    input:
        metrics=RUN_METRICS,
        exports=EXPORTS,
    output:
        markdown=report(
            ACCURACY,
            caption="../workflow/report/accuracy.rst",
            category="Tables",
        ),
        others=tables("accuracy", "csv", "tex"),
    log:
        f"{LOGS}/accuracy.log",
    benchmark:
        f"{BENCHMARKS}/accuracy.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=megabytes(1000),
        runtime=minutes(10),
    params:
        folder=folder_of_runs,
        metrics=names_of_runs("metrics"),
        exports=names_of_runs("exports"),
        ceilings=["=".join(pair) for pair in PLAN.ceilings()],
        benchmarks=BENCHMARKS,
        code=code("tables"),
        made_from=made_from_runs,
    message:
        "Writing the table of all runs to {output.markdown}."
    shell:
        "python -m synq tables --run-folder {params.folder:q} --metrics {params.metrics:q}"
        " --exports {params.exports:q} --ceilings {params.ceilings:q}"
        " --benchmarks {params.benchmarks:q}"
        " --output {output.markdown:q} 2>&1 | tee {log:q}"


rule ablation:
    input:
        metrics=ablation_metrics,
    output:
        markdown=report(
            tables("ablation", "md"),
            caption="../workflow/report/ablation.rst",
            category="Tables",
        ),
        others=tables("ablation", "csv", "tex"),
    log:
        f"{LOGS}/ablation.log",
    benchmark:
        f"{BENCHMARKS}/ablation.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=megabytes(1000),
        runtime=minutes(10),
    params:
        folder=folder_of_runs,
        metrics=names_of_runs("metrics"),
        full=PLAN.ablation.full,
        code=code("tables"),
        made_from=made_from_runs,
    message:
        "Writing each method's difference to {params.full} to {output.markdown}."
    shell:
        "python -m synq ablation --run-folder {params.folder:q} --metrics {params.metrics:q}"
        " --full {params.full:q}"
        " --output {output.markdown:q} 2>&1 | tee {log:q}"
