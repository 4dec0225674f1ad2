#!/usr/bin/env bash
# End what start.sh began, by the process ids that it left in FOLDER. usage: stop.sh FOLDER
set -uo pipefail
folder=$(realpath -m "$1")

if [ "$(readlink /etc/slurm/slurm.conf)" = "$folder/slurm.conf" ]; then
  timeout 20 squeue -h -o %i | xargs -r timeout 20 scancel
  for _ in $(seq 20); do
    [ -z "$(timeout 20 squeue -h)" ] && break
    sleep 1
  done
fi
for name in slurmd slurmctld munged; do
  [ -s "$folder/run/$name.pid" ] || continue
  pid=$(cat "$folder/run/$name.pid")
  kill "$pid" 2>/dev/null
  for _ in $(seq 20); do
    # What has ended and was not waited for is no process any more.
    grep -qs '^State:.[^Z]' "/proc/$pid/status" || break
    sleep 0.5
  done
  grep -qs '^State:.[^Z]' "/proc/$pid/status" && kill -KILL "$pid"
done
for name in slurm.conf gres.conf cgroup.conf; do
  [ "$(readlink "/etc/slurm/$name")" = "$folder/$name" ] && rm "/etc/slurm/$name"
done
exit 0
