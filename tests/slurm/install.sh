#!/usr/bin/env bash
# Install Slurm by apt where it is missing. Exit code 1, and a line that says why, where start.sh cannot
# start one: without root, without apt or its network, or beside a Slurm that is there already.
set -uo pipefail

impossible() {
  echo "$1"
  exit 1
}
installed() {
  local name
  for name in slurmctld slurmd sbatch munged; do
    command -v "$name" >/dev/null || return 1
  done
}

[ "$(id -u)" = 0 ] || impossible "it needs root"
if [ -e /etc/slurm/slurm.conf ] || [ -L /etc/slurm/slurm.conf ]; then
  impossible "/etc/slurm/slurm.conf is there: this machine has a Slurm already"
fi
[ -e /dev/tty1 ] && [ -e /dev/tty2 ] || impossible "there is no /dev/tty1 and 2 to pass for GPUs"
installed && exit 0
command -v apt-get >/dev/null || impossible "Slurm is not installed, and there is no apt"
# The packages' own services must not start: they know nothing of the test's configuration.
if [ ! -e /usr/sbin/policy-rc.d ]; then
  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
  chmod +x /usr/sbin/policy-rc.d
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt() { timeout 240 apt-get -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=20 "$@" >&2; }
apt update
apt install -y --no-install-recommends slurmctld slurmd slurm-client munge
installed || impossible "Slurm is not installed, and apt could not install it"
