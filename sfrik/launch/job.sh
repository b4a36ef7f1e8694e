#!/usr/bin/env bash
# One job of `make tableN LAUNCH=slurm`: notebooks of one run, or a table. sfrik/launch/slurm.py submits it as
#
#     sbatch OPTIONS job.sh LOG SETUP PREFIX COMMAND...
#
# LOG     the file that this job's output goes to, in the run's folder
# SETUP   shell lines of the site (modules, an environment), PREFIX  words before the command (a container): see slurm.toml
#
# OPTIONS override the lines below. SLURM sends USR1 before the time limit to the steps that srun starts and not to this shell
# (no B:): the workers save and stop, and the command then ends with status 75.
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

log=$1 setup=$2 prefix=$3
shift 3

# TERM (scancel, requeue, preemption, the limit) reaches every process of the job. A shell that died of it would end the
# command, or leave it running, before it has saved; so the shell records the signal and waits.
received=
trap 'received=TERM' TERM

# Whether this job may requeue itself. Not if SLURM has ended it, which then decides (a cancelled job stays cancelled), except
# at the time limit: its USR1 may have come while no step ran, for instance between two notebooks.
may_requeue() {
  [[ -z $received ]] || scontrol show job "$SLURM_JOB_ID" | grep -q 'Reason=TimeLimit'
}

# The stage of the run, and its step in training.
reached() {
  sed -nE 's/^ *"(stage|step)": "?([^",]+)"?,?$/\2/p' "$(dirname "$log")/state.json" 2>/dev/null | sort | xargs
}

echo "sfrik job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, restart ${SLURM_RESTART_COUNT:-0}: $*"
eval "$setup"
eval "words=($prefix)"
export SFRIK_PREFIX=$prefix # sfrik.launch puts it before the command of the workers, since srun starts them outside of the container

"${words[@]}" "$@"
status=$?

if [[ $status == 75 ]] && may_requeue; then
  stopped="sfrik job $SLURM_JOB_ID stopped at $(reached)"
  echo "$stopped"
  if [[ $(grep "^sfrik job $SLURM_JOB_ID stopped at" "$log" | tail -n 3 | grep -cFx "$stopped") == 3 ]]; then
    echo "sfrik: error: job $SLURM_JOB_ID was stopped three times at the same step: its time limit is too short for one step" \
      "beyond signal_seconds (make ... TIME=, or slurm.toml)"
    exit 1
  fi
  scontrol requeue "$SLURM_JOB_ID" && exit 0
fi
[[ $status == 0 ]] || echo "sfrik job $SLURM_JOB_ID ended with status $status" # `sfrik status` looks for this line
exit $status
