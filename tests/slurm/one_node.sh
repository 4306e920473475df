#!/usr/bin/env bash
# A Slurm of two nodes on this machine, for tests: needs slurmctld, slurmd and munged, but neither systemd nor cgroups.
#
#   tests/slurm/one_node.sh start FOLDER    # starts the daemons; their files and logs are in FOLDER
#   export SLURM_CONF=FOLDER/slurm.conf     # then sinfo, sbatch, squeue, ..
#   tests/slurm/one_node.sh stop FOLDER     # cancels all jobs and ends the daemons
#
# The nodes n1 and n2 have two CPUs each, as far as Slurm knows. The partition `urgent` preempts `main`, whose jobs are requeued.
set -euo pipefail

free_ports() { # as many as asked for, all different
  python3 - "$1" <<'PYTHON'
import socket, sys
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(s.getsockname()[1] for s in sockets))
PYTHON
}

start() {
  local folder user control first second
  mkdir -p "$1" && chmod 700 "$1"
  folder=$(realpath "$1") user=$(id -un)
  read -r control first second < <(free_ports 3)
  mkdir -p "$folder"/{state,spool.n1,spool.n2}

  head -c 128 /dev/urandom > "$folder/munge.key" && chmod 600 "$folder/munge.key"
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"

  echo 'CgroupPlugin=disabled' > "$folder/cgroup.conf"
  cat > "$folder/slurm.conf" <<CONF
ClusterName=one_node
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$control
SlurmctldPidFile=$folder/slurmctld.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmdLogFile=$folder/slurmd.%n.log
SlurmdSpoolDir=$folder/spool.%n
StateSaveLocation=$folder/state
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=15
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$first CPUs=2
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$second CPUs=2
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 State=UP PriorityTier=1
PartitionName=urgent Nodes=n1,n2 MaxTime=60 State=UP PriorityTier=2
CONF
  export SLURM_CONF="$folder/slurm.conf"
  slurmctld
  slurmd -N n1
  slurmd -N n2
  for _ in $(seq 100); do
    [[ $(sinfo --noheader --states=idle --format=%D 2> "$folder/sinfo.log" | head -n 1) == 2 ]] && return
    sleep 0.2
  done
  cat "$folder/slurmctld.log" >&2
  return 1
}

stop() {
  local folder name
  folder=$(realpath "$1")
  export SLURM_CONF="$folder/slurm.conf"
  timeout 10 scancel --full --signal=KILL --user="$(id -un)" || true
  for name in slurmd.n1 slurmd.n2 slurmctld munged; do
    if [[ -s $folder/$name.pid ]]; then
      kill "$(< "$folder/$name.pid")" 2> /dev/null || true
      for _ in $(seq 50); do
        [[ -d /proc/$(cat "$folder/$name.pid" 2> /dev/null || echo none) ]] || break
        sleep 0.1
      done
    fi
  done
}

case "${1:-}" in
  start | stop) "$1" "${2:?the folder}" ;;
  *) sed -n '2,8s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
