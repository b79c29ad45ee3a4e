#!/usr/bin/env bash
# The pods of deploy/kubernetes.yaml without Kubernetes: four network namespaces with IPv4 and IPv6, a headless service
# by a name server, the pods' environment, user, probes and preStop as the file has them, a read-only root, and a Secret
# that is mounted as the kubelet does it and changed by its swap of a link.
#
#   sudo kv-example/tests/pods/pods.sh PROGRAM [ROOT]
#
# Needs root, ip, python3, curl and setpriv. PROGRAM is the built `tidings`; ROOT a root file system for the pods (this
# machine's own if it is left out). Everything happens in namespaces of its own, which end with the script.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
manifest=$here/../../deploy/kubernetes.yaml
if [ -z "${PODS_INSIDE:-}" ]; then
    PODS_INSIDE=1 exec unshare --net --mount --pid --fork --mount-proc "$0" "$@"
fi
program=$(realpath "$1")
root=$(realpath "${2:-/}")
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; wait; umount -R "$work"; rmdir "$work"' EXIT
# A file system of its own, because the pods' layers must not lie in the root that they are laid over.
mount -t tmpfs tmpfs "$work"
step() { printf '\n== %s\n' "$*"; }
fail() { echo "FAILED: $*"; exit 1; }
# Asks again, at most 600 times, until a command succeeds.
until_so() {
    for _ in $(seq 600); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.1
    done
    fail "never so: $*"
}

# The machine of the pods: a bridge, and the name server. Names of namespaces are files, which are not to be left behind.
mkdir -p /run/netns
mount -t tmpfs tmpfs /run/netns
ip link set lo up
ip link add pods type bridge
ip addr add 10.77.0.1/24 dev pods
ip addr add fd77::1/64 dev pods nodad
ip link set pods up
: > "$work/addresses"
python3 "$here/names.py" 10.77.0.1 tidings-nodes.default.svc.cluster.local "$work/addresses" &

# The Secret, as the kubelet lays it out: names lead through ..data to the folder of one state. 0440 for the group.
put_secret() {
    local state=$work/secrets/..$1
    mkdir "$state"
    cp "$work/new/"* "$state"
    chown -R 0:10001 "$state"
    chmod 0440 "$state"/*
    ln -sfn "..$1" "$work/secrets/..data_tmp"
    mv -T "$work/secrets/..data_tmp" "$work/secrets/..data"
}
mkdir "$work/secrets" "$work/new"
chmod 755 "$work" "$work/secrets"
for name in secret token read-token; do
    "$program" secret --out "$work/new/$name"
    ln -s "..data/$name" "$work/secrets/$name"
done
put_secret first

# The environment of the container, from the file; the pod's name is the node's.
environment() {
    sed -n 's/^ *- { name: \(TIDINGS_[A-Z_]*\), value: "\{0,1\}\([^"}]*[^" }]\)"\{0,1\} }.*/\1=\2/p' "$manifest"
    echo "TIDINGS_NAME=$1"
}
# Runs a command in a pod, as its user, without privileges; with `replace=exec` in place of this shell.
in_pod() {
    local name=$1
    shift
    mapfile -t variables < <(environment "$name")
    ${replace:-} ip netns exec "$name" chroot "$work/$name/root" setpriv --reuid 10001 --regid 10001 --clear-groups \
        --no-new-privs --inh-caps=-all --bounding-set=-all \
        env -i PATH=/usr/local/bin:/usr/bin:/bin "${variables[@]}" "$@"
}
make_pod() {
    local name=$1 number=$2 pod=$work/$1
    ip netns add "$name"
    ip link add "veth$number" type veth peer name eth0 netns "$name"
    ip link set "veth$number" master pods up
    ip -n "$name" link set lo up
    ip -n "$name" addr add "10.77.0.1$number/24" dev eth0
    ip -n "$name" addr add "fd77::1$number/64" dev eth0 nodad
    ip -n "$name" link set eth0 up
    mkdir -p "$pod/root" "$pod/data" "$pod/etc"
    chown 10001:10001 "$pod/data"
    printf 'nameserver 10.77.0.1\nsearch default.svc.cluster.local\n' > "$pod/etc/resolv.conf"
    # Over the given root a layer with the places of the mounts; nothing in it can be written by the pod.
    mkdir -p "$pod/layer/data" "$pod/layer/secrets" "$pod/layer/usr/local/bin" "$pod/layer/etc"
    cp "$program" "$pod/layer/usr/local/bin/tidings"
    cp "$pod/etc/resolv.conf" "$pod/layer/etc/resolv.conf"
    mount -t overlay overlay -o "ro,lowerdir=$pod/layer:$root" "$pod/root"
    mount --bind "$pod/data" "$pod/root/data"
    mount --bind "$work/secrets" "$pod/root/secrets"
    mount -o remount,bind,ro "$pod/root/secrets"
}
start_pod() {
    local name=$1 number=$2
    printf '10.77.0.1%s\nfd77::1%s\n' "$number" "$number" >> "$work/addresses"
    replace=exec in_pod "$name" tidings serve > "$work/$name/log" 2>&1 &
    echo $! > "$work/$name/pid"
}
probe() { curl -sf -o "$work/probe" --max-time 1 "http://$2:8080$1"; }
members() { in_pod "$1" tidings members --token-file /secrets/read-token; }
is_gone() { ! kill -0 "$1"; }
shows() { members "$1" | grep -c " $2 " | grep -qx "$3"; }

