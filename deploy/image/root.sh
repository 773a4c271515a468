#!/bin/sh
# root.sh PACKAGES ROOT PROGRAM: lays out the root of the image of PROGRAM (kubevirt-csi-driver or
# kubevirt-cloud-controller-manager) in the new folder ROOT, from the Debian packages (*.deb) in the folder PACKAGES: the
# programs that it spawns, the libraries that they and it load, and nothing else. No shell, no package manager, no perl, no
# python.
set -eu
packages=$1
root=$2

# Files by which scanners know the distribution, and that programs read.
files="etc/debian_version usr/lib/os-release"
case $3 in
kubevirt-csi-driver)
    # What node/src spawns (filesystem.rs, host/disk.rs). mkfs.ext2, .ext3 and .ext4 are names of mke2fs.
    programs="blkid e2fsck mke2fs mkfs.ext2 mkfs.ext3 mkfs.ext4 mkfs.xfs resize2fs xfs_growfs"
    files="$files etc/mke2fs.conf"
    ;;
kubevirt-cloud-controller-manager)
    programs=
    ;;
*)
    echo "no image of $3 is known" >&2
    exit 1
    ;;
esac
# Libraries that a Rust program is linked with.
own_libraries="libc.so.6 libgcc_s.so.1 libm.so.6"
# The user that programs are run as that need no other (the manifests name its number).
nonroot=65532

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$root"

# One tree of all packages, /bin and its like being links into /usr, and a list of whose each file is.
tree=$scratch/tree
mkdir "$tree"
for folder in bin sbin lib lib64; do
    mkdir -p "$tree/usr/$folder" "$root/usr/$folder"
    ln -s "usr/$folder" "$tree/$folder"
    ln -s "usr/$folder" "$root/$folder"
done
for package in "$packages"/*.deb; do
    name=$(dpkg-deb --field "$package" Package)
    dpkg-deb --fsys-tarfile "$package" | tar --extract --keep-directory-symlink --no-same-owner --directory "$tree"
    dpkg-deb --fsys-tarfile "$package" | tar --list |
        sed -e 's#^\./##' -e 's#^\(bin\|sbin\|lib\|lib64\)/#usr/\1/#' -e "s#\$# $name#" >>"$scratch/owners"
    dpkg-deb --field "$package" >"$scratch/$name.control"
done

# take PATH: copies one file of the tree, and notes its package.
take() {
    mkdir -p "$root/$(dirname "$1")"
    cp --no-dereference --preserve=mode "$tree/$1" "$root/$1"
    awk -v path="$1" '$1 == path { print $2 }' "$scratch/owners" >>"$scratch/taken"
}

libraries=usr/lib/$(uname -m)-linux-gnu
loader=$(basename "$tree/lib64"/ld-linux-*)
: >"$scratch/loaded"

# take_library NAME: the file of that soname, under this name.
take_library() {
    target=$(readlink -f "$tree/$libraries/$1")
    mkdir -p "$root/$libraries"
    cp --preserve=mode "$target" "$root/$libraries/$1"
    awk -v path="${target#"$(readlink -f "$tree")/"}" '$1 == path { print $2 }' "$scratch/owners" >>"$scratch/taken"
}

for program in $programs; do
    for folder in usr/bin usr/sbin; do
        if [ -e "$tree/$folder/$program" ]; then
            take "$folder/$program"
            "$tree/$libraries/$loader" --inhibit-cache --library-path "$tree/$libraries" --list "$tree/$folder/$program" \
                >>"$scratch/loaded"
            continue 2
        fi
    done
    echo "no package has $program; has it moved to another one?" >&2
    exit 1
done
if grep 'not found' "$scratch/loaded" >&2; then
    echo "the packages lack these libraries" >&2
    exit 1
fi
for library in $own_libraries $(sed -n "s#.* => $tree/$libraries/\([^ ]*\) .*#\1#p" "$scratch/loaded" | sort -u); do
    take_library "$library"
done
take_library "$loader"
ln -s "../lib/$(uname -m)-linux-gnu/$loader" "$root/usr/lib64/$loader"
for file in $files; do
    take "$file"
done
ln -s ../usr/lib/os-release "$root/etc/os-release"

# The authorities of an API server that does not bring its own. ca-certificates makes this file when it is installed.
mkdir -p "$root/etc/ssl/certs"
cat "$tree"/usr/share/ca-certificates/mozilla/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
echo ca-certificates >>"$scratch/taken"

# What scanners read, and the licences.
mkdir -p "$root/var/lib/dpkg/status.d"
sort -u "$scratch/taken" | while read -r name; do
    cp "$scratch/$name.control" "$root/var/lib/dpkg/status.d/$name"
    mkdir -p "$root/usr/share/doc/$name"
    cp --dereference "$tree/usr/share/doc/$name/copyright" "$root/usr/share/doc/$name/copyright"
done
# What the image was made of: apt checks the same hashes against the release's signed lists.
for package in "$packages"/*.deb; do
    if [ -e "$root/var/lib/dpkg/status.d/$(dpkg-deb --field "$package" Package)" ]; then
        (cd "$packages" && sha256sum "$(basename "$package")")
    fi
done | sort -k 2 >"$root/usr/share/doc/packages.sha256"

cat >"$root/etc/passwd" <<END
root:x:0:0:root:/root:/sbin/nologin
nonroot:x:$nonroot:$nonroot:nonroot:/:/sbin/nologin
nobody:x:65534:65534:nobody:/:/sbin/nologin
END
cat >"$root/etc/group" <<END
root:x:0:
nonroot:x:$nonroot:
nogroup:x:65534:
END
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
mkdir -p "$root/dev" "$root/proc" "$root/sys" "$root/run" "$root/tmp"
ln -s ../run "$root/var/run"
chmod -R u=rwX,go=rX "$root"
chmod 1777 "$root/tmp"
