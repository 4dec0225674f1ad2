from snakemake.utils import min_version

min_version("9.20")


configfile: "config.yaml"


report: "workflow/report/workflow.rst"


include: "rules/common.smk"
include: "rules/model.smk"
include: "rules/synthesis.smk"
include: "rules/finetune.smk"
include: "rules/evaluate.smk"
include: "rules/tables.smk"


rule all:
    input:
        ACCURACY,
        f"{RESULTS}/tables/accuracy.csv",
        RUN_METRICS,


rule synthetic:
    input:
        [shard for run in RUNS for shard in shards_of(**run)],


rule runs:
    input:
        RUN_METRICS,


onsuccess:
    if os.path.isfile(ACCURACY) and not workflow.dryrun:
        print(f"The accuracy of every run is in {ACCURACY}", file=sys.stderr)
