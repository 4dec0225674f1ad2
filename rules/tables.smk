# What people read.


rule accuracy:
    input:
        metrics=RUN_METRICS,
        exports=EXPORTS,
        inspections=INSPECTIONS,
    output:
        markdown=ACCURACY,
        others=tables("accuracy", "csv", "tex"),
        html=report(
            tables("accuracy", "html"),
            caption="../workflow/report/accuracy.rst",
            category="Tables",
            labels={"table": "all runs"},
        ),
        verdict=tables("verdict", "json", "md"),
    log:
        f"{LOGS}/accuracy.log",
    benchmark:
        f"{BENCHMARKS}/accuracy.tsv"
    retries: 0
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
        verdict=verdict_lines,
        real=[name for name, s in PLAN.image_sets.items() if s.stage == "real"],
        benchmarks=BENCHMARKS,
        accept=flags(PLAN.accept),
        code=code("tables"),
        made_from=made_from_runs,
    message:
        "Writing the table of all runs to {output.markdown}."
    shell:
        "python -m synq tables --run-folder {params.folder:q} --metrics {params.metrics:q}"
        " --exports {params.exports:q} --ceilings {params.ceilings:q}"
        " --inspections {input.inspections:q} --real {params.real:q}"
        " --benchmarks {params.benchmarks:q} {params.accept:q}"
        " --output {output.markdown:q} 2>&1 | tee {log:q}"


rule ablation:
    input:
        metrics=ablation_metrics,
    output:
        markdown=tables("ablation", "md"),
        others=tables("ablation", "csv", "tex"),
        html=report(
            tables("ablation", "html"),
            caption="../workflow/report/ablation.rst",
            category="Tables",
            labels={"table": "ablation"},
        ),
    log:
        f"{LOGS}/ablation.log",
    benchmark:
        f"{BENCHMARKS}/ablation.tsv"
    retries: 0
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


# All of it on one page, and the figures as files of their own.
rule page:
    input:
        metrics=RUN_METRICS,
        exports=EXPORTS,
        verdict=at(layout.VERDICT),
        # The ablation's differences are a figure, where there is such a table.
        ablation=tables("ablation", "csv") if "ablation" in TABLES else [],
        shards=ancient(SHARDS),
    output:
        page=report(
            PAGE,
            caption="../workflow/report/page.rst",
            category="Result",
            labels={"page": "verdict, runs, figures"},
        ),
        figures=report(
            directory(at(layout.FIGURES)),
            patterns=["{figure}.svg"],
            caption="../workflow/report/figures.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
    log:
        f"{LOGS}/page.log",
    benchmark:
        f"{BENCHMARKS}/page.tsv"
    retries: 0
    localrule: True
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=megabytes(2000),
        runtime=minutes(20),
    params:
        results=lambda wildcards, output: os.path.dirname(output.page),
        verdict=verdict_lines,
        code=code("page"),
        made_from=made_from_runs,
    message:
        "Writing the page of all runs to {output.page}."
    shell:
        "python -m synq page {params.results:q} 2>&1 | tee {log:q}"
