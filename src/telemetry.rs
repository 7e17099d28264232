//! Logging: one line a record on standard error, text for people and JSON for machines.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal;
use std::panic::PanicHookInfo;

use tracing::{error, field};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// What is told instead of a panic's message that was put together when it happened. It may have people's words in it: that
/// of a text which is cut in the middle of a character quotes the text.
const UNSAID: &str = "its message is not shown, because it may have people's words in it";

/// Starts logging by `RELAY_LOG`: a level, which is the relay's own, or directives as `tracing-subscriber` has them. Panics
/// are logged from now on, too: where they were, and of their messages those that stand in the code.
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
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(field::display);
    // By RUST_BACKTRACE, as without this hook.
    let backtrace = Backtrace::capture();
    let backtrace =
        (backtrace.status() == BacktraceStatus::Captured).then(|| field::display(&backtrace));
    error!(location, backtrace, "panicked: {}", words(panic.payload()));
}

/// The message of a panic, if it stands in the code.
fn words(payload: &(dyn Any + Send)) -> &'static str {
    payload.downcast_ref::<&'static str>().copied().unwrap_or(UNSAID)
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn a_panic_tells_nothing_that_is_not_in_the_code() {
        let told = |panics: fn()| words(&*catch_unwind(panics).unwrap_err());
        assert_eq!(told(|| panic!("in the code")), "in the code");
        assert_eq!(told(|| panic!("put together: {}", black_box("a secret"))), UNSAID);
        assert_eq!(
            told(|| {
                let _cut = &black_box("ä secret")[..1];
            }),
            UNSAID
        );
        assert_eq!(told(|| black_box(Err::<(), _>("a secret")).unwrap()), UNSAID);
        assert_eq!(told(|| std::panic::panic_any(7)), UNSAID);
    }
}
