#!/usr/bin/env bash
# bsub that prints the number of the job alone: "Job <123> is submitted to queue <gpu>." -> 123
set -euo pipefail
arguments=()
for word in "$@"; do
  # bsub refuses to be asked for no GPU.
  if [ "$word" = num=0 ]; then
    unset 'arguments[-1]'
  else
    arguments+=("$word")
  fi
done
bsub "${arguments[@]}" | sed -n 's/^Job <\([0-9]*\)>.*/\1/p'
