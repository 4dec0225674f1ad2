#!/usr/bin/env bash
# What has become of a job, for snakemake: running, success or failed.
# usage: status.sh slurm|pbs|lsf|sge JOB
# A question that fails is answered with running: snakemake asks again.
set -uo pipefail
system=$1 job=$2

case $system in
slurm)
  state=$(scontrol show job -o "$job" 2>/dev/null | grep -o 'JobState=[A-Z_]*' | cut -d= -f2)
  [ -n "$state" ] || state=$(sacct -nXP -j "$job" -o State 2>/dev/null | head -n 1)
  case $state in
  COMPLETED) echo success ;;
  BOOT_FAIL | CANCELLED* | DEADLINE | FAILED | NODE_FAIL | OUT_OF_MEMORY | TIMEOUT) echo failed ;;
  *) echo running ;;
  esac
  ;;
pbs)
  record=$(qstat -xf "$job" 2>/dev/null)
  if grep -q 'job_state = F' <<<"$record"; then
    grep -q 'Exit_status = 0' <<<"$record" && echo success || echo failed
  else
    echo running
  fi
  ;;
lsf)
  case $(bjobs -noheader -o stat "$job" 2>/dev/null) in
  DONE) echo success ;;
  EXIT) echo failed ;;
  *) echo running ;;
  esac
  ;;
sge)
  if qstat -j "$job" >/dev/null 2>&1; then
    echo running
  elif record=$(qacct -j "$job" 2>/dev/null); then
    grep -Eq '^exit_status +0 *$' <<<"$record" && echo success || echo failed
  else
    echo running
  fi
  ;;
*)
  echo "status.sh: $system is none of slurm, pbs, lsf, sge" >&2
  exit 2
  ;;
esac
