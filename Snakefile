import atexit
import os

from snakemake.utils import min_version

min_version("9.20")


# Of the folder that it runs in, or else of the clone: with -s from another folder.
CONFIG = "config.yaml"
if not os.path.exists(CONFIG):
    CONFIG = os.path.join(str(workflow.current_basedir), CONFIG)


configfile: CONFIG


report: "workflow/report/workflow.rst"


include: "rules/common.smk"
include: "rules/model.smk"
include: "rules/synthesis.smk"
include: "rules/sensitivity.smk"
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
    faults = faults_of_data()
    for line in faults:
        print(f"config error: {line}", file=sys.stderr)
    if faults:
        sys.exit(2)
    if cost := told(PLAN):
        print(cost, file=sys.stderr)
    write_jobs()


onsuccess:
    if table_is_current():
        print(
            f"The accuracy of every run of this config is in {ACCURACY}, all of it in {PAGE}",
            file=sys.stderr,
        )


atexit.register(say_what_has_no_record)


# Snakemake has lines of its own to say after this: what is to be mended comes last.
onerror:
    for line in reversed(why_it_failed()):
        atexit.register(print, line, file=sys.stderr)
