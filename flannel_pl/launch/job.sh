#!/usr/bin/env bash
# Runs a command as a job that outlives whoever started it and loses nothing: job.sh MAX_RETRIES COMMAND [ARGUMENT ...]
# It starts a command that fails again, and hands on the signals USR1 and TERM that ask it to make a checkpoint and end.
# FLANNEL_PL_STARTS is how often the job was begun before; FLANNEL_PL_REQUEUE, if set, is a command that puts it back into
# its queue, which is done once it has obeyed USR1, the warning before a time limit.
retries=$1
shift

# Here the command says which Python trains which run's folder, each with a NUL behind it.
FLANNEL_PL_TELL=$(mktemp) && trap 'rm -f "$FLANNEL_PL_TELL"' EXIT
export FLANNEL_PL_TELL

# Nobody starts the run again, so its journal has to say that it has failed, even if it was killed.
give_up() {
  mapfile -d '' -t told 2>/dev/null <"$FLANNEL_PL_TELL"
  [ ${#told[@]} -ne 2 ] || "${told[0]}" -m flannel_pl.launch.giving_up "${told[1]}" "$code" "$number" "$child"
  exit "$code"
}

# A scheduler warns only this shell that the time limit is near.
trap 'kill -USR1 "$child" 2>/dev/null' USR1
# Of a cancelled job or preemption some tell only this shell, others the command as well; it can take that.
stopped=
trap 'stopped=yes; kill -TERM "$child" 2>/dev/null' TERM

for ((attempt = 0; attempt <= retries; attempt++)); do
  number=$((${FLANNEL_PL_STARTS:-0} + attempt + 1))
  export FLANNEL_PL_ATTEMPT=$number FLANNEL_PL_RETRIES_LEFT=$((retries - attempt))
  # A shell has what it starts in the background ignore Ctrl-C's signal, which some send to a job to stop it.
  (trap - INT && exec "$@") &
  child=$!
  while kill -0 "$child" 2>/dev/null; do # a trap ends a wait early
    wait "$child"
  done
  wait "$child"
  code=$?
  case $code in
    0 | 129 | 130 | 143) exit "$code" ;; # done; asked to stop
    2) give_up ;;                        # wrong usage, which would fail again
    138)                                 # warned: everything is on the disk, another stay goes on
      [ -n "${FLANNEL_PL_REQUEUE:-}" ] || exit "$code"
      for pause in 5 10 20; do
        $FLANNEL_PL_REQUEUE && exit "$code"
        sleep "$pause"
      done
      echo "the job is not taken back ($FLANNEL_PL_REQUEUE); start it again, it goes on from its checkpoint" >&2
      exit "$code"
      ;;
  esac # anything else failed or was killed, for memory perhaps: again, from its last checkpoint
  [ -z "$stopped" ] || exit "$code"
done
give_up
