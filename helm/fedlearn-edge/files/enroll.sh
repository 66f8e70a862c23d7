# Enrolls the site when there is no identity, or again with a new token after it was removed.
# The key is made here and stays here. Once used, the token is valid for this key only, so reading
# it later gives nothing.
set -eu
umask 077
disk="${FEDLEARN_DISK:-/var/lib/fedlearn}" token="${FEDLEARN_TOKEN:-/run/secrets/fedlearn/token}"
if [ -e "$disk/state/site.json" ]; then
  # If the volume was mounted with another group, that group may have been given access.
  chmod -R go= "$disk/state"
  if [ ! -s "$token" ] || [ "$(cat "$token")" = "$(cat "$disk/state/token")" ]; then
    exit 0
  fi
fi
if [ ! -s "$token" ]; then
  echo "no site is enrolled and there is no join token: give one with" >&2
  echo "  --set-file enrollment.token=token.txt, or enrollment.existingSecret" >&2
  exit 1
fi
exec fedlearn site enroll --token-file "$token" --state "$disk/state"
