#!/bin/bash
# user_manager.sh USER UID PATH...
#
# A real `systemd --user` with a journal for a user who exists in here alone. Runs as the first process of new mount, pid
# and cgroup namespaces, as root; writes "ready" and lives until its standard input is closed. The PATHs (a Python, this
# repository) can be read by that user even where they lie in somebody's home.
set -eu
user=$1 uid=$2; shift 2
home=/home/$user runtime=/run/user/$uid

mount -t cgroup2 -o nsdelegate none /sys/fs/cgroup
manager=/sys/fs/cgroup/user@$uid.service
mkdir "$manager" /sys/fs/cgroup/{journald,script}
# A group with processes of its own cannot hand controllers down; those that the host keeps to itself are not here.
echo 0 > /sys/fs/cgroup/script/cgroup.procs
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control 2> /dev/null || true
done

stash=$(mktemp -d)
mount -t tmpfs none "$stash"
for path in "$@"; do
    mkdir -p "$stash$path"
    mount --bind "$path" "$stash$path"
done
for folder in /root /home; do
    mount -t tmpfs -o mode=755 none $folder
done
for path in "$@"; do
    [ -d "$path" ] || { mkdir -p "$path" && mount --bind "$stash$path" "$path"; }
done
echo "$user:x:$uid:$uid::$home:/bin/bash" | cat /etc/passwd - > "$stash/passwd"
echo "$user:x:$uid:" | cat /etc/group - > "$stash/group"
chmod 644 "$stash/passwd" "$stash/group"
mount --bind "$stash/passwd" /etc/passwd
mount --bind "$stash/group" /etc/group
mkdir -m 700 "$home"
chown "$uid:$uid" "$home"

mkdir -p /var/lib/systemd/linger
for folder in /run /var/log /var/lib/systemd/linger; do
    mount -t tmpfs -o mode=755 none $folder
done
# What the system's own manager would have made: what tools take for a running systemd, where sandboxes are built, and
# what tells the journal that its disk is there.
mkdir -p /run/systemd/{system,unit-root,mount-rootfs,journal} "/var/log/journal/$(cat /etc/machine-id)"
touch /run/systemd/journal/flushed
(
    echo 0 > /sys/fs/cgroup/journald/cgroup.procs
    exec /lib/systemd/systemd-journald
) > /dev/null 2>&1 < /dev/null &
# The manager looks for the journal once, when it starts; without one its own messages are lost for good.
for _ in $(seq 300); do
    [ -S /run/systemd/journal/socket ] && [ -S /run/systemd/journal/stdout ] && break
    sleep 0.1
done

mkdir -p -m 755 /run/user
mkdir -m 700 "$runtime"
chown -R "$uid:$uid" "$runtime" "$manager"
(
    echo 0 > "$manager/cgroup.procs"
    exec setpriv --reuid="$uid" --regid="$uid" --clear-groups env -i HOME="$home" USER="$user" LOGNAME="$user" \
        XDG_RUNTIME_DIR="$runtime" DBUS_SESSION_BUS_ADDRESS="unix:path=$runtime/bus" PATH=/usr/bin:/bin \
        /lib/systemd/systemd --user --log-target=journal
) > /dev/null < /dev/null &
for _ in $(seq 300); do
    [ -S "$runtime/systemd/private" ] && break
    sleep 0.1
done
echo ready
cat > /dev/null
