//! Calling the functions through PostgREST, with the user's own access token: what Supabase offers everybody.
//!
//! The relay holds no key but the publishable one, which opens nothing that every visitor of the app may not open.

use std::time::Duration;

use async_trait::async_trait;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use reqwest::Response;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::Url;

use super::{Fault, Functions};
use crate::auth::Principal;
use crate::error::{Error, with_causes};

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a call may take. Supabase ends statements of users after 8 s, and PostgREST waits 10 s for a connection of
/// its own, so whoever is there has answered by then.
const CALL_TIMEOUT: Duration = Duration::from_secs(11);

/// The longest answer, in bytes: more than the longest story that is read in whole, in JSON.
const ANSWER_LEN_MAX: usize = 200 << 20;

/// The wait before a token is tried again that PostgREST takes for one of the future. Supabase's gateway had its clock
/// ahead of PostgREST's now and then (PostgREST#5159).
const CLOCK_WAIT: Duration = Duration::from_secs(1);

/// The longest wait that is believed and passed on.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60 * 60);

/// How long an idle connection is kept: below what gateways keep, so that none is used that they have closed.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// The functions of a database behind PostgREST.
#[derive(Debug)]
pub struct PostgrestFunctions {
    client: reqwest::Client,
    rpc_url: String,
    key: Option<SecretString>,
}

/// What PostgREST says of an error. Version 16 may leave all but these out.
#[derive(Debug, Deserialize)]
struct WireError {
    code: String,
    #[serde(default)]
    message: String,
}

impl PostgrestFunctions {
    /// Calls at `rest_url` (`<SUPABASE_URL>/rest/v1`), with the publishable key where there is a gateway that asks for it.
    ///
    /// # Errors
    /// Internal, if no TLS client can be made.
    pub fn new(rest_url: &Url, key: Option<SecretString>) -> Result<Self, Error> {
        let client = reqwest::Client::builder()
            .user_agent(concat!("storytellr-relay/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .build()
            .map_err(Error::internal)?;
        let rpc_url = format!("{}/rpc/", rest_url.as_str().trim_end_matches('/'));
        Ok(Self { client, rpc_url, key })
    }

    fn headers(&self, caller: Option<&Principal>) -> Result<HeaderMap, Fault> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(key) = &self.key {
            headers.insert("apikey", secret_header(key.expose_secret())?);
        }
        // A legacy key is a token for PostgREST too; a publishable one is for the gateway alone.
        let legacy_key =
            self.key.as_ref().map(ExposeSecret::expose_secret).filter(|key| key.starts_with("eyJ"));
        let token = caller.map(|caller| caller.token().expose_secret()).or(legacy_key);
        if let Some(token) = token {
            headers.insert(header::AUTHORIZATION, secret_header(&format!("Bearer {token}"))?);
        }
        Ok(headers)
    }
}

fn secret_header(value: &str) -> Result<HeaderValue, Fault> {
    let mut value = HeaderValue::from_str(value)
        .map_err(|_| Fault::Broken("the publishable key is no header's value".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

#[async_trait]
impl Functions for PostgrestFunctions {
    async fn call(
        &self,
        caller: Option<&Principal>,
        function: &'static str,
        arguments: &SecretString,
    ) -> Result<Vec<u8>, Fault> {
        let request = self
            .client
            .post(format!("{}{function}", self.rpc_url))
            .headers(self.headers(caller)?)
            .body(arguments.expose_secret().to_owned());
        let response = request.send().await.map_err(|error| {
            // Without a connection nothing was sent.
            let is_connect = error.is_connect();
            let told = with_causes(&error.without_url());
            if is_connect { Fault::NotDone(told, None) } else { Fault::Unknown(told) }
        })?;
        let (status, retry_after) = (response.status(), retry_after(response.headers()));
        let body = read(response).await?;
        match status {
            StatusCode::OK => Ok(body),
            // A function that returns null.
            StatusCode::NO_CONTENT => Ok(b"null".to_vec()),
            _ => Err(fault(status, retry_after, &body)),
        }
    }
}

async fn read(mut response: Response) -> Result<Vec<u8>, Fault> {
    let mut body = Vec::new();
    // An answer that breaks off leaves open whether the transaction was committed; it was if the status says so.
    while let Some(bytes) =
        response.chunk().await.map_err(|error| Fault::Unknown(with_causes(&error.without_url())))?
    {
        if body.len() + bytes.len() > ANSWER_LEN_MAX {
            return Err(Fault::Broken(format!("an answer of more than {ANSWER_LEN_MAX} bytes")));
        }
        body.extend_from_slice(&bytes);
    }
    Ok(body)
}

/// What an answer means that is no success. Codes and statuses are those of PostgREST's documentation, "Errors"; a gateway
/// before it may answer with anything.
fn fault(status: StatusCode, retry_after: Option<Duration>, body: &[u8]) -> Fault {
    let Ok(WireError { code, message }) = serde_json::from_slice(body) else {
        let told = format!("status {status} without an error of PostgREST's");
        return match status {
            StatusCode::TOO_MANY_REQUESTS => Fault::NotDone(told, retry_after),
            // Even a 503 may come from a gateway that lost the answer.
            _ if status.is_server_error() => Fault::Unknown(told),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Fault::Broken(format!("{told}. Is SUPABASE_PUBLISHABLE_KEY the project's?"))
            }
            _ => Fault::Broken(format!("{told}. Is SUPABASE_URL the project's?")),
        };
    };
    let told = format!("{code}: {message}");
    match code.as_str() {
        // No connection to the database, or none in time; PostgREST has not begun.
        "PGRST000" | "PGRST002" | "PGRST003" => Fault::NotDone(told, retry_after),
        // The connection was lost under the call.
        "PGRST001" => Fault::Unknown(told),
        "PGRST303" if message.contains("issued at future") => {
            Fault::NotDone(told, Some(CLOCK_WAIT))
        }
        "PGRST301" | "PGRST302" | "PGRST303" => Fault::TokenRefused(told),
        "PGRST106" | "PGRST202" | "PGRST205" => Fault::Broken(format!(
            "{told}. Apply the migrations: `supabase db push`, or `storytellr-relay migrate`."
        )),
        _ if code.starts_with("PGRST") => {
            if status.is_server_error() {
                Fault::Unknown(told)
            } else {
                Fault::Broken(told)
            }
        }
        sqlstate => Fault::of_sqlstate(sqlstate, &message),
    }
}

/// In seconds; as a date it is of no use here, where only short waits are worth it.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}
