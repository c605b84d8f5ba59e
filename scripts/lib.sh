# shellcheck shell=bash
# What the scripts share: where things are, and how to speak.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$repo"

# One folder for what is built: the test host looks there, too.
export CARGO_TARGET_DIR=$repo/target
bin=$repo/target/x86_64-unknown-linux-gnu/release
guest=$repo/target/guest
export bin guest

# Where rustup puts cargo, for shells that have not read its profile.
export PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$@"; exit 1; }

# Stops with advice unless a cargo that is new enough is here.
require_rust() {
    local need have
    need=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    have=$(cargo --version 2>/dev/null | cut -d' ' -f2) || true
    if [ -z "$have" ] || [ "$(printf '%s\n' "$need" "$have" | sort -V | head -n 1)" != "$need" ]; then
        die "Rust $need or newer is needed, ${have:-none} is here; install it with" \
            "'curl --proto =https --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile default' (https://rustup.rs)"
    fi
}

# Names of the tests of a test program.
tests_of() { "$1" --list --format terse | sed -n 's/: test$//p'; }
