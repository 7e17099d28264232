//! The command line: what can be started, and how it ends.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;
use tracing::info;
use uuid::Uuid;

use crate::config::{Config, Data, Mode, parse_duration};
use crate::error::Error;
use crate::http::listener;
use crate::journal::file::JournalFile;
use crate::lifecycle::Signals;
use crate::outbox::{Outbox, Retry};
use crate::{app, check, clock, dev, http, migrate, telemetry};

/// Streams a language model's answers to a story app, and saves each of them exactly once.
///
/// Settings are environment variables; the README lists them.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run on this machine, with nothing to set up: prints what to paste next
    Dev,
    /// Run for users
    Serve,
    /// Try every part that `serve` uses, and say what is wrong and what to do
    Check(CheckArgs),
    /// Bring the Postgres database of `RELAY_DATABASE_URL` to what this version needs
    Migrate,
    /// Look after finished answers that the database did not take
    #[command(subcommand)]
    Outbox(OutboxCommand),
    /// Print an access token signed with the configured secret (or with that of `dev`)
    Token(TokenArgs),
    /// Print the OpenAPI document of the API, as `GET /openapi.json` answers it
    Openapi,
}

#[derive(Debug, Args)]
struct TokenArgs {
    /// The user that the token speaks for
    #[arg(long, default_value_t = dev::USER)]
    user: Uuid,
    /// How long it is valid
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    expires: Duration,
    /// Speak for a user who signed in anonymously
    #[arg(long)]
    anonymous: bool,
}

#[derive(Debug, Subcommand)]
enum OutboxCommand {
    /// List what waits and what was set aside: a line of JSON each, without any text
    List,
    /// Let what was set aside be tried again
    Retry {
        /// The `id` that `list` names; without one, all
        id: Option<i64>,
    },
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// A user's access token to try
    #[arg(long)]
    token: Option<SecretString>,
}

type Failure = Box<dyn std::error::Error>;

/// Runs what `cli` asks for. `lookup` reads the environment. What went wrong is told on standard error.
#[must_use]
pub fn run(cli: &Cli, lookup: impl Fn(&str) -> Option<String>) -> ExitCode {
    let done = match &cli.command {
        Command::Dev => serve(Mode::Dev, lookup),
        Command::Serve => serve(Mode::Serve, lookup),
        Command::Check(args) => check(args, lookup),
        Command::Migrate => migrate(lookup),
        Command::Outbox(command) => outbox(command, lookup),
        Command::Token(args) => print_token(args, lookup),
        Command::Openapi => print_document(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let told = match failure.downcast_ref::<Error>() {
                Some(error) => error.to_operator(),
                None => failure.to_string(),
            };
            // If standard error is gone there is nobody left to tell.
            let _written = writeln!(std::io::stderr(), "storytellr-relay: {told}");
            ExitCode::FAILURE
        }
    }
}

fn check(args: &CheckArgs, lookup: impl Fn(&str) -> Option<String>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let is_well =
        runtime.block_on(check::check(lookup, args.token.as_ref(), std::io::stdout().lock()));
    if is_well { Ok(()) } else { Err("not all is well".into()) }
}

fn migrate(lookup: impl Fn(&str) -> Option<String>) -> Result<(), Failure> {
    let url = Config::postgres_url(lookup)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for line in runtime.block_on(migrate::migrate(&url))? {
        writeln!(std::io::stdout(), "{line}")?;
    }
    Ok(())
}

/// Entries that are listed at most: more than the outbox holds by its bound.
const LISTED_MAX: u32 = 100_000;

fn outbox(command: &OutboxCommand, lookup: impl Fn(&str) -> Option<String>) -> Result<(), Failure> {
    let file = app::open_journal_beside(&Config::data(lookup))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut out = std::io::stdout().lock();
    match command {
        OutboxCommand::List => {
            for entry in runtime.block_on(file.list(LISTED_MAX))? {
                writeln!(out, "{}", serde_json::to_string(&entry)?)?;
            }
        }
        OutboxCommand::Retry { id } => {
            writeln!(out, "{}", runtime.block_on(retry(&file, *id))?)?;
        }
    }
    Ok(())
}

/// Lets that entry, or all that were set aside, be tried again. Returns what became of it, for people to read.
async fn retry(file: &JournalFile, id: Option<i64>) -> Result<String, Failure> {
    let Some(id) = id else {
        return Ok(match file.retry_all().await? {
            0 => "nothing is set aside".to_owned(),
            count => retried(count),
        });
    };
    match file.retry(id).await? {
        Retry::Again => Ok(retried(1)),
        Retry::Waits => Ok(format!("{id} is not set aside: it is tried until the database takes it")),
        Retry::Unknown => Err(format!(
            "there is no entry {id} in the outbox, or not any more: `storytellr-relay outbox list` shows those that there are"
        )
        .into()),
    }
}

