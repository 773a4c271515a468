#!/bin/sh
# packages.sh FOLDER: downloads the Debian packages of the images into FOLDER, from the apt sources of this machine. apt
# checks their signatures; nothing is installed. The release must be the one whose C library the programs were linked with.
set -eu
folder=$1

# Packages with something in an image. Of what they depend on, libraries are followed (and gcc-N-base, which has the
# licence of libgcc); the rest (perl, python, maintainer scripts' tools) stays away. root.sh checks whether it was enough.
roots="base-files ca-certificates e2fsprogs libc6 libgcc-s1 util-linux xfsprogs"

# shellcheck disable=SC2086 # a list of names
names=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
    $roots | awk -v roots="$roots" '
    /^[^ ]/ { package = $1 }
    /Depends: (lib|gcc-[0-9]+-base)/ { libraries[package] = libraries[package] " " $2 }
    END {
        last = split(roots, open)
        for (at = 1; at <= last; at++) {
            if (seen[open[at]]++) continue
            print open[at]
            many = split(libraries[open[at]], found)
            for (i = 1; i <= many; i++) open[++last] = found[i]
        }
    }')

mkdir -p "$folder"
cd "$folder"
# apt's own unprivileged user may not be able to write here; signatures are checked all the same.
# shellcheck disable=SC2086 # a list of names
apt-get -o APT::Sandbox::User=root -qq download $names
