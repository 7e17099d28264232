//! What `dev` brings along so that nothing has to be set: a secret of its own, a user, and what to paste next.

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use crate::auth::{Issuers, SharedSecret, sign};
use crate::config::{Config, Data};
use crate::error::{Code, Error};

/// The user that `token` speaks for unless told otherwise: always the same, so that stories are found again.
pub const USER: Uuid = Uuid::from_u128(0x0000_0000_0000_4000_8000_0000_0000_0001);

/// Who signs in place of Supabase Auth where no issuer is configured.
const ISSUER: &str = "http://127.0.0.1/auth/v1";

/// The file of the secret in the data folder.
const SECRET_FILE: &str = "jwt-secret";

/// How long the token that is printed at the start is valid.
const PRINTED_TOKEN_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Sets the secret that access tokens are signed with, if none is set: the one in the data folder, which is made at
/// the first start, readable by its owner alone.
///
/// # Errors
/// If it can neither be read nor made.
pub fn ensure_secret(config: &mut Config) -> Result<SharedSecret, Error> {
    let secret = match (&config.auth.shared_secret, &config.data) {
        (Some(secret), _) => secret.clone(),
        (None, Data::Folder(folder)) => kept_secret(folder)?,
        (None, Data::Memory) => new_secret()?.1,
    };
    config.auth.shared_secret = Some(secret.clone());
    Ok(secret)
}

fn kept_secret(folder: &Path) -> Result<SharedSecret, Error> {
    let path = folder.join(SECRET_FILE);
    let cannot = |what: &str, error: std::io::Error| {
        Error::new(
            Code::Internal,
            format!(
                "cannot {what} {}: {error}. Set RELAY_DATA to a folder that the relay can write.",
                path.display()
            ),
        )
    };
    fs::create_dir_all(folder).map_err(|error| cannot("make the folder of", error))?;
    let (text, secret) = new_secret()?;
    // Made only if it is not there: two starts at once must agree.
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(mut file) => {
            file.write_all(text.as_bytes())
                .and_then(|()| file.sync_all())
                .map_err(|error| cannot("write", error))?;
            Ok(secret)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let text = fs::read_to_string(&path).map_err(|error| cannot("read", error))?;
            SharedSecret::new(text.trim()).ok_or_else(|| {
                Error::new(
                    Code::Internal,
                    format!(
                        "{} holds no secret. Remove it, and a new one is made.",
                        path.display()
                    ),
                )
            })
        }
        Err(error) => Err(cannot("make", error)),
    }
}

/// A secret that nobody knows, as text and as secret.
fn new_secret() -> Result<(String, SharedSecret), Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(Error::internal)?;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let secret =
        SharedSecret::new(&text).ok_or_else(|| Error::internal("a new secret is too short"))?;
    Ok((text, secret))
}

/// An access token like those of Supabase Auth.
///
/// # Errors
/// Internal, if it cannot be signed.
pub fn token(
    config: &Config,
    secret: &SharedSecret,
    user: Uuid,
    is_anonymous: bool,
    times: (Timestamp, Duration),
) -> Result<String, Error> {
    let (now, time) = times;
    let iss = match &config.auth.issuers {
        Issuers::Only(issuers) => issuers.first().cloned(),
        Issuers::Any => None,
    };
    let expires_at = now.saturating_add(time).map_err(Error::internal)?;
    let claims = json!({
        "iss": iss.unwrap_or_else(|| ISSUER.to_owned()),
        "sub": user,
        "aud": "authenticated",
        "role": "authenticated",
        "iat": now.as_second(),
        "exp": expires_at.as_second(),
        "is_anonymous": is_anonymous,
    });
    sign(secret, &claims)
}

/// What to paste next: it works as it is, in any POSIX shell with curl.
///
/// # Errors
/// Internal, if no token can be signed.
pub fn welcome(
    config: &Config,
    secret: &SharedSecret,
    address: SocketAddr,
    now: Timestamp,
) -> Result<String, Error> {
    let token = token(config, secret, USER, false, (now, PRINTED_TOKEN_TIME))?;
    let data = match &config.data {
        Data::Folder(folder) => format!("keeps its data in {}", folder.display()),
        Data::Memory => "keeps nothing: RELAY_DATA is memory".to_owned(),
    };
    Ok(format!(
        r#"
Storytellr Relay listens on http://{address} and {data}.
Paste into another terminal:

  RELAY=http://{address}
  TOKEN={token}
  auth="Authorization: Bearer $TOKEN"

  # a new story, and its first page
  STORY=$(curl -s $RELAY/v1/conversations -H "$auth" -d '{{"title": "The lighthouse"}}' | sed -E 's/^\{{"id":([0-9]+).*/\1/')
  curl -N $RELAY/v1/stream -H "$auth" -d '{{"conversation_id": '$STORY', "input": "Tell me of the lighthouse."}}'

  # the page told another way
  HEAD=$(curl -s $RELAY/v1/conversations/$STORY -H "$auth" | sed -E 's/.*"head_id":([0-9]+).*/\1/')
  curl -N $RELAY/v1/reroll -H "$auth" -d '{{"message_id": '$HEAD', "guidance": "darker, and shorter"}}'

  # the whole story, with both tellings; it is still there after a restart
  curl -s $RELAY/v1/conversations/$STORY -H "$auth"

The `demo` provider needs no key. With one in the environment (DEEPSEEK_API_KEY=... and so on), make a bot of it:

  curl -s $RELAY/v1/bots -H "$auth" -d '{{"name": "Narrator", "provider": "deepseek", "model": "deepseek-chat", "is_default": true}}'

"#
    ))
}
