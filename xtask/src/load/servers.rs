//! The servers of a measurement, on ports and in folders of their own: the provider, nginx, the relay, and what the relay
//! stands on.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::Failure;

/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// What all tokens of a benchmark are signed with.
pub(crate) const SECRET: &str = "a-secret-of-the-benchmark-with-32-characters-or-more";

/// A process that ends with the measurement.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    _folder: Option<TempDir>,
}

impl Server {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Starts it and waits until its port is open.
    fn start(command: &mut Command, port: u16, folder: TempDir) -> Result<Self, Failure> {
        let log = File::create(folder.path().join("log"))?;
        let child =
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().map_err(
                |error| format!("{} does not start: {error}", command.get_program().display()),
            )?;
        let mut server = Self { child, port, _folder: None };
        let since = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if server.child.try_wait()?.is_some() || since.elapsed() > PATIENCE {
                let log = fs::read_to_string(folder.path().join("log"))?;
                return Err(
                    format!("{} does not serve:\n{log}", command.get_program().display()).into()
                );
            }
            sleep(Duration::from_millis(20));
        }
        server._folder = Some(folder);
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) else {
            return;
        };
        // PostgreSQL's quick end, and everybody's orderly one. What does not heed it is killed.
        let _sent = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let since = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && since.elapsed() < PATIENCE / 6 {
            sleep(Duration::from_millis(10));
        }
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn free_port() -> Result<u16, Failure> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Where cargo builds: this program is in a folder of it.
pub(crate) fn target() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()?;
    Ok(own.ancestors().nth(2).ok_or("not built by cargo")?.to_owned())
}

/// This program in another part of it.
pub(crate) fn own(part: &str) -> Result<Command, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(part);
    Ok(command)
}

/// The relay of these sources, built as it is released.
pub(crate) fn built_relay() -> Result<PathBuf, Failure> {
    let built = Command::new("cargo")
        .args(["build", "--release", "--locked", "--package", "storytellr-relay"])
        .status()?;
    if !built.success() {
        return Err("the relay does not build".into());
    }
    Ok(target()?.join("release/storytellr-relay"))
}

pub(crate) fn provider() -> Result<Server, Failure> {
    let mut child = own("provider")?.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    let output = child.stdout.take().ok_or("no output")?;
    BufReader::new(output).read_line(&mut line)?;
    Ok(Server { child, port: line.trim().parse()?, _folder: None })
}

/// nginx as whoever streams through it sets it up: no buffering, connections to the provider kept.
pub(crate) fn nginx(provider: u16) -> Result<Server, Failure> {
    let (folder, port) = (TempDir::new()?, free_port()?);
    let servers = format!(
        "upstream provider {{ server 127.0.0.1:{provider}; keepalive 512; }}
         server {{
           listen 127.0.0.1:{port} backlog=4096;
           location / {{
             proxy_pass http://provider; proxy_http_version 1.1; proxy_set_header Connection '';
             proxy_buffering off; proxy_read_timeout 1h;
           }}
         }}"
    );
    start_nginx(folder, port, &servers)
}

/// An nginx that is attacked in the relay's stead.
#[derive(Debug)]
pub(crate) struct Decoy {
    pub(crate) server: Server,
    pub(crate) http2: u16,
}