step "three pods find each other by the headless service"
for number in 0 1 2; do make_pod "tidings-$number" "$number"; done
for number in 0 1 2; do start_pod "tidings-$number" "$number"; done
for number in 0 1 2; do
    until_so probe /healthz "10.77.0.1$number"
    until_so probe /readyz "[fd77::1$number]"
    until_so shows "tidings-$number" alive 3
done
members tidings-0

step "the root is read-only, and a client needs the token"
in_pod tidings-0 sh -c 'echo x > /tmp/x || echo x > /x' 2>/dev/null && fail "the root can be written"
in_pod tidings-0 tidings put limits/max 100 --wait all --durable --token-file /secrets/token
in_pod tidings-2 tidings get limits/max | grep -qx 100 || fail "the value is not there"
in_pod tidings-1 tidings put limits/max 1 --token-file /secrets/read-token 2>/dev/null && fail "it is for reading"

step "a pod beyond the voters joins, and leaves by preStop when it is scaled away"
make_pod tidings-3 3
start_pod tidings-3 3
until_so shows tidings-0 alive 4
# The command of preStop, as the file has it.
prestop=$(sed -n 's/^ *- \(case .* esac\)$/\1/p' "$manifest")
[ -n "$prestop" ] || fail "there is no command of preStop in the file"
in_pod tidings-3 sh -c "$prestop"
until_so shows tidings-0 left 1

step "a voter is stopped: preStop does nothing, and the pod is expected back"
in_pod tidings-2 sh -c "$prestop"
sed -i '/10.77.0.12/d; /fd77::12/d' "$work/addresses"
stopped=$(cat "$work/tidings-2/pid")
kill "$stopped"
until_so shows tidings-0 down 1
# Its volume is free for the next one when the process has ended.
until_so is_gone "$stopped"
start_pod tidings-2 2
until_so shows tidings-0 alive 3
in_pod tidings-2 tidings get limits/max | grep -qx 100 || fail "its volume has lost the value"

step "the secret is rotated in three steps by swaps of the link; nobody sends a signal"
told() { [ "$(grep -c "$1" "$work/$2/log")" -ge "$3" ]; }
cp "$work/new/secret" "$work/old-secret"
rm -f "$work/next-secret" && "$program" secret --out "$work/next-secret"
cat "$work/old-secret" "$work/next-secret" > "$work/new/secret" && put_secret second
for number in 0 1 2; do until_so told "2 .*accepted" "tidings-$number" 1; done
cat "$work/next-secret" "$work/old-secret" > "$work/new/secret" && put_secret third
for number in 0 1 2; do until_so told "2 .*accepted" "tidings-$number" 2; done
cat "$work/next-secret" > "$work/new/secret" && put_secret fourth
for number in 0 1 2; do until_so told "1 .*accepted" "tidings-$number" 1; done
in_pod tidings-1 tidings put limits/max 200 --wait all --token-file /secrets/token
grep -h accepted "$work/tidings-0/log"

step "a token is replaced in the same way"
rm "$work/new/token" && "$program" secret --out "$work/new/token" && put_secret fifth
until_so in_pod tidings-0 tidings put limits/max 300 --token-file /secrets/token
printf '\nall of it holds\n'
