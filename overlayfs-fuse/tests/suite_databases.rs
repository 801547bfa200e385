//! Databases in a mount. They need locks, shared mappings, syncs and renames that keep their
//! promises, also after another mount.
//!
//! Every script runs twice, in the mount and in an ordinary directory. Both must print the same.
//!
//! Needs root, /dev/fuse, and of Debian's packages postgresql and sqlite3; fails without them.

#[macro_use]
#[path = "suite/front_ends.rs"]
mod front_ends;
#[path = "suite/differential.rs"]
mod differential;
#[path = "suite/mount.rs"]
mod mount;
#[path = "suite/run.rs"]
mod run;
#[path = "suite/unprivileged.rs"]
mod unprivileged;

use std::fs;
use std::path::PathBuf;

use differential::Differential;
use test_common::Detail;

/// Two databases: one with a journal, one with a log that its users share through a mapping. Three
/// processes write to each at a time.
fn sqlite(front_end: &str) {
    let mut differential = Differential::small(front_end);
    let check = "for db in journal log; do
            sqlite3 $db.db 'PRAGMA integrity_check; SELECT count(*), sum(number), sum(length(text)) FROM rows'
            sqlite3 $db.db .dump | grep -v VALUES.*by | sha256sum
        done";
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
        INSERT INTO rows SELECT i, i * i % 1009, 'text ' || hex(i * 7919) FROM n";
    let said = differential.run(&format!(
        "for mode in DELETE:journal WAL:log; do
            db=${{mode#*:}}.db
            sqlite3 $db \"PRAGMA journal_mode=${{mode%:*}}; CREATE TABLE rows (id INTEGER PRIMARY KEY, number INTEGER, text TEXT); {fill};
                CREATE INDEX numbers ON rows (number); DELETE FROM rows WHERE number < 300; UPDATE rows SET text = text || '!' WHERE id % 5 = 0\"
            for writer in 1 2 3; do
                for turn in 1 2 3 4 5 6; do
                    sqlite3 -cmd '.timeout 60000' $db \"INSERT INTO rows (number, text) VALUES ($writer, 'by a writer')\" &
                done; wait
            done; wait
            sqlite3 $db 'SELECT number, count(*) FROM rows WHERE number < 300 GROUP BY number'
        done; {check}"
    ));
    assert!(said.starts_with("delete\n1|6\n2|6\n3|6\nwal\n1|6\n"), "{said}");
    differential.remount();
    differential.run(check);
    differential.stack();
    // The first change copies the whole database up.
    differential.run(&format!(
        "for db in journal log; do
            sqlite3 $db.db 'PRAGMA mmap_size=100000000; BEGIN; UPDATE rows SET number = number + 1; ROLLBACK' >/dev/null
            sqlite3 $db.db 'PRAGMA mmap_size=100000000; DELETE FROM rows WHERE id % 3 = 0; VACUUM' >/dev/null
        done; {check}"
    ));
    differential.compare("", Detail::Contents);
    differential.end();
}

/// Returns the folder of the programs of the newest installed postgres.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("the package postgresql is installed");
    let programs = versions.map(|entry| entry.unwrap().path().join("bin"));
    programs.filter(|dir| dir.join("initdb").is_file()).max().expect("the package postgresql is installed")
}

const TABLES: &str = "\
CREATE TABLE rows (id integer PRIMARY KEY, number integer, text text);
CREATE INDEX numbers ON rows (number);
COPY (SELECT i, i * 7919 % 100003, md5(i::text) FROM generate_series(1, 50000) AS i) TO :'file';
COPY rows FROM :'file';
CREATE TABLE large (id integer, data text);
ALTER TABLE large ALTER data SET STORAGE EXTERNAL;
INSERT INTO large SELECT i, repeat(md5(i::text), 3000) FROM generate_series(1, 50) AS i;
";

const QUERIES: &str = "\
SELECT count(*), sum(number), md5(string_agg(text, '' ORDER BY id)) FROM rows;
SELECT count(*), sum(length(data)) FROM large;
SELECT count(*), sum(abalance) FROM pgbench_accounts;
SELECT count(*), sum(delta) FROM pgbench_history;
";

/// The server stops as by a crash before another mount, and repairs its data from its log.
#[test]
fn postgres() {
    let mut differential = Differential::small("engine");
    // Each script starts the server and stops it, also at a failure.
    let server = |stop: &str, work: &str| {
        format!(
            "PATH={}:$PATH; export PGHOST=$PWD/db PGUSER=postgres
            as_postgres() {{
                if [ -z \"$AS_ROOT\" ]; then runuser -u postgres -- \"$@\"; return; fi
                unshare --user --map-user=$(id -u postgres) --map-group=$(id -g postgres) -- \"$@\"
            }}
            control() {{ as_postgres pg_ctl -D db/data -w -l db/log \"$@\" >&2; }}
            test -d db || {{ mkdir db; $AS_ROOT chown postgres: db; as_postgres initdb -D db/data --no-locale -E UTF8 -k --auth=trust >&2
                printf '%s\\n' \"listen_addresses = ''\" \"unix_socket_directories = '$PWD/db'\" autovacuum=off >> db/data/postgresql.conf; }}
            trap 'status=$?; cat db/log >&2; control -m immediate stop || true; exit $status' EXIT; trap 'exit 1' TERM
            control start
            {work}
            psql -qAt -v ON_ERROR_STOP=1 <<'END'\n{QUERIES}END\n
            control -m {stop} stop; trap - EXIT",
            programs().display()
        )
    };
    let said = differential.run(&server(
        "immediate",
        &format!(
            "psql -qAt -v ON_ERROR_STOP=1 -v file=$PWD/db/rows <<'END'\n{TABLES}END\n
            pgbench -iq -s 1 2>&1 | grep -c done; pgbench -n -t 200 -c 4 --random-seed=7 2>&1 | grep actually; md5sum < db/rows"
        ),
    ));
    assert!(said.contains("actually processed: 800/800") && said.contains("50000|"), "{said}");
    differential.remount();
    differential.run(&server("fast", "echo after a crash"));
    differential.stack();
    differential.run(&server(
        "fast",
        "psql -qAt -v ON_ERROR_STOP=1 -c 'UPDATE rows SET number = -number WHERE id % 10 = 0' -c 'DELETE FROM large WHERE id > 25' \\
            -c 'VACUUM FULL' -c 'REINDEX DATABASE postgres' -c 'CREATE DATABASE second TEMPLATE template0'
        pg_amcheck --install-missing --heapallindexed postgres; dropdb second
        pg_dump -T pgbench_history | grep -v -e '^--' -e restrict | sort | md5sum",
    ));
    differential.remount();
    differential.run(&server("fast", "echo after another mount"));
    let said = differential.run(&format!("{}/pg_checksums --check -D db/data | grep -i bad", programs().display()));
    assert!(said.contains("0"), "{said}");
    // Each of the two servers has numbers and times of its own in its files.
    differential.run("rm -r db");
    differential.end();
}

through_both_front_ends! { sqlite }

/// postgres does not run as root, not even as the root of a namespace. So it gets a namespace with
/// another user.
#[test]
fn as_an_unprivileged_user() {
    unprivileged::again(&["engine::sqlite", "postgres"], &[], &[]);
}
