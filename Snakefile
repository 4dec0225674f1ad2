from snakemake.utils import min_version

min_version("9.20")


configfile: "config.yaml"


report: "workflow/report/workflow.rst"


include: "rules/common.smk"
include: "rules/model.smk"
include: "rules/synthesis.smk"
include: "rules/finetune.smk"
include: "rules/evaluate.smk"
include: "rules/export.smk"
include: "rules/tables.smk"


rule all:
    input:
        [tables(name, "md", "csv", "tex") for name in TABLES],
        RUN_METRICS,
        EXPORTS,
        # The files between the stages too: a job that a changed setting started and that was killed
        # has taken its old output with it, and nothing but this list misses it.
        INTERMEDIATE,


rule synthetic:
    input:
        SHARDS,


rule runs:
    input:
        RUN_METRICS,


onsuccess:
    if table_is_current():
        print(
            f"The accuracy of every run of this config is in {ACCURACY}",
            file=sys.stderr,
        )
