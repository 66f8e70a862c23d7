# Establishes a coordinator when there is none. The operator's login holds a private key and
# stays in memory; only the sealed state reaches the disk, whole or not at all.
set -eu
umask 077
disk="${FEDLEARN_DISK:-/var/lib/fedlearn}" memory="${RUNTIME_DIRECTORY:-/run/fedlearn}"
if [ -e "$disk/state" ]; then
  # A volume that was mounted with another group may have been opened to it.
  chmod -R go= "$disk/state"
  exit 0
fi
rm -rf "$memory/new" "$memory/operator" "$disk/.state.part"
fedlearn-server init --config "${FEDLEARN_CONFIG:-/etc/fedlearn}/init.toml"
mv "$memory/new/operator" "$memory/operator"
cp -R "$memory/new" "$disk/.state.part"
sync
mv "$disk/.state.part" "$disk/state"
sync
rm -rf "$memory/new"
