#!/bin/busybox sh
# First process of the nested host: modules, then the shared root under a writable layer in memory, then a move into it.
b=/bin/busybox
die() { echo "nested host: $*"; $b poweroff -f; }
$b mkdir -p /proc /sys /dev /low /top
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
while read -r module; do
    $b insmod "/modules/$module.ko" || die "cannot load the module $module"
done </modules/order
$b mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=524288 root /low || die "cannot mount the shared root"
$b mount -t tmpfs -o size=75% top /top && $b mkdir /top/upper /top/work /top/root
root=/top/root
$b mount -t overlay -o lowerdir=/low,upperdir=/top/upper,workdir=/top/work overlay $root || die "cannot layer the root"
for dir in proc sys dev; do
    $b mkdir -p $root/$dir && $b mount -o move /$dir $root/$dir
done
$b mkdir -p $root/run $root/dev/pts $root/dev/shm
$b mount -t tmpfs run $root/run
$b mount -t devpts devpts $root/dev/pts
$b mount -t tmpfs shm $root/dev/shm
$b mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
results=$($b cat /levy/results)
if [ -n "$results" ]; then
    $b mkdir -p "$root$results"
    $b mount -t 9p -o trans=virtio,version=9p2000.L,rw,cache=none,msize=524288 results "$root$results" ||
        die "cannot mount the results folder"
fi
$b mkdir $root/run/levy-nested
$b cp $b /levy/exe /levy/start $root/run/levy-nested/
exec $b switch_root $root /run/levy-nested/busybox sh /run/levy-nested/start
