#!/bin/busybox sh
# The first program of the emulated machine: loads KVM, runs each test program of /tests/list, and
# switches the machine off. Results go to the second serial port, kernel messages to the first.
# A line of the list: name, folder to run in, program, each one word.
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /root
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs tmp /dev/shm
mount -t cgroup2 cgroup /sys/fs/cgroup
ip link set lo up

exec </dev/null >/dev/ttyS1 2>&1
stty -F /dev/ttyS1 raw -echo 2>/dev/null
for module in irqbypass kvm kvm-amd; do
    insmod "/modules/$module.ko" || echo "@@ trouble insmod $module failed"
done
[ -c /dev/kvm ] || echo "@@ trouble there is no /dev/kvm"

. /tests/environment
while read -r name folder program; do
    echo "@@ start $name"
    cd "$folder" || echo "@@ trouble no folder $folder"
    timeout 300 "$program" --test-threads=1 --show-output $FILTER
    echo "@@ end $name $?"
done </tests/list
echo "@@ done"
sync
poweroff -f
