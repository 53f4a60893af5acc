# After all packages are configured. $1 is the root of the new system.
set -eu
echo levy > "$1/etc/hostname"
printf '127.0.0.1 localhost levy\n::1 localhost\n' > "$1/etc/hosts"
: > "$1/etc/resolv.conf"
echo '/dev/vda / ext4 defaults 0 1' > "$1/etc/fstab"

# A fresh cluster for pgbench: making one in an emulated guest takes half a minute.
data=/var/lib/levy/postgresql
chroot "$1" install -d -o root -g root -m 755 /var/lib/levy
chroot "$1" install -d -o postgres -g postgres -m 700 "$data"
initdb=$(cd "$1" && ls usr/lib/postgresql/*/bin/initdb | tail -n 1)
chroot "$1" runuser -u postgres -- "/$initdb" -D "$data" -A trust -U postgres --locale=C -E UTF8 --no-sync > /dev/null

# Differs from build to build, says nothing.
rm -f "$1"/var/log/*.log "$1"/var/log/apt/* "$1"/var/cache/ldconfig/aux-cache "$1/etc/machine-id"
rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap" "$1"/etc/ssl/private/ssl-cert-snakeoil.key
: > "$1/etc/machine-id"
