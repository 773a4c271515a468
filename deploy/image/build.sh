#!/bin/sh
# build.sh ROOT ARCHIVE REFERENCE [PROGRAM]: makes a container image with buildah and writes it as a docker-archive, which
# docker, podman, skopeo, kind and containerd read. ROOT (see root.sh) is the first layer, the file PROGRAM the second;
# without PROGRAM the image is the first layer alone. Nothing runs in the image while it is made.
#
# The same input gives the same layers: files are root's and have the time SOURCE_DATE_EPOCH (0 if unset).
# VERSION and REVISION become labels if they are set.
set -eu
root=$1
archive=$2
reference=$3
program=${4:-}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# Storage of its own: nothing of another build or of podman is touched.
images() {
    buildah --root "$scratch/storage" --runroot "$scratch/run" --storage-driver vfs "$@"
}
commit() {
    images commit --quiet --timestamp "${SOURCE_DATE_EPOCH:-0}" --format docker "$@" >/dev/null
}

container=$(images from scratch)
images copy --quiet --chown 0:0 "$container" "$root" / >/dev/null
images config --env PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    --created-by 'deploy/image/root.sh: programs of Debian packages and their libraries' "$container"
rm -f "$archive"
if [ -z "$program" ]; then
    commit "$container" "docker-archive:$archive:$reference"
    exit
fi
commit "$container" root

name=$(basename "$program")
case $name in
kubevirt-csi-driver)
    # No user: the node role mounts for others, so it is root's; the controller's manifest names its own user.
    user=
    description='CSI driver for Kubernetes clusters whose workers are KubeVirt virtual machines'
    ;;
kubevirt-cloud-controller-manager)
    user=65532:65532
    description='Cloud controller manager for Kubernetes clusters whose workers are KubeVirt virtual machines'
    ;;
*)
    echo "no image of $name is known" >&2
    exit 1
    ;;
esac

container=$(images from --pull-never root)
images copy --quiet --chown 0:0 --chmod 0755 "$container" "$program" "/usr/bin/$name" >/dev/null
# No command: the manifests' `args` are the whole command line.
images config --entrypoint "[\"/bin/$name\"]" --cmd '' ${user:+--user "$user"} \
    --label "org.opencontainers.image.title=$name" \
    --label "org.opencontainers.image.description=$description" \
    --label org.opencontainers.image.licenses=Apache-2.0 \
    ${VERSION:+--label "org.opencontainers.image.version=$VERSION"} \
    ${REVISION:+--label "org.opencontainers.image.revision=$REVISION"} \
    --created-by "deploy/image/build.sh: $name" "$container"
commit "$container" "docker-archive:$archive:$reference"
