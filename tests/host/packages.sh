# shellcheck shell=bash
# Packages of other releases of Debian, unpacked and not installed.

mirror=${NACRE_DEBIAN_MIRROR:-http://deb.debian.org/debian}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# unpack_from SUITE DIR PACKAGE...: without what they depend on. Apt looks them up in folders of
# its own, so that this machine does not hear of that suite.
unpack_from() {
    local suite=$1 dir=$2 apt=$2.apt options package
    shift 2
    mkdir -p "$dir" "$apt"/{etc/apt/{apt.conf.d,preferences.d,trusted.gpg.d},lists/partial,cache/archives/partial,deb}
    : >"$apt/status"
    echo "deb [signed-by=$keyring] $mirror $suite main" >"$apt/etc/apt/sources.list"
    options=(-q=2 -o Dir="$apt" -o Dir::State="$apt" -o Dir::State::status="$apt/status"
        -o Dir::Cache="$apt/cache" -o APT::Architecture=amd64 -o APT::Architectures=amd64
        -o APT::Sandbox::User= -o Acquire::Languages=none)
    apt-get "${options[@]}" update
    (cd "$apt/deb" && apt-get "${options[@]}" download "$@")
    for package in "$apt"/deb/*.deb; do
        dpkg-deb -x "$package" "$dir"
    done
    rm -rf "$apt"
}
