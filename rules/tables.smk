# What people read.


rule tables:
    input:
        metrics=RUN_METRICS,
    output:
        markdown=report(
            ACCURACY,
            caption="../workflow/report/accuracy.rst",
            category="Tables",
        ),
        csv=report(
            f"{RESULTS}/tables/accuracy.csv",
            caption="../workflow/report/accuracy.rst",
            category="Tables",
        ),
    log:
        f"{LOGS}/tables.log",
    benchmark:
        f"{BENCHMARKS}/tables.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=megabytes(1000),
        runtime=minutes(10),
    params:
        benchmarks=BENCHMARKS,
        code=digest("stages.tables"),
    message:
        "Writing the tables to {output.markdown}."
    shell:
        "python -m synq tables --metrics {input.metrics:q} --benchmarks {params.benchmarks:q}"
        " --output {output.markdown:q} 2>&1 | tee {log:q}"
