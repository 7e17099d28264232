//! A real PostgreSQL of the tests' own: one server for all of them, on a port and in a folder of its own, which ends with
//! them however they end.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

/// How a server of the tests is started, in shell. `as_postgres` runs a command as the user that PostgreSQL's package has
/// made, if the tests run as root, which its servers refuse.
pub(crate) struct Recipe {
    /// What has to be there first.
    pub(crate) prepare: &'static str,
    /// The server itself.
    pub(crate) serve: &'static str,
    /// Succeeds once it serves.
    pub(crate) probe: &'static str,
    /// The signal that ends it.
    pub(crate) end_by: &'static str,
}

const POSTGRES: Recipe = Recipe {
    prepare: r#"
        own "$FOLDER"
        as_postgres "$BIN/initdb" --pgdata="$FOLDER/data" --username=postgres --auth=trust --no-sync --encoding=UTF8 --locale=C.UTF-8"#,
    serve: r#"
        as_postgres "$BIN/postgres" -D "$FOLDER/data" -p "$PORT" -c listen_addresses=127.0.0.1 \
            -c unix_socket_directories= -c fsync=off -c max_connections=300 -c log_line_prefix='%d '"#,
    probe: r#""$BIN/pg_isready" -q -h 127.0.0.1 -p "$PORT""#,
    end_by: "QUIT",
};

/// A process that ends when the tests do, however they end: it reads from a pipe that only they hold.
#[derive(Debug)]
pub(crate) struct Server {
    folder: PathBuf,
    _child: Child,
    _input: ChildStdin,
}

impl Server {
    /// Starts one in a folder of its own, and returns when it serves.
    pub(crate) fn start(recipe: &Recipe, env: &[(&str, &str)], files: &[(&str, &str)]) -> Self {
        let folder = TempDir::with_prefix("relay-test-").unwrap().keep();
        for (name, content) in files {
            std::fs::write(folder.join(name), content).unwrap();
        }
        let Recipe { prepare, serve, probe, end_by } = recipe;
        let script = format!(
            r#"
            set -eu
            server=""
            finish() {{
                [ -z "$server" ] || {{ kill -{end_by} "$server" && wait "$server"; }} 2>/dev/null || true
                rm -rf "$FOLDER"
            }}
            trap finish EXIT
            own() {{ [ "$(id -u)" != 0 ] || chown -R postgres "$1"; }}
            as_postgres() {{
                if [ "$(id -u)" = 0 ]; then exec setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; fi
                exec "$@"
            }}
            ( {prepare} ) >"$FOLDER/log" 2>&1 || {{ cat "$FOLDER/log" >&2; exit 1; }}
            ( {serve} ) >"$FOLDER/log" 2>&1 &
            server=$!
            tries=0
            until {probe}; do
                tries=$((tries + 1))
                [ $tries -lt 400 ] && kill -0 "$server" || {{ cat "$FOLDER/log" >&2; exit 1; }}
                sleep 0.05
            done
            echo ready
            read -r _ || true"#
        );
        let mut child = Command::new("sh")
            .args(["-c", &script])
            .env("FOLDER", &folder)
            .envs(env.iter().copied())
            // Ctrl-C is for the tests, and their end is the server's.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(
            !line.is_empty(),
            "a server of the tests did not start: run ./test, which installs it"
        );
        Self { folder, _child: child, _input: input }
    }

    /// What it has written.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.join("log")).unwrap()).into_owned()
    }
}

/// A port that nobody uses at this moment.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A server with databases.
#[derive(Debug)]
pub(crate) struct Cluster {
    port: u16,
    /// Roles belong to the server and not to a database, so two migrations at once would get in each other's way.
    migrating: Mutex<()>,
    server: Server,
}

impl Cluster {
    /// One of its own.
    pub(crate) fn start() -> Arc<Self> {
        let (port, bin) = (free_port(), binaries());
        let env = [("BIN", bin.to_str().unwrap()), ("PORT", &port.to_string())];
        let server = Server::start(&POSTGRES, &env, &[]);
        Arc::new(Self { port, migrating: Mutex::default(), server })
    }

    /// The one that most tests share.
    fn shared() -> Arc<Self> {
        static SHARED: OnceLock<Arc<Cluster>> = OnceLock::new();
        Arc::clone(SHARED.get_or_init(Self::start))
    }

    /// A new database, with nothing in it.
    pub(crate) async fn database(self: &Arc<Self>) -> Database {
        let name = format!("test_{}", Uuid::now_v7().simple());
        let postgres = Database { name: "postgres".to_owned(), cluster: Arc::clone(self) };
        let create = format!("create database {name}");
        postgres.admin().await.batch_execute(&create).await.unwrap();
        Database { name, cluster: Arc::clone(self) }
    }
}

