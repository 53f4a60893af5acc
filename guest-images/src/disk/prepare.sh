# Before packages are configured. $1 is the root of the new system.
set -eu
# The cluster of the agent's pgbench workload is made in customize.sh; a second one would only take room.
mkdir -p "$1/etc/postgresql-common"
echo 'create_main_cluster = false' > "$1/etc/postgresql-common/createcluster.conf"
