#!/usr/bin/env bash
# check.sh OUT [PART] [options of check.py]: on a GPU machine, unpack build/gpu-kit/PART and run the steps that need it.
#   PART 1: libcudf is unpacked beside the steps that need torch alone.  PART 2: the cudf steps; the same machine, after 1.
#   all: both, where both folders are there.
# Packages and earlier results lie in KIT_SITE (/tmp/gpu-kit). COMMIT names the state of the code where git is not there.
set -euo pipefail
out=${1:?"expected: check.sh OUT [1|2|all] [options]"} part=${2:-all}
shift; shift || true
root=$(cd "$(dirname "$0")/../.." && pwd)
kit=$root/build/gpu-kit site=${KIT_SITE:-/tmp/gpu-kit} python=${PYTHON:-python3}
mkdir -p "$out" "$site/packages"
export PYTHONPATH=$root:$site/packages PYTHONUNBUFFERED=1
export DASK_DATAFRAME__QUERY_PLANNING=False DASK_DATAFRAME__CONVERT_STRING=False DASK_DATAFRAME__SHUFFLE__METHOD=tasks

unpack() {  # unpack 1|2
  [ -e "$site/unpacked.$1" ] && return
  [ -d "$kit/$1" ] || { echo "expected $kit/$1, found none: make gpu-kit, and copy that folder with the repository"; exit 1; }
  if [ "$1" = 1 ]; then
    # In a session of its own, so that it also outlives this command.
    setsid "$python" -c 'import lzma, os, shutil, sys
shutil.copyfileobj(lzma.open(sys.argv[1]), open(sys.argv[2] + ".part", "wb"), 1 << 22)
os.replace(sys.argv[2] + ".part", sys.argv[2])' "$kit/1/libcudf.so.xz" "$site/libcudf.so" >"$site/libcudf.log" 2>&1 &
    cp "$kit/1/libcudf.path" "$site/"
    "$python" -m tarfile --filter data -e "$kit/1/python.tar.xz" "$site/packages"
  else
    [ -e "$site/libcudf.path" ] || { echo "part 1 has not been unpacked on this machine: run check.sh OUT 1 first"; exit 1; }
    "$python" -m tarfile --filter data -e "$kit/2/rapids.tar.xz" "$site/packages"
    wait_for_libcudf
    mv "$site/libcudf.so" "$site/packages/$(cat "$site/libcudf.path")"
  fi
  touch "$site/unpacked.$1"
}

wait_for_libcudf() {
  for _ in $(seq 120); do [ -e "$site/libcudf.so" ] && return; sleep 1; done
  echo "libcudf.so.xz could not be unpacked: $(tail -1 "$site/libcudf.log")"; exit 1
}

start=$SECONDS
parts=(1 2); only=()
[ "$part" = all ] || { parts=("$part"); only=(--part "$part"); }
for one in "${parts[@]}"; do unpack "$one"; done
echo "unpacked after $((SECONDS - start)) s"
status=0
"$python" "$root/benchmarks/gpu/check.py" "$out" "${only[@]}" --earlier "$site/results" "$@" || status=$?
[ "$part" != 1 ] || [ -e "$site/unpacked.2" ] || wait_for_libcudf  # the next command may come on at once
exit $status
