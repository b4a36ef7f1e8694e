#!/usr/bin/env bash
# One job of `make tableN LAUNCH=slurm`: notebooks of one run, or a table. sfrik/launch/slurm.py submits it as
#
#     sbatch OPTIONS job.sh LOG VARIABLES SETUP PREFIX COMMAND...
#
# LOG        the file that this job's output goes to, in the run's folder
# VARIABLES  shell lines that export what a job needs of the submitting environment, also under `--export=NONE`
# SETUP      shell lines of the site (modules, an environment), PREFIX  words before the command (a container): see slurm.toml
#
# OPTIONS override the lines below. SLURM sends USR1 before the time limit to the steps that srun starts and not to this shell
# (no B:): the workers save and stop, and the command then ends with status 75.
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

job_log=$1 variables=$2 job_setup=$3 job_prefix=$4
job_command=("${@:5}") job_block= # names that no script of a site uses
set -- # a script that the setup sources would take them for its own arguments

# TERM (scancel, requeue, preemption, the limit) reaches every process of the job. A shell that died of it would end the
# command, or leave it running, before it has saved; so the shell records the signal and waits.
received=
trap 'received=TERM' TERM

# SLURM's command, within a time limit and without variables that change what it does.
scontrol() {
  (unset "${!SCONTROL_@}" SLURM_CLUSTERS && exec timeout 60 scontrol "$@")
}

# Whether this job may requeue itself. Not if SLURM has ended it, which then decides (a cancelled job stays cancelled), except
# at the time limit: its USR1 may have come while no step ran, for instance between two notebooks.
may_requeue() {
  [[ -z $received ]] || scontrol show job "$SLURM_JOB_ID" | grep -q 'Reason=TimeLimit'
}

# The stage of the run, and its step in training.
reached() {
  sed -nE 's/^ *"(stage|step)": "?([^",]+)"?,?$/\2/p' "$(dirname "$job_log")/state.json" 2>/dev/null | sort | xargs
}

echo "sfrik job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, restart ${SLURM_RESTART_COUNT:-0}: ${job_command[*]}"
[[ -v HOME ]] || export HOME=~
eval "$variables"

# Each line of the setup must succeed. What counts is its own status: a script that it sources may use unset variables and ignore
# failures (no `set -eu`). Lines that belong together, such as `if ... fi`, are one.
setup_output() { tail -c "+$((job_log_size + 1))" "$job_log" | grep .; }
setup_failed() {
  local message
  trap - EXIT
  [[ -z $received ]] || exit "$1" # the job was cancelled
  message=$(setup_output | grep -iE -m 1 'error|not found|no such|unable|cannot|denied' || setup_output | tail -n 1)
  [[ $message == "$0: "* ]] && message=$(sed -E 's/^(eval: )?line [0-9]+: //' <<<"${message#"$0: "}") # a line of this script
  echo "sfrik: error: $job_part of slurm.toml failed with status $1${message:+: $message} (if it may fail, append || true)"
  echo "sfrik job $SLURM_JOB_ID ended with status 1"
  exit 1
}
trap 'setup_failed $?' EXIT # an `exit` in a sourced script
mapfile -t job_setup_lines <<<"$job_setup"
for job_line in "${!job_setup_lines[@]}"; do
  job_block+=${job_setup_lines[job_line]}$'\n'
  if ((job_line + 1 < ${#job_setup_lines[@]})) && [[ $job_block == *\\$'\n' || -n $(bash -n <<<"$job_block" 2>&1) ]]; then
    continue # not complete
  fi
  job_part=${job_block%$'\n'} job_part="setup line $((job_line + 1)) (${job_part//$'\n'/; })" job_log_size=$(stat -c %s "$job_log")
  eval "$job_block"
  status=$?
  set +eu +o pipefail
  if [[ $status != 0 && $job_block =~ ^(source|\.)' ' && -z $(setup_output) ]]; then
    echo "sfrik: $job_part returned status $status without a message: harmless, as in a script that ends with a test"
  elif [[ $status != 0 ]]; then
    setup_failed $status
  fi
  job_block=
done
job_part="prefix ($job_prefix)" job_log_size=$(stat -c %s "$job_log")
eval "words=($job_prefix)" || setup_failed $?
trap - EXIT
export SFRIK_PREFIX=$job_prefix # sfrik.launch puts it before the command of the workers, since srun starts them outside of the container

"${words[@]}" "${job_command[@]}"
status=$?

if [[ $status == 75 ]] && may_requeue; then
  stopped="sfrik job $SLURM_JOB_ID stopped at $(reached)"
  echo "$stopped"
  if [[ $(grep "^sfrik job $SLURM_JOB_ID stopped at" "$job_log" | tail -n 3 | grep -cFx "$stopped") == 3 ]]; then
    echo "sfrik: error: job $SLURM_JOB_ID was stopped three times at the same step: its time limit is too short for one step" \
      "beyond signal_seconds (make ... TIME=, or slurm.toml)"
    exit 1
  fi
  scontrol requeue "$SLURM_JOB_ID" && exit 0
fi
[[ $status == 0 ]] || echo "sfrik job $SLURM_JOB_ID ended with status $status" # `sfrik status` looks for this line
exit $status
