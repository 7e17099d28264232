//! What handlers take from a request, with errors that name the fault and say what is wanted.

use std::error::Error as StdError;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use http::StatusCode;
use http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::BODY_LEN_MAX;
use super::listener::Unread;
use crate::error::{Code, Error};

/// What a caller is told to wait if there is no room for its body: about as long as one takes to be read.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// A JSON object as the body. An empty body counts as an empty object, and the content type is not looked at: there is
/// nothing else that a body could be, and `curl -d` names another.
pub(super) struct Json<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let body = Bytes::from_request(request, state)
            .await
            .map_err(|rejection| unreadable(&rejection))?;
        parse(&body).map(Self)
    }
}

/// A JSON object read as `T`.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    let body = if body.trim_ascii().is_empty() { b"{}" } else { body };
    // serde would also read an array, field by field.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(invalid("The body must be a JSON object."));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let reason = error.into_inner();
        match reason.classify() {
            serde_json::error::Category::Data => {
                let reason = without_value(&reason);
                if path == "." {
                    invalid(format!("The body is not what is wanted: {reason}."))
                } else {
                    invalid(format!("`{path}`: {reason}."))
                }
            }
            _ => invalid(format!("The body is not what is wanted: {reason}.")),
        }
    })?;
    json.end().map_err(|_| invalid("The body has something behind its JSON object."))?;
    Ok(value)
}

/// What serde says is wrong, without the value, which may be a story, and the reason is logged; and without the place in
/// the body, which does not matter to somebody who knows the field. The value comes first and may have any words in it, so it is
/// read from the end: what is expected is of our words, and so is the place behind it.
fn without_value(reason: &serde_json::Error) -> String {
    let reason = reason.to_string();
    let (found, rest) = match reason.rsplit_once(", expected ") {
        Some((found, expected)) => (Some(found), expected),
        None => (None, reason.as_str()),
    };
    let rest = rest.rsplit_once(" at line ").map_or(rest, |(rest, _)| rest);
    match found {
        Some(found) => {
            let kind = found.split(['"', '`']).next().unwrap_or_default().trim_end();
            format!("{kind}, expected {rest}")
        }
        None => rest.to_owned(),
    }
}

fn unreadable(rejection: &BytesRejection) -> Error {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return Error::new(
            Code::BodyTooLarge,
            format!("The body is longer than {} MiB. Send less context.", BODY_LEN_MAX >> 20),
        );
    }
    match unread(rejection) {
        Some(Unread::TooSlow) => Error::new(
            Code::RequestTimeout,
            "The body comes too slowly. Send the request again, or send less context.",
        ),
        Some(Unread::NoRoom) => Error::new(
            Code::Overloaded,
            "The relay reads as many long requests as it can. Try again in a moment.",
        )
        .with_retry_after(RETRY_AFTER),
        Some(Unread::Broken(_)) | None => invalid("The body could not be read to its end."),
    }
}

/// What the listener says of it, which is among the causes.
fn unread(rejection: &BytesRejection) -> Option<&Unread> {
    std::iter::successors(rejection.source(), |&error| error.source())
        .find_map(|error| error.downcast_ref())
}

/// The one parameter of a path.
pub(super) struct Id<T>(pub(super) T);

impl<S: Send + Sync, T: FromStr<Err: Display>> FromRequestParts<S> for Id<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let Path(id) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| invalid("The id in the path is not UTF-8."))?;
        id.parse().map(Self).map_err(|reason| invalid(format!("The id in the path {reason}.")))
    }
}

/// The parameters of a query, each at most once.
pub(super) struct Parameters<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Parameters<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query.map(|Query(parameters)| Self(parameters)).map_err(|rejection| {
            let reason = StdError::source(&rejection)
                .map_or_else(|| rejection.to_string(), ToString::to_string);
            invalid(format!("The query is not what is wanted: {reason}."))
        })
    }
}

/// A request that cannot be understood.
pub(super) fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Code::InvalidRequest, message)
}

/// Distinguishes a field that is null from one that is absent, for patches: `Some(None)` is null.
pub(super) fn present<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "it is not to be read")]
    struct Wanted {
        number: u32,
        word: Word,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Word {
        Fox,
        Crow,
    }

    #[track_caller]
    fn check(body: &str, message: &str) {
        assert_eq!(parse::<Wanted>(body.as_bytes()).unwrap_err().message(), message, "{body}");
    }

    #[test]
    fn a_refusal_names_the_field_and_says_nothing_of_what_was_in_it() {
        let number = "`number`: invalid type: string, expected u32.";
        check(r#"{"number": "a canary"}"#, number);
        check(r#"{"number": "a canary at line 5 of the story"}"#, number);
        check(r#"{"number": "canaries, expected by all, \" ` at line 7 column 3"}"#, number);
        check(
            r#"{"number": 1, "word": "canary at line 1"}"#,
            "`word`: unknown variant, expected `fox` or `crow`.",
        );
        check(r#"{"number": 1}"#, "The body is not what is wanted: missing field `word`.");
    }
}