fn retried(count: u64) -> String {
    format!("{count} will be tried again, by the relay that runs or at its next start")
}

fn print_token(args: &TokenArgs, lookup: impl Fn(&str) -> Option<String>) -> Result<(), Failure> {
    // The rules of `dev`, because a token is asked for beside a running relay, with the same settings or none.
    let mut config = Config::from_env(Mode::Dev, lookup)?;
    if config.auth.shared_secret.is_none() && config.data == Data::Memory {
        return Err("RELAY_DATA is memory, so a relay's secret is known to it alone. Set SUPABASE_JWT_SECRET for both.".into());
    }
    if config.auth.shared_secret.is_none() && config.auth.jwks_url.is_some() {
        return Err("the project signs its own tokens, and SUPABASE_JWT_SECRET is not set: sign in to the app, and take the session's access_token".into());
    }
    let secret = dev::ensure_secret(&mut config)?;
    let token =
        dev::token(&config, &secret, args.user, args.anonymous, (clock::now(), args.expires))?;
    writeln!(std::io::stdout(), "{token}")?;
    Ok(())
}

fn print_document() -> Result<(), Failure> {
    Ok(std::io::stdout().write_all(http::openapi::DOCUMENT.as_bytes())?)
}

/// How long the end of the process waits for what still runs when all that was promised is done.
const LAST_WORDS_TIME: Duration = Duration::from_secs(5);

fn serve(mode: Mode, lookup: impl Fn(&str) -> Option<String>) -> Result<(), Failure> {
    telemetry::start(lookup("RELAY_LOG").as_deref())
        .map_err(|error| format!("RELAY_LOG cannot be read: {error}"))?;
    let config = Config::from_env(mode, lookup)?;
    if !config.core_dumps {
        forbid_core_dumps()?;
    }
    // Each stream needs two sockets, and the usual soft limit of 1,024 files is soon reached.
    let files = rlimit::increase_nofile_limit(u64::MAX)?;
    info!(files, "limit of open files");
    let limits = listener::Limits::within(files);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(serve_until_signal(config, limits));
    // What runs still may say its last, so that the reason is the last line of all; but it may be what cannot go on.
    runtime.shutdown_timeout(LAST_WORDS_TIME);
    ended
}

/// Keeps the keys in the process's memory out of files and crash reports, also where it dies.
///
/// The limit is one byte and not none: no dump fits into that either, and it is the one limit by which Linux hands none to a
/// program that collects dumps either (`fs/coredump.c`).
fn forbid_core_dumps() -> std::io::Result<()> {
    // What is forbidden already can only become less.
    let (_, most) = rlimit::getrlimit(rlimit::Resource::CORE)?;
    let least = most.min(1);
    rlimit::setrlimit(rlimit::Resource::CORE, least, least)
}

async fn serve_until_signal(mut config: Config, limits: listener::Limits) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    // Where a project signs the tokens, one of `dev`'s own would be no use: its database would not take it.
    let has_own_secret = config.auth.shared_secret.is_some() || config.auth.jwks_url.is_none();
    let dev_secret = (config.mode == Mode::Dev && has_own_secret)
        .then(|| dev::ensure_secret(&mut config))
        .transpose()?;
    if config.mode == Mode::Dev {
        dev::ensure_master_keys(&mut config)?;
    }
    let socket = listener::bind(config.listen).map_err(|error| {
        format!("cannot listen on {}: {error}. Set RELAY_LISTEN to another address.", config.listen)
    })?;
    let address = socket.local_addr()?;
    let welcome = dev_secret
        .map(|secret| dev::welcome(&config, &secret, address, clock::now()))
        .transpose()?;

    let (origins, proxies) = (config.origins.clone(), config.trusted_proxies.clone());
    let relay = app::build(config).await?;
    info!(addr = %address, durable = relay.is_durable, "listening");
    if let Some(welcome) = welcome {
        std::io::stdout().write_all(welcome.as_bytes())?;
    }

    let closing = CancellationToken::new();
    let until_signal = async {
        signals.next().await;
        // New connections are taken until the end: readers come back to running streams by them.
        relay.tasks.shut_down(relay.times.drain, signals.next()).await;
        // Before readers' connections end: those who go on at another relay find there how it ended.
        relay.journal.close().await;
        closing.cancel();
    };
    let router = http::router(Arc::clone(&relay), origins, proxies);
    let served = async {
        tokio::join!(listener::serve(socket, router, limits, closing.clone()), until_signal);
    };
    tokio::select! {
        () = served => {}
        // At once, and without a word to anybody: what is not on disk yet was not promised.
        error = relay.tasks.failed() => return Err(error.into()),
    }
    relay.recorder.flush().await?;
    info!("stopped");
    Ok(())
}
