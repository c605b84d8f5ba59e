# shellcheck shell=bash
# Packages of other releases of Debian, unpacked and not installed.

mirror=${NACRE_DEBIAN_MIRROR:-http://deb.debian.org/debian}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# isolate SUITE APT: sets options to what has apt-get look packages of that suite up in the folder
# APT, so that this machine does not hear of the suite.
isolate() {
    local suite=$1 apt=$2
    mkdir -p "$apt"/{etc/apt/{apt.conf.d,preferences.d,trusted.gpg.d},lists/partial,cache/archives/partial,fetched}
    : >"$apt/status"
    printf '%s [signed-by=%s] %s %s main\n' deb "$keyring" "$mirror" "$suite" \
        deb-src "$keyring" "$mirror" "$suite" >"$apt/etc/apt/sources.list"
    options=(-q=2 -o Dir="$apt" -o Dir::State="$apt" -o Dir::State::status="$apt/status"
        -o Dir::Cache="$apt/cache" -o APT::Architecture=amd64 -o APT::Architectures=amd64
        -o APT::Sandbox::User= -o Acquire::Languages=none)
    apt-get "${options[@]}" update
}

# unpack_from SUITE DIR PACKAGE...: without what they depend on.
unpack_from() {
    local suite=$1 dir=$2 apt=$2.apt options package
    shift 2
    mkdir -p "$dir"
    isolate "$suite" "$apt"
    (cd "$apt/fetched" && apt-get "${options[@]}" download "$@")
    for package in "$apt"/fetched/*.deb; do
        dpkg-deb -x "$package" "$dir"
    done
    rm -rf "$apt"
}

# unpack_source_from SUITE DIR PACKAGE: as its authors publish it, without Debian's changes.
unpack_source_from() {
    local suite=$1 dir=$2 apt=$2.apt options
    mkdir -p "$dir"
    isolate "$suite" "$apt"
    (cd "$apt/fetched" && apt-get "${options[@]}" source --download-only "$3")
    tar -x --strip-components=1 -C "$dir" -f "$apt"/fetched/*.orig.tar.*z
    rm -rf "$apt"
}
