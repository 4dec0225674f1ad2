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
        TARGETS,


rule synthetic:
    input:
        SHARDS,


rule runs:
    input:
        RUN_METRICS,


onstart:
    write_jobs()


onsuccess:
    if table_is_current():
        print(
            f"The accuracy of every run of this config is in {ACCURACY}, all of it in {PAGE}",
            file=sys.stderr,
        )
