# Debian packages, installed through apt when missing.
# shellcheck shell=bash disable=SC2154

build_packages=(gcc make libc6-dev flex bison bc libelf-dev perl binutils xz-utils cpio)
test_packages=(gcc libc6-dev binutils cpio qemu-system-x86)
# Carries the keys that sign Debian's archive.
trixie_keyring=/usr/share/keyrings/debian-archive-trixie-stable.gpg

install_build_packages() {
    local wanted=("${build_packages[@]}")
    [ -n "${KERNEL_SOURCE-}" ] || [ -e "$trixie_keyring" ] || wanted+=(debian-archive-keyring=)
    install_packages "${wanted[@]}"
}

install_test_packages() { install_packages "${test_packages[@]}"; }

# install_packages PACKAGE...: "PACKAGE=" is brought up to date even when it is
# installed.
install_packages() {
    local missing as_root=() log
    command -v dpkg-query >/dev/null || die "dpkg-query not found: tools are installed through apt, on Debian 12 or newer"
    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || die "packages missing: ${missing[*]}; install them as root and start again"
        as_root=(sudo)
    fi
    say "installing ${missing[*]}"
    log=$(mktemp)
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600)
    {
        "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "${missing[@]}"
    } >"$log" 2>&1 9>&- || {
        tail -n 20 "$log" >&2
        die "apt could not install ${missing[*]} (full log: $log)"
    }
    rm -f "$log"
}

missing_packages() {
    local package
    for package in "$@"; do
        case $package in
            *=) echo "${package%=}" ;;
            *) [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package" ;;
        esac
    done
}
