#!/usr/bin/env bash
# Says whether a guest keeps what its pod writes from whoever may read logs.
#
#   tools/kept-log.sh NAMESPACE POD CONTROL
#
# POD has certainly written something. CONTROL is a pod beside it that has written, too, and whose
# guest lets that out: it shows that logs can be read here at all. Ends with
#   0  kept: the kubelet has an error instead of a log, or a log with nothing in it
#   1  not kept: something can be read
#   2  it cannot be told: nobody's log can be read, or POD has not started
set -euo pipefail
namespace="$1" pod="$2" control="$3"

said() { printf '%s\n' "$2"; exit "$1"; }
short() { printf '%s' "$1" | tr '\n' ' ' | cut -c -160; }
error="$(mktemp)"
trap 'rm -f "$error"' EXIT
logs() { kubectl --namespace "$namespace" logs "$1" --tail=20 2>"$error"; }

out="$(logs "$control")" || said 2 "the log of $control cannot be read either: $(short "$(cat "$error")")"
[ -n "$out" ] || said 2 "the log of $control is empty, too: an empty log says nothing here"

state="$(kubectl --namespace "$namespace" get pod "$pod" \
  -o jsonpath='{.status.containerStatuses[0].state.running.startedAt}{.status.containerStatuses[0].state.terminated.startedAt}' \
  2>"$error")" || said 2 "$pod cannot be looked at: $(short "$(cat "$error")")"
[ -n "$state" ] || said 2 "the container of $pod has not started, so it has written nothing"

if out="$(logs "$pod")"; then
  [ -z "$out" ] || said 1 "it can be read: $(short "$out")"
  said 0 "its log is empty, that of $control is not"
fi
out="$(cat "$error")"
case "$out" in
  *"connection refused"* | *"no such host"* | *"Unable to connect"* | *"i/o timeout"* | \
  *"Forbidden"* | *"NotFound"* | *"not found"* | *"waiting to start"* | *"no kind"*)
    said 2 "that is not the guest's doing: $(short "$out")" ;;
esac
said 0 "the kubelet has none: $(short "$out")"
