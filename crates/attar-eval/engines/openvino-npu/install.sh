#!/bin/sh
# Adds Intel's NPU compiler, which lies in OpenVINO's wheel for Windows, to a Python environment on Linux: install.sh ENVIRONMENT
#
# The environment gets the wheel's libraries, the driver `npuc.exe` beside them, and `prefix`, where Wine keeps its Windows: 0.95 GB
# together. Debian's package `wine64` takes 0.7 GB more. Packages are only asked for where a program is missing, which needs root.
# The driver is compiled by the machine's own gcc, whose linker must know Windows programs, as Debian's does.
# Run again, it does what is left to do.
set -eu
environment=$(cd "${1:?usage: install.sh ENVIRONMENT}" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
wheel=$(cat "$here/wheel.txt")
python=$environment/bin/python
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
libs=$site/openvino/libs

fail() {
    echo "error: $1" >&2
    exit 1
}
find_wine() {
    for found in wine64 wine /usr/lib/wine/wine64; do
        command -v "$found" && return
    done
    return 1
}

missing=
find_wine >/dev/null || missing=wine64
command -v gcc >/dev/null || missing="$missing gcc"
if [ -n "$missing" ]; then
    [ "$(id -u)" = 0 ] || fail "programs are missing: as root, \`apt-get install$(printf ' %s' $missing)\`"
    apt-get update -q
    # shellcheck disable=SC2086 # a list
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
fi
ld -V | grep -q i386pep || fail "the linker of this machine makes no programs for Windows (emulation i386pep)"

if [ ! -d "$site/openvino-${wheel#*==}.dist-info" ]; then
    new=$environment/new
    rm -rf "$site/openvino" "$site"/openvino-*.dist-info "$new"
    "$python" -m pip download -q --disable-pip-version-check "$wheel" --platform win_amd64 --python-version 311 \
        --only-binary=:all: --no-deps -d "$new"
    "$python" -m zipfile -e "$new"/openvino-*.whl "$new"
    # What the driver needs, and not the bindings of Python. The last move says that all is there.
    mkdir "$site/openvino"
    mv "$new/openvino/libs" "$site/openvino"
    mv "$new"/openvino-*.dist-info "$site"
    rm -rf "$new"
fi

if [ ! "$libs/npuc.exe" -nt "$here/npuc.c" ]; then
    # Windows' calling convention and no C runtime. Notes for Linux would end in front of the program, which Windows refuses.
    # Wine's own msvcrt.dll stands in for an import library.
    msvcrt=$(find /usr/lib /opt -path '*/x86_64-windows/msvcrt.dll' 2>/dev/null | head -n 1)
    [ -n "$msvcrt" ] || fail "Wine's msvcrt.dll is in neither /usr/lib nor /opt"
    object=$environment/npuc.o
    gcc -c "$here/npuc.c" -o "$object" -O1 -Wall -Wextra -mabi=ms -mno-red-zone -mcmodel=large -ffreestanding -fno-builtin \
        -fno-pic -fno-ident -fno-stack-protector -fno-asynchronous-unwind-tables -fcf-protection=none
    objcopy -R .comment -R .note.GNU-stack -R .note.gnu.property "$object"
    ld -m i386pep --subsystem console -e start -s "$object" "$libs/openvino_c.dll" "$msvcrt" -o "$libs/npuc.exe"
    rm "$object"
fi

# The first program that runs makes the prefix. Without arguments, the driver prints its usage and exits with 2.
export WINEPREFIX="$environment/prefix" WINEDEBUG=-all WINEDLLOVERRIDES="mscoree,mshtml="
status=0
said=$("$(find_wine)" "$libs/npuc.exe" 2>&1) || status=$?
[ "$status" = 2 ] || fail "the driver does not start under Wine (status $status): $said"
