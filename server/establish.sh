# Initializes a coordinator when there is none; only the sealed state reaches the disk, whole or
# not at all. The first operator's request is answered on standard output, at every start: the
# answer is public. Without a request the operator's key is made here, and stays in memory.
set -eu
umask 077
disk="${FEDLEARN_DISK:-/var/lib/fedlearn}" memory="${RUNTIME_DIRECTORY:-/run/fedlearn}"
etc="${FEDLEARN_CONFIG:-/etc/fedlearn}"
answer() { if [ -e "$disk/state/operator.toml" ]; then cat "$disk/state/operator.toml"; fi; }
if [ -e "$disk/state" ]; then
  # A volume that was mounted with another group may have been opened to it.
  chmod -R go= "$disk/state"
  answer
  exit 0
fi
rm -rf "$memory/new" "$memory/operator" "$disk/.state.part"
if [ -e "$etc/operator.csr" ]; then
  fedlearn-server init --config "$etc/init.toml" --operator-csr "$etc/operator.csr" >/dev/null
else
  fedlearn-server init --config "$etc/init.toml" --insecure-operator-key-here >/dev/null
  mv "$memory/new/operator" "$memory/operator"
fi
cp -R "$memory/new" "$disk/.state.part"
sync
mv "$disk/.state.part" "$disk/state"
sync
rm -rf "$memory/new"
answer
