#!/usr/bin/env bash
# Checks that a guest does not pass what its pod writes to those who may read logs.
#
#   tools/kept-log.sh NAMESPACE POD CONTROL
#
# POD must have written something. CONTROL is another pod that has written, and whose guest passes it
# on: it shows that logs can be read here. Exit status:
#   0  kept: the kubelet has an error instead of a log, or a log with nothing in it
#   1  not kept: something can be read
#   2  unknown: no log can be read, or POD has not started
set -euo pipefail
namespace="$1" pod="$2" control="$3"

finish() { printf '%s\n' "$2"; exit "$1"; }
short() { printf '%s' "$1" | tr '\n' ' ' | cut -c -160; }
error="$(mktemp)"
trap 'rm -f "$error"' EXIT
logs() { kubectl --namespace "$namespace" logs "$1" --tail=20 2>"$error"; }

out="$(logs "$control")" || finish 2 "the log of $control cannot be read either: $(short "$(cat "$error")")"
[ -n "$out" ] || finish 2 "the log of $control is empty, too: an empty log says nothing here"

state="$(kubectl --namespace "$namespace" get pod "$pod" \
  -o jsonpath='{.status.containerStatuses[0].state.running.startedAt}{.status.containerStatuses[0].state.terminated.startedAt}' \
  2>"$error")" || finish 2 "$pod cannot be looked at: $(short "$(cat "$error")")"
[ -n "$state" ] || finish 2 "the container of $pod has not started, so it has written nothing"

if out="$(logs "$pod")"; then
  [ -z "$out" ] || finish 1 "it can be read: $(short "$out")"
  finish 0 "its log is empty, that of $control is not"
fi
out="$(cat "$error")"
case "$out" in
  *"connection refused"* | *"no such host"* | *"Unable to connect"* | *"i/o timeout"* | \
  *"Forbidden"* | *"NotFound"* | *"not found"* | *"waiting to start"* | *"no kind"*)
    finish 2 "that is not the guest's doing: $(short "$out")" ;;
esac
finish 0 "the kubelet has none: $(short "$out")"
