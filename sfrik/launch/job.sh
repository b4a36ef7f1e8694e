#!/usr/bin/env bash
# One job of `make tableN LAUNCH=slurm`: notebooks of one run, or a table. sfrik/launch/slurm.py submits it as
#
#     sbatch OPTIONS slurm_job.sh LOG SETUP PREFIX COMMAND...
#
# LOG     the file that this job's output goes to, in the run's folder
# SETUP   shell lines of the site (modules, an environment), PREFIX  words before the command (a container): see slurm.toml
#
# OPTIONS win over the lines below. USR1 comes before the time limit, to the steps that srun starts and not to this shell
# (no B:): the workers save and stop by themselves, and the command then ends with status 75.
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

log=$1 setup=$2 prefix=$3
shift 3

# TERM (scancel, requeue, preemption, the limit) reaches every process of the job. A shell that died of it would take the
# command along, or leave it behind, before it has saved; so the shell notes it and waits.
told=
trap 'told=TERM' TERM

# Whether this job may requeue itself: unless SLURM has ended it, which then decides (a cancelled job stays cancelled), but
# for the time limit, whose USR1 came while no step ran, say between two notebooks.
may_requeue() {
  [[ -z $told ]] || scontrol show job "$SLURM_JOB_ID" | grep -q 'Reason=TimeLimit'
}

# Where the run stands: its stage, and the step in training.
reached() {
  sed -nE 's/^ *"(stage|step)": "?([^",]+)"?,?$/\2/p' "$(dirname "$log")/state.json" 2>/dev/null | sort | xargs
}

echo "sfrik job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, restart ${SLURM_RESTART_COUNT:-0}: $*"
eval "$setup"
eval "words=($prefix)"
export SFRIK_PREFIX=$prefix # sfrik.launch.launcher puts it before the workers, which srun starts outside of the container

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
[[ $status == 0 ]] || echo "sfrik job $SLURM_JOB_ID ended with status $status" # sfrik status looks for this line
exit $status
