# shellcheck shell=bash
# What the scripts of the test host share: where things are, and how to speak.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
host_dir=$repo/tests/host
cache=${XDG_CACHE_HOME:-${HOME:?is not set, and the cache folder is below it}/.cache}/nacre/test-host

# Every checkout has test hosts of its own, told apart by a name.
instance=${NACRE_TEST_HOST:-dev}
run=$cache/run/$(printf %s "$repo" | sha256sum | cut -c1-8)-$instance

say() { printf 'test host: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

# The image is named by the hash of all that it is made from.
# shellcheck disable=SC2034  # for those who read this file
image=$cache/image-$(cd "$host_dir" && cat build packages.sh packages.txt image/* crictl/go.* | sha256sum | cut -c1-16)

# True while the QEMU of this test host runs.
is_running() {
    local pid
    pid=$(cat "$run/qemu.pid" 2>/dev/null) || return 1
    tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -- "$run/"
}

# The end of what the test host printed, to say why it is not there.
show_console() {
    say "last lines of $run/console.log:"
    tail -n 60 "$run/console.log" 2>/dev/null | tr -d '\r' >&2 || true
}
