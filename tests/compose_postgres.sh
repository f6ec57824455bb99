#!/bin/sh
# What the official image of Postgres does with its environment and its volume, as far as deploy/compose.yaml relies on it.
set -eu
binaries=$(echo /usr/lib/postgresql/*/bin)
data=/var/lib/postgresql/data
if [ ! -e $data/PG_VERSION ]; then
    install -d -o postgres -m 700 $data
    install -o postgres -m 600 /dev/null /tmp/password
    printf %s "$POSTGRES_PASSWORD" >/tmp/password
    su postgres -c "$binaries/initdb -D $data -U $POSTGRES_USER --auth-local=trust --auth-host=trust --pwfile=/tmp/password ${POSTGRES_INITDB_ARGS-}"
    echo "host all all all scram-sha-256" >>$data/pg_hba.conf
    echo "create database $POSTGRES_USER" | su postgres -c "$binaries/postgres --single -D $data postgres"
fi
exec su postgres -c "exec $binaries/postgres -D $data -c listen_addresses='*'"
