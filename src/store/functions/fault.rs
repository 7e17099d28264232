//! Why a call of a function brought no answer, and what is to be made of it.

use std::time::Duration;

use crate::error::{Code, Error};
use crate::store::refusal::refusal_named;

/// What a client is told to wait where the database names no time.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// A call without an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The function refused with one of the relay's codes; nothing was changed.
    Refused(String),
    /// The caller's token is not accepted any more; nothing was changed.
    TokenRefused(String),
    /// It was certainly not carried out and may be tried again, after that time if there is one.
    NotDone(String, Option<Duration>),
    /// Nobody knows whether it was carried out.
    Unknown(String),
    /// The database gave it up for time, and would again: it has more to do than it can.
    Overdue(String),
    /// The database is not set up as it must be, or the relay has a bug: trying again does not help.
    Broken(String),
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Refused(code) => refusal_named(&code).unwrap_or_else(|| {
                Self::internal(format!("a function of the database refused with {code:?}"))
            }),
            Fault::TokenRefused(detail) => Self::new(
                Code::InvalidToken,
                "The database does not accept the access token. Refresh the session.",
            )
            .with_detail(detail),
            Fault::NotDone(detail, retry_after) => {
                unavailable(&detail).with_retry_after(retry_after.unwrap_or(RETRY_AFTER))
            }
            Fault::Unknown(detail) | Fault::Overdue(detail) => unavailable(&detail),
            Fault::Broken(detail) => Self::internal(detail),
        }
    }
}

fn unavailable(detail: &str) -> Error {
    Error::store_unavailable(detail).with_retry_after(RETRY_AFTER)
}

impl Fault {
    /// What a Postgres error means, by its SQLSTATE: the function's own refusals are `PTxyz`. The classes are those of
    /// PostgreSQL's documentation, appendix A.
    #[must_use]
    pub(super) fn of_sqlstate(sqlstate: &str, message: &str) -> Self {
        let told = || format!("{sqlstate}: {message}");
        match sqlstate {
            _ if sqlstate.starts_with("PT") => Self::Refused(message.to_owned()),
            // Too long in coming: the statement, or a lock for it.
            "57014" | "55P03" => Self::Overdue(told()),
            // Rolled back for the sake of another transaction; too many connections, out of memory, out of disk; being
            // shut down or started.
            "40001" | "40P01" => Self::NotDone(told(), None),
            // The connection of a server that is restarted: whether it had committed is not known.
            "57P01" | "57P02" => Self::Unknown(told()),
            _ if ["53", "57", "58"].iter().any(|class| sqlstate.starts_with(class)) => {
                Self::NotDone(told(), None)
            }
            _ if sqlstate.starts_with("08") => Self::Unknown(told()),
            "28P01" | "28000" | "3D000" => Self::Broken(format!(
                "{}. Check the user, the password and the database in RELAY_DATABASE_URL.",
                told()
            )),
            "42501" if message.contains("set role") => Self::Broken(format!(
                "{}. Let the relay's role act for its users: `grant anon, authenticated to <role>`.",
                told()
            )),
            // No such function, schema or role.
            "42883" | "3F000" | "22023" => Self::Broken(format!(
                "{}. Apply the migrations: `storytellr-relay migrate`, or `supabase db push`.",
                told()
            )),
            _ => Self::Broken(told()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_postgres_are_told_apart() {
        for (sqlstate, message, code) in [
            ("PT404", "conversation_not_found", Code::ConversationNotFound),
            ("PT403", "no_bot", Code::NoBot),
            ("PT418", "teapot", Code::Internal),
            ("40001", "could not serialize", Code::StoreUnavailable),
            ("57014", "canceling statement due to statement timeout", Code::StoreUnavailable),
            ("53300", "too many connections", Code::StoreUnavailable),
            (
                "57P01",
                "terminating connection due to administrator command",
                Code::StoreUnavailable,
            ),
            ("42883", "function public.relay_begin(jsonb) does not exist", Code::Internal),
            ("42501", "permission denied", Code::Internal),
        ] {
            assert_eq!(
                Error::from(Fault::of_sqlstate(sqlstate, message)).code(),
                code,
                "{sqlstate}"
            );
        }
    }
}
