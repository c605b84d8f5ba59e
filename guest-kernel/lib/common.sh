# Shared by the parts of the build: where things are, how it speaks, the lock.
# shellcheck shell=bash disable=SC2034,SC2154  # variables cross files

cache=${XDG_CACHE_HOME:-$HOME/.cache}/nacre/guest-kernel
guest_dir=$(dirname "$room")/target/guest

# Called from a Makefile or a configured shell, the kernel's own make would take
# these for its own.
unset MAKEFLAGS MFLAGS MAKELEVEL ARCH CROSS_COMPILE LLVM KCFLAGS KCPPFLAGS KAFLAGS O V W C M
export LC_ALL=C

say() { printf 'guest-kernel: %s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

# Takes the lock of the cache until this process ends. Two runs at once would
# compile in the same tree; the second finds the first one's result instead.
lock_cache() {
    mkdir -p "$cache" || die "cannot create the cache folder $cache; set XDG_CACHE_HOME to a writable folder"
    exec 9>"$cache/lock"
    if ! flock --nonblock 9; then
        say "another build is running; waiting for it"
        flock 9
    fi
    # What a run that was killed left behind, and, at the end, what this one did.
    remove_scratch
    trap remove_scratch EXIT
}

remove_scratch() { rm -rf "$cache"/tmp.*; }

# A fresh folder in the cache, on the same file system as where its content
# will be renamed to.
scratch_dir() { mktemp -d "$cache/tmp.XXXXXX"; }