/// It has the relay's time-outs, a text at `long` that no socket holds, and passes on what is posted.
pub(crate) fn decoy(provider: u16, long: &str) -> Result<Decoy, Failure> {
    let (folder, port, http2) = (TempDir::new()?, free_port()?, free_port()?);
    let path = folder.path().join("long");
    fs::write(&path, "word after word ".repeat(1 << 17))?;
    let servers = format!(
        "client_header_timeout 30s; client_body_timeout 30s; send_timeout 30s; keepalive_timeout 30s;
         reset_timedout_connection on;
         server {{
           listen 127.0.0.1:{port} backlog=4096; listen 127.0.0.1:{http2} http2 backlog=4096;
           location / {{ default_type application/json; return 200 '{{}}'; }}
           location = /v1/stream {{ proxy_pass http://127.0.0.1:{provider}; }}
           location = {long} {{ alias {}; }}
         }}",
        path.display()
    );
    Ok(Decoy { server: start_nginx(folder, port, &servers)?, http2 })
}

fn start_nginx(folder: TempDir, port: u16, servers: &str) -> Result<Server, Failure> {
    let path = folder.path().display();
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let config = format!(
        "{user} daemon off; worker_processes auto; worker_rlimit_nofile 20000; pid {path}/pid; error_log {path}/error;
         events {{ worker_connections 19000; }}
         http {{
           access_log off; client_body_temp_path {path}/body; proxy_temp_path {path}/proxy;
           fastcgi_temp_path {path}/f; uwsgi_temp_path {path}/u; scgi_temp_path {path}/s;
           {servers}
         }}"
    );
    fs::write(folder.path().join("nginx.conf"), config)?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(folder.path().join("nginx.conf")).arg("-p").arg(folder.path());
    Server::start(&mut command, port, folder)
}

/// A relay with those settings beside the benchmark's own.
pub(crate) fn relay(
    binary: &Path,
    provider: u16,
    settings: &[(&str, String)],
) -> Result<Server, Failure> {
    let (folder, port) = (TempDir::new()?, free_port()?);
    let mut command = Command::new(binary);
    command
        .arg("serve")
        .env_clear()
        .env("RELAY_LISTEN", format!("127.0.0.1:{port}"))
        .env("RELAY_DATA", folder.path())
        .env("RELAY_RATE_LIMIT", "1000000/s")
        .env("RELAY_MAX_STREAMS_PER_USER", "100000")
        .env("RELAY_PROVIDERS", format!("bench=http://127.0.0.1:{provider}/v1"))
        .envs(signing())
        .envs(settings.iter().map(|(name, value)| (*name, value.as_str())));
    Server::start(&mut command, port, folder)
}

fn signing() -> [(&'static str, &'static str); 2] {
    [("SUPABASE_JWT_SECRET", SECRET), ("RELAY_JWT_ISSUERS", "https://bench.example/auth/v1")]
}

/// An access token that a relay of the benchmark takes.
pub(crate) fn access_token(binary: &Path) -> Result<String, Failure> {
    let output = Command::new(binary)
        .args(["token", "--expires", "24h"])
        .env_clear()
        .envs(signing())
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

pub(crate) fn redis() -> Result<Server, Failure> {
    let (folder, port) = (TempDir::new()?, free_port()?);
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string()]);
    command.arg("--dir").arg(folder.path());
    Server::start(&mut command, port, folder)
}

/// A PostgreSQL with the relay's schema, and the roles that the relay and PostgREST log in as.
pub(crate) fn postgres(binary: &Path) -> Result<Server, Failure> {
    let (folder, port) = (TempDir::new()?, free_port()?);
    let bin = newest_postgres()?;
    let data = folder.path().join("data");
    if rustix::process::geteuid().is_root() {
        tell(Command::new("chown").arg("postgres").arg(folder.path()))?;
    }
    let options = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8"];
    tell(as_postgres(&bin.join("initdb")).arg("--pgdata").arg(&data).args(options))?;
    let mut command = as_postgres(&bin.join("postgres"));
    command.arg("-D").arg(&data).args([
        "-p",
        &port.to_string(),
        "-c",
        "listen_addresses=127.0.0.1",
    ]);
    command.args(["-c", "unix_socket_directories=", "-c", "max_connections=200"]);
    let server = Server::start(&mut command, port, folder)?;
    let since = Instant::now();
    let ready = || {
        tell(Command::new(bin.join("pg_isready")).args([
            "-q",
            "-h",
            "127.0.0.1",
            "-p",
            &port.to_string(),
        ]))
    };
    while ready().is_err() && since.elapsed() < PATIENCE {
        sleep(Duration::from_millis(50));
    }
    tell(
        Command::new(binary)
            .arg("migrate")
            .env_clear()
            .env("RELAY_DATABASE_URL", postgres_url("postgres", port)),
    )?;
    let roles = ["relay", "authenticator"].map(|role| {
        format!("create role {role} login noinherit; grant anon, authenticated to {role};")
    });
    tell(
        Command::new(bin.join("psql"))
            .args(["-q", "-c", &roles.concat()])
            .arg(postgres_url("postgres", port)),
    )?;
    Ok(server)
}

pub(crate) fn postgres_url(role: &str, port: u16) -> String {
    format!("postgres://{role}@127.0.0.1:{port}/postgres?sslmode=disable")
}

/// The PostgREST-compatible server that `./test` installs, over that PostgreSQL.
pub(crate) fn postgrest(postgres: u16) -> Result<Server, Failure> {
    let (folder, port) = (TempDir::new()?, free_port()?);
    let mut command = Command::new(target()?.join("tools/postrust-3.1.0/bin/postrust"));
    command.envs([
        ("PGRST_COMPAT_MODE", "true"),
        ("PGRST_DB_URI", &postgres_url("authenticator", postgres)),
        ("PGRST_DB_SCHEMAS", "public"),
        ("PGRST_DB_ANON_ROLE", "anon"),
        ("PGRST_DB_POOL", "20"),
        ("PGRST_JWT_SECRET", SECRET),
        ("PGRST_SERVER_HOST", "127.0.0.1"),
        ("PGRST_SERVER_PORT", &port.to_string()),
    ]);
    Server::start(&mut command, port, folder)
}

/// PostgreSQL refuses to run as root.
fn as_postgres(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command
}

fn newest_postgres() -> Result<PathBuf, Failure> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let number = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = versions.map(|version| version.path()).max_by_key(number);
    Ok(newest.ok_or("PostgreSQL is not installed: ./test installs it")?.join("bin"))
}

/// Runs a command that must succeed.
fn tell(command: &mut Command) -> Result<(), Failure> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(format!("{}: {}", command.get_program().display(), String::from_utf8_lossy(&said)).into())
}
