#!/usr/bin/env bash
# A Slurm of one node on loopback, with munge and two pretended GPUs, without an accounting database.
# Needs root; installs Slurm by apt where it is missing. usage: start.sh FOLDER; end it with stop.sh.
set -euo pipefail
folder=$(realpath -m "$1")
host=$(hostname -s)

# Jobs look for the configuration in /etc/slurm alone, whatever SLURM_CONF says.
"$(dirname "$0")/install.sh"

mkdir -p "$folder"/{state,spool,log,run}
chmod 755 "$folder" "$folder/run"
[ -e "$folder/munge.key" ] || head -c 128 /dev/urandom >"$folder/munge.key"
chmod 400 "$folder/munge.key"
# config_overrides: eight cores and 32 GB are pretended too, so that several jobs run on any machine.
cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=17817
SlurmdPort=17818
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket=$folder/run/munge.sock
SlurmUser=root
SlurmdUser=root
SlurmdParameters=config_overrides
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
ReturnToService=2
SchedulerParameters=sched_interval=2,batch_sched_delay=1
MinJobAge=3600
KillWait=2
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=8 RealMemory=32000 Gres=gpu:h200:2 State=UNKNOWN
PartitionName=cpu Nodes=$host Default=YES MaxTime=1-00:00:00 State=UP
PartitionName=gpu Nodes=$host MaxTime=1-00:00:00 State=UP
CONF
# A GPU is a device file; any will do.
printf 'NodeName=%s Name=gpu Type=h200 File=/dev/tty[1-2]\n' "$host" >"$folder/gres.conf"
echo 'CgroupPlugin=cgroup/v1' >"$folder/cgroup.conf"
for name in slurm.conf gres.conf cgroup.conf; do
  ln -sfn "$folder/$name" "/etc/slurm/$name"
done

munged --socket="$folder/run/munge.sock" --key-file="$folder/munge.key" \
  --pid-file="$folder/run/munged.pid" --log-file="$folder/log/munged.log" \
  --seed-file="$folder/run/munge.seed" --num-threads=2
slurmctld -c
slurmd
for _ in $(seq 60); do
  [ "$(sinfo -h -o %t 2>/dev/null | sort -u)" = idle ] && exit 0
  sleep 1
done
echo "the node did not come up:" >&2
sinfo -R >&2
tail -n 20 "$folder"/log/*.log >&2
exit 1
