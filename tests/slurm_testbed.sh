#!/usr/bin/env bash
# A SLURM cluster of two nodes on this machine, for the tests marked `slurm`. Its files are below DIR, its ports
# are free ones; a cluster that the machine belongs to, and /etc/slurm, are not touched.
#
#     slurm_testbed.sh start DIR [PID]   start munged, slurmctld and two slurmd; print the line that selects the cluster. With PID,
#                                        it stops by itself when that process is gone
#     slurm_testbed.sh stop DIR          cancel the jobs and stop what was started, by its process ids
#
# It needs root and Debian's packages: apt-get install slurm-wlm munge. node1 and node2 are names within SLURM that resolve nowhere.
# Each has 3 CPUs, and 2 GPUs without a device behind them.
set -euo pipefail
verb=${1:-} dir=${2:-} owner=${3:-}
[[ $verb =~ ^(start|stop|watch)$ && -n $dir ]] || { sed -n '5,7p' "$0" >&2; exit 2; }
mkdir -p "$dir" && dir=$(cd "$dir" && pwd)
unset "${!SLURM@}" "${!SBATCH_@}" "${!SQUEUE_@}" "${!SINFO_@}" "${!SCANCEL_@}" # of a cluster that this machine belongs to
export SLURM_CONF=$dir/slurm.conf

# Whether a process that `start` started still runs; its number may since belong to another one, of another name.
runs() {
  local pid
  pid=$(cat "$dir/$1.pid" 2>/dev/null) && [[ $(ps -o stat=,comm= -p "$pid") =~ ^[^Z].*\ ${1%-*}$ ]]
}

# Whether the condition becomes true within the given number of fifths of a second.
within() {
  for _ in $(seq "$1"); do "${@:2}" && return; sleep 0.2; done
  return 1
}

no_jobs() { [[ -z $(squeue --noheader --states=all --format=%T | grep -vE 'COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL') ]]; }
gone() { ! runs "$1"; }
idle() { [[ $(sinfo --noheader --states=idle --format=%D 2>/dev/null) == 2 ]]; }

stop() {
  if runs slurmctld; then # the jobs first, or what they run would outlive the nodes
    scancel --user=root 2>/dev/null || true
    within 150 no_jobs || echo "slurm_testbed.sh: jobs are left" >&2
  fi
  for name in slurmd-node1 slurmd-node2 slurmctld munged; do
    for signal in TERM KILL; do
      runs "$name" || break
      kill -$signal "$(cat "$dir/$name.pid")" || true
      within 50 gone "$name" || true
    done
  done
  local watch
  watch=$(cat "$dir/watch.pid" 2>/dev/null) && [[ $verb != watch && $(ps -o args= -p "$watch") == *" watch $dir "* ]] || return 0
  kill -- "-$watch"
}

case $verb in
  stop) stop && exit ;;
  watch) tail --pid="$owner" -f /dev/null && stop && exit ;;
esac
for tool in munged slurmctld slurmd sinfo; do
  command -v $tool >/dev/null || { echo "slurm_testbed.sh: there is no $tool: apt-get install slurm-wlm munge" >&2; exit 3; }
done
[[ $(id -u) == 0 ]] || { echo "slurm_testbed.sh: munged and slurmd are started as root" >&2; exit 3; }
stop
mkdir -p "$dir"/{state,spool-node1,spool-node2,munge,log}
chmod 700 "$dir/munge"
(umask 077 && head -c 1024 /dev/urandom >"$dir/munge/munge.key")
host=$(hostname -s)
memory=$(($(awk '/MemTotal/{print int($2/1024)}' /proc/meminfo) / 2 - 512))
taken=$(awk 'FNR > 1 {split($2, address, ":"); print "16#" address[2]}' /proc/net/tcp /proc/net/tcp6 2>/dev/null |
  while read -r port; do echo $((port)); done)
mapfile -t ports < <(seq 20000 31999 | shuf | grep -vxF "$taken" | head -n 3) # below the ports of outgoing connections

# Against the waiting that a real cluster can afford: it looks for jobs to start every second, not every 30 and 60, and a requeued job
# starts after 10 s, not after 2 minutes (cred_expire).
cat >"$SLURM_CONF" <<CONF
ClusterName=testbed
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket=$dir/munge/munge.socket,cred_expire=10
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
KillWait=15
MinJobAge=600
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=node1 NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[1]} CPUs=3 Gres=gpu:2 RealMemory=$memory State=UNKNOWN
NodeName=node2 NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[2]} CPUs=3 Gres=gpu:2 RealMemory=$memory State=UNKNOWN
PartitionName=debug Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF
echo 'Name=gpu File=/dev/null,/dev/zero' >"$dir/gres.conf"

munged --force --key-file="$dir/munge/munge.key" --socket="$dir/munge/munge.socket" --pid-file="$dir/munged.pid" \
  --log-file="$dir/log/munged.log" --seed-file="$dir/munge/seed" 2>"$dir/log/munged.err"
slurmctld -c
for node in node1 node2; do slurmd -N $node; done
if ! within 150 idle; then
  echo "slurm_testbed.sh: the nodes are not idle after 30 s; the logs are in $dir/log" >&2
  tail -n 5 "$dir"/log/*.log >&2
  stop
  exit 4
fi
if [[ -n $owner ]]; then
  setsid "$0" watch "$dir" "$owner" </dev/null >/dev/null 2>&1 &
  echo $! >"$dir/watch.pid"
fi
echo "export SLURM_CONF=$SLURM_CONF"
