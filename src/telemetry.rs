//! Logging: one line a record on standard error, text for people and JSON for machines.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// Starts logging by `RELAY_LOG`: a level, which is the relay's own, or directives as `tracing-subscriber` has them.
///
/// # Errors
/// If `RELAY_LOG` is neither.
pub fn start(relay_log: Option<&str>) -> Result<(), ParseError> {
    let directives =
        relay_log.map(str::trim).filter(|directives| !directives.is_empty()).unwrap_or("info");
    // A bare level is not for the libraries: at `debug` they write of every packet.
    let is_level = directives.parse::<tracing::level_filters::LevelFilter>().is_ok();
    let directives = if is_level {
        format!("warn,storytellr_relay={directives}")
    } else {
        directives.to_owned()
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(directives)?)
        .with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        builder.compact().with_target(false).init();
    } else {
        builder.json().flatten_event(true).with_current_span(true).with_span_list(false).init();
    }
    Ok(())
}