/// Where Debian keeps the newest PostgreSQL, outside of the search path.
fn binaries() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let version = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()?.parse().ok()).unwrap_or(0_u32)
    };
    let servers =
        versions.map(|entry| entry.path()).filter(|path| path.join("bin/initdb").exists());
    servers
        .max_by_key(version)
        .expect("PostgreSQL is not installed: run ./test, which installs it")
        .join("bin")
}

/// One database of the server.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    name: String,
    cluster: Arc<Cluster>,
}

impl Database {
    /// A new database that `migrate` has prepared, with the roles that relays and PostgREST log in as.
    pub(crate) async fn migrated() -> Self {
        let database = Cluster::shared().database().await;
        database.migrate();
        database
    }

    /// The one that tests share which tell their rows apart by their users.
    pub(crate) async fn shared() -> Self {
        static SHARED: Mutex<Option<Database>> = Mutex::new(None);
        let found = SHARED.lock().unwrap().clone();
        match found {
            Some(database) => database,
            None => {
                // Made twice at worst.
                let database = Self::migrated().await;
                SHARED.lock().unwrap().get_or_insert(database).clone()
            }
        }
    }

    /// Runs `storytellr-relay migrate` on it, which must succeed; what it said.
    pub(crate) fn migrate(&self) -> String {
        let _migrating = self.cluster.migrating.lock().unwrap_or_else(PoisonError::into_inner);
        let output = Command::new(env!("CARGO_BIN_EXE_storytellr-relay"))
            .arg("migrate")
            .env_clear()
            .env("RELAY_DATABASE_URL", self.url("postgres"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.psql(&["--command", LOGINS]);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Its address for the role.
    pub(crate) fn url(&self, role: &str) -> String {
        self.url_at(role, self.cluster.port)
    }

    /// Its address behind something that listens on that port.
    pub(crate) fn url_at(&self, role: &str, port: u16) -> String {
        format!("postgres://{role}@127.0.0.1:{port}/{}?sslmode=disable", self.name)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn port(&self) -> u16 {
        self.cluster.port
    }

    /// A connection that may do everything.
    pub(crate) async fn admin(&self) -> Client {
        self.client("postgres").await
    }

    pub(crate) async fn client(&self, role: &str) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.url(role), NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// From now on it takes no answer, or takes them again.
    pub(crate) async fn refuse_answers(&self, is_refusing: bool) {
        let sql = if is_refusing {
            "create or replace function public.refuse() returns trigger language plpgsql as
               $$ begin raise 'refused by a test'; end $$;
             create or replace trigger refuse before update of result on public.relay_generations
               for each row execute function public.refuse();"
        } else {
            "drop trigger if exists refuse on public.relay_generations"
        };
        self.admin().await.batch_execute(sql).await.unwrap();
    }

    /// The number that a query asks for.
    pub(crate) async fn count(&self, query: &str) -> i64 {
        self.admin().await.query_one(query, &[]).await.unwrap().get(0)
    }

    /// From now on the server writes down what it is asked; see [`Self::statements`].
    pub(crate) async fn write_down_statements(&self) {
        let set = format!("alter database {} set log_statement = 'all'", self.name);
        self.admin().await.batch_execute(&set).await.unwrap();
    }

    /// What the server was asked since, a statement each.
    pub(crate) fn statements(&self) -> Vec<String> {
        let log = self.cluster.server.log();
        let prefix = format!("{} LOG:  ", self.name);
        let ours = log.lines().filter_map(|line| line.strip_prefix(&prefix));
        let statement = |line: &str| {
            let (what, sql) = line.split_once(": ")?;
            (what == "statement" || what.starts_with("execute ")).then(|| sql.to_owned())
        };
        ours.filter_map(statement).collect()
    }

    /// Runs SQL with psql, which must succeed; what it said.
    pub(crate) fn psql(&self, arguments: &[&str]) -> String {
        let output = Command::new(binaries().join("psql"))
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"])
            .arg("--set=ON_ERROR_STOP=1")
            .args(arguments)
            .arg(self.url("postgres"))
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert!(output.status.success(), "{arguments:?}: {said}");
        said
    }
}

/// `relay` as the documentation has it, and PostgREST's `authenticator` as Supabase has it. Roles belong to the server, so
/// they may be there.
const LOGINS: &str = "
    do $$
    declare
      name text;
    begin
      foreach name in array array['relay', 'authenticator'] loop
        if not exists (select from pg_roles where rolname = name) then
          execute format('create role %I login noinherit', name);
        end if;
        execute format('grant anon, authenticated to %I', name);
      end loop;
    end
    $$;";

/// A file of the repository.
pub(crate) fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
