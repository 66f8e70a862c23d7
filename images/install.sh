# Runs inside of the build stage: the wheels of the list "$1", by hash, and our own.
set -eu
export PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0
python3 -m venv --without-pip /opt/fedlearn
pip="$(echo /wheels/pip-*.whl)"
PYTHONPATH="$pip" /opt/fedlearn/bin/python -m pip install --quiet --disable-pip-version-check \
  --no-index --find-links /wheels --no-deps --no-compile --require-hashes --requirement "$1"
PYTHONPATH="$pip" /opt/fedlearn/bin/python -m pip install --quiet --disable-pip-version-check \
  --no-index --no-deps --no-compile /wheels/fedlearn-*.whl
# The tests of libraries are not needed.
find /opt/fedlearn -depth -type d -name tests -path '*/site-packages/*/tests' -prune -exec rm -rf {} +
# Byte code names the hash of its source and not a time, so every build has the same bytes.
/opt/fedlearn/bin/python -m compileall -q -f -j 1 --invalidation-mode unchecked-hash \
  -s /opt/fedlearn -p /opt/fedlearn /opt/fedlearn/lib || true
